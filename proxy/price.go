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
	nano := sum.nano()
	if p.Request != nil {
		if nano > math.MaxInt64-*p.Request {
			return math.MaxInt64, known
		}
		nano += *p.Request
	}
	return nano, known
}

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
	if s.hi >= 1000 {
		return math.MaxInt64
	}
	q, r := bits.Div64(s.hi, s.lo, 1000)
	if r > 0 {
		q++
	}
	if q > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(q)
}

// worst is the most that a call may cost in nano-USD: input at its dearest part,
// output (of all choices together) at its dearest, rounded up once as cost does.
// known is false where a part that may be used has no price.
func worst(p *config.Price, input, output int64, audioOut bool) (nano int64, known bool) {
	if p == nil {
		return 0, false
	}
	return cost(dialect.Usage{Input: input, Output: output}, p)
}

// affordable is the most output tokens a choice, of n, that nano bears after the
// input; 0: none.
func affordable(p *config.Price, nano, input, n int64) int64 { return 0 }
