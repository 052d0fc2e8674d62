package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// copies gives each of 1,000 calls a budget of its own beside one that all share:
// so every charge can be told from every other.
func copies(ctx context.Context, t *trial) error {
	var b *between
	f, err := newFleet(ctx, t, layout{gateways: 3, between: func(plane string) (addr string, err error) {
		b, addr, err = newBetween(t, plane)
		return addr, err
	}})
	if err != nil {
		return err
	}
	const calls = 1000
	costs, tokens := make([]int64, calls), make([]token, calls)
	if err := f.admin.put(ctx, limits{id: "b_shared", unit: "usd", window: "total", limit: "1"}); err != nil {
		return err
	}
	for i := range calls {
		costs[i] = 1 + rand.Int64N(holdOf)
		id := fmt.Sprintf("b_%03d", i)
		if err := f.admin.put(ctx, limits{id: id, unit: "usd", window: "day", limit: "0.0001"}); err != nil {
			return err
		}
		if tokens[i], err = f.admin.mint(ctx, minting{budgets: []string{id, "b_shared"}}); err != nil {
			return err
		}
	}
	b.chaos.Store(true)
	words := &tally{}
	var next atomic.Int64
	together(30, func(int) {
		a := &agent{}
		defer a.close()
		for i := next.Add(1) - 1; i < calls && ctx.Err() == nil; i = next.Add(1) - 1 {
			f.insist(ctx, a, tokens[i], int(i), costs[i], words)
		}
	})
	t.must(words.of("200") == calls, "answers: %v", words.n)
	return f.once(ctx, b, costs, words)
}

// insist calls until it is served: a budget's first lease may be lost on its way.
func (f *fleet) insist(ctx context.Context, a *agent, t token, i int, cost int64, words *tally) {
	c := call{model: metered, limit: holdOf, leaving: stays, script: script{do: "whole", delay: 5 * time.Millisecond, output: cost}}
	for try := range 200 {
		c.script.id = fmt.Sprintf("copies/%d.%d", i, try)
		out := a.as(ctx, f.gateways[i%len(f.gateways)], t, c)
		words.add(out.word())
		if out.code != away && out.code != "budget_held" {
			return
		}
		rig.Pause(ctx, 100*time.Millisecond)
	}
}

// once wants every call to have been charged exactly once, and told of exactly once.
func (f *fleet) once(ctx context.Context, b *between, costs []int64, words *tally) error {
	rig.Pause(ctx, 4*time.Second) // the last copies
	var sum int64
	for _, c := range costs {
		sum += c
	}
	count := func(all map[string]standing) (right int) {
		for i, c := range costs {
			if s := all[fmt.Sprintf("b_%03d", i)]; s.settled == c*unit && s.held == 0 {
				right++
			}
		}
		return right
	}
	all, err := f.settled(ctx, 20*time.Second, func(all map[string]standing) bool {
		return count(all) == len(costs) && all["b_shared"].settled == sum*unit && all["b_shared"].held == 0
	})
	if err != nil {
		return err
	}
	t := f.t
	t.figure("%d lease calls and %d settlements: %d copies, %d delayed, %d lost, %d answers lost; refused meanwhile: %d unavailable, %d held",
		b.leases.Load(), b.settlements.Load(), b.copies.Load(), b.delayed.Load(), b.dropped.Load(), b.unanswered.Load(),
		words.of(away), words.of("budget_held"))
	t.figure("charged exactly once: %d of %d; the budget that all share: %d of %d units", count(all), len(costs), all["b_shared"].settled/unit, sum)
	t.must(count(all) == len(costs), "charged exactly once: %d", count(all))
	for i, c := range costs {
		if s := all[fmt.Sprintf("b_%03d", i)]; s.settled != c*unit || s.held != 0 {
			t.miss("b_%03d: %s; want %d settled", i, s, c*unit)
		}
	}
	t.must(all["b_shared"].settled == sum*unit && all["b_shared"].held == 0, "b_shared: %s; want %d settled", all["b_shared"], sum*unit)
	used, err := f.usage(ctx, 10*time.Second, int64(len(costs)))
	if err != nil {
		return err
	}
	t.figure("usage tells of %d calls and %d units", used.requests, used.cost/unit)
	t.must(used.requests == int64(len(costs)) && used.cost == sum*unit, "usage: %d calls and %d nano-USD, want %d and %d", used.requests, used.cost, len(costs), sum*unit)
	return nil
}
