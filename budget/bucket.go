package budget

import (
	"math"
	"math/bits"
	"time"
)

// minute is the time in which a rate's worth comes in, in ns; and into so many
// parts one unit of a bucket is divided, so that what comes in a nanosecond is a
// whole number of them.
const minute = int64(time.Minute)

// mostUnits bounds what is taken at once, and what a bucket owes.
const mostUnits = 1 << 61

// bucket is the generic cell rate algorithm kept as a level: rate units come in
// evenly over a minute, up to size. It is exact: nothing is lost by rounding, and so
// over any time t at most rate·t + size go out.
type bucket struct {
	rate, size  int64 // rate 0: no limit
	level, part int64 // part: of a unit more, in 1/minute
}

func (b *bucket) fill() { b.level, b.part = b.size, 0 }

// limit changes the rate; what is in it stays. A bucket without a limit was full.
func (b *bucket) limit(rate, size int64) {
	unlimited := b.rate == 0
	if b.rate, b.size = rate, size; unlimited || b.level >= size {
		b.fill()
	}
}

// refill lets in what comes in the time since the last refill.
func (b *bucket) refill(elapsed time.Duration) {
	if elapsed <= 0 || b.full() {
		return
	}
	hi, lo := bits.Mul64(uint64(elapsed), uint64(b.rate))
	lo, carry := bits.Add64(lo, uint64(b.part), 0)
	hi += carry
	var units, part uint64
	switch {
	case hi == 0:
		units, part = lo/uint64(minute), lo%uint64(minute)
	case hi >= uint64(minute):
		b.fill()
		return
	default:
		units, part = bits.Div64(hi, lo, uint64(minute))
	}
	if units >= uint64(b.size-b.level) {
		b.fill()
		return
	}
	b.level += int64(units)
	b.part = int64(part)
}

func (b *bucket) full() bool { return b.level >= b.size }

func (b *bucket) aboveZero() bool { return b.level > 0 || b.level == 0 && b.part > 0 }

// take may go below zero.
func (b *bucket) take(n int64) {
	if b.rate > 0 {
		b.level = max(b.level-min(n, mostUnits), -mostUnits)
	}
}

// undo gives back n that were taken at a level that became after. What would have
// run over since, had it not been taken, stays lost: no more than came in since.
func (b *bucket) undo(n int64, after bucket, since time.Duration) {
	if b.rate == 0 || after.rate == 0 {
		return
	}
	after.limit(b.rate, b.size)
	after.refill(since)
	room := after.size - after.level
	if n <= room && !(n == room && after.part > 0) {
		b.level += n
	} else if b.level += room; after.part > 0 {
		b.level-- // the room is a part of a unit smaller
		b.part += minute - after.part
		if b.part >= minute {
			b.level++
			b.part -= minute
		}
	}
	if b.level >= b.size {
		b.fill()
	}
}

// until is the time in which the bucket comes to level units and part more.
func (b *bucket) until(level, part int64) time.Duration {
	units := level - b.level
	if b.rate == 0 || units < 0 || units == 0 && part <= b.part {
		return 0
	}
	hi, lo := bits.Mul64(uint64(units), uint64(minute))
	lo, carry := bits.Add64(lo, uint64(part), 0)
	hi += carry
	lo, borrow := bits.Sub64(lo, uint64(b.part), 0)
	hi -= borrow
	lo, carry = bits.Add64(lo, uint64(b.rate)-1, 0) // rounded up
	if hi+carry == 0 {
		return time.Duration(min(lo/uint64(b.rate), math.MaxInt64))
	}
	hi += carry
	if hi >= uint64(b.rate) {
		return math.MaxInt64
	}
	d, _ := bits.Div64(hi, lo, uint64(b.rate))
	return time.Duration(min(d, math.MaxInt64))
}
