package tokencache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

const (
	maxLoads    = 64
	loadTimeout = 5 * time.Second        // a load may be of use after those who waited have left
	firstWait   = 2 * time.Second        // when nothing is known of the token
	staleWait   = 250 * time.Millisecond // when something older may be served
)

// flight is one load under way, however many wait for it.
type flight struct {
	digest token.Digest
	began  time.Time
	least  int64 // revision of the token that a watch told meanwhile; under mu
	done   chan struct{}
	entry  *Entry // after done: this or err
	err    error
}

// ask is Get when the hot set has no answer: e is what it had, nil for nothing.
func (c *Cache) ask(ctx context.Context, d token.Digest, e *Entry, now time.Time) (*Entry, error) {
	e, err := c.consult(&d, e, now)
	switch {
	case err == token.ErrUnknown:
		c.metrics.unknown.Add(1)
		return nil, err
	case err == nil:
		return e, nil
	}
	if c.unknown.has(&d, now) {
		c.metrics.unknown.Add(1)
		return nil, token.ErrUnknown
	}
	if c.health.isAway.Load() {
		c.probe(d, now)
		return c.without(e, &c.metrics.unavailable, ErrUnavailable)
	}
	f, known, err := c.join(d)
	switch {
	case known != nil:
		c.hot.of(&d).hits.Add(1)
		return known, nil
	case err == token.ErrUnknown:
		c.metrics.unknown.Add(1)
		return nil, err
	case err == ErrOverloaded:
		return c.without(e, &c.metrics.refused, err)
	case err != nil:
		return c.without(e, &c.metrics.unavailable, err)
	}
	outcome := &c.metrics.joined
	if f.own {
		outcome = &c.metrics.miss
	}
	limit := firstWait
	if c.fallback(e, now) != nil {
		// Counted from the load's beginning: who comes late has less to hope for.
		limit = staleWait - now.Sub(f.began)
	}
	if err := wait(ctx, f.flight, limit); err != nil {
		return c.without(e, outcome, err)
	}
	switch {
	case f.err == token.ErrUnknown:
		outcome.Add(1)
		return nil, f.err
	case f.err != nil:
		return c.without(e, outcome, f.err)
	}
	outcome.Add(1)
	return c.current(f.entry), nil
}

// wait returns nil when f is done.
func wait(ctx context.Context, f *flight, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	var err error
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	case <-t.C:
		err = ErrUnavailable
	}
	select {
	case <-f.done: // both at once: the answer counts
		return nil
	default:
		return err
	}
}

// without is the end of a Get that got no answer: an older entry while it may be
// served, else err.
func (c *Cache) without(e *Entry, outcome *counter, err error) (*Entry, error) {
	if old := c.fallback(e, c.now()); old != nil {
		c.metrics.stale.Add(1)
		return old, nil
	}
	outcome.Add(1)
	return nil, err
}

// fallback returns what may be served of e without an answer, nil for nothing.
// After a revocation that is a denial, at any age.
func (c *Cache) fallback(e *Entry, now time.Time) *Entry {
	switch {
	case e == nil:
		return nil
	case c.revocations.covers(e):
		return e.denied()
	case revoked(e.Policy.Profile().Status):
		return e
	case c.age(e, now) <= c.stale:
		return e
	}
	return nil
}

// current returns e, as revoked where a revocation came after it: a load may have
// been answered before the revocation and be handed to a Get that began after.
func (c *Cache) current(e *Entry) *Entry {
	if c.revocations.covers(e) {
		return e.denied()
	}
	return e
}

// joined is a flight and whether this call started it.
type joined struct {
	*flight
	own bool
}

// join takes part in d's load, or starts it. It looks again under the lock: a load
// may have ended since the caller looked, and must not be followed by another.
func (c *Cache) join(d token.Digest) (joined, *Entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[d]; f != nil {
		return joined{flight: f}, nil, nil
	}
	if c.closed {
		return joined{}, nil, ErrUnavailable
	}
	now := c.now()
	if e := c.hot.get(&d); e != nil && c.freshEnough(e, now) && !c.revocations.covers(e) {
		return joined{}, e, nil
	}
	if c.unknown.has(&d, now) {
		return joined{}, nil, token.ErrUnknown
	}
	if c.health.isAway.Load() {
		return joined{}, nil, ErrUnavailable
	}
	if len(c.flights) >= maxLoads {
		c.metrics.loadRefused.Add(1)
		return joined{}, nil, ErrOverloaded
	}
	return joined{c.start(d, now), true}, nil, nil
}

// probe starts d's load for nobody, when it is time for one.
func (c *Cache) probe(d token.Digest, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.flights[d] != nil || len(c.flights) >= maxLoads || !c.health.probe(now) {
		return
	}
	c.start(d, now)
}

// start begins d's load; mu is held. The load outlives whoever asked for it.
func (c *Cache) start(d token.Digest, now time.Time) *flight {
	f := &flight{digest: d, began: now, done: make(chan struct{})}
	c.flights[d] = f
	c.loads.Go(func() { c.load(f) })
	return f
}

func (c *Cache) load(f *flight) {
	ctx, cancel := context.WithTimeout(c.life, loadTimeout)
	defer cancel()
	f.entry, f.err = c.answer(ctx, f)
	close(f.done)
}

// land takes the flight away. What the load brought is in place before: whoever
// finds no flight finds that.
func (c *Cache) land(f *flight) {
	c.mu.Lock()
	delete(c.flights, f.digest)
	c.mu.Unlock()
}

// placing is the lock under which d's place in the hot set, and among the unknown,
// is written.
func (c *Cache) placing(d *token.Digest) *sync.Mutex { return &c.placings[d[9]%gates] }

// callLoader contains a loader's panic: it costs the requests that wait for this load,
// not the process. The value may hold anything, so only its type is told.
func (c *Cache) callLoader(ctx context.Context, d token.Digest) (p *abac.Profile, err error) {
	defer func() {
		if v := recover(); v != nil {
			p, err = nil, fmt.Errorf("the loader panicked with a %T", v)
		}
	}()
	return c.loader.Load(ctx, d)
}

// asksAgain is how often a load asks whose answers are of a time before what a
// watch has told.
const asksAgain = 3

var errPast = errors.New("the control plane answers with what was before a change that it told")

// answer asks and puts what comes in its place.
func (c *Cache) answer(ctx context.Context, f *flight) (*Entry, error) {
	place := c.placing(&f.digest)
	for try := 1; ; try++ {
		a := ask{flight: f, began: f.began, epoch: c.revocations.epoch.Load()}
		if try > 1 {
			a.began = c.now()
		}
		a.profile, a.err = c.callLoader(ctx, f.digest)
		place.Lock()
		past := c.past(&a)
		if past && try < asksAgain {
			place.Unlock()
			continue
		}
		if past {
			a.profile, a.err = nil, errPast
		}
		e, err := c.place(&a)
		c.land(f)
		place.Unlock()
		return e, err
	}
}

// ask is one call of the loader.
type ask struct {
	*flight
	began   time.Time
	epoch   uint64 // of the revocations, then
	profile *abac.Profile
	err     error
}

// past says whether an answer is of a time before what a watch has told.
func (c *Cache) past(a *ask) bool {
	c.mu.Lock()
	least := a.least
	c.mu.Unlock()
	known := least > 0
	if x := c.index.Load(); x != nil {
		if n, ok := x.get(&a.digest); ok {
			least, known = max(least, n.revision), true
		}
	}
	if errors.Is(a.err, token.ErrUnknown) {
		return known
	}
	return a.err == nil && a.profile != nil && a.profile.Revision < least
}

// place puts what came in its place.
func (c *Cache) place(a *ask) (*Entry, error) {
	err := a.err
	switch {
	case errors.Is(err, token.ErrUnknown):
		c.metrics.loadUnknown.Add(1)
		c.answered()
		if a.epoch == c.revocations.epoch.Load() { // else it may be of a time before a change
			c.unknown.add(&a.digest, a.began)
		}
		c.hot.drop(&a.digest)
		return nil, token.ErrUnknown
	case err == nil && a.profile == nil:
		err = errors.New("the loader returned neither a profile nor an error")
		fallthrough
	case err != nil:
		c.metrics.loadFailed.Add(1)
		if c.life.Err() == nil && err != errPast && c.health.failed(a.digest, a.began, c.now()) {
			c.log.Warn("the control plane does not answer; what is known is served until it is too old", zap.Error(err))
		}
		return nil, fmt.Errorf("%w: %v", ErrUnavailable, err) // %v: a load's own time limit is not the caller's
	}
	c.metrics.loadOK.Add(1)
	c.answered()
	c.learn(&a.digest, a.profile)
	e := newEntry(a.profile, a.digest, a.began)
	if revoked(a.profile.Status) {
		c.Revoke(e.ID, e.Revision)
	}
	return c.publish(e), nil
}

// publish puts a load's entry into the hot set and returns what is to be served.
// An answer older than a revocation goes in as revoked, never alive: the check at
// each hit is not the only one.
func (c *Cache) publish(e *Entry) *Entry {
	e = c.current(e)
	old := c.hot.get(&e.Digest)
	if old != nil && old.ID == e.ID && old.Revision > e.Revision && c.fallback(old, c.now()) != nil {
		return old // an answer from the past
	}
	if !c.hot.put(e.follows(old)) {
		c.metrics.notAdmitted.Add(1)
	}
	if f := c.filling.Load(); f != nil {
		f.note(&e.Digest)
	}
	return e
}

func (c *Cache) answered() {
	if c.health.answered(c.now()) {
		c.log.Info("the control plane answers again")
	}
}
