package tokencache

import (
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// Entry is what is known of one token: immutable but for Memo, shared by all that
// were handed it, and good for the request that asked, not for later ones.
type Entry struct {
	Policy   *abac.Policy
	Digest   token.Digest
	ID       string    // of the profile
	Revision int64     // of the profile
	Vouched  time.Time // when the load that brought it began to ask: its age counts from here

	// Memo is for whoever serves the token to keep what it made of the profile. The
	// cache neither reads nor carries it over to the entry that follows.
	Memo atomic.Value

	shard uint8                 // of ID, among the revocations
	deny  atomic.Pointer[Entry] // see denied
}

func newEntry(p *abac.Profile, d token.Digest, vouched time.Time) *Entry {
	return &Entry{
		Policy:   abac.Compile(p),
		Digest:   d,
		ID:       p.ID,
		Revision: p.Revision,
		Vouched:  vouched,
		shard:    shardOf(p.ID),
	}
}

// shardOf spreads ids over the shards of the revocations: FNV-1a, folded.
func shardOf(id string) uint8 {
	h := uint32(2166136261)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return uint8(h ^ h>>8 ^ h>>16 ^ h>>24)
}

// revoked says whether the profile itself tells that the token is stopped.
func revoked(s abac.Status) bool { return s == abac.Revoked || s == abac.Quarantined }

// denied returns the entry as a revocation that came after it leaves it: the same
// token, revoked. Made once an entry.
func (e *Entry) denied() *Entry {
	if d := e.deny.Load(); d != nil {
		return d
	}
	p := *e.Policy.Profile()
	if revoked(p.Status) {
		return e
	}
	p.Status = abac.Revoked
	d := newEntry(&p, e.Digest, e.Vouched)
	e.deny.Store(d)
	return d
}
