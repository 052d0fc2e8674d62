package proxy

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy/dialect"
)

func TestACallCostsTheExactSumRoundedUpOnce(t *testing.T) {
	p := func(n int64) *int64 { return &n }
	usd := int64(1_000_000) // one USD per million tokens is 10⁶ pico-USD a token
	full := &config.Price{Input: p(2 * usd), CachedInput: p(usd / 2), CacheWrite: p(3 * usd), Output: p(8 * usd), Reasoning: p(9 * usd), AudioInput: p(40 * usd), AudioOutput: p(80 * usd)}
	plain := &config.Price{Input: p(2 * usd), Output: p(8 * usd)}
	tests := []struct {
		name  string
		usage dialect.Usage
		price *config.Price
		nano  int64
		known bool
	}{
		{"no price", dialect.Usage{Input: 1}, nil, 0, false},
		{"no price, nothing used", dialect.Usage{}, nil, 0, false},
		{"nothing used", dialect.Usage{}, full, 0, true},
		{"a million in", dialect.Usage{Input: 1e6}, full, 2e9, true},
		{"every part", dialect.Usage{Input: 1e6, CachedInput: 1e6, CacheWrite: 1e6, Output: 1e6, Reasoning: 1e6, AudioInput: 1e6, AudioOutput: 1e6}, full, 142.5e9, true},
		{"parts without a price of their own", dialect.Usage{CachedInput: 10, CacheWrite: 10, Reasoning: 10}, plain, 10*2000 + 10*2000 + 10*8000, true},
		{"audio without a price", dialect.Usage{Input: 1, AudioInput: 1}, plain, 2000, false},
		{"audio out without a price", dialect.Usage{AudioOutput: 1}, plain, 0, false},
		{"an input without a price", dialect.Usage{Input: 1, Output: 1}, &config.Price{Output: p(usd)}, 1000, false},
		{"a price of 0 is a price", dialect.Usage{Input: 1e9, CachedInput: 5}, &config.Price{Input: p(0)}, 0, true},
		{"a pico-USD is a nano-USD", dialect.Usage{Input: 1}, &config.Price{Input: p(1)}, 1, true},
		{"two parts are rounded once", dialect.Usage{Input: 1, Output: 1}, &config.Price{Input: p(1), Output: p(1)}, 1, true},
		{"1000 pico-USD", dialect.Usage{Input: 1000}, &config.Price{Input: p(1)}, 1, true},
		{"1001 pico-USD", dialect.Usage{Input: 1001}, &config.Price{Input: p(1)}, 2, true},
		{"a request", dialect.Usage{Input: 1}, &config.Price{Input: p(1), Request: p(5_000_000)}, 5_000_001, true},
		{"a request alone", dialect.Usage{}, &config.Price{Request: p(7)}, 7, true},
		{"beyond 64 bits of pico-USD", dialect.Usage{Input: 1 << 40}, &config.Price{Input: p(1 << 32)}, (1<<72 + 999) / 1000, true},
		{"beyond an int64 of nano-USD", dialect.Usage{Input: math.MaxInt64, Output: math.MaxInt64}, &config.Price{Input: p(math.MaxInt64), Output: p(math.MaxInt64)}, math.MaxInt64, true},
		{"an overflow by the request's price", dialect.Usage{Input: math.MaxInt64}, &config.Price{Input: p(1000), Request: p(1)}, math.MaxInt64, true},
		{"a negative usage costs nothing", dialect.Usage{Input: -5}, full, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if nano, known := cost(tt.usage, tt.price); nano != tt.nano || known != tt.known {
				t.Errorf("costs %d, %v; want %d, %v", nano, known, tt.nano, tt.known)
			}
		})
	}
}

func TestTheSumIsThatOfBigIntegers(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		n := func() int64 { return rng.Int64() >> rng.IntN(63) }
		u := dialect.Usage{Input: n(), CachedInput: n(), CacheWrite: n(), Output: n(), Reasoning: n(), AudioInput: n(), AudioOutput: n()}
		amounts := []int64{u.Input, u.CachedInput, u.CacheWrite, u.Output, u.Reasoning, u.AudioInput, u.AudioOutput}
		var prices [7]int64
		sum := new(big.Int)
		for i := range prices {
			prices[i] = n()
			sum.Add(sum, new(big.Int).Mul(big.NewInt(amounts[i]), big.NewInt(prices[i])))
		}
		want := sum.Add(sum, big.NewInt(999)).Div(sum, big.NewInt(1000))
		if !want.IsInt64() {
			want = big.NewInt(math.MaxInt64)
		}
		p := &config.Price{Input: &prices[0], CachedInput: &prices[1], CacheWrite: &prices[2], Output: &prices[3], Reasoning: &prices[4], AudioInput: &prices[5], AudioOutput: &prices[6]}
		if nano, known := cost(u, p); nano != want.Int64() || !known {
			t.Fatalf("%+v at %v costs %d, want %d", u, prices, nano, want)
		}
	}
}
