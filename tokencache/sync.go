package tokencache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// syncedFor is how long a watch counts as in sync after it last told something.
const syncedFor = 3 * time.Second

// watched is what a watch of the control plane vouches for.
type watched struct {
	vouch atomic.Pointer[vouch] // nil: for nothing; read on hits that are not fresh by themselves
	lost  atomic.Bool
	cut   atomic.Bool // the watch's connection ended: a token may have been minted since

	mu     sync.Mutex  // writers
	broken atomic.Bool // nothing may have been missed no more: only the next head makes it so again
	begun  bool        // the run that is there began with a snapshot: the next head goes on with it
}

// vouch is one run of a watch without a gap: of an entry that was asked for from
// since on, it has told every change up to last.
type vouch struct {
	since, last time.Time
	before      *vouch // the run before it; of that one's before nothing is kept
	indexed     bool   // it began with a snapshot: of what was held before, the index says whether it counts
}

// freshEnough says whether e may be used without asking: all that the cache holds while
// a watch is in sync, else what the control plane vouched for within fresh_for.
func (c *Cache) freshEnough(e *Entry, now time.Time) bool {
	v := c.watched.vouch.Load()
	switch {
	case v == nil:
		return now.Sub(e.Vouched) <= c.fresh
	case !e.Vouched.Before(v.since):
		if age := now.Sub(v.last); age < syncedFor || age <= c.fresh {
			return true
		}
		return now.Sub(e.Vouched) <= c.fresh
	case v.indexed:
		return false
	}
	return c.age(e, now) <= c.fresh
}

// age is the time since the control plane last vouched for e: by its own answer, or
// by a watch in sync.
func (c *Cache) age(e *Entry, now time.Time) time.Duration {
	age := now.Sub(e.Vouched)
	for v := c.watched.vouch.Load(); v != nil; v = v.before {
		if !e.Vouched.Before(v.since) {
			return min(age, now.Sub(v.last))
		}
	}
	return age
}

// Synced notes that a watch told, at that time, a head or a later change, and that
// every change up to there has been given to the cache. What was loaded since the
// first such time is fresh while the last one is less than 3 s old.
func (c *Cache) Synced(at time.Time) {
	w := &c.watched
	w.mu.Lock()
	v := w.vouch.Load()
	switch {
	case v == nil || w.broken.Load() && !w.begun:
		w.vouch.Store(&vouch{since: at, last: at, before: v.ended()})
	case at.After(v.last):
		next := *v
		next.last = at
		w.vouch.Store(&next)
	}
	w.begun = false
	w.broken.Store(false)
	w.cut.Store(false)
	w.mu.Unlock()
	if w.lost.CompareAndSwap(true, false) {
		c.answered()
	} else if d, away := c.health.missed(); away {
		c.probe(d, c.now()) // with an index it may be long until somebody asks
	}
}

// ended is the run as the next one's before.
func (v *vouch) ended() *vouch {
	if v == nil {
		return nil
	}
	return &vouch{since: v.since, last: v.last}
}

// indexed begins a run with a snapshot of that time; it is in sync from the next head on.
func (w *watched) indexed(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken.Store(true)
	w.begun = true
	w.vouch.Store(&vouch{since: at, last: at, before: w.vouch.Load().ended(), indexed: true})
}

// Gap notes that a watch may have missed changes: what is held ages from its last
// event on, and the next Synced begins anew.
func (c *Cache) Gap() {
	c.watched.mu.Lock()
	c.watched.broken.Store(true)
	c.watched.begun = false
	c.watched.mu.Unlock()
	c.unknown.clear()
}

// Cut notes that a watch's connection ended. What it told counts on, for as long as its
// last event is young enough; but what the index does not have is asked for.
func (c *Cache) Cut() { c.watched.cut.Store(true) }

// Lost notes that a watch which was tried from began on could not be kept: the
// control plane is away, until an ask is answered or a watch is in sync.
func (c *Cache) Lost(began time.Time) {
	c.watched.lost.Store(true)
	if c.health.failed(token.Digest{}, began, c.now()) {
		c.log.Warn("the watch of the control plane is lost; what is known is served until it is too old")
	}
}

// InSync says whether the watch vouches for what the cache holds.
func (c *Cache) InSync() bool {
	_, in := c.synced(c.now())
	return in
}

// synced returns the run of the watch that there is, nil for none, and whether it is
// in sync.
func (c *Cache) synced(now time.Time) (*vouch, bool) {
	v := c.watched.vouch.Load()
	return v, v != nil && now.Sub(v.last) < syncedFor && !c.watched.broken.Load()
}

// Vouched is when the control plane last vouched, on its watch or with a snapshot, for
// what is held; zero: never.
func (c *Cache) Vouched() time.Time {
	if v := c.watched.vouch.Load(); v != nil {
		return v.last
	}
	return time.Time{}
}

// Revoked says whether e's token has been revoked or quarantined as far as is known
// now: for whoever goes on using an entry that it was handed.
func (c *Cache) Revoked(e *Entry) bool {
	if c.revocations.covers(e) || revoked(e.Policy.Profile().Status) {
		return true
	}
	x := c.index.Load()
	if x == nil {
		return false
	}
	n, ok := x.get(&e.Digest) // a snapshot tells of revocations that no watch told
	return ok && n.stopped() && n.revision > e.Revision
}

// Upsert takes from a watch what a token is now. When it returns, no Get that begins
// returns an older profile, nor that the digest is nobody's. Once a snapshot has come,
// budgets and teams are told on the watch before who needs them, and a profile that the
// cache did not hold is put in where it has room. Before, such a one is left to be
// loaded, as is one whose team or budgets are other than they were: its load brings the
// budgets too.
func (c *Cache) Upsert(d token.Digest, p *abac.Profile) {
	if !c.enter() {
		return
	}
	defer c.loads.Done()

	place := c.placing(&d)
	place.Lock()
	defer place.Unlock()
	c.mu.Lock()
	if f := c.flights[d]; f != nil {
		// Its answer may be of a time before this.
		f.least = max(f.least, p.Revision)
	}
	c.mu.Unlock()
	c.learn(&d, p)
	c.unknown.remove(&d)
	old, all := c.hot.admitted(&d), c.index.Load() != nil
	switch {
	case old == nil && (!all || c.hot.room() == 0):
		c.hot.front.drop(key(&d)) // it may be being evicted, and there yet
	case old != nil && old.ID == p.ID && old.Revision >= p.Revision:
	case all || sameBudgets(old.Policy.Profile(), p):
		c.hot.put(c.current(newEntry(p, d, c.now())).follows(old))
	default:
		c.hot.drop(&d)
	}
}

// sameBudgets says whether b is held to no budget that a was not.
func sameBudgets(a, b *abac.Profile) bool {
	x, y := &a.Bindings, &b.Bindings
	if a.ID != b.ID || (x.TeamID == nil) != (y.TeamID == nil) || x.TeamID != nil && *x.TeamID != *y.TeamID {
		return false
	}
	for i := range y.Budgets {
		known := false
		for j := range x.Budgets {
			known = known || x.Budgets[j].ID == y.Budgets[i].ID
		}
		if !known {
			return false
		}
	}
	return true
}
