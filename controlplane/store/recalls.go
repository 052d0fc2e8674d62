package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// recallEvery is how often at most a counter is told of again while needs stay unmet
// and its holders have not acknowledged the phase, whoever asks through which process.
const recallEvery = 100 * time.Millisecond

// Pulse is how far a database has come, as every process over it reads it.
type Pulse struct {
	Revision int64 // of the last change
	Turn     int64 // of the last transaction that moved money; always 0 where the database is not Shared
}

// Shared says whether several processes may serve the database. There, recalls are
// told by Recalls to all of them, and those that a call returns need not be pushed.
func (s *Store) Shared() bool { return s.turns }

// Pulse reads how far the database has come.
func (s *Store) Pulse(ctx context.Context) (p Pulse, err error) {
	if !s.turns {
		p.Revision, err = s.Head(ctx)
		return p, err
	}
	if err := s.read.QueryRowContext(ctx, `SELECT revision, (SELECT taken FROM turns WHERE name = 'leases') FROM head`).
		Scan(&p.Revision, &p.Turn); err != nil {
		return Pulse{}, fmt.Errorf("read head: %w", err)
	}
	return p, nil
}

// Recalls tells what the turns after one and up to another want told to the watches
// of an org, in their order; of several about one counter only the last. Turns are
// taken under one lock, so that none comes up later among those that were told.
func (s *Store) Recalls(ctx context.Context, after, upTo int64, told func(org string, r budget.Recall)) (err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT org_id, budget, win, phase FROM counters
		WHERE told > 0 AND told > $1 AND told <= $2 ORDER BY told`, after, upTo)
	if err != nil {
		return fmt.Errorf("read recalls: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var org string
		var r budget.Recall
		if err := rows.Scan(&org, &r.Budget, &r.Window, &r.Phase); err != nil {
			return fmt.Errorf("read recalls: %w", err)
		}
		told(org, r)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read recalls: %w", err)
	}
	return nil
}

// announce has all who watch told of a counter; keep writes it.
func (t *Tx) announce(c *counter) budget.Recall {
	c.told, c.toldAt, c.changed = t.taken, micros(t.now), true
	t.told = true
	return c.recall()
}

// tellAgain says whether a need that is still not met is reason to tell again.
func (c *counter) tellAgain(now time.Time) bool {
	passed := micros(now) - c.toldAt
	return passed < 0 || passed >= recallEvery.Microseconds() // the clock may have been set back
}
