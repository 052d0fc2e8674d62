package proxy

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy/dialect"
)

func TestTheWorstCaseIsAtTheDearestParts(t *testing.T) {
	p := func(n int64) *int64 { return &n }
	usd := int64(1_000_000)
	full := &config.Price{Input: p(2 * usd), CachedInput: p(usd / 2), CacheWrite: p(3 * usd), Output: p(8 * usd), Reasoning: p(9 * usd), AudioInput: p(40 * usd), AudioOutput: p(80 * usd), Request: p(7)}
	plain := &config.Price{Input: p(2 * usd), Output: p(8 * usd)}
	audio := dialect.Bound{Input: 10, AudioIn: true, AudioOut: true}
	for _, c := range []struct {
		name   string
		price  *config.Price
		bound  dialect.Bound
		output int64
		nano   int64
		known  bool
	}{
		{"no price", nil, dialect.Bound{Input: 1}, 1, 0, false},
		{"text", plain, dialect.Bound{Input: 10}, 100, 10*2000 + 100*8000, true},
		{"cache write and reasoning are dearer", full, dialect.Bound{Input: 10}, 100, 10*3000 + 100*9000 + 7, true},
		{"audio in and out", full, audio, 100, 10*40_000 + 100*80_000 + 7, true},
		{"audio in alone", full, dialect.Bound{Input: 10, AudioIn: true}, 100, 10*40_000 + 100*9000 + 7, true},
		{"audio cheaper than text", &config.Price{Input: p(5), AudioInput: p(1), Output: p(0)}, dialect.Bound{Input: 1000, AudioIn: true}, 0, 5, true},
		{"audio in without a price", plain, dialect.Bound{Input: 10, AudioIn: true}, 0, 20_000, false},
		{"audio out without a price", plain, dialect.Bound{Input: 10, AudioOut: true}, 1, 28_000, false},
		{"only the cache has a price", &config.Price{CachedInput: p(1000), Output: p(0)}, dialect.Bound{Input: 10}, 1, 10, false},
		{"only reasoning has a price", &config.Price{Input: p(0), Reasoning: p(1000)}, dialect.Bound{Input: 10}, 1, 1, false},
		{"no output wanted, none priced", &config.Price{Input: p(1000)}, dialect.Bound{Input: 10}, 0, 10, true},
		{"rounded up once", &config.Price{Input: p(1), Output: p(1)}, dialect.Bound{Input: 1}, 1, 1, true},
		{"1,001 pico-USD", &config.Price{Input: p(1), Output: p(1)}, dialect.Bound{Input: 1000}, 1, 2, true},
		{"past an int64", full, dialect.Bound{Input: math.MaxInt64}, math.MaxInt64, math.MaxInt64, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if nano, known := worst(c.price, c.bound, c.output); nano != c.nano || known != c.known {
				t.Errorf("%d, %v; want %d, %v", nano, known, c.nano, c.known)
			}
		})
	}
}

// drawPrice draws a price whose parts may be missing, and small more often than not.
func drawPrice(rng *rand.Rand) *config.Price {
	var p config.Price
	for _, part := range []**int64{&p.Input, &p.CachedInput, &p.CacheWrite, &p.Output, &p.Reasoning, &p.AudioInput, &p.AudioOutput, &p.Request} {
		if rng.IntN(4) > 0 {
			n := rng.Int64N(1 << rng.IntN(40))
			*part = &n
		}
	}
	return &p
}

// split cuts total into as many parts, at random.
func split(rng *rand.Rand, total int64, parts ...*int64) {
	for _, part := range parts[1:] {
		*part = rng.Int64N(total + 1)
		total -= *part
	}
	*parts[0] = total
}

func TestNothingWithinTheBoundsCostsMoreThanTheWorstCase(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	equal, known := 0, 0
	for range 200_000 {
		p := drawPrice(rng)
		b := dialect.Bound{Input: rng.Int64N(1 << rng.IntN(45)), AudioIn: rng.IntN(3) == 0, AudioOut: rng.IntN(3) == 0}
		output := rng.Int64N(1 << rng.IntN(45))
		most, mostKnown := worst(p, b, output)
		var u dialect.Usage
		in, out := b.Input, output
		if rng.IntN(2) == 0 {
			in, out = rng.Int64N(in+1), rng.Int64N(out+1)
		}
		ins, outs := []*int64{&u.Input, &u.CachedInput, &u.CacheWrite}, []*int64{&u.Output, &u.Reasoning}
		if b.AudioIn {
			ins = append(ins, &u.AudioInput)
		}
		if b.AudioOut {
			outs = append(outs, &u.AudioOutput)
		}
		rng.Shuffle(len(ins), func(i, j int) { ins[i], ins[j] = ins[j], ins[i] })
		rng.Shuffle(len(outs), func(i, j int) { outs[i], outs[j] = outs[j], outs[i] })
		split(rng, in, ins[:1+rng.IntN(len(ins))]...)
		split(rng, out, outs[:1+rng.IntN(len(outs))]...)
		nano, ok := cost(u, p)
		if nano > most || mostKnown && !ok {
			t.Fatalf("%+v costs %d, %v, the worst of %+v and %d is %d, %v", u, nano, ok, b, output, most, mostKnown)
		}
		if mostKnown {
			known++
		}
		if nano == most {
			equal++
		}
	}
	if known < 50_000 || equal < 10_000 {
		t.Errorf("%d known, %d as dear as the worst: they prove little", known, equal)
	}
}

func TestWhatIsAffordableIsTheMostThatIs(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	some := 0
	for range 200_000 {
		p := drawPrice(rng)
		b := dialect.Bound{Input: rng.Int64N(1 << rng.IntN(30)), AudioIn: rng.IntN(3) == 0, AudioOut: rng.IntN(3) == 0}
		n := 1 + rng.Int64N(128)
		nano := rng.Int64N(1<<rng.IntN(62)) - 1
		got := affordable(p, nano, b, n)
		if got < 0 || got > mostAffordable {
			t.Fatalf("%d is affordable", got)
		}
		if got > 0 {
			some++
			if most, known := worst(p, b, got*n); most > nano || !known {
				t.Fatalf("%d times %d is affordable with %d and costs %d, %v", n, got, nano, most, known)
			}
		}
		if most, known := worst(p, b, (got+1)*n); known && got < mostAffordable && most <= nano {
			t.Fatalf("%d times %d is affordable with %d, but one more costs %d", n, got, nano, most)
		}
	}
	if some < 20_000 {
		t.Errorf("%d with anything affordable prove little", some)
	}
	if affordable(nil, math.MaxInt64, dialect.Bound{}, 1) != 0 || affordable(&config.Price{}, 5, dialect.Bound{}, 0) != 0 {
		t.Error("something is affordable without a price, or for no choice")
	}
}

func BenchmarkWorst(b *testing.B) {
	n := int64(2_000_000)
	p := &config.Price{Input: &n, CachedInput: &n, Output: &n}
	b.ReportAllocs()
	for b.Loop() {
		if _, known := worst(p, dialect.Bound{Input: 1000}, 4096); !known {
			b.Fatal("unknown")
		}
	}
}
