package tokencache

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/keeptrusts/gateway/token"
)

// front answers most hits of the hot set. ristretto's map, its lock and its count
// of the hit touch six lines of memory that lie anywhere; of ten thousand tokens
// in use none of them is in a processor's cache, and together they cost more than
// a request's decision. Here it is one line, and then the entry itself:
// BenchmarkHit/random shows it.
//
// Only put fills it, with what ristretto admitted, and an eviction empties it: for a
// moment it may hold what ristretto has just dropped. An entry that finds no place is
// served by ristretto alone.
type front struct {
	buckets []bucket // a power of two
	mu      sync.Mutex
}

const ways = 4

// bucket is one line of a cache: the digests' second words and their entries.
type bucket struct {
	tags    [ways]atomic.Uint64
	entries [ways]atomic.Pointer[Entry]
}

// newFront makes room for twice as many entries as there are profiles: few find
// their bucket full.
func newFront(profiles int) front {
	n := 1 << bits.Len(uint(max(profiles/2, 1)-1))
	return front{buckets: make([]bucket, n)}
}

func tagOf(d *token.Digest) uint64 { return binary.LittleEndian.Uint64(d[16:24]) }

func (f *front) bucket(key uint64) *bucket { return &f.buckets[key&uint64(len(f.buckets)-1)] }

// get returns d's entry, or nil. A tag may belong to an entry that was replaced
// just now: the entry's own digest decides.
func (f *front) get(key uint64, d *token.Digest) *Entry {
	b, tag := f.bucket(key), tagOf(d)
	for i := range b.tags {
		if b.tags[i].Load() == tag {
			if e := b.entries[i].Load(); e != nil && e.Digest == *d {
				return e
			}
		}
	}
	return nil
}

// put places e, or gives up where its bucket is full.
func (f *front) put(key uint64, e *Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, free := f.bucket(key), -1
	for i := range b.entries {
		switch old := b.entries[i].Load(); {
		case old == nil:
			if free < 0 {
				free = i
			}
		case old.Digest == e.Digest:
			b.entries[i].Store(e)
			return
		}
	}
	if free >= 0 {
		b.tags[free].Store(tagOf(&e.Digest))
		b.entries[free].Store(e)
	}
}

// drop takes away what has key; ristretto tells of an eviction by its key alone.
func (f *front) drop(k uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.bucket(k)
	for i := range b.entries {
		if e := b.entries[i].Load(); e != nil && key(&e.Digest) == k {
			b.entries[i].Store(nil)
		}
	}
}

func (f *front) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.buckets {
		for j := range f.buckets[i].entries {
			f.buckets[i].entries[j].Store(nil)
		}
	}
}
