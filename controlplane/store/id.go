package store

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// IDPrefix opens every token's id.
const IDPrefix = "tok_"

// IDLen is the length of a token's id in bytes: the prefix and 26 characters.
const IDLen = len(IDPrefix) + 26

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewID returns a token's id that no other has: "tok_" and 26 characters of
// Crockford's base 32, 48 bits of milliseconds and 80 of randomness. Ids of one
// Store sort in the order in which they were made, also when the clock steps back.
func (s *Store) NewID(now time.Time) string {
	return IDPrefix + encodeID(s.ids.next(now))
}

func (g *idSource) next(now time.Time) [16]byte {
	var b [16]byte
	ms := uint64(max(now.UnixMilli(), 0))
	binary.BigEndian.PutUint64(b[:8], ms<<16)
	_, _ = rand.Read(b[6:]) // it never fails: it ends the process itself
	b[6] &= 0x7f            // room for the increments below

	g.mu.Lock()
	defer g.mu.Unlock()
	if ms <= binary.BigEndian.Uint64(g.last[:8])>>16 {
		b = g.last
		for i := len(b) - 1; i >= 0; i-- {
			b[i]++
			if b[i] != 0 {
				break
			}
		}
	}
	g.last = b
	return b
}

// encodeID writes 128 bits as 26 characters, the first of them 0 to 7.
func encodeID(b [16]byte) string {
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [26]byte
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}
