package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

const (
	silentAfter = 10 * time.Second       // a session unheard for longer is silent: a label, no more
	goneAfter   = 500 * time.Millisecond // how long holders may take to give idle money back
	lastSecond  = time.Second            // of a window, in which the next may be leased

	maxAmount = math.MaxInt64
	never     = math.MaxInt64 // the end of a window that has none, in microseconds
)

// span is a window of a budget, in microseconds.
type span struct {
	kind         budget.Window
	name         string
	starts, ends int64 // 0 and never for the total
}

func spanAt(kind budget.Window, t time.Time) span {
	start, end := kind.At(t)
	w := span{kind: kind, name: kind.Name(start), ends: never}
	if !end.IsZero() {
		w.starts, w.ends = micros(start), micros(end)
	}
	return w
}

// next is the window after w; the total's is itself.
func (w span) next() span {
	if w.ends == never {
		return w
	}
	return spanAt(w.kind, timeOf(w.ends))
}

// place is where a counter stands within an org.
type place struct{ budget, window string }

// counter is the money of one budget and window: taken is the sum over all its
// leases of granted - returned + overrun.
type counter struct {
	place
	lim, taken, overrun int64
	phase, phaseAt      int64 // odd: short
	unmet               int64
	starts, ends        int64
	told, toldAt        int64 // the turn that had all told of it, and when

	own lease // of the session for which it was read

	isNew, changed bool
	turned         bool // the phase did
	lacked         bool // a need was not met by it just now
	rest           *others
	restPhase      int64 // at which rest was read
}

// lease is a session's part of a counter. Between calls of honest gateways
// returned + spent + held never pass granted; another's words can't make it so,
// which is why no sum over leases passes what was taken.
type lease struct {
	granted, returned, spent, overrun, held, seen, acked int64

	exists, isNew, changed bool
}

func (l *lease) out() int64 { return l.granted - l.returned }

// others are sums over the leases of a counter but one session's.
type others struct {
	live    int64 // leases of sessions that are open and not silent
	settled int64 // spent and overrun; of silent ones all that is out
	held    int64 // of sessions that are open and not silent
	unacked int64 // live leases with money out that have not acknowledged the phase
}

func newCounter(p place, w span, limit int64) *counter {
	return &counter{place: p, lim: limit, starts: w.starts, ends: w.ends, isNew: true, changed: true}
}

func (c *counter) odd() bool { return c.phase%2 == 1 }

func (c *counter) left() int64 { return max(0, c.lim-c.taken) }

func (c *counter) bears(amount int64) bool {
	return c.taken <= c.lim && amount <= c.lim-c.taken && amount <= maxAmount-c.own.granted
}

// grant takes an amount that the counter bears off it.
func (c *counter) grant(amount int64) {
	if amount == 0 {
		return
	}
	if !c.own.exists {
		// Who comes when it is short knows it from the answer.
		c.own = lease{acked: c.phase, exists: true, isNew: true}
	}
	c.own.granted += amount
	c.taken += amount
	c.changed, c.own.changed = true, true
}

// lack notes a need that was not met.
func (c *counter) lack(amount int64, now time.Time) {
	if !c.odd() {
		c.turn(now)
	}
	c.unmet = max(c.unmet, amount)
	c.lacked, c.changed = true, true
}

func (c *counter) turn(now time.Time) {
	c.phase++
	c.phaseAt, c.unmet = micros(now), 0
	c.turned, c.changed = true, true
}

// ease ends a shortage once there is enough again: for twice the need that was not met,
// but a need that takes more than half of the limit would leave it short for ever.
func (c *counter) ease(now time.Time) {
	enough := max(1, c.lim/10, min(2*min(c.unmet, maxAmount/2), c.lim-c.lim/10))
	if c.odd() && c.left() >= enough {
		c.turn(now)
	}
}

// limited adds to the limit what it was raised by.
func (c *counter) limited(more int64, now time.Time) {
	if more > 0 {
		c.lim += min(more, maxAmount-c.lim)
	} else {
		c.lim = max(0, c.lim+more)
	}
	c.changed = true
	if more > 0 && c.odd() && c.left() > 0 || c.taken > c.lim && !c.odd() {
		c.turn(now)
	}
}

// returns, spends and overran take totals of the own lease as they are told: an
// older one changes nothing, and none moves more than there is.
func (c *counter) returns(total int64) {
	l := &c.own
	if d := min(total, l.granted-l.spent) - l.returned; d > 0 {
		l.returned += d
		c.taken -= d
		c.changed, l.changed = true, true
	}
}

func (c *counter) spends(total int64) {
	l := &c.own
	if total = min(total, l.out()); total > l.spent {
		l.spent, l.changed = total, true
	}
}

func (c *counter) overran(total int64) {
	l := &c.own
	if d := min(total-l.overrun, maxAmount-c.taken, maxAmount-c.overrun); d > 0 {
		l.overrun += d
		c.overrun += d
		c.taken += d
		c.changed, l.changed = true, true
	}
}

// tell takes a gateway's facts of its lease. What is held falls, too: only the
// newest call says it.
func (c *counter) tell(f *budget.Lease, newest bool) {
	c.returns(f.Returned)
	c.spends(f.Spent)
	c.overran(f.Overrun)
	l := &c.own
	before := *l
	l.seen = max(l.seen, min(f.Granted, l.granted))
	l.acked = max(l.acked, min(f.Phase, c.phase))
	held := l.held
	if newest {
		held = f.Held
	}
	l.held = max(0, min(held, l.out()-l.spent))
	l.changed = l.changed || *l != before
}

// close charges what the own lease may have spent and takes the rest back. Again it
// changes nothing.
func (c *counter) close(mark, overrun int64, lost bool) {
	l := &c.own
	charge := min(max(l.spent, mark), l.out())
	if lost {
		charge = l.out()
	}
	c.overran(overrun)
	c.returns(l.granted - charge)
	c.spends(charge)
	if l.held != 0 {
		l.held, l.changed = 0, true
	}
}

func (c *counter) recall() budget.Recall {
	return budget.Recall{Budget: c.budget, Window: c.window, Phase: c.phase}
}

// info is the counter and its own lease as a gateway is told them. c.rest is read.
func (c *counter) info(now time.Time) budget.LeaseInfo {
	l := &c.own
	at := micros(now)
	unacked := c.rest.unacked > 0 || l.out() > 0 && l.acked < c.phase
	short := at - c.phaseAt
	if short < 0 {
		short = -short // the clock was set back: nobody is to wait for it
	}
	info := budget.LeaseInfo{
		Budget: c.budget, Window: c.window,
		Granted: l.granted, Returned: l.returned, Spent: l.spent, Overrun: l.overrun,
		Phase: c.phase, Limit: c.lim, Left: c.left(),
		Settled: c.rest.settled + l.spent + l.overrun,
		Gone:    c.odd() && (!unacked || short > goneAfter.Microseconds()),
		// Late to start and early to end, by less than a millisecond.
		StartsInMS: -floorDiv(at-c.starts, 1000),
		EndsInMS:   floorDiv(c.ends-at, 1000),
	}
	if c.ends == never {
		info.StartsInMS, info.EndsInMS = 0, math.MaxInt64/2
	}
	return info
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 && a < 0 {
		q--
	}
	return q
}

const (
	selectCounter = `SELECT c.lim, c.taken, c.overrun, c.phase, c.phase_at, c.unmet, c.starts_at, c.ends_at, c.told, c.told_at,
		l.granted, l.returned, l.spent, l.overrun, l.held, l.seen, l.acked
		FROM counters c LEFT JOIN leases l
		ON l.org_id = c.org_id AND l.budget = c.budget AND l.win = c.win AND l.session = $4
		WHERE c.org_id = $1 AND c.budget = $2 AND c.win = $3`
	// A lease without a session is closed: it is that of session ''.
	selectOthers = `SELECT
		COALESCE(SUM(CASE WHEN s.closed_at IS NULL AND s.last_seen >= $5 THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(l.overrun + CASE WHEN s.closed_at IS NULL AND s.last_seen < $5 THEN l.granted - l.returned ELSE l.spent END), 0),
		COALESCE(SUM(CASE WHEN s.closed_at IS NULL AND s.last_seen >= $5 THEN l.held ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN s.closed_at IS NULL AND s.last_seen >= $5
			AND l.granted > l.returned AND l.acked < $6 THEN 1 ELSE 0 END), 0)
		FROM leases l LEFT JOIN sessions s ON s.org_id = l.org_id AND s.session = l.session
		WHERE l.org_id = $1 AND l.budget = $2 AND l.win = $3 AND l.session <> $4`
	insertCounter = `INSERT INTO counters (org_id, budget, win, lim, taken, overrun, phase, phase_at, unmet, told, told_at, starts_at, ends_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`
	updateCounter = `UPDATE counters SET lim = $4, taken = $5, overrun = $6, phase = $7, phase_at = $8, unmet = $9,
		told = $10, told_at = $11
		WHERE org_id = $1 AND budget = $2 AND win = $3`
	insertLease = `INSERT INTO leases (org_id, budget, win, session, granted, returned, spent, overrun, held, seen, acked)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
	updateLease = `UPDATE leases SET granted = $5, returned = $6, spent = $7, overrun = $8, held = $9, seen = $10, acked = $11
		WHERE org_id = $1 AND budget = $2 AND win = $3 AND session = $4`
)

func scanCounter(row *sql.Row, p place) (*counter, error) {
	c := &counter{place: p}
	var own [7]sql.NullInt64
	err := row.Scan(&c.lim, &c.taken, &c.overrun, &c.phase, &c.phaseAt, &c.unmet, &c.starts, &c.ends, &c.told, &c.toldAt,
		&own[0], &own[1], &own[2], &own[3], &own[4], &own[5], &own[6])
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read counter %s of %s: %w", p.window, p.budget, err)
	}
	c.own = lease{own[0].Int64, own[1].Int64, own[2].Int64, own[3].Int64, own[4].Int64, own[5].Int64, own[6].Int64, own[0].Valid, false, false}
	return c, nil
}

// counter reads a counter and a session's lease on it; nil where there is none.
func (t *Tx) counter(ctx context.Context, org string, p place, session string) (*counter, error) {
	return scanCounter(t.row(ctx, selectCounter, org, p.budget, p.window, session), p)
}

// others sums the leases of a counter but the session's.
func (t *Tx) others(ctx context.Context, org string, c *counter, session string) (*others, error) {
	return scanOthers(t.row(ctx, selectOthers, org, c.budget, c.window, session, micros(t.now.Add(-silentAfter)), c.phase), c)
}

func scanOthers(row *sql.Row, c *counter) (*others, error) {
	var o others
	if err := row.Scan(&o.live, &o.settled, &o.held, &o.unacked); err != nil {
		return nil, fmt.Errorf("sum leases on %s of %s: %w", c.window, c.budget, err)
	}
	return &o, nil
}

// keep writes what changed of a counter and of the session's lease on it.
func (t *Tx) keep(ctx context.Context, org string, c *counter, session string) error {
	var err error
	switch {
	case c.isNew:
		_, err = t.exec(ctx, insertCounter, org, c.budget, c.window, c.lim, c.taken, c.overrun, c.phase, c.phaseAt, c.unmet, c.told, c.toldAt,
			c.starts, c.ends)
	case c.changed:
		_, err = t.exec(ctx, updateCounter, org, c.budget, c.window, c.lim, c.taken, c.overrun, c.phase, c.phaseAt, c.unmet, c.told, c.toldAt)
	}
	l := &c.own
	if err == nil && l.changed {
		q := updateLease
		if l.isNew {
			q = insertLease
		}
		_, err = t.exec(ctx, q, org, c.budget, c.window, session, l.granted, l.returned, l.spent, l.overrun, l.held, l.seen, l.acked)
	}
	if err != nil {
		return fmt.Errorf("write counter %s of %s: %w", c.window, c.budget, err)
	}
	c.isNew, c.changed, l.isNew, l.changed = false, false, false, false
	return nil
}
