package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// budgetAnswer is a budget and where its current window stands. Amounts are decimals
// in its unit. Limit and what was topped up is settled, held, leased and left, but
// for usage that went beyond its hold.
type budgetAnswer struct {
	ID        string            `json:"id"`
	OrgID     string            `json:"org_id"`
	Unit      budget.Unit       `json:"unit"`
	Window    budget.Window     `json:"window"`
	Limit     string            `json:"limit"`
	Mode      budget.Mode       `json:"mode"`
	AppliesTo *budget.AppliesTo `json:"applies_to"` // null: only tokens that name it

	ToppedUp     string     `json:"topped_up"` // beside Limit, in this window alone
	Settled      string     `json:"settled"`
	Held         string     `json:"held"`
	Leased       string     `json:"leased"`
	Left         string     `json:"left"`
	Overrun      string     `json:"overrun"`      // the part of Settled beyond its holds
	Unattributed string     `json:"unattributed"` // the part of Settled that no request told of
	Unpriced     int64      `json:"unpriced"`     // requests that count 0, for want of a price
	ReopensAt    *time.Time `json:"reopens_at"`   // null: never

	Revision  int64     `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
}

func budgetOf(b *store.Budget, at store.Standing) budgetAnswer {
	text := b.Unit.Format
	a := budgetAnswer{
		ID: b.ID, OrgID: b.OrgID, Unit: b.Unit, Window: b.Window, Limit: text(b.Limit), Mode: b.Mode,
		ToppedUp: text(max(at.Limit-b.Limit, 0)), Settled: text(at.Settled), Held: text(at.Held), Leased: text(at.Leased), Left: text(at.Left),
		Overrun: text(at.Overrun), Unattributed: text(at.Unattributed), Unpriced: at.Unpriced, ReopensAt: at.ReopensAt,
		Revision: b.Revision, CreatedAt: b.CreatedAt,
	}
	if b.AppliesTo != (budget.AppliesTo{}) {
		a.AppliesTo = &b.AppliesTo
	}
	return a
}

func (s *Server) listBudgets(c *call) (int, any, error) {
	q, err := query(c, "org_id", "token_id", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	if id := q.get("token_id"); id != "" {
		return s.listBudgetsOf(c, q, id)
	}
	org, after := orgOr(q.get("org_id")), q.get("cursor")
	if after != "" && !abac.ValidID(after) {
		return 0, nil, errCursor
	}
	list, err := s.store.Budgets(c.r.Context(), org, after, q.limit+1)
	if err != nil {
		return 0, nil, err
	}
	list, next := cut(list, q.limit, func(b store.Budget) string { return b.ID })
	data, err := s.standings(c.r.Context(), org, list)
	return http.StatusOK, page{data, next}, err
}

// listBudgetsOf lists what a token's calls are charged to, in one page.
func (s *Server) listBudgetsOf(c *call, q params, id string) (int, any, error) {
	t, err := s.store.Token(c.r.Context(), id)
	if err == nil && q.get("org_id") != "" && q.get("org_id") != t.Profile.OrgID {
		err = store.ErrNotFound
	}
	if err != nil {
		return 0, nil, err
	}
	data, err := s.budgetsOf(c.r.Context(), &t.Profile)
	return http.StatusOK, page{data, nil}, err
}

// standings joins budgets of one org with where they stand.
func (s *Server) standings(ctx context.Context, org string, list []store.Budget) ([]budgetAnswer, error) {
	data := make([]budgetAnswer, len(list))
	if len(list) == 0 {
		return data, nil
	}
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	at, err := s.store.Standing(ctx, org, ids...)
	if err != nil {
		return nil, err
	}
	for i := range list {
		data[i] = budgetOf(&list[i], at[list[i].ID])
	}
	return data, nil
}

func (s *Server) showBudget(c *call) (int, any, error) {
	q, err := query(c, "org_id")
	if err != nil {
		return 0, nil, err
	}
	a, err := s.budgetNow(c.r.Context(), orgOr(q.get("org_id")), c.token)
	return http.StatusOK, a, err
}

func (s *Server) budgetNow(ctx context.Context, org, id string) (budgetAnswer, error) {
	b, err := s.store.Budget(ctx, org, id)
	if err != nil {
		return budgetAnswer{}, noBudget(err)
	}
	list, err := s.standings(ctx, org, []store.Budget{b})
	if err != nil {
		return budgetAnswer{}, err
	}
	return list[0], nil
}

func noBudget(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return refuse("budget_not_found", "There is no budget with this id in the org. PUT makes it.")
	}
	return err
}

func orgOr(org string) string {
	if org == "" {
		return OrgDefault
	}
	return org
}

func (s *Server) putBudget(c *call) (int, any, error) {
	if err := known(c.body, "", "id", "org_id", "unit", "window", "limit", "mode", "applies_to"); err != nil {
		return 0, nil, err
	}
	switch {
	case !abac.ValidID(c.token):
		return 0, nil, refuse("invalid_value", "A budget's id %s.", wantID).at("id")
	case s.holdsToken(c.token):
		return 0, nil, refuse("invalid_value", "The path holds a token's string, which is stored nowhere. Rotate it: URLs are kept in logs.").at("id")
	}
	if id, err := text(c.body, "id"); err != nil {
		return 0, nil, err
	} else if c.body["id"] != nil && id != c.token {
		return 0, nil, refuse("immutable_field", "id is that of the path; it can be left out.").at("id")
	}
	org, err := budgetOrg(c)
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	err = s.change(c.r.Context(), &org, func(tx *store.Tx) ([]budget.Recall, error) {
		before, err := tx.Budget(c.r.Context(), org, c.token)
		absent := errors.Is(err, store.ErrNotFound)
		if err != nil && !absent {
			return nil, err
		}
		next := before
		if absent {
			next = store.Budget{OrgID: org, Record: budget.Record{ID: c.token, Mode: budget.Enforce}}
		}
		if err := readBudget(&next.Record, c.body, absent); err != nil {
			return nil, err
		}
		if absent {
			status = http.StatusCreated
			return s.addBudget(c, tx, next)
		}
		if next.Record == before.Record {
			return nil, nil
		}
		return s.alterBudget(c, tx, before, next)
	})
	if err != nil {
		return 0, nil, err
	}
	a, err := s.budgetNow(c.r.Context(), org, c.token)
	return status, a, err
}

// change makes a change, and pushes what leases must hear of at once. org is that of
// the budgets, read when the change is durable.
func (s *Server) change(ctx context.Context, org *string, f func(*store.Tx) ([]budget.Recall, error)) error {
	var recalls []budget.Recall
	err := s.store.Update(ctx, s.now(), func(tx *store.Tx) (err error) {
		recalls, err = f(tx)
		return err
	})
	if err != nil {
		return err
	}
	s.recall(*org, recalls...)
	return nil
}

func (s *Server) addBudget(c *call, tx *store.Tx, b store.Budget) ([]budget.Recall, error) {
	b.CreatedAt = s.now()
	created, recalls, err := tx.PutBudget(c.r.Context(), &b)
	if err == nil && !created {
		err = fmt.Errorf("budget %s was there after all", b.ID)
	}
	if err != nil {
		return nil, err
	}
	return recalls, tx.Audit(c.r.Context(), store.Entry{
		Actor: c.who.name(), Event: eventBudgetCreated, Subject: b.ID, After: encodeBudget(&b, nil),
	})
}

func (s *Server) alterBudget(c *call, tx *store.Tx, before, next store.Budget) ([]budget.Recall, error) {
	_, recalls, err := tx.PutBudget(c.r.Context(), &next)
	if errors.Is(err, store.ErrConflict) {
		return nil, conflict("Budget %s stands with another unit or window.", next.ID)
	}
	if errors.Is(err, store.ErrTooMuch) {
		return nil, refuse("invalid_value", "limit: with what was topped up it is more than can be counted.").at("limit")
	}
	if err != nil {
		return nil, err
	}
	return recalls, tx.Audit(c.r.Context(), store.Entry{
		Actor: c.who.name(), Event: eventBudgetChanged, Subject: next.ID,
		Before: encodeBudget(&before, nil), After: encodeBudget(&next, nil),
	})
}

// topUp is what a top-up says in the audit log.
type topUp struct {
	Amount string `json:"amount"`
	Key    string `json:"key"`
}

func encodeBudget(b *store.Budget, t *topUp) json.RawMessage {
	v := struct {
		OrgID     string            `json:"org_id"`
		ID        string            `json:"id"`
		Unit      budget.Unit       `json:"unit"`
		Window    budget.Window     `json:"window"`
		Limit     string            `json:"limit"`
		Mode      budget.Mode       `json:"mode"`
		AppliesTo *budget.AppliesTo `json:"applies_to"`
		Revision  int64             `json:"revision"`
		TopUp     *topUp            `json:"top_up,omitempty"`
	}{b.OrgID, b.ID, b.Unit, b.Window, b.Unit.Format(b.Limit), b.Mode, nil, b.Revision, t}
	if b.AppliesTo != (budget.AppliesTo{}) {
		v.AppliesTo = &b.AppliesTo
	}
	raw, err := json.Marshal(v)
	if err != nil {
		panic("BUG: a budget does not encode: " + err.Error())
	}
	return raw
}

func (s *Server) topUpBudget(c *call) (int, any, error) {
	if err := known(c.body, "", "org_id", "amount", "key"); err != nil {
		return 0, nil, err
	}
	org, err := budgetOrg(c)
	if err != nil {
		return 0, nil, err
	}
	key, err := required(c.body, "key")
	if err != nil {
		return 0, nil, err
	}
	if len(key) > abac.MaxIDLen || !plainASCII(key) {
		return 0, nil, refuse("invalid_value", "key must have 1 to %d printable ASCII characters.", abac.MaxIDLen).at("key")
	}
	ctx := c.r.Context()
	err = s.change(ctx, &org, func(tx *store.Tx) ([]budget.Recall, error) {
		before, err := tx.Budget(ctx, org, c.token)
		if err != nil {
			return nil, noBudget(err)
		}
		n, err := amount(c.body, "amount", before.Unit)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, refuse("invalid_value", "amount must be above 0.").at("amount")
		}
		again, recalls, err := tx.TopUp(ctx, org, c.token, n, key)
		switch {
		case errors.Is(err, store.ErrConflict):
			return nil, conflict("Under this key another amount was added to budget %s. A key is for one top-up.", c.token).at("key")
		case errors.Is(err, store.ErrTooMuch):
			return nil, refuse("invalid_value", "amount: with the limit it is more than can be counted.").at("amount")
		case err != nil || again:
			return recalls, err
		}
		after, err := tx.Budget(ctx, org, c.token)
		if err != nil {
			return nil, err
		}
		return recalls, tx.Audit(ctx, store.Entry{
			Actor: c.who.name(), Event: eventBudgetToppedUp, Subject: c.token,
			Before: encodeBudget(&before, nil), After: encodeBudget(&after, &topUp{before.Unit.Format(n), key}),
		})
	})
	if err != nil {
		return 0, nil, err
	}
	a, err := s.budgetNow(ctx, org, c.token)
	return http.StatusOK, a, err
}
