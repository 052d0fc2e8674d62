package tokencache

import (
	"errors"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// errAsk says that the index does not settle it.
var errAsk = errors.New("the control plane has to be asked")

// consult asks the index, when the hot set has no entry of d that is good: e is what it
// has, nil for nothing. Its error is nil when the entry that it returns is to be served,
// token.ErrUnknown when the digest is nobody's, and errAsk when the control plane has to
// be asked: then the entry is what may be served of it without an answer, if it is not too old.
func (c *Cache) consult(d *token.Digest, e *Entry, now time.Time) (*Entry, error) {
	x := c.index.Load()
	if x == nil {
		return e, errAsk
	}
	v, inSync := c.synced(now)
	inSync = inSync && v.indexed && !c.watched.cut.Load()
	n, ok := x.get(d)
	switch {
	case !ok && inSync:
		return nil, token.ErrUnknown
	case !ok:
		return e, errAsk
	case n.stopped() && (e == nil || e.Revision < n.revision):
		e = c.stops.of(x, &n, c.gatewayID)
		switch {
		case e == nil:
			return nil, errAsk // only its load tells how to say so
		case inSync || n.status == isRevoked:
			c.metrics.stopped.Add(1)
			return e, nil
		}
		return e, errAsk // it may have been released
	case e == nil:
		return nil, errAsk
	case e.Revision < n.revision:
		return nil, errAsk // what was told since is not known, and this is not it any more
	case !v.indexed || !e.Vouched.Before(v.since) || c.revocations.covers(e):
		return e, errAsk
	}
	again := e.again(v.since)
	if c.freshEnough(again, now) {
		c.replace(e, again)
		c.hot.of(d).hits.Add(1)
		return again, nil
	}
	return again, errAsk
}

// stopped says whether the token is known to be revoked or quarantined.
func (n *slot) stopped() bool {
	return n.status == isRevoked || n.status == isQuarantined || n.status == isStopped
}

// again is e as a snapshot that has its token at e's revision leaves it.
func (e *Entry) again(vouched time.Time) *Entry {
	return &Entry{
		Digest: e.Digest, Vouched: vouched, shard: e.shard, Policy: e.Policy, ID: e.ID, Purpose: e.Purpose, Team: e.Team,
		From: e.From, Until: e.Until, Revision: e.Revision,
	}
}

// replace puts next in the place of e, if that is still there.
func (c *Cache) replace(e, next *Entry) {
	if !c.enter() {
		return
	}
	defer c.loads.Done()
	place := c.placing(&e.Digest)
	place.Lock()
	defer place.Unlock()
	if c.hot.admitted(&e.Digest) == e {
		c.hot.put(next.follows(e))
	}
}

// learn gives the index what a load or the watch told; d's placing is locked.
func (c *Cache) learn(d *token.Digest, p *abac.Profile) {
	k := Known{ID: p.ID, Revision: p.Revision, Status: p.Status, Purpose: p.Purpose}
	if g := p.Bindings.GatewayID; g != nil && *g != c.gatewayID {
		k.Gateway = *g
	}
	c.eachIndex(func(x *index) { x.put(d, &k) })
}

// eachIndex calls f with the index there is and with the one on its way.
func (c *Cache) eachIndex(f func(*index)) {
	if x := c.index.Load(); x != nil {
		f(x)
	}
	if next := c.filling.Load(); next != nil {
		next.late(f)
	}
}

// stopsLimit is how many refusals of a generation are kept made: about 1 KiB each.
const stopsLimit = 2048

// stops keeps entries that refuse tokens of which the index says that they are revoked or
// quarantined, and which the hot set does not hold. In two generations, as unknown.
type stops struct {
	mu         sync.RWMutex
	young, old map[token.Digest]*Entry
}

// of returns the entry for what the index has, nil where that says too little.
func (s *stops) of(x *index, n *slot, own string) *Entry {
	s.mu.RLock()
	e := s.young[n.digest]
	if e == nil {
		e = s.old[n.digest]
	}
	s.mu.RUnlock()
	if e != nil && e.Revision == n.revision {
		return e
	}
	e = x.refusal(n, own)
	if e == nil {
		return nil
	}
	e.stopped = n.status == isStopped
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil || len(s.young) >= stopsLimit {
		s.old, s.young = s.young, map[token.Digest]*Entry{}
	}
	s.young[n.digest] = e
	return e
}

// refusal is an entry that is valid but for its status, so that who serves it says that
// the token was revoked, and nothing else of it.
func (x *index) refusal(n *slot, own string) *Entry {
	k := x.known(n)
	p := &abac.Profile{ID: k.ID, OrgID: x.org, Purpose: k.Purpose, PrincipalType: abac.PrincipalAPIToken, Status: k.Status, Revision: k.Revision}
	switch k.Purpose {
	case "":
		return nil
	case abac.GatewayRuntime:
		p.PrincipalType = abac.PrincipalGatewayRuntime
		p.Bindings.GatewayID = &own
		if k.Gateway != "" {
			p.Bindings.GatewayID = &k.Gateway
		}
	}
	return newEntry(p, n.digest, time.Time{})
}
