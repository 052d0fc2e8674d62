package budget

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var midday = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func since(d time.Duration) time.Time { return midday.Add(d) }

func TestRequestsAMinute(t *testing.T) {
	for _, c := range []struct {
		name string
		rate int64
		at   []time.Duration
		want string // a for admitted, r for refused
	}{
		{"600 burst by 60", 600, make([]time.Duration, 62), fmt.Sprintf("%060drr", 0)},
		{"one comes in a tenth of a second", 600, append(make([]time.Duration, 61), 99*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond), fmt.Sprintf("%060drrar", 0)},
		{"under ten a minute burst by one", 9, []time.Duration{0, 0, 6666 * time.Millisecond, 6667 * time.Millisecond, 6667 * time.Millisecond}, "arrar"},
		{"19 burst by one", 19, []time.Duration{0, 0}, "ar"},
		{"20 burst by two", 20, []time.Duration{0, 0, 0}, "aar"},
		{"no burst at the edge of a minute", 60, []time.Duration{59 * time.Second, 59 * time.Second, 59 * time.Second, 59 * time.Second, 59 * time.Second, 59 * time.Second, 59 * time.Second, 61 * time.Second, 61 * time.Second, 61 * time.Second}, "aaaaaaraar"},
		{"a clock that goes back brings nothing", 6, []time.Duration{time.Minute, 0, 59 * time.Second, 69 * time.Second, 70 * time.Second}, "arrra"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLimiters().Of("t", Rates{RequestsPerMinute: c.rate})
			got := ""
			for _, at := range c.at {
				s, ok := l.Take(since(at), 1<<40)
				got += map[bool]string{true: "a", false: "r"}[ok]
				if ok != (s.Which == "") || !ok && (s.Which != LimitRequests || s.RetryAfter <= 0) {
					t.Errorf("at %v: %+v", at, s)
				}
			}
			want := ""
			for _, r := range c.want {
				want += map[bool]string{true: "r", false: "a"}[r == 'r']
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestTokensAMinute(t *testing.T) {
	l := NewLimiters().Of("t", Rates{TokensPerMinute: 6000})
	s, ok := l.Take(midday, 5000)
	if !ok || s.LimitTokens != 6000 || s.RemainingTokens != 1000 || s.ResetTokens != 50*time.Second || s.LimitRequests != 0 {
		t.Errorf("the first: %+v", s)
	}
	if s, ok = l.Take(midday, 100_000); !ok || s.RemainingTokens != 0 {
		t.Errorf("a large one is possible: %+v", s)
	}
	// 99,000 below zero: 100 a second come in.
	if s, ok = l.Take(midday, 1); ok || s.Which != LimitTokens || s.RetryAfter != 990*time.Second+1 {
		t.Errorf("below zero: %+v", s)
	}
	if _, ok = l.Take(since(990*time.Second), 1); ok {
		t.Error("admitted at zero")
	}
	if s, ok = l.Take(since(990*time.Second+1), 0); !ok {
		t.Errorf("refused a moment above zero: %+v", s)
	}
	l.Done(since(1000*time.Second), 3000)
	if s, ok = l.Take(since(1019*time.Second), 1); ok || s.RetryAfter != time.Second+1 {
		t.Errorf("the output was not taken: %+v", s)
	}
	l.Done(since(2000*time.Second), math.MaxInt64)
	l.Done(since(2000*time.Second), math.MaxInt64)
	if s, ok = l.Take(since(3000*time.Second), math.MaxInt64); ok || s.RetryAfter < time.Hour {
		t.Errorf("far below zero: %+v", s)
	}
}

func TestCallsInParallel(t *testing.T) {
	l := NewLimiters().Of("t", Rates{MaxParallel: 2})
	first, _ := l.Take(midday, 1)
	if _, ok := l.Take(midday, 1); !ok {
		t.Fatal("the second is refused")
	}
	if s, ok := l.Take(midday, 1); ok || s.Which != LimitParallel || s.RetryAfter != time.Second {
		t.Errorf("the third: %+v", s)
	}
	l.Done(midday, 5)
	if _, ok := l.Take(midday, 1); !ok {
		t.Error("refused beside one")
	}
	l.Undo(first)
	if _, ok := l.Take(midday, 1); !ok {
		t.Error("refused behind one that was undone")
	}
	if _, ok := l.Take(midday, 1); ok {
		t.Error("a third is admitted")
	}
}

func TestARefusalTakesNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		rates Rates
		use   int
		which string
	}{
		{"of requests", Rates{10, 1000, 5}, 1, LimitRequests},
		{"of tokens", Rates{600, 100, 5}, 1, LimitTokens},
		{"of parallel calls", Rates{600, 100_000, 2}, 2, LimitParallel},
		{"of all", Rates{10, 100, 1}, 1, LimitParallel},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLimiters().Of("t", c.rates)
			for range c.use {
				if s, ok := l.Take(midday, 100); !ok {
					t.Fatalf("%+v", s)
				}
			}
			requests, tokens, open := l.requests, l.tokens, l.open
			s, ok := l.Take(midday, 100)
			if ok || s.Which != c.which {
				t.Fatalf("%+v", s)
			}
			if l.requests != requests || l.tokens != tokens || l.open != open {
				t.Errorf("it took: %+v", s)
			}
			if l.Undo(s); l.open != open || l.requests != requests || l.tokens != tokens {
				t.Error("the undoing of a refusal gave")
			}
		})
	}
	l := NewLimiters().Of("t", Rates{6, 60, 1})
	l.Take(midday, 600)
	if s, _ := l.Take(midday, 1); s.RetryAfter != 540*time.Second+1 {
		t.Errorf("the longest wait, the last, is not told: %v", s.RetryAfter)
	}
	l = NewLimiters().Of("t", Rates{1, 600, 5})
	l.Take(midday, 610)
	if s, _ := l.Take(midday, 1); s.RetryAfter != time.Minute {
		t.Errorf("the longest wait, the first, is not told: %v", s.RetryAfter)
	}
}

// An undone call leaves no trace, whenever it is undone, where no other came.
func TestUndoIsAsIfNothingHadBeenTaken(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		r := Rates{1 + rng.Int64N(1<<rng.IntN(40)), 1 + rng.Int64N(1<<rng.IntN(40)), 0}
		a, b := NewLimiters().Of("t", r), NewLimiters().Of("t", r)
		now := time.Duration(0)
		step := func() { now += time.Duration(rng.Int64N(1 << rng.IntN(37))) }
		for range rng.IntN(20) {
			n := rng.Int64N(1 << rng.IntN(40))
			a.Take(since(now), n)
			b.Take(since(now), n)
			step()
		}
		n := rng.Int64N(1 << rng.IntN(40))
		s, ok := a.Take(since(now), n)
		b.refill(since(now))
		step()
		if rng.IntN(2) == 0 {
			a.refill(since(now))
			b.refill(since(now))
			step()
		}
		if ok {
			a.Undo(s)
		}
		a.refill(since(now))
		b.refill(since(now))
		if a.requests != b.requests || a.tokens != b.tokens || a.open != b.open {
			t.Fatalf("%d: %+v, taken %d of it\ngot  %+v %+v\nwant %+v %+v", i, r, n, a.requests, a.tokens, b.requests, b.tokens)
		}
	}
}

// Over any time, whatever is undone in between, at most rate·t + burst requests are
// admitted; and one that comes when it was told to is.
func TestNoTimeAdmitsMoreThanItsRate(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	type call struct {
		at time.Duration
		s  RateState
	}
	for range 400 {
		r := Rates{RequestsPerMinute: 1 + rng.Int64N(1<<rng.IntN(14))}
		l := NewLimiters().Of("t", r)
		gap := int64(time.Minute) / r.RequestsPerMinute * 2
		var open, kept []call
		now := time.Duration(0)
		for range 300 {
			switch rng.IntN(8) {
			case 0:
				now += time.Duration(rng.Int64N(gap * 30))
			case 1, 2, 3:
				now += time.Duration(rng.Int64N(gap))
			}
			if len(open) > 0 && rng.IntN(3) == 0 {
				i := rng.IntN(len(open))
				if rng.IntN(2) == 0 {
					l.Undo(open[i].s)
				} else {
					kept = append(kept, open[i])
					l.Done(since(now), 0)
				}
				open = append(open[:i], open[i+1:]...)
				continue
			}
			s, ok := l.Take(since(now), 1)
			if ok {
				open = append(open, call{now, s})
				continue
			}
			if now += s.RetryAfter - 1; rng.IntN(2) == 0 {
				if _, ok := l.Take(since(now), 1); ok {
					t.Fatalf("%+v: admitted before it was told to come", r)
				}
			}
			if now++; rng.IntN(2) == 0 {
				if s, ok = l.Take(since(now), 1); !ok {
					t.Fatalf("%+v: refused when it was told to come: %+v", r, s)
				}
				open = append(open, call{now, s})
			}
		}
		kept = append(kept, open...)
		sortByTime(kept, func(c call) time.Duration { return c.at })
		for i := range kept {
			for j := i; j < len(kept); j++ {
				// n ≤ rate·t/minute + burst
				n := big.NewInt(int64(j-i+1) - r.burst())
				n.Mul(n, big.NewInt(minute))
				if n.Cmp(new(big.Int).Mul(big.NewInt(r.RequestsPerMinute), big.NewInt(int64(kept[j].at-kept[i].at)))) > 0 {
					t.Fatalf("%+v: %d admitted in %v", r, j-i+1, kept[j].at-kept[i].at)
				}
			}
		}
	}
}

func sortByTime[T any](list []T, at func(T) time.Duration) {
	for i := range list {
		for j := i; j > 0 && at(list[j]) < at(list[j-1]); j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

// The bucket is compared with rational numbers.
func TestABucketIsExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 5000 {
		rate := 1 + rng.Int64N(1<<rng.IntN(40))
		size := max(1, rate/(1+rng.Int64N(10)))
		var b bucket
		b.limit(rate, size)
		level := new(big.Int).Mul(big.NewInt(size), big.NewInt(minute)) // in parts
		full := new(big.Int).Set(level)
		for range 30 {
			if rng.IntN(2) == 0 {
				n := rng.Int64N(1 << rng.IntN(45))
				b.take(n)
				level.Sub(level, new(big.Int).Mul(big.NewInt(n), big.NewInt(minute)))
			} else {
				d := rng.Int64N(1 << rng.IntN(55))
				b.refill(time.Duration(d))
				if level.Add(level, new(big.Int).Mul(big.NewInt(d), big.NewInt(rate))); level.Cmp(full) > 0 {
					level.Set(full)
				}
			}
			got := new(big.Int).Mul(big.NewInt(b.level), big.NewInt(minute))
			if got.Add(got, big.NewInt(b.part)); got.Cmp(level) != 0 || b.part < 0 || b.part >= minute {
				t.Fatalf("rate %d, size %d: %v, want %v", rate, size, got, level)
			}
			if wait := b.until(size, 0); wait < math.MaxInt64 {
				c := b
				c.refill(wait)
				e := b
				e.refill(wait - 1)
				if !c.full() || wait > 0 && e.full() && e.part == 0 && wait > 1 && !nearly(&e) {
					t.Fatalf("rate %d, size %d: %+v is full in %v", rate, size, b, wait)
				}
			}
		}
	}
}

// nearly allows for a rate of more than one unit in a nanosecond.
func nearly(b *bucket) bool { return b.rate >= minute }

func TestAChangedRateKeepsWhatWasTaken(t *testing.T) {
	ls := NewLimiters()
	l := ls.Of("t", Rates{RequestsPerMinute: 100})
	for range 8 {
		l.Take(midday, 0)
	}
	if ls.Of("t", Rates{RequestsPerMinute: 1000}) != l {
		t.Fatal("another limiter")
	}
	if s, _ := l.Take(midday, 0); s.RemainingRequests != 1 || s.LimitRequests != 1000 {
		t.Errorf("raised: %+v", s)
	}
	ls.Of("t", Rates{RequestsPerMinute: 10, TokensPerMinute: 50})
	if s, ok := l.Take(midday, 20); !ok || s.RemainingRequests != 0 || s.RemainingTokens != 30 {
		t.Errorf("lowered: %+v", s)
	}
	if s, ok := l.Take(midday, 20); ok || s.RetryAfter != 6*time.Second {
		t.Errorf("lowered: %+v", s)
	}
	ls.Of("t", Rates{MaxParallel: 20})
	if s, ok := l.Take(midday, 20); !ok || s.LimitRequests != 0 || l.open != 11 {
		t.Errorf("without: %+v, %d under way", s, l.open)
	}
	if ls.Of("t", Rates{}) != nil || ls.Of("u", Rates{}) != nil {
		t.Error("a limiter without a rate")
	}
	var none *Limiter
	s, ok := none.Take(midday, 1)
	none.Done(midday, 1)
	none.Undo(s)
	if !ok || s != (RateState{}) {
		t.Errorf("no limiter: %+v", s)
	}
}

func TestIdleLimitersAreForgottenAndNothingElse(t *testing.T) {
	ls := NewLimiters()
	r := Rates{RequestsPerMinute: 60, TokensPerMinute: 1000, MaxParallel: 3}
	debtor, busy, spent := ls.Of("debtor", r), ls.Of("busy", r), ls.Of("spent", r)
	debtor.Take(midday, 1_000_000)
	debtor.Done(midday, 0)
	busy.Take(midday, 0)
	for range 6 {
		spent.Take(midday, 0)
		spent.Done(midday, 0)
	}
	for i := range 5000 {
		now := since(time.Duration(i) * time.Millisecond)
		l := ls.Of(fmt.Sprint(i), r)
		l.Take(now, 1)
		l.Done(now, 1)
	}
	if n := len(ls.all); n < 1000 || n > 3500 { // a token comes back in a second
		t.Errorf("%d of 5,000 are kept after 5 s", n)
	}
	if s, ok := spent.Take(since(900*time.Millisecond), 0); ok || s.Which != LimitRequests {
		t.Errorf("spent: %+v", s)
	}
	for i := range 100 { // all but two are idle by now
		ls.Of(fmt.Sprint("late ", i), r)
		now := since(time.Hour + time.Duration(i)*time.Second)
		l := ls.Of("clock", r)
		l.Take(now, 0)
		l.Done(now, 0)
		for range 20 {
			ls.mu.Lock()
			ls.forget()
			ls.mu.Unlock()
		}
	}
	if n := len(ls.all); n > 110 {
		t.Errorf("%d are kept", n)
	}
	if ls.all["debtor"] != debtor || ls.all["busy"] != busy {
		t.Error("one that owes or is busy was forgotten")
	}
	if ls.all["spent"] == spent {
		t.Error("an idle one was not")
	}
}

func TestAForgottenLimiterThatIsStillHeldCounts(t *testing.T) {
	ls := NewLimiters()
	r := Rates{RequestsPerMinute: 10, MaxParallel: 2}
	old := ls.Of("t", r)
	old.Take(midday, 0)
	old.Done(midday, 0)
	forget := func() {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		ls.seen = since(time.Hour)
		ls.forget()
	}
	forget()
	if !old.gone || len(ls.all) != 0 {
		t.Fatal("it was not forgotten")
	}
	made := ls.Of("t", r)
	first, ok := old.Take(since(time.Hour), 0) // by way of the old
	if made == old || !ok || made.open != 1 || old.open != 0 {
		t.Fatalf("they count apart: %+v", first)
	}
	if _, ok := made.Take(since(time.Hour), 0); ok {
		t.Error("two bursts")
	}
	old.Undo(first)
	if made.open != 0 {
		t.Error("undone elsewhere")
	}
	forget()
	if _, ok := old.Take(since(2*time.Hour), 0); !ok || ls.all["t"] != old || old.gone || old.open != 1 {
		t.Error("the old one did not come back")
	}
	made.Done(since(2*time.Hour), 0)
	if old.open != 0 {
		t.Error("done elsewhere")
	}
}

func TestLimitersUnderRace(t *testing.T) {
	ls := NewLimiters()
	var wg sync.WaitGroup
	var admitted, clock atomic.Int64
	r := Rates{RequestsPerMinute: 6000, TokensPerMinute: 1 << 40, MaxParallel: 3}
	for g := range 8 {
		wg.Go(func() {
			held := ls.Of("shared", r)
			for i := range 2000 {
				now := since(time.Duration(clock.Add(1000)))
				own := ls.Of(fmt.Sprint(g, i%100), r)
				if s, ok := own.Take(now, 1); ok {
					own.Undo(s)
				}
				if i%10 == 0 {
					held = ls.Of("shared", r)
				}
				if s, ok := held.Take(now, 1); ok {
					if i%2 == 0 {
						admitted.Add(1)
						held.Done(now, 1)
					} else {
						held.Undo(s)
					}
				}
			}
		})
	}
	wg.Wait()
	most := r.burst() + clock.Load()*6000/minute + 1
	if n := admitted.Load(); n > most || n < 1 {
		t.Errorf("%d admitted, at most %d may be", n, most)
	}
	if l := ls.Of("shared", r); l.open != 0 {
		t.Errorf("%d are still under way", l.open)
	}
}

func BenchmarkLimiter(b *testing.B) {
	r := Rates{RequestsPerMinute: 1e9, TokensPerMinute: 1e9, MaxParallel: 100}
	b.Run("Take and Done", func(b *testing.B) {
		l := NewLimiters().Of("t", r)
		now := midday
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(10 * time.Microsecond)
			if _, ok := l.Take(now, 100); !ok {
				b.Fatal("refused")
			}
			l.Done(now, 10)
		}
	})
	b.Run("refused", func(b *testing.B) {
		l := NewLimiters().Of("t", Rates{RequestsPerMinute: 1, TokensPerMinute: 1000, MaxParallel: 100})
		l.Take(midday, 1)
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := l.Take(midday, 100); ok {
				b.Fatal("admitted")
			}
		}
	})
}
