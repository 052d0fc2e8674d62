package store

import (
	"context"
	"errors"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

var errNotYet = errors.New("not there yet")

// Budget is all that is kept of a budget but what it counted.
type Budget struct {
	OrgID string
	budget.Record
	CreatedAt time.Time
}

// Budget returns the org's budget with this id, or ErrNotFound.
func (s *Store) Budget(ctx context.Context, org, id string) (Budget, error) {
	return Budget{}, errNotYet
}

// Budget returns the budget as the transaction sees it, or ErrNotFound.
func (t *Tx) Budget(ctx context.Context, org, id string) (Budget, error) {
	return Budget{}, errNotYet
}

// Budgets lists budgets of an org, or of all where org is "", by id and org.
func (s *Store) Budgets(ctx context.Context, org, after string, limit int) ([]Budget, error) {
	return nil, errNotYet
}

// BudgetsOf returns the budgets of the org that a token names or that apply to it.
func (s *Store) BudgetsOf(ctx context.Context, org string, ids []string, team string) ([]budget.Record, error) {
	return nil, errNotYet
}

// PutBudget makes or changes a budget.
func (t *Tx) PutBudget(ctx context.Context, b *Budget) (created bool, recalls []budget.Recall, err error) {
	return false, nil, errNotYet
}

// TopUp raises the limit of the open window alone.
func (t *Tx) TopUp(ctx context.Context, org, id string, amount int64, key string) (again bool, recalls []budget.Recall, err error) {
	return false, nil, errNotYet
}
