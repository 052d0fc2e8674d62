package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/keeptrusts/gateway/budget"
)

const (
	closeKnown = `UPDATE sessions SET closed_at = $4
		WHERE org_id = $1 AND session = $2 AND gateway_id = $3 AND closed_at IS NULL`
	// Also of a session that was never heard: its first call may still be under way.
	closeNew = `INSERT INTO sessions (org_id, session, gateway_id, seq, last_seen, closed_at)
		VALUES ($1, $2, $3, 0, $4, $4) ON CONFLICT (org_id, session) DO NOTHING`
	selectLeases = `SELECT budget, win FROM leases WHERE org_id = $1 AND session = $2
		AND (budget > $3 OR budget = $3 AND win > $4) ORDER BY budget, win LIMIT $5`
)

// errForeign says that a session is another gateway's.
var errForeign = errors.New("the session is another gateway's")

// closeSession ends a session of this gateway, charges what it may have spent and
// takes the rest back. Again it changes nothing, or ends what was left half done.
func (s *Store) closeSession(ctx context.Context, org, gateway string, c *budget.Closing) (closed bool, recalls []budget.Recall, err error) {
	session := storable(c.Session)
	claims := make(map[place]*budget.ClosedLease, len(c.Leases))
	for i := range c.Leases {
		l := &c.Leases[i]
		if had := claims[place{l.Budget, l.Window}]; had != nil {
			l.Mark, l.Overrun = max(l.Mark, had.Mark), max(l.Overrun, had.Overrun)
		}
		claims[place{l.Budget, l.Window}] = l
	}
	after, done := place{}, false
	for !done {
		var next place
		var told []budget.Recall
		err := s.beside(ctx, func(ctx context.Context, t *Tx) error {
			v := visit{Tx: t, org: org, gateway: gateway, call: &budget.Call{Session: session}, counters: map[place]*counter{}}
			if err := v.shut(ctx); err != nil {
				return err
			}
			part, err := v.places(ctx, selectLeases, org, session, after.budget, after.window, together)
			if err != nil {
				return err
			}
			for _, p := range part {
				if err := v.charge(ctx, p, claims[p], c.Lost); err != nil {
					return err
				}
				next = p
			}
			done = len(part) < together
			err = v.flush(ctx)
			told = v.recalls
			return err
		})
		if errors.Is(err, errForeign) {
			return false, recalls, nil
		}
		if err != nil {
			return false, recalls, err
		}
		after, recalls = next, append(recalls, told...)
	}
	return true, recalls, nil
}

func (v *visit) shut(ctx context.Context) error {
	for _, q := range []string{closeKnown, closeNew} {
		n, err := v.exec(ctx, q, v.org, v.call.Session, v.gateway, micros(v.now))
		if err != nil {
			return fmt.Errorf("close session: %w", err)
		}
		if n == 1 {
			return nil
		}
	}
	// It is closed, or not this gateway's.
	if err := v.check(ctx); !errors.Is(err, budget.ErrClosed) {
		return err
	}
	if v.foreign {
		return errForeign
	}
	return nil
}

// charge ends the session's lease at a place. claim is nil where the journal knows
// nothing of it: nothing was spent.
func (v *visit) charge(ctx context.Context, p place, claim *budget.ClosedLease, lost bool) error {
	c, err := v.find(ctx, p)
	if err != nil || c == nil {
		return err
	}
	var mark, overrun int64
	if claim != nil {
		mark, overrun = claim.Mark, claim.Overrun
	}
	c.close(mark, overrun, lost)
	c.ease(v.now)
	return nil
}
