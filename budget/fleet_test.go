package budget_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// fleet is several gateways on one authority.
func (p *plane) fleet(t *testing.T, n int) []*budget.Ledger {
	var list []*budget.Ledger
	for i := range n {
		list = append(list, p.start(fmt.Sprintf("gw_%d", i), t.TempDir()))
	}
	return list
}

// swarm sends requests at once, spread over the gateways, and says how many were
// served. Each holds worst for a while and uses used; a refused one comes back
// after pause, some times.
func swarm(t *testing.T, fleet []*budget.Ledger, ids []string, n int, worst, used budget.Amounts, again int, pause time.Duration) (served, unavailable int64) {
	var wg sync.WaitGroup
	var yes, out atomic.Int64
	for i := range n {
		wg.Go(func() {
			l := fleet[i%len(fleet)]
			s, err := l.Set(ids, "")
			if err != nil {
				t.Error(err)
				return
			}
			for range 1 + again {
				var h budget.Hold
				err := l.Reserve(context.Background(), s, worst, &h)
				if err == nil {
					time.Sleep(50 * time.Millisecond)
					h.Settle(used)
					yes.Add(1)
					return
				}
				if errors.Is(err, budget.ErrUnavailable) {
					out.Add(1)
				}
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	return yes.Load(), out.Load()
}

func TestAFleetServesExactlyWhatTheBudgetsBear(t *testing.T) {
	day := budget.Record{ID: "day", Unit: budget.USD, Window: budget.Day, Limit: 1000}
	month := budget.Record{ID: "month", Unit: budget.USD, Window: budget.Month, Limit: 1000}
	large := budget.Record{ID: "large", Unit: budget.USD, Window: budget.Month, Limit: 5000}
	org := budget.Record{ID: "org", Unit: budget.USD, Window: budget.Total, Limit: 1500, AppliesTo: budget.AppliesTo{Org: true}}
	team := budget.Record{ID: "team", Unit: budget.Requests, Window: budget.Week, Limit: 120, AppliesTo: budget.AppliesTo{Org: true}}
	for _, test := range []struct {
		name    string
		records []budget.Record
		ids     []string
		hold    int64
		again   int
	}{
		{"one budget", []budget.Record{day}, []string{"day"}, 10, 0},
		{"day and month", []budget.Record{day, month}, []string{"day", "month"}, 10, 0},
		{"day and a larger month", []budget.Record{day, large}, []string{"day", "large"}, 10, 0},
		{"own, team and org", []budget.Record{day, team, org}, []string{"day"}, 10, 0},
		{"holds above the cost, refused ones come back", []budget.Record{day}, []string{"day"}, 23, 40},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 2 {
				synctest.Test(t, func(t *testing.T) {
					p := newPlane(t)
					p.delay = 2 * time.Millisecond
					for _, r := range test.records {
						p.put(r)
					}
					fleet := p.fleet(t, 3)
					used := budget.Amounts{USD: 10, Requests: 1}
					worst := budget.Amounts{USD: test.hold, Requests: 1}
					served, _ := swarm(t, fleet, test.ids, 400, worst, used, test.again, time.Second)
					// The last one needs room for a hold, however little it costs.
					if want := (1000-test.hold)/10 + 1; served != want {
						t.Errorf("served %d of %d", served, want)
					}
					for _, l := range fleet {
						p.end(l)
					}
					if got := p.standing("day"); got.Settled != 10*served || got.Overrun != 0 || got.Leased != 0 || got.Left != 1000-10*served {
						t.Errorf("%d served: %+v", served, got)
					}
				})
			}
		})
	}
}

// rate counts the calls that one gateway makes in a second, on average.
func (p *plane) rate(f func()) float64 {
	p.mu.Lock()
	calls, begun := p.calls, time.Now()
	p.mu.Unlock()
	f()
	p.mu.Lock()
	defer p.mu.Unlock()
	return float64(p.calls-calls) / time.Since(begun).Seconds()
}

func TestFarFromTheLimitTheTickBoundsTheCalls(t *testing.T) {
	for _, n := range []int{1, 100} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			p.delay = time.Millisecond
			var ids []string
			for i := range n {
				ids = append(ids, fmt.Sprint("b", i))
				p.put(budget.Record{ID: ids[i], Unit: budget.USD, Window: budget.Total, Limit: 1 << 40})
			}
			l := p.start("gw_1", t.TempDir())
			load := func(d time.Duration) {
				for begun := time.Now(); time.Since(begun) < d; time.Sleep(20 * time.Millisecond) {
					for range 10 {
						id := ids[time.Now().UnixNano()/int64(20*time.Millisecond)%int64(n)]
						var h budget.Hold
						if err := l.Reserve(context.Background(), set(t, l, id), budget.Amounts{USD: 1000}, &h); err != nil {
							t.Error(err)
						}
						h.Settle(budget.Amounts{USD: 300})
					}
				}
			}
			load(8 * time.Second)
			rate := p.rate(func() { load(10 * time.Second) })
			t.Logf("%d hot budgets: %.2f calls/s", n, rate)
			if rate < 0.5 || rate > 2.0 {
				t.Errorf("%.2f calls a second", rate)
			}
			p.end(l)
		})
	}
}

func TestADryBudgetIsAskedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.delay = time.Millisecond
		p.put(budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Limit: 1000})
		fleet := p.fleet(t, 2)
		load := func(d time.Duration) {
			for begun := time.Now(); time.Since(begun) < d; time.Sleep(10 * time.Millisecond) {
				for _, l := range fleet {
					go func() {
						var h budget.Hold
						if l.Reserve(context.Background(), set(t, l, "b"), budget.Amounts{USD: 10}, &h) == nil {
							time.Sleep(5 * time.Millisecond)
							h.Settle(budget.Amounts{USD: 10})
						}
					}()
				}
			}
		}
		most := 0.0
		for range 5 {
			most = max(most, p.rate(func() { load(time.Second) })/2)
		}
		dry := p.rate(func() { load(20 * time.Second) }) / 2
		t.Logf("a gateway: at most %.1f calls in the second in which it runs dry, then %.2f calls/s", most, dry)
		if most > 20 || dry > 2.4 {
			t.Errorf("%.1f, then %.2f calls a second", most, dry)
		}
		time.Sleep(time.Second)
		for _, l := range fleet {
			p.end(l)
		}
	})
}

func TestAQueueAtTheAuthorityIsNotMadeLongerByRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.put(budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Limit: 1 << 40})
		var longest atomic.Int64
		p.queued = func(n int64) {
			for m := longest.Load(); n > m && !longest.CompareAndSwap(m, n); m = longest.Load() {
			}
		}
		fleet := p.fleet(t, 20)
		// One call takes 60 ms, and they queue: twenty gateways are more than a
		// timeout's worth, and whoever gives up leaves its call in the queue.
		p.single.Store(int64(60 * time.Millisecond))
		var unserved atomic.Int64
		var wg sync.WaitGroup
		for _, l := range fleet {
			wg.Go(func() {
				for range 60 {
					var h budget.Hold
					if l.Reserve(context.Background(), set(t, l, "b"), budget.Amounts{USD: 1 << 20}, &h) != nil {
						unserved.Add(1)
					}
					time.Sleep(100 * time.Millisecond)
					h.Settle(budget.Amounts{USD: 1 << 10})
				}
			})
		}
		wg.Wait()
		t.Logf("longest queue: %d calls; %d of 1200 were not served", longest.Load(), unserved.Load())
		if longest.Load() > 60 {
			t.Errorf("a queue of %d calls", longest.Load())
		}
		p.single.Store(0)
		time.Sleep(20 * time.Second)
		for _, l := range fleet {
			p.end(l)
		}
	})
}
