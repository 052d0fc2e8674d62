package tokencache

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/keeptrusts/gateway/token"
)

const gates = 64

// hot is the bounded set of entries that hits are served from. It may drop any
// entry at any time and promises one thing: get returns an entry of exactly the
// digest asked for. Whether that entry is still good is the caller's question.
type hot struct {
	front   *front
	set     *ristretto.Cache[uint64, *Entry]
	gate    [gates]gate
	evicted atomic.Uint64
	closing atomic.Bool
}

// gate keeps ristretto's Close from running beside its Get, which panics. The
// hits are counted here because the cache line is in hand anyway.
type gate struct {
	sync.RWMutex
	hits atomic.Uint64
	_    [64 - 32]byte
}

func newHot(profiles int) (*hot, error) {
	h := &hot{front: newFront(profiles)}
	set, err := ristretto.NewCache(&ristretto.Config[uint64, *Entry]{
		NumCounters: max(10*int64(profiles), 1000),
		MaxCost:     int64(profiles),
		BufferItems: 64,
		// One entry costs one, so that the limit is a number of profiles.
		IgnoreInternalCost: true,
		// 64 bits of the digest have no conflict hash: get compares all 256 instead.
		KeyToHash: func(k uint64) (uint64, uint64) { return k, 0 },
		OnEvict: func(gone *ristretto.Item[*Entry]) {
			h.front.drop(gone.Key)
			if !h.closing.Load() {
				h.evicted.Add(1)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	h.set = set
	return h, nil
}

func key(d *token.Digest) uint64 { return binary.LittleEndian.Uint64(d[:8]) }

func (h *hot) of(d *token.Digest) *gate { return &h.gate[d[8]%gates] }

// sampled is how many hits in a row the front answers for one that ristretto
// answers, so that it sees which entries are in use: it evicts the others.
const sampled = 16

// get returns d's entry, or nil. It does not allocate.
func (h *hot) get(d *token.Digest) *Entry {
	e := h.front.get(key(d), d)
	switch {
	case e == nil:
		return h.behind(d)
	case h.of(d).hits.Load()%sampled == 0:
		return h.admitted(d)
	}
	return e
}

// behind is admitted, but ristretto hears of a use only where there is an entry: those
// who ask for what is nobody's don't decide what is kept.
func (h *hot) behind(d *token.Digest) *Entry {
	g := h.of(d)
	g.RLock()
	_, ok := h.set.GetTTL(key(d))
	g.RUnlock()
	if !ok {
		return nil
	}
	return h.admitted(d)
}

// admitted is what ristretto has of d.
func (h *hot) admitted(d *token.Digest) *Entry {
	g := h.of(d)
	g.RLock()
	e, ok := h.set.Get(key(d))
	g.RUnlock()
	if !ok || e.Digest != *d {
		return nil
	}
	return e
}

// put replaces d's entry and says whether get finds it now. It waits until the
// write is applied: a second put on a key still in ristretto's write buffer would
// be lost, and the first one stay. For loads only, and one at a time a digest.
func (h *hot) put(e *Entry) bool {
	h.set.Set(key(&e.Digest), e, 1)
	h.set.Wait()
	if h.admitted(&e.Digest) != e {
		h.front.drop(key(&e.Digest)) // nothing older may stay
		return false
	}
	h.front.put(key(&e.Digest), e)
	if h.admitted(&e.Digest) != e { // evicted just now, maybe before it was put there
		h.front.drop(key(&e.Digest))
	}
	return true
}

// peek is get, of which ristretto need not hear.
func (h *hot) peek(d *token.Digest) *Entry {
	if e := h.front.get(key(d), d); e != nil {
		return e
	}
	return h.behind(d)
}

// putAll is put for many: one wait for all, and the count of those that were not
// admitted. The digests must differ.
func (h *hot) putAll(list []*Entry) (refused uint64) {
	for _, e := range list {
		h.set.Set(key(&e.Digest), e, 1)
	}
	h.set.Wait()
	for _, e := range list {
		if h.admitted(&e.Digest) != e {
			h.front.drop(key(&e.Digest))
			refused++
			continue
		}
		h.front.put(key(&e.Digest), e)
		if h.admitted(&e.Digest) != e {
			h.front.drop(key(&e.Digest))
		}
	}
	return refused
}

// drop removes d's entry. Like put, for the one load of the digest only.
func (h *hot) drop(d *token.Digest) {
	h.set.Del(key(d))
	h.set.Wait()
	h.front.drop(key(d))
}

func (h *hot) hits() uint64 {
	var n uint64
	for i := range h.gate {
		n += h.gate[i].hits.Load()
	}
	return n
}

// resize changes how many entries there may be; more than that leave as others come.
func (h *hot) resize(profiles int) {
	h.set.UpdateMaxCost(int64(profiles))
	h.front.resize(profiles)
}

// room is how many entries more fit without an eviction.
func (h *hot) room() int64 { return max(h.set.RemainingCost(), 0) }

func (h *hot) len() int64 { return h.set.MaxCost() - h.set.RemainingCost() }

// clear empties the set; no put or drop may run beside it.
func (h *hot) clear() {
	h.closing.Store(true) // no evictions
	for i := range h.gate {
		h.gate[i].Lock()
	}
	h.set.Clear()
	h.front.clear()
	for i := range h.gate {
		h.gate[i].Unlock()
	}
	h.closing.Store(false)
}

// close empties the set and stops its goroutines; get finds nothing afterwards.
// No put or drop may run beside it or follow.
func (h *hot) close() {
	h.closing.Store(true)
	for i := range h.gate {
		h.gate[i].Lock()
	}
	h.set.Close()
	h.front.clear()
	for i := range h.gate {
		h.gate[i].Unlock()
	}
}
