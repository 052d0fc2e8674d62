package store

import (
	"context"

	"github.com/keeptrusts/gateway/budget"
)

// Leases takes one call of a gateway. budget.ErrClosed: its session is closed.
func (s *Store) Leases(ctx context.Context, org, gateway string, c *budget.Call) (*budget.Answer, []budget.Recall, error) {
	return nil, nil, errNotYet
}
