package proxy

import (
	"encoding/binary"
	"hash/maphash"
	"net"
	"sync/atomic"

	"github.com/keeptrusts/gateway/token"
)

// shares counts who holds how much of one of the limits: connections by address,
// before there is a credential; calls and bytes of bodies by token. An eighth beyond
// the limit is kept for those who hold little, so that whoever fills the limit alone
// leaves room for everybody else (docs/decisions/0007). Safe for concurrent use; its
// zero value is empty.
//
// Holders are counted in slots of their hash: there is nothing to make, find or
// forget at a call. One of 8,192 shares its slot with a given other, and is then
// taken for one that holds as much as both.
type shares struct {
	total atomic.Int64
	held  [slots]atomic.Int64
}

const slots = 1 << 13

// beyond is what others may have where one has filled the limit.
func beyond(limit int64) int64 { return max(1, limit/8) }

// take takes n for a holder, or nothing. Beyond the limit one may hold at most three
// times what is still free for all: who holds much gets nothing, who comes alone most
// of the eighth, and the total stays within it.
func (s *shares) take(slot uint32, n, limit int64) bool {
	held := s.held[slot].Add(n)
	for {
		// The total is never more than what is held: those who are refused by the
		// thousand must not look like holders.
		total := s.total.Load()
		if free := limit + beyond(limit) - total; total+n > limit && (n > free || held > min(limit, 3*free)) {
			s.held[slot].Add(-n)
			return false
		}
		if s.total.CompareAndSwap(total, total+n) {
			return true
		}
	}
}

// add takes n whatever the limit.
func (s *shares) add(slot uint32, n int64) {
	s.held[slot].Add(n)
	s.total.Add(n)
}

func (s *shares) give(slot uint32, n int64) { s.add(slot, -n) }

// Load is what all hold.
func (s *shares) Load() int64 { return s.total.Load() }

func tokenSlot(d *token.Digest) uint32 {
	return binary.LittleEndian.Uint32(d[:]) % slots
}

var addressSeed = maphash.MakeSeed()

// addressSlot takes what one customer of a network is given for one address: of IPv6
// a /64.
func addressSlot(ip net.IP) uint32 {
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	} else if len(ip) == net.IPv6len {
		ip = ip[:8]
	}
	return uint32(maphash.Bytes(addressSeed, ip) % slots)
}
