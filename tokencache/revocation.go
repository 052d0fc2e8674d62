package tokencache

import (
	"maps"
	"sync"
	"sync/atomic"
)

// revocations is exact: nothing is ever dropped from it, so neither a slow
// answer, an eviction nor a flood undoes one. Readers take no lock. The maps are
// copied on write, in shards so that a mass revocation copies little.
type revocations struct {
	mu     sync.Mutex // writers only
	shards [256]atomic.Pointer[map[string]int64]
	epoch  atomic.Uint64 // moves with every revocation, after it can be seen
	n      atomic.Int64
}

// add makes revision the least valid one of id, unless a higher one is already.
// When it returns, every covers that begins sees it.
func (r *revocations) add(id string, revision int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	shard := &r.shards[shardOf(id)]
	next := map[string]int64{}
	if old := shard.Load(); old != nil {
		if least, ok := (*old)[id]; ok && least >= revision {
			return
		}
		next = maps.Clone(*old)
	}
	before := len(next)
	next[id] = revision
	shard.Store(&next)
	r.n.Add(int64(len(next) - before))
	r.epoch.Add(1)
}

// has says whether id's least valid revision is at least that.
func (r *revocations) has(id string, revision int64) bool {
	m := r.shards[shardOf(id)].Load()
	if m == nil {
		return false
	}
	least, ok := (*m)[id]
	return ok && least >= revision
}

// covers says whether e is older than its token's least valid revision.
func (r *revocations) covers(e *Entry) bool {
	m := r.shards[e.shard].Load()
	if m == nil {
		return false
	}
	least, ok := (*m)[e.ID]
	return ok && e.Revision < least
}
