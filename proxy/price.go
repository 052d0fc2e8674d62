package proxy

import (
	"math"
	"math/bits"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy/dialect"
)

// cost turns usage into nano-USD: one exact sum in pico-USD, rounded up once
// (DESIGN §11). The second result is false where a part that was used has no
// price. What would not fit is the largest int64.
func cost(u dialect.Usage, p *config.Price) (int64, bool) {
	if p == nil {
		return 0, false
	}
	if p.Flat() {
		return *p.Request, true
	}
	var sum pico
	known := true
	add := func(n int64, prices ...*int64) {
		if n <= 0 {
			return
		}
		for _, price := range prices {
			if price != nil {
				sum.add(n, *price)
				return
			}
		}
		known = false
	}
	add(u.Input, p.Input)
	add(u.CachedInput, p.CachedInput, p.Input)
	add(u.CacheWrite, p.CacheWrite, p.Input)
	add(u.Output, p.Output)
	add(u.Reasoning, p.Reasoning, p.Output)
	add(u.AudioInput, p.AudioInput)
	add(u.AudioOutput, p.AudioOutput)
	return withRequest(sum.nano(), p), known
}

// withRequest adds what a request costs. What would not fit is the largest int64.
func withRequest(nano int64, p *config.Price) int64 {
	if p.Request == nil {
		return nano
	}
	if nano > math.MaxInt64-*p.Request {
		return math.MaxInt64
	}
	return nano + *p.Request
}

const picoOfNano = 1000

// pico is a sum of pico-USD in 128 bits: tokens times price can pass 64.
type pico struct{ hi, lo uint64 }

func (s *pico) add(tokens, price int64) {
	hi, lo := bits.Mul64(uint64(tokens), uint64(price))
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, lo, 0)
	s.hi, _ = bits.Add64(s.hi, hi, carry)
}

// nano rounds up to nano-USD.
func (s pico) nano() int64 {
	if s.hi >= picoOfNano {
		return math.MaxInt64
	}
	q, r := bits.Div64(s.hi, s.lo, picoOfNano)
	if r > 0 {
		q++
	}
	if q > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(q)
}

// worst is the most that a call may cost in nano-USD: its input at the dearest part
// of an input, its output (of all choices together) at the dearest of an output,
// rounded up once as cost does. known is false where a part that may be used has
// no price; nano is what the others cost.
func worst(p *config.Price, b dialect.Bound, output int64) (nano int64, known bool) {
	if p == nil {
		return 0, false
	}
	if p.Flat() {
		return *p.Request, true
	}
	in, inKnown := dearestInput(p, b.AudioIn)
	out, outKnown := dearestOutput(p, b.AudioOut)
	var sum pico
	known = true
	if b.Input > 0 {
		sum.add(b.Input, in)
		known = inKnown
	}
	if output > 0 {
		sum.add(output, out)
		known = known && outKnown
	}
	return withRequest(sum.nano(), p), known
}

// affordable is the most output tokens a choice, of n, that nano bears after the
// input and the request: worst of n times as many costs no more. 0: not one.
func affordable(p *config.Price, nano int64, b dialect.Bound, n int64) int64 {
	if p == nil || n <= 0 {
		return 0
	}
	if p.Flat() {
		if nano < *p.Request {
			return 0
		}
		return mostAffordable
	}
	in, inKnown := dearestInput(p, b.AudioIn)
	out, outKnown := dearestOutput(p, b.AudioOut)
	if p.Request != nil {
		nano -= *p.Request
	}
	if !outKnown || !inKnown && b.Input > 0 || nano < 0 {
		return 0
	}
	var left, spent pico
	left.add(nano, picoOfNano)
	spent.add(max(b.Input, 0), in)
	lo, borrow := bits.Sub64(left.lo, spent.lo, 0)
	hi, borrow := bits.Sub64(left.hi, spent.hi, borrow)
	if borrow != 0 {
		return 0
	}
	by := pico{}
	by.add(n, out)
	if by.hi > 0 {
		return 0
	}
	if hi >= by.lo {
		return mostAffordable // the quotient passes 64 bits, or the output is free
	}
	q, _ := bits.Div64(hi, lo, by.lo)
	return int64(min(q, mostAffordable))
}

const mostAffordable = 1 << 50 // tokens: beyond every limit

// dearestInput is the price of a token of input whichever part it turns out to be.
func dearestInput(p *config.Price, audio bool) (price int64, known bool) {
	return dearest(audio, p.AudioInput, p.Input, p.CachedInput, p.CacheWrite)
}

func dearestOutput(p *config.Price, audio bool) (price int64, known bool) {
	return dearest(audio, p.AudioOutput, p.Output, p.Reasoning)
}

// dearest takes the price of text first, which stands in for the others where they
// have none: without it, or without that of audio where there may be some, nothing
// is known.
func dearest(withAudio bool, audio *int64, texts ...*int64) (price int64, known bool) {
	for _, text := range texts {
		if text != nil {
			price = max(price, *text)
		}
	}
	if withAudio && audio != nil {
		price = max(price, *audio)
	}
	return price, texts[0] != nil && (!withAudio || audio != nil)
}
