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
	buckets atomic.Pointer[[]bucket] // a power of two of them
	mu      sync.Mutex
	entries int // placed
	most    int // buckets
}

const (
	ways  = 4
	least = 1 << 10 // buckets
)

// bucket is one line of a cache: the digests' second words and their entries.
type bucket struct {
	tags    [ways]atomic.Uint64
	entries [ways]atomic.Pointer[Entry]
}

// newFront may grow to room for twice as many entries as there are profiles: few find
// their bucket full. It begins small: what is spread over more memory than it fills
// costs a look-up in the page tables as well.
func newFront(profiles int) *front {
	f := &front{most: mostBuckets(profiles)}
	b := make([]bucket, min(least, f.most))
	f.buckets.Store(&b)
	return f
}

func mostBuckets(profiles int) int { return 1 << bits.Len(uint(max(profiles/2, 1)-1)) }

// resize changes how far it may grow.
func (f *front) resize(profiles int) {
	f.mu.Lock()
	f.most = mostBuckets(profiles)
	f.mu.Unlock()
}

func tagOf(d *token.Digest) uint64 { return binary.LittleEndian.Uint64(d[16:24]) }

func bucketOf(all []bucket, key uint64) *bucket { return &all[key&uint64(len(all)-1)] }

func (f *front) bucket(key uint64) *bucket { return bucketOf(*f.buckets.Load(), key) }

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
	if all := *f.buckets.Load(); f.entries >= len(all) && len(all) < f.most {
		f.grow(all)
	}
	if f.bucket(key).put(e) {
		f.entries++
	}
}

// put says whether there is one entry more.
func (b *bucket) put(e *Entry) bool {
	free := -1
	for i := range b.entries {
		switch old := b.entries[i].Load(); {
		case old == nil:
			if free < 0 {
				free = i
			}
		case old.Digest == e.Digest:
			b.entries[i].Store(e)
			return false
		}
	}
	if free < 0 {
		return false
	}
	b.tags[free].Store(tagOf(&e.Digest))
	b.entries[free].Store(e)
	return true
}

// grow makes it twice as large. Whoever looks meanwhile finds what is there in the one
// or the other.
func (f *front) grow(all []bucket) {
	larger := make([]bucket, 2*len(all))
	f.entries = 0
	for i := range all {
		for j := range all[i].entries {
			if e := all[i].entries[j].Load(); e != nil && bucketOf(larger, key(&e.Digest)).put(e) {
				f.entries++
			}
		}
	}
	f.buckets.Store(&larger)
}

// drop takes away what has key; ristretto tells of an eviction by its key alone.
func (f *front) drop(k uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.bucket(k)
	for i := range b.entries {
		if e := b.entries[i].Load(); e != nil && key(&e.Digest) == k {
			b.entries[i].Store(nil)
			f.entries--
		}
	}
}

func (f *front) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := make([]bucket, min(least, f.most))
	f.buckets.Store(&b)
	f.entries = 0
}
