package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	endedStay   = 24 * time.Hour      // the fence for late messages: ended windows, closed sessions
	silentStay  = 35 * 24 * time.Hour // sessions that hold nothing and were never closed
	settledStay = 35 * 24 * time.Hour
	cleanEvery  = time.Minute
	cleanAgain  = time.Second // where there was more than one turn takes
	cleanAtOnce = 64
	forgetRatio = 2 // old settlements that go for each new one
)

// sweeping is when the next turn of cleaning is due, in microseconds; 0: at once.
type sweeping struct{ next atomic.Int64 }

// clean forgets, a few at a time, what is kept only as a fence. Whoever comes when
// it is due does it; a failure is tried again at the next turn.
func (s *Store) clean(ctx context.Context) {
	now := micros(s.clock())
	due := s.swept.next.Load()
	// A clock that was set back must not end it.
	if now < due && due-now <= cleanEvery.Microseconds() || !s.swept.next.CompareAndSwap(due, now+cleanEvery.Microseconds()) {
		return
	}
	var more bool
	err := s.beside(ctx, func(ctx context.Context, t *Tx) error {
		windows, err := t.cleanWindows(ctx)
		if err != nil {
			return err
		}
		sessions, err := t.cleanSessions(ctx)
		more = windows || sessions
		return err
	})
	if err == nil && more {
		s.swept.next.Store(now + cleanAgain.Microseconds())
	}
}

// cleanWindows forgets windows that have ended long ago, and says whether there may be more.
func (t *Tx) cleanWindows(ctx context.Context) (more bool, err error) {
	before := micros(t.now.Add(-endedStay))
	const ended = `(SELECT org_id, budget, win FROM counters WHERE ends_at < $1 ORDER BY ends_at, org_id, budget, win LIMIT $2)`
	if _, err := t.exec(ctx, `DELETE FROM leases WHERE (org_id, budget, win) IN `+ended, before, cleanAtOnce); err != nil {
		return false, fmt.Errorf("forget leases: %w", err)
	}
	n, err := t.exec(ctx, `DELETE FROM counters WHERE (org_id, budget, win) IN `+ended, before, cleanAtOnce)
	if err != nil {
		return false, fmt.Errorf("forget counters: %w", err)
	}
	m, err := t.exec(ctx, `DELETE FROM charges WHERE (org_id, budget, win) IN
		(SELECT org_id, budget, win FROM charges WHERE ends_at < $1 LIMIT $2)`, before, cleanAtOnce)
	if err != nil {
		return false, fmt.Errorf("forget charges: %w", err)
	}
	return n == cleanAtOnce || m == cleanAtOnce, nil
}

type closedSession struct{ org, session string }

// cleanSessions forgets sessions that were closed long ago. What they were charged
// in windows that are still open stays, under no session.
func (t *Tx) cleanSessions(ctx context.Context) (more bool, err error) {
	list, err := t.closedSessions(ctx)
	if err != nil {
		return false, err
	}
	left := cleanAtOnce
	for _, s := range list {
		v := visit{Tx: t, org: s.org}
		places, err := v.places(ctx, selectLeases, s.org, s.session, "", "", left)
		if err != nil {
			return false, err
		}
		for _, p := range places {
			if err := t.bury(ctx, s, p); err != nil {
				return false, err
			}
		}
		if left -= len(places); left <= 0 {
			return true, nil // the rest of this session's, and the session, at the next turn
		}
		if _, err := t.exec(ctx, `DELETE FROM sessions WHERE org_id = $1 AND session = $2`, s.org, s.session); err != nil {
			return false, fmt.Errorf("forget session: %w", err)
		}
	}
	n, err := t.exec(ctx, `DELETE FROM sessions WHERE closed_at IS NULL AND last_seen < $1
		AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.org_id = sessions.org_id AND l.session = sessions.session)`,
		micros(t.now.Add(-silentStay)))
	if err != nil {
		return false, fmt.Errorf("forget sessions: %w", err)
	}
	return len(list) == cleanAtOnce || n == cleanAtOnce, nil
}

func (t *Tx) closedSessions(ctx context.Context) (list []closedSession, err error) {
	rows, err := t.query(ctx, `SELECT org_id, session FROM sessions WHERE closed_at < $1 ORDER BY closed_at LIMIT $2`,
		micros(t.now.Add(-endedStay)), cleanAtOnce)
	if err != nil {
		return nil, fmt.Errorf("list closed sessions: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var s closedSession
		if err := rows.Scan(&s.org, &s.session); err != nil {
			return nil, fmt.Errorf("list closed sessions: %w", err)
		}
		list = append(list, s)
	}
	return list, rows.Err()
}

// bury moves what a closed session was charged to the lease of no session.
func (t *Tx) bury(ctx context.Context, s closedSession, p place) error {
	dead, err := t.counter(ctx, s.org, p, s.session)
	if err != nil {
		return err
	}
	if _, err := t.exec(ctx, `DELETE FROM leases WHERE org_id = $1 AND budget = $2 AND win = $3 AND session = $4`,
		s.org, p.budget, p.window, s.session); err != nil {
		return fmt.Errorf("forget lease: %w", err)
	}
	if dead == nil {
		return nil
	}
	grave, err := t.counter(ctx, s.org, p, "")
	if err != nil {
		return err
	}
	l := &grave.own
	l.isNew, l.exists, l.changed = !l.exists, true, true
	l.granted += dead.own.out()
	l.spent += dead.own.spent
	l.overrun += dead.own.overrun
	l.seen = l.granted
	return t.keep(ctx, s.org, grave, "")
}
