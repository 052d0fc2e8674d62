package tokencache

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// Known is what the index has of a token.
type Known struct {
	ID       string
	Revision int64 // at least 0
	Status   abac.Status
	Purpose  abac.Purpose
	Gateway  string // that it is bound to, where that is another than the cache's own; else ""
}

// index is every digest that the control plane knows of, exactly, with the revision
// of its token: what it does not hold is nobody's. It only grows, and a token's
// revision in it only rises. It is read on misses, so a lock a shard is enough.
type index struct {
	org    string
	shards [256]indexShard
	n      atomic.Int64

	mu       sync.Mutex
	gateways []string // by number; the first is ""
	numbers  map[string]uint32
}

// indexShard is a table in the order of the digests' hashes, with empty places in
// between: a look for what is not there ends at the first place that follows.
type indexShard struct {
	mu    sync.RWMutex
	slots []slot
	home  uint64 // places that a hash may point to; those behind take what is pushed off the end
	used  int
	side  map[token.Digest]string // ids that do not pack
}

// slot is 64 bytes, one line of a processor's cache.
type slot struct {
	digest   token.Digest
	id       [16]byte
	revision int64
	gateway  uint32
	status   statusCode // 0: the place is empty
	purpose  purposeCode
	apart    bool // the id is in the side map
}

type (
	statusCode  uint8
	purposeCode uint8
)

const (
	isActive statusCode = 1 + iota
	isQuarantined
	isRevoked
	isStopped // revoked or quarantined: which has not been told
	isUnclear // of a status that this version does not know
)

var statusCodes = map[abac.Status]statusCode{abac.Active: isActive, abac.Quarantined: isQuarantined, abac.Revoked: isRevoked}

// purposes by their codes; 0 is one that this version does not know, or that was not told.
var purposes = [...]abac.Purpose{"", abac.General, abac.Integration, abac.GatewayRuntime}

func codeOf(p abac.Purpose) purposeCode {
	for i := range purposes {
		if purposes[i] == p {
			return purposeCode(i)
		}
	}
	return 0
}

func newIndex(org string, tokens int) *index {
	x := &index{org: org, gateways: []string{""}, numbers: map[string]uint32{"": 0}}
	for i := range x.shards {
		// Digests spread evenly: a shard has few more than its part.
		x.shards[i].grow(tokens/len(x.shards) + tokens/len(x.shards)/32)
	}
	return x
}

const (
	fullAt   = 0.87 // of the places used: a shard grows
	grownTo  = 0.78 // used after that
	overflow = 8    // places behind the last home, at first
	leastLen = 8
)

// grow makes room for n entries; mu is held, or nobody else has the shard.
func (s *indexShard) grow(n int) {
	old := s.slots
	s.home = max(uint64(float64(n)/grownTo)+1, leastLen)
	for behind := overflow; ; behind *= 2 { // a run may not fit behind the last home
		s.slots = make([]slot, int(s.home)+behind)
		if s.fill(old) {
			return
		}
	}
}

// fill places what is in another table, and says whether it had room.
func (s *indexShard) fill(old []slot) bool {
	for i := range old {
		if old[i].status != 0 && !s.place(old[i]) {
			return false
		}
	}
	return true
}

func hashOf(d *token.Digest) uint64 { return binary.BigEndian.Uint64(d[8:16]) }

// homeOf rises with the hash.
func (s *indexShard) homeOf(hash uint64) uint64 {
	hi, _ := bits.Mul64(hash, s.home)
	return hi
}

// find returns d's place, or nil.
func (s *indexShard) find(d *token.Digest) *slot {
	if len(s.slots) == 0 {
		return nil
	}
	hash := hashOf(d)
	for i := s.homeOf(hash); i < uint64(len(s.slots)); i++ {
		at := &s.slots[i]
		if at.status == 0 {
			return nil
		}
		if at.digest == *d {
			return at
		}
		if hashOf(&at.digest) > hash {
			return nil
		}
	}
	return nil
}

// place puts an entry that is not there yet, and pushes on those that follow; false
// where that would push one off the end.
func (s *indexShard) place(n slot) bool {
	hash := hashOf(&n.digest)
	i := s.homeOf(hash)
	for i < uint64(len(s.slots)) && s.slots[i].status != 0 && hashOf(&s.slots[i].digest) <= hash {
		i++
	}
	free := i
	for free < uint64(len(s.slots)) && s.slots[free].status != 0 {
		free++
	}
	if free == uint64(len(s.slots)) {
		return false
	}
	copy(s.slots[i+1:free+1], s.slots[i:free])
	s.slots[i] = n
	return true
}

func (x *index) shard(d *token.Digest) *indexShard { return &x.shards[d[0]] }

// put takes what a token is now, unless it is known at that revision or a later one.
func (x *index) put(d *token.Digest, k *Known) {
	n := slot{digest: *d, revision: k.Revision, purpose: codeOf(k.Purpose), status: statusCodes[k.Status], gateway: x.number(k.Gateway)}
	if n.status == 0 {
		n.status = isUnclear
	}
	x.set(n, k.ID)
}

// stop notes that a token is revoked or quarantined from that revision on.
func (x *index) stop(d *token.Digest, id string, revision int64) {
	s := x.shard(d)
	s.mu.RLock()
	n := slot{digest: *d}
	if at := s.find(d); at != nil {
		n = *at
	}
	s.mu.RUnlock()
	n.revision, n.status = revision, isStopped
	x.set(n, id)
}

func (x *index) set(n slot, id string) {
	s := x.shard(&n.digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.find(&n.digest)
	if at != nil && at.revision >= n.revision {
		return
	}
	if n.id, n.apart = packID(id); n.apart {
		if s.side == nil {
			s.side = map[token.Digest]string{}
		}
		s.side[n.digest] = id
	}
	if at != nil {
		*at = n
		return
	}
	if float64(s.used+1) > fullAt*float64(s.home) {
		s.grow(s.used + 1)
	}
	for behind := 2 * overflow; !s.place(n); behind *= 2 {
		s.slots = append(s.slots, make([]slot, behind)...)
	}
	s.used++
	x.n.Add(1)
}

// get returns what is known of d's token.
func (x *index) get(d *token.Digest) (slot, bool) {
	s := x.shard(d)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if at := s.find(d); at != nil {
		return *at, true
	}
	return slot{}, false
}

// known is what get found, written out.
func (x *index) known(n *slot) Known {
	k := Known{ID: x.id(n), Revision: n.revision, Purpose: purposes[n.purpose], Gateway: x.gateway(n.gateway)}
	switch n.status {
	case isActive:
		k.Status = abac.Active
	case isQuarantined:
		k.Status = abac.Quarantined
	case isRevoked, isStopped:
		k.Status = abac.Revoked
	}
	return k
}

func (x *index) id(n *slot) string {
	if !n.apart {
		return unpackID(&n.id)
	}
	s := x.shard(&n.digest)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.side[n.digest]
}

func (x *index) number(gateway string) uint32 {
	if gateway == "" {
		return 0
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	n, ok := x.numbers[gateway]
	if !ok {
		n = uint32(len(x.gateways))
		x.gateways = append(x.gateways, gateway)
		x.numbers[gateway] = n
	}
	return n
}

func (x *index) gateway(number uint32) string {
	if number == 0 {
		return ""
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.gateways[number]
}

// each calls f with every entry, shard by shard, as it is when its shard is copied.
func (x *index) each(f func(n *slot) error) error {
	var all []slot
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.RLock()
		all = append(all[:0], s.slots...)
		s.mu.RUnlock()
		for j := range all {
			if all[j].status == 0 {
				continue
			}
			if err := f(&all[j]); err != nil {
				return err
			}
		}
	}
	return nil
}

// bytes is the room that the entries take.
func (x *index) bytes() int64 {
	var n int64
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.RLock()
		n += int64(len(s.slots))
		s.mu.RUnlock()
	}
	return n * slotSize
}

const (
	slotSize  = 64
	idPrefix  = "tok_"
	crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)

// crockfordOf gives a character's five bits, or 255.
var crockfordOf = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i := range crockford {
		t[crockford[i]] = byte(i)
	}
	return t
}()

// packID writes an id of the usual form, "tok_" and 26 characters of Crockford's base
// 32 that stand for 128 bits, as those; apart says that it is of another.
func packID(id string) (b [16]byte, apart bool) {
	if len(id) != len(idPrefix)+26 || id[:len(idPrefix)] != idPrefix || id[len(idPrefix)] > '7' {
		return b, true
	}
	var hi, lo uint64
	for i := len(idPrefix); i < len(id); i++ {
		v := crockfordOf[id[i]]
		if v == 255 {
			return b, true
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return b, false
}

func unpackID(b *[16]byte) string {
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [len(idPrefix) + 26]byte
	copy(out[:], idPrefix)
	for i := len(out) - 1; i >= len(idPrefix); i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}

// check says what of an entry can't be kept.
func (k *Known) check() error {
	switch {
	case k.ID == "":
		return fmt.Errorf("an entry of the index without an id")
	case k.Revision < 0:
		return fmt.Errorf("token %s at the negative revision %d", k.ID, k.Revision)
	}
	return nil
}
