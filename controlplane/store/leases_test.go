package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

type scenario struct {
	name string
	run  func(*testing.T, *Store)
}

// onBank makes scenarios of the authority's part of the protocol.
func onBank(name string, run func(*bank)) scenario {
	return scenario{name, func(t *testing.T, s *Store) {
		b := newBank(t, s)
		run(b)
		b.sound()
	}}
}

var leasing = []scenario{
	onBank("a need is granted up to the limit and not beyond", func(b *bank) {
		b.budget("b", 10)
		b.is(b.need("s", 4, "b"), "b", "4 6 0")
		b.is(b.need("s", 6, "b"), "b", "10 0 0")
		b.is(b.need("s", 1, "b"), "b", "10 0 1")
	}),
	onBank("a need is granted from all of its budgets or from none", func(b *bank) {
		b.budget("own", 10)
		b.budget("team", 5)
		b.is(b.need("s", 5, "own", "team"), "own", "5 5 0")
		o := b.need("s", 2, "own", "team")
		b.is(o, "own", "5 5 0")
		b.is(o, "team", "5 0 1")
		b.is(b.need("s", 5, "own"), "own", "10 0 0")
	}),
	onBank("needs of one call are met one by one in their order", func(b *bank) {
		b.budget("a", 10)
		b.budget("b", 10)
		o := b.call("s", budget.Call{Needs: [][]budget.Need{
			needOf(6, "a", "b"), needOf(5, "a"), needOf(3, "b", "a"), needOf(4, "a"),
		}})
		b.is(o, "a", "9 1 1") // 6 and 3 first: they have the same counters
		b.is(o, "b", "9 1 0")
	}),
	onBank("a need that names one budget twice needs both amounts", func(b *bank) {
		b.budget("b", 10)
		n := append(needOf(6, "b"), budget.Need{Budget: "b", Window: today, Amount: 5})
		b.is(b.call("s", budget.Call{Needs: [][]budget.Need{n}}), "b", "0 10 1 gone")
	}),
	onBank("a budget that is not there meets no need, and takes nothing of the others", func(b *bank) {
		b.budget("b", 10)
		o := b.need("s", 1, "b", "none")
		b.is(o, "none", "-1 -1 0")
		if got := b.dump(allOfLeases); got != "b "+today+" 10 0 0 0 0 0 \ns gw 1 0 \n" {
			b.Errorf("something was taken: %s", got)
		}
	}),
	onBank("a want takes the share of left that is its own", func(b *bank) {
		b.budget("b", 1000)
		b.is(b.want("s1", "b", "current", 900), "b", "500 500 0") // nobody yet: 1/2
		b.is(b.want("s2", "b", "current", 900), "b", "125 375 0") // one: 1/4
		b.is(b.want("s1", "b", today, 900), "b", "562 313 0")     // two: 1/6
		b.is(b.want("s2", "b", today, 3), "b", "128 310 0")       // no more than is wanted
		b.wait(11 * time.Second)
		b.is(b.want("s1", "b", today, 900), "b", "639 233 0") // s2 is silent: one, 1/4
	}),
	onBank("a want of nothing left makes no lease", func(b *bank) {
		b.budget("b", 1)
		o := b.want("s", "b", "current", 5)
		b.is(o, "b", "0 1 0")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Spent: 1, Overrun: 1})
		b.stands("b", "0 0 0 1")
	}),
	onBank("an older call's wishes are ignored, its facts are not", func(b *bank) {
		b.budget("b", 1000)
		b.need("s", 100, "b")
		old := budget.Call{Session: "s", Seq: 2, Leases: []budget.Lease{{Budget: "b", Window: today, Granted: 100, Spent: 40, Held: 7, Want: 50}},
			Needs: [][]budget.Need{needOf(10, "b")}}
		b.seqs["s"] = 2
		b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 100, Spent: 30, Held: 5})
		o, err := b.send(old)
		if err != nil || o.Seq != 2 {
			b.Fatal(o, err)
		}
		b.is(o, "b", "100 900 0")
		b.stands("b", "40 5 55 900") // spent as it says, held as the newer one
	}),
	onBank("a refused wish is heard: its copy finds nobody who waits", func(b *bank) {
		b.budget("b", 10)
		b.need("s", 8, "b")
		o := b.need("s", 5, "b")
		b.is(o, "b", "8 2 1")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 8, Returned: 8})
		o, err := b.send(budget.Call{Session: "s", Seq: 2, Needs: [][]budget.Need{needOf(5, "b")}})
		if err != nil {
			b.Fatal(err)
		}
		b.is(o, "b", "8 10 2")
	}),
	onBank("totals only rise, and none moves more than there is", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 50, "b")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 50, Returned: 20, Spent: 25, Overrun: 3, Phase: 0})
		b.stands("b", "28 0 5 67")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 10, Returned: 5, Spent: 1, Overrun: 1})
		b.stands("b", "28 0 5 67")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: math.MaxInt64, Returned: math.MaxInt64, Spent: math.MaxInt64, Phase: math.MaxInt64})
		b.stands("b", "28 0 0 72")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Overrun: math.MaxInt64})
		b.sound()
		b.is(b.need("s", 1, "b"), "b", "50 0 1")
		b.stands("b", fmt.Sprintf("%d 0 0 0", int64(math.MaxInt64)))
	}),
	onBank("facts never make a lease", func(b *bank) {
		b.budget("b", 100)
		b.need("other", 10, "b")
		o := b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 50, Returned: 50, Overrun: 9})
		b.is(o, "b", "0 90 0")
		b.stands("b", "0 0 10 90")
	}),
	onBank("the answer names every lease that may not be known to be granted", func(b *bank) {
		b.budget("a", 100)
		b.budget("b", 100)
		b.need("s", 7, "a") // its answer is lost
		b.is(b.need("s", 5, "b"), "a", "7 93 0")
		b.wait(24 * time.Hour) // and its window ends
		o := b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 5})
		b.is(o, "a", "7 93 0")
		if o.of("a").EndsInMS >= 0 {
			b.Errorf("an ended window ends in %d ms", o.of("a").EndsInMS)
		}
		b.is(b.tell("s", budget.Lease{Budget: "a", Window: today, Granted: 7, Returned: 7}), "a", "7 100 0")
		if o := b.tell("s"); len(o.Leases) != 0 {
			b.Errorf("all is known: %+v", o.Leases)
		}
	}),
	onBank("more leases than one transaction locks are one call", func(b *bank) {
		const n = 3*together + 1
		var wants, facts []budget.Lease
		var needs [][]budget.Need
		for i := range n {
			id := fmt.Sprintf("b%03d", i)
			b.budget(id, 1000)
			wants = append(wants, budget.Lease{Budget: id, Window: "current", Want: 10})
			facts = append(facts, budget.Lease{Budget: id, Window: today, Granted: 10, Spent: 4, Want: 1})
			needs = append(needs, needOf(2, id))
		}
		if o := b.tell("s", wants...); len(o.Leases) != n {
			b.Fatalf("%d leases", len(o.Leases))
		}
		o := b.call("s", budget.Call{Leases: facts, Needs: needs})
		for i := range n {
			b.stands(fmt.Sprintf("b%03d", i), "4 0 9 987")
		}
		if len(o.Leases) != n {
			b.Errorf("%d leases", len(o.Leases))
		}
	}),
	onBank("sessions at once are granted the limit, and no more", func(b *bank) {
		const limit, sessions = 60, 8
		b.budget("a", limit)
		b.budget("b", 10*limit)
		var granted atomic.Int64
		var wg sync.WaitGroup
		for i := range sessions {
			wg.Go(func() {
				var had int64
				for seq := int64(1); ; seq++ {
					o, err := b.send(budget.Call{Session: fmt.Sprintf("s%d", i), Seq: seq, Needs: [][]budget.Need{needOf(1, "b", "a")}})
					if err != nil {
						b.Error(err)
						return
					}
					if o.of("a").Granted == had {
						granted.Add(had)
						return
					}
					had = o.of("a").Granted
				}
			})
		}
		wg.Wait()
		if granted.Load() != limit {
			b.Errorf("%d were granted", granted.Load())
		}
		b.stands("b", fmt.Sprintf("0 0 %d %d", limit, 9*limit))
	}),
	onBank("a long call that a newer one overtakes between its parts wishes nothing any more", func(b *bank) {
		b.budget("b", 10)
		b.need("s", 1, "b")
		b.tell("s")
		old := budget.Call{Session: "s", Seq: 1, Needs: [][]budget.Need{needOf(5, "b")}}
		if err := b.s.beside(b.Context(), func(ctx context.Context, tx *Tx) error {
			v := visit{Tx: tx, org: "org", gateway: "gw", call: &old, fresh: true, counters: map[place]*counter{}}
			return v.lines(ctx, nil, false, true)
		}); err != nil {
			b.Fatal(err)
		}
		b.stands("b", "0 0 1 9")
	}),
	onBank("another org's budgets and sessions are others", func(b *bank) {
		b.budget("b", 10)
		b.need("s", 4, "b")
		answer, _, err := b.s.Leases(context.Background(), "other", "gw", &budget.Call{Session: "s", Seq: 9, Needs: [][]budget.Need{needOf(1, "b")},
			Close: []budget.Closing{{Session: "s2", Lost: true}}})
		if err != nil || len(answer.Leases) != 0 {
			b.Errorf("%+v %v", answer, err)
		}
		b.is(b.need("s", 4, "b"), "b", "8 2 0")
	}),
	onBank("the largest amounts are counted without an overflow", func(b *bank) {
		const most = 999_999_999_999_999_999
		b.budget("b", most)
		for i := range 8 {
			if _, _, err := b.topUp("b", most, fmt.Sprint(i)); err != nil {
				b.Fatal(err)
			}
		}
		if _, _, err := b.topUp("b", most, "9"); !errors.Is(err, ErrTooMuch) {
			b.Errorf("a limit that can't be counted: %v", err)
		}
		left := int64(9 * most)
		b.is(b.need("s", math.MaxInt64, "b"), "b", fmt.Sprintf("0 %d 1 gone", left))
		b.wait(time.Second)
		b.is(b.need("s2", left-5, "b"), "b", fmt.Sprintf("%d 5 1 gone", left-5))
		b.is(b.tell("s2", budget.Lease{Budget: "b", Window: today, Granted: left - 5, Returned: left - 5}), "b", fmt.Sprintf("%d %d 2", left-5, left))
		b.is(b.need("s2", left-5, "b"), "b", fmt.Sprintf("%d %d 3 gone", left-5, left)) // its total would not be counted
		b.is(b.need("s3", left, "b"), "b", fmt.Sprintf("%d 0 3 gone", left))
		b.tell("s3", budget.Lease{Budget: "b", Window: today, Granted: left, Spent: left, Overrun: math.MaxInt64})
		b.stands("b", fmt.Sprintf("%d 0 0 0", int64(math.MaxInt64)))
	}),
	onBank("a call that ends its own session is told so, and then it is closed", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 50, "b")
		c := budget.Call{Session: "s", Seq: 2, Needs: [][]budget.Need{needOf(9, "b")},
			Close: []budget.Closing{{Session: "s", Leases: []budget.ClosedLease{{Budget: "b", Window: today, Mark: 20}}}}}
		for range 2 {
			o, err := b.send(c)
			if err != nil || len(o.Closed) != 1 || len(o.Leases) != 0 {
				b.Fatalf("%+v %v", o, err)
			}
			b.stands("b", "20 0 0 80")
		}
		if _, err := b.send(budget.Call{Session: "s", Seq: 3}); !errors.Is(err, budget.ErrClosed) {
			b.Errorf("got %v", err)
		}
	}),
}

var shortages = []scenario{
	onBank("a need that left can't bear turns the budget short and calls idle money back", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 95, "b")
		o := b.need("s2", 10, "b")
		b.is(o, "b", "0 5 1")
		if o.recalled() != "b/1" {
			b.Errorf("recalled %q", o.recalled())
		}
		b.wait(recallEvery)
		o = b.need("s2", 20, "b")
		b.is(o, "b", "0 5 1")
		if o.recalled() != "b/1" {
			b.Errorf("again: recalled %q", o.recalled())
		}
		// 20 was not met: it is short until left is 40.
		o = b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 95, Returned: 34, Spent: 50, Phase: 1})
		b.is(o, "b", "95 39 1 gone")
		o = b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 95, Returned: 35, Spent: 50, Phase: 1})
		b.is(o, "b", "95 40 2")
		if o.recalled() != "b/2" {
			b.Errorf("enough: recalled %q", o.recalled())
		}
		b.is(b.need("s2", 41, "b"), "b", "0 40 3")
	}),
	onBank("a shortage ends at a tenth of the limit at least", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.is(b.need("s2", 1, "b"), "b", "0 0 1")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 9, Phase: 1}), "b", "100 9 1 gone")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 10, Phase: 1}), "b", "100 10 2")
	}),
	onBank("while it is short only needs are granted", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 50, "b")
		b.need("s1", 60, "b")
		b.is(b.want("s2", "b", "current", 9), "b", "0 50 1")
		b.is(b.need("s2", 9, "b"), "b", "9 41 1")
	}),
	onBank("idle money is gone once every holder has acknowledged", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 40, "b")
		b.need("s2", 40, "b")
		b.is(b.need("s3", 30, "b"), "b", "0 20 1")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 40, Spent: 40, Phase: 1}), "b", "40 20 1")
		o := b.need("s3", 30, "b")
		b.is(o, "b", "0 20 1") // s2 has not
		b.is(b.tell("s2", budget.Lease{Budget: "b", Window: today, Granted: 40, Spent: 40, Phase: 1}), "b", "40 20 1 gone")
		o = b.need("s3", 30, "b")
		b.is(o, "b", "0 20 1 gone")
		if o.recalled() != "" {
			b.Errorf("all have, and %q is called back", o.recalled())
		}
	}),
	onBank("a holder with nothing out is not waited for", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 100})
		b.need("s2", 100, "b")
		b.is(b.need("s3", 30, "b"), "b", "0 0 1")
		b.is(b.tell("s2", budget.Lease{Budget: "b", Window: today, Granted: 100, Spent: 90, Phase: 1}), "b", "100 0 1 gone")
	}),
	onBank("who is granted something while it is short has acknowledged it", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 90, "b")
		b.is(b.need("s2", 30, "b"), "b", "0 10 1")
		b.is(b.need("s2", 10, "b"), "b", "10 0 1")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 90, Spent: 90, Phase: 1}), "b", "90 0 1 gone")
	}),
	onBank("half a second after it turned short it is gone, whoever has not acknowledged", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.is(b.need("s2", 1, "b"), "b", "0 0 1")
		b.wait(500 * time.Millisecond)
		o := b.need("s2", 1, "b")
		b.is(o, "b", "0 0 1")
		b.wait(recallEvery)
		o = b.need("s2", 1, "b")
		b.is(o, "b", "0 0 1 gone")
		if o.recalled() != "b/1" {
			b.Errorf("s1 may still have idle money, and %q is called back", o.recalled())
		}
	}),
	onBank("a clock that is set back does not keep it from being gone", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.need("s2", 1, "b")
		b.wait(-time.Hour)
		b.is(b.need("s2", 1, "b"), "b", "0 0 1 gone")
	}),
	onBank("a silent holder is not waited for, until it is heard again", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.wait(10*time.Second + time.Microsecond)
		b.is(b.need("s2", 1, "b"), "b", "0 0 1 gone")
		b.tell("s1")
		b.is(b.need("s2", 1, "b"), "b", "0 0 1")
	}),
	onBank("a new shortage wants a new acknowledgement", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.need("s2", 1, "b")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 60, Phase: 1}), "b", "100 60 2")
		b.is(b.need("s2", 61, "b"), "b", "0 60 3")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 60, Phase: 2}), "b", "100 60 3")
		b.is(b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 60, Phase: 3}), "b", "100 60 3 gone")
	}),
}
