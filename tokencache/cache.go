// Package tokencache answers whose token this is: a hot set of compiled profiles
// in front of the control plane. The hot set may lose anything at any time; what
// must not be lost, the revocations, is kept exactly and outside it, and read on
// every hit.
package tokencache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

var (
	// ErrUnavailable says that the control plane can't be asked and that nothing
	// fresh enough is known.
	ErrUnavailable = errors.New("the control plane is out of reach and nothing fresh enough is known of the token")
	// ErrOverloaded says that as many tokens as may be are being asked for.
	ErrOverloaded = errors.New("too many tokens are being asked for")
)

// Loader asks the control plane.
type Loader interface {
	// Load returns the profile of the token that has the digest. Its error is
	// token.ErrUnknown when the control plane answered that there is none; any
	// other says that it could not be asked, and is logged: it must hold no secret.
	// Load must return soon after ctx ends, and is called from many goroutines.
	Load(ctx context.Context, d token.Digest) (*abac.Profile, error)
}

// Options say how New makes a cache. Loader and Profiles are required.
type Options struct {
	// Profiles is how many profiles the cache holds, at least 1. Fewer than are in
	// use makes every request of those left out ask the control plane.
	Profiles int
	// FreshFor is the age up to which a profile is used without asking.
	FreshFor time.Duration
	// MaxStale is the age up to which it is used when asking brings no answer; at
	// least FreshFor.
	MaxStale time.Duration
	Loader   Loader
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Registerer takes the metrics; nil drops them.
	Registerer prometheus.Registerer
	// GatewayID is the gateway's own: what is bound to it is not bound elsewhere.
	GatewayID string
	// Stopped is told, once, of each revocation that was not known yet, before it takes
	// effect: a token's id and the least revision that is valid. It must return soon,
	// and is called from many goroutines. nil: nobody is.
	Stopped func(id string, revision int64)
	// Log tells when the control plane goes away and answers again; nil: nobody.
	Log *zap.Logger
}

// Cache is safe for concurrent use.
type Cache struct {
	fresh, stale time.Duration
	loader       Loader
	now          func() time.Time
	clocked      bool // now is not the system's
	log          *zap.Logger
	gatewayID    string
	told         func(id string, revision int64)

	hot         *hot
	revocations revocations
	unknown     unknown
	index       atomic.Pointer[index] // nil: none yet
	filling     atomic.Pointer[Fill]  // the snapshot that is on its way; else nil
	stops       stops
	health      health
	watched     watched
	metrics     metrics

	life context.Context // of every load
	end  context.CancelFunc

	mu      sync.Mutex
	flights map[token.Digest]*flight
	closed  bool
	loads   sync.WaitGroup
	gone    chan struct{} // closed when Close is done

	// placings serialise what is put in a digest's place; taken before mu.
	placings [gates]sync.Mutex
}

// New makes a cache; the caller closes it.
func New(o Options) (*Cache, error) {
	switch {
	case o.Loader == nil:
		return nil, errors.New("tokencache: no loader")
	case o.Profiles < 1:
		return nil, fmt.Errorf("tokencache: room for %d profiles, at least 1 is needed", o.Profiles)
	case o.FreshFor < 0:
		return nil, fmt.Errorf("tokencache: fresh for %v, at least 0 is needed", o.FreshFor)
	case o.MaxStale < o.FreshFor:
		return nil, fmt.Errorf("tokencache: stale up to %v is less than fresh for %v", o.MaxStale, o.FreshFor)
	}
	set, err := newHot(o.Profiles)
	if err != nil {
		return nil, fmt.Errorf("tokencache: %w", err)
	}
	c := &Cache{
		fresh: o.FreshFor, stale: o.MaxStale, loader: o.Loader, now: o.Now, clocked: o.Now != nil, log: o.Log,
		hot: set, flights: map[token.Digest]*flight{}, gone: make(chan struct{}), gatewayID: o.GatewayID, told: o.Stopped,
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.log == nil {
		c.log = zap.NewNop()
	}
	if c.told == nil {
		c.told = func(string, int64) {}
	}
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.register(o.Registerer); err != nil {
		c.Close()
		return nil, fmt.Errorf("tokencache: register metrics: %w", err)
	}
	return c, nil
}

// Get returns what is known of the token with this digest, asking the control
// plane where it must: it waits at most 2 s for a token that nothing is known of,
// at most 250 ms where something older may be served, and not at all while the
// control plane is known to be away. The form of the token's string is the
// caller's to check. Errors: token.ErrUnknown, ErrUnavailable, ErrOverloaded.
// When ctx ends, only this call ends.
func (c *Cache) Get(ctx context.Context, d token.Digest) (*Entry, error) {
	now := c.now()
	e := c.hot.get(&d)
	if e != nil && c.good(e, now) {
		return e, nil
	}
	return c.ask(ctx, d, e, now)
}

// Peek is Get without asking: nil where Get would. It counts as a hit. now is the
// caller's, which knows it already; a cache with a clock of its own looks at that.
func (c *Cache) Peek(d *token.Digest, now time.Time) *Entry {
	if c.clocked {
		now = c.now()
	}
	if e := c.hot.get(d); e != nil && c.good(e, now) {
		return e
	}
	return nil
}

// Resize changes how many profiles the cache has room for; it is not less than 1.
func (c *Cache) Resize(profiles int) { c.hot.resize(max(profiles, 1)) }

// good says whether a hit may be served, and counts it then.
func (c *Cache) good(e *Entry, now time.Time) bool {
	if !c.freshEnough(e, now) || c.revocations.covers(e) {
		return false
	}
	c.hot.of(&e.Digest).hits.Add(1)
	return true
}

// Revoke makes revision the least valid one of the token with this id. When it
// returns, no Get that begins returns an older one but as revoked, for as long as
// the cache lives. A lower revision than the one in force changes nothing.
func (c *Cache) Revoke(id string, revision int64) {
	if !c.revocations.has(id, revision) {
		c.told(id, revision)
		c.revocations.add(id, revision)
	}
}

// Stop is Revoke of a token whose digest is known too: the index keeps it.
func (c *Cache) Stop(d token.Digest, id string, revision int64) {
	c.Revoke(id, revision)
	if !c.enter() {
		return
	}
	defer c.loads.Done()
	place := c.placing(&d)
	place.Lock()
	defer place.Unlock()
	c.eachIndex(func(x *index) { x.stop(&d, id, revision) })
	c.unknown.remove(&d)
}

// enter lets something be placed while the cache is open; loads.Done ends it.
func (c *Cache) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.loads.Add(1) // Close waits
	return true
}

// LastAnswer is when the control plane last answered anything; zero: never.
func (c *Cache) LastAnswer() time.Time { return c.health.lastAnswer() }

// Away says whether the control plane did not answer when last asked.
func (c *Cache) Away() bool { return c.health.isAway.Load() }

// CountMalformed counts a credential that was refused by its form, without a
// look-up.
func (c *Cache) CountMalformed() { c.metrics.malformed.Add(1) }

// Close ends all loads and waits for them; every Get fails with ErrUnavailable
// afterwards. More than one call is allowed, and each waits.
func (c *Cache) Close() {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if !first {
		<-c.gone
		return
	}
	c.end()
	c.loads.Wait()
	c.hot.close()
	c.unknown.clear()
	close(c.gone)
}
