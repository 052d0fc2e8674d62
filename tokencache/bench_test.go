package tokencache

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// fill puts profiles 0 to n-1 into c as a load would.
func fill(t testing.TB, c *Cache, n int) []token.Digest {
	t.Helper()
	digests := make([]token.Digest, n)
	for i := range digests {
		digests[i] = dig(i)
		if !c.hot.put(newEntry(profile(i, 1, abac.Active), digests[i], c.now())) {
			t.Fatalf("profile %d was not admitted", i)
		}
	}
	return digests
}

func BenchmarkHit(b *testing.B) {
	const many = 100_000
	c := open(b, &plane{}, func(o *Options) { o.Profiles = 2 * many; o.FreshFor = o.MaxStale })
	digests := fill(b, c, many)
	order := rand.New(rand.NewPCG(1, 2)).Perm(many)
	run := func(name string, pick func(i int) token.Digest) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := c.Get(b.Context(), pick(i)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(many); pb.Next(); i++ {
					if _, err := c.Get(b.Context(), pick(i)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
	hot := func(int) token.Digest { return digests[0] }
	random := func(i int) token.Digest { return digests[order[i%many]] }
	run("hot", hot)
	run("random", random)
	// Old by themselves, and vouched for by a watch.
	c.Synced(time.Now().Add(-time.Hour))
	c.Synced(time.Now())
	c.fresh = -1
	c.watched.vouch.Load().last = time.Now().Add(time.Hour)
	run("hot in sync", hot)
	run("random in sync", random)
	c.fresh = c.stale
	for i := range many {
		c.Revoke(profile(many+i, 1, abac.Revoked).ID, 1)
	}
	run("hot beside 100000 revocations", hot)
	run("random beside 100000 revocations", random)
}

// A profile that the cache does not hold: what a load costs beside the ask.
func BenchmarkLoad(b *testing.B) {
	p := &plane{}
	p.set(dig(1), profile(1, 1, abac.Active))
	c := open(b, p, nil)
	b.ReportAllocs()
	for b.Loop() {
		d := dig(1)
		c.hot.drop(&d)
		get(b, c, d)
	}
}

func BenchmarkUnknown(b *testing.B) {
	c := open(b, &plane{}, nil)
	d := dig(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Get(b.Context(), d); err == nil {
			b.Fatal("no error")
		}
	}
}

// BenchmarkHeld prints what a cached profile takes, with bindings as they are usual.
func BenchmarkHeld(b *testing.B) {
	const many = 200_000
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		c := open(b, &plane{}, func(o *Options) { o.Profiles = many })
		empty := heap()
		f := c.Fill()
		f.Head("org_default", many)
		for i := range many {
			p := profile(i, 1, abac.Active)
			team := "platform"
			p.Bindings = abac.Bindings{TeamID: &team, Models: []string{"gpt-5.4-*", "!gpt-5.4-pro"}, Budgets: []abac.BudgetBinding{{ID: "b_day"}}}
			if err := f.Token(dig(i), Known{ID: p.ID, Revision: 1, Status: p.Status, Purpose: p.Purpose}); err != nil {
				b.Fatal(err)
			}
			f.Profile(dig(i), p)
		}
		f.Done()
		all := heap()
		b.ReportMetric((empty-before)/many, "bytes/place")
		b.ReportMetric((all-empty-float64(c.index.Load().bytes()))/many, "bytes/profile")
		b.ReportMetric(float64(c.hot.len()), "profiles")
		c.Close()
	}
}
