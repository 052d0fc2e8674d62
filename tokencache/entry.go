package tokencache

import (
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// Entry is what is known of one token: immutable, shared by all that were handed
// it, and good for the request that asked, not for later ones. Notes and Memo are
// for whoever serves the token.
//
// A hit reads its first lines of memory and, with what its users have noted,
// nothing else of the token: each page more is a look-up in the page tables too,
// for of many tokens few are in the processor's caches.
type Entry struct {
	Digest  token.Digest
	Vouched time.Time // when the load that brought it began to ask: its age counts from here

	shard uint8 // of ID, among the revocations

	Notes Notes
	// Memo is for whoever serves the token to keep what it made of the profile. The
	// cache neither reads nor carries it over to the entry that follows.
	Memo atomic.Value

	Policy      *abac.Policy
	ID          string // of the profile
	Purpose     abac.Purpose
	Team        string // "": none
	From, Until int64  // what the profile says of its time, leeway taken off, in Unix nanoseconds: good from, and good before
	Revision    int64  // of the profile

	deny    atomic.Pointer[Entry] // see denied
	stopped bool                  // see Stopped
}

// Notes is what users of an entry keep with it, so that it lies where they look
// anyway. It is lost with the entry. Safe for concurrent use.
type Notes struct {
	Used       atomic.Uint32 // when its use was last noted
	Identified atomic.Uint64 // under what its identity was found good
	Decided    atomic.Uint64 // what was decided for it, and for what

	line  [104]byte
	state atomic.Uint32 // of line: 0 empty, 1 being written, else its length + 2
}

// Line returns a piece of text that write appends, made once an entry, or nil
// where it does not fit or another is making it just now. It must not be changed.
func (n *Notes) Line(write func(b []byte) []byte) []byte {
	const empty, busy = 0, 1
	if s := n.state.Load(); s > busy {
		return n.line[: s-2 : s-2]
	}
	if !n.state.CompareAndSwap(empty, busy) {
		return nil
	}
	b := write(n.line[:0])
	if len(b) > len(n.line) {
		return nil // busy for good
	}
	n.state.Store(uint32(len(b)) + 2)
	return b[:len(b):len(b)]
}

func newEntry(p *abac.Profile, d token.Digest, vouched time.Time) *Entry {
	e := &Entry{
		Policy:   abac.Compile(p),
		Digest:   d,
		ID:       p.ID,
		Purpose:  p.Purpose,
		Revision: p.Revision,
		Vouched:  vouched,
		shard:    shardOf(p.ID),
	}
	if t := p.Bindings.TeamID; t != nil {
		e.Team = *t
	}
	e.From, e.Until = e.Policy.Window()
	return e
}

// follows returns e, with when the one before it was last used; before may be nil.
func (e *Entry) follows(before *Entry) *Entry {
	if before != nil {
		e.Notes.Used.CompareAndSwap(0, before.Notes.Used.Load())
	}
	return e
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

// Stopped says that all that is known is that the token was stopped: revoked, or
// quarantined.
func (e *Entry) Stopped() bool { return e.stopped }

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
	d.stopped = true
	e.deny.Store(d)
	return d
}
