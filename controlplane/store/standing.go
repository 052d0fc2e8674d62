package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// Standing is what a budget's current window has come to, in the budget's unit.
type Standing struct {
	Settled      int64      // charged for good, what silent sessions hold included
	Held         int64      // reserved by requests under way
	Leased       int64      // in gateways' hands, and idle
	Left         int64      // that no gateway has been given
	Overrun      int64      // the part of Settled that went beyond its holds
	Limit        int64      // with the window's top-ups
	Unattributed int64      // the part of Settled that no settlement told of: crashes, or not told yet
	Unpriced     int64      // requests without a known price, which count 0
	ReopensAt    *time.Time // nil: never
}

// Standing returns where these budgets of an org stand now, by id; those that do
// not exist are left out.
func (s *Store) Standing(ctx context.Context, org string, ids ...string) (map[string]Standing, error) {
	tx, err := s.moment(ctx)
	if err != nil {
		return nil, fmt.Errorf("read standing: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	t := &Tx{tx: tx, now: s.clock()}
	all := make(map[string]Standing, len(ids))
	for _, id := range ids {
		b, err := t.Budget(ctx, org, id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if all[id], err = t.standing(ctx, &b); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (t *Tx) standing(ctx context.Context, b *Budget) (Standing, error) {
	w := spanAt(b.Window, t.now)
	// Of a session that nobody has: all leases are others'.
	c, err := t.counter(ctx, b.OrgID, place{b.ID, w.name}, "-")
	if err != nil {
		return Standing{}, err
	}
	if c == nil {
		c = newCounter(place{b.ID, w.name}, w, b.Limit)
	}
	sums, err := t.others(ctx, b.OrgID, c, "-")
	if err != nil {
		return Standing{}, err
	}
	var told, unpriced int64
	err = t.row(ctx, `SELECT amount, unpriced FROM charges WHERE org_id = $1 AND budget = $2 AND win = $3`, b.OrgID, b.ID, w.name).
		Scan(&told, &unpriced)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Standing{}, fmt.Errorf("read charges: %w", err)
	}
	s := Standing{Limit: c.lim, Unpriced: unpriced}
	if w.ends != never {
		end := timeOf(w.ends)
		s.ReopensAt = &end
	}
	if b.Mode == budget.Observe {
		s.Settled, s.Left = told, max(0, c.lim-told)
		return s, nil
	}
	s.Settled, s.Held, s.Overrun, s.Left = sums.settled, sums.held, c.overrun, c.left()
	s.Leased = max(0, c.taken-s.Settled-s.Held)
	s.Unattributed = max(0, s.Settled-told)
	return s, nil
}
