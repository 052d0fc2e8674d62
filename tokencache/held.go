package tokencache

import (
	"cmp"
	"errors"
	"slices"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// ErrNoIndex says that no snapshot has come yet.
var ErrNoIndex = errors.New("no snapshot has been taken yet")

// Each calls known with every entry of the index, and then profile with each profile
// that is held and counts at the index's revision, the most recently used first. What
// changes meanwhile may be met or not. The first error ends it. The Known is the
// callee's for the call only.
func (c *Cache) Each(known func(token.Digest, *Known) error, profile func(token.Digest, *abac.Profile) error) error {
	x := c.index.Load()
	if x == nil {
		return ErrNoIndex
	}
	var held []*Entry
	err := x.each(func(n *slot) error {
		k := x.known(n)
		if n.status == isUnclear {
			return nil // left to be loaded
		}
		if e := c.hot.peek(&n.digest); e != nil && !n.stopped() && e.Revision >= n.revision && !c.Revoked(e) {
			held = append(held, e)
		}
		return known(n.digest, &k)
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(held, func(a, b *Entry) int {
		if byUse := cmp.Compare(b.Notes.Used.Load(), a.Notes.Used.Load()); byUse != 0 {
			return byUse
		}
		return cmp.Compare(lastUsed(b), lastUsed(a))
	})
	for _, e := range held {
		if err := profile(e.Digest, e.Policy.Profile()); err != nil {
			return err
		}
	}
	return nil
}

// lastUsed is what the control plane told, in Unix seconds.
func lastUsed(e *Entry) int64 {
	if at := e.Policy.Profile().LastUsedAt; at != nil {
		return at.Unix()
	}
	return 0
}

// IndexLen is how many tokens the index has; 0 without one.
func (c *Cache) IndexLen() int {
	if x := c.index.Load(); x != nil {
		return int(x.n.Load())
	}
	return 0
}

// Forget empties the hot set, before anything is served.
func (c *Cache) Forget() {
	if !c.enter() {
		return
	}
	defer c.loads.Done()
	c.lockAll()
	defer c.unlockAll()
	c.hot.clear()
}
