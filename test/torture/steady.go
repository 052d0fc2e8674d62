package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// steady counts what a gateway asks its control plane while nothing is short.
func steady(ctx context.Context, t *trial) error {
	lasting, warm := 20*time.Second, 12*time.Second
	for _, hot := range []int{1, 100, 1000} {
		if err := t.steadily(ctx, hot, warm, lasting); err != nil {
			return err
		}
	}
	return t.dry(ctx)
}

// counted is a fleet of one gateway whose calls are counted.
func (t *trial) counted(ctx context.Context, name string) (*fleet, *between, error) {
	var b *between
	inner := &trial{harness: t.harness, name: t.name, database: t.database, dir: t.path(name)}
	if err := mkdir(inner.dir); err != nil {
		return nil, nil, err
	}
	t.closers = append(t.closers, inner.close)
	f, err := newFleet(ctx, inner, layout{gateways: 1, between: func(plane string) (addr string, err error) {
		b, addr, err = newBetween(inner, plane)
		return addr, err
	}})
	return f, b, err
}

func (t *trial) steadily(ctx context.Context, hot int, warm, lasting time.Duration) error {
	f, b, err := t.counted(ctx, fmt.Sprint("hot_", hot))
	if err != nil {
		return err
	}
	defer f.t.close()
	tokens := make([]token, hot)
	for i := range tokens {
		id := fmt.Sprintf("b_hot_%d", i)
		if err := f.admin.put(ctx, limits{id: id, unit: "usd", window: "total", limit: "100000"}); err != nil {
			return err
		}
		if tokens[i], err = f.admin.mint(ctx, minting{budgets: []string{id}}); err != nil {
			return err
		}
	}
	words := &tally{}
	together(8, func(k int) { // every budget's first lease is asked for by whoever waits for it
		a := &agent{}
		defer a.close()
		for i := k; i < 2*hot; i += 8 {
			c := call{model: cent, leaving: stays, script: script{id: fmt.Sprintf("first/%d", i), do: "whole", input: 10, output: 5}}
			words.add(a.as(ctx, f.gateways[0], tokens[i%hot], c).word())
		}
	})
	loading, stop := context.WithTimeout(ctx, warm+lasting)
	defer stop()
	var number, counting, before, settlements atomic.Int64
	go func() {
		rig.Pause(loading, warm)
		before.Store(b.leases.Load())
		settlements.Store(b.settlements.Load())
		counting.Store(number.Load())
	}()
	together(8, func(int) {
		a := &agent{}
		defer a.close()
		c := call{model: cent, leaving: stays, script: script{do: "whole", input: 10, output: 5}}
		for loading.Err() == nil {
			c.script.id = fmt.Sprintf("steady/%d", number.Add(1))
			words.add(a.as(ctx, f.gateways[0], tokens[rand.IntN(hot)], c).word())
			rig.Pause(loading, time.Duration(20+rand.IntN(40))*time.Millisecond)
		}
	})
	rate := float64(b.leases.Load()-before.Load()) / lasting.Seconds()
	t.figure("%4d hot budgets, %.0f requests/s: %.2f lease calls a second, %.2f settlements", hot,
		float64(number.Load()-counting.Load())/lasting.Seconds(), rate, float64(b.settlements.Load()-settlements.Load())/lasting.Seconds())
	t.must(rate <= 2+1/lasting.Seconds(), "%d hot budgets: %.2f lease calls a second", hot, rate)
	t.must(words.of("200") == words.all(), "%d hot budgets: %v", hot, words.n)
	return nil
}

// dry counts the calls in the second in which a budget runs dry, and after.
func (t *trial) dry(ctx context.Context) error {
	f, b, err := t.counted(ctx, "dry")
	if err != nil {
		return err
	}
	defer f.t.close()
	if err := f.admin.put(ctx, limits{id: "b_dry", unit: "usd", window: "total", limit: "5"}); err != nil {
		return err
	}
	minted, err := f.admin.mint(ctx, minting{budgets: []string{"b_dry"}})
	if err != nil {
		return err
	}
	l := &load{f: f, token: minted, name: "dry", gap: 40 * time.Millisecond, call: func() call {
		return call{model: cent, leaving: stays, script: script{do: "whole", delay: 5 * time.Millisecond, input: 10, output: 5}}
	}}
	loading, stop := context.WithTimeout(ctx, 12*time.Second)
	defer stop()
	var after atomic.Int64
	go func() { rig.Pause(loading, 7*time.Second); after.Store(b.leases.Load()) }()
	l.run(loading, 8)
	t.figure("a budget of 500 calls runs dry: at most %d lease calls in a second, %.2f a second once dry; %d admitted", b.most(),
		float64(b.leases.Load()-after.Load())/5, l.words.of("200"))
	t.must(b.most() <= 20, "%d lease calls in one second", b.most())
	t.must(l.words.of("200") == 500, "%v", l.words.n)
	return nil
}
