package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// rolling replaces three gateways one after the other, by processes that take their
// ports over, while calls and streams go on.
func rolling(ctx context.Context, t *trial) error {
	p, err := newPlane(ctx, t)
	if err != nil {
		return err
	}
	up, err := newProvider(t)
	if err != nil {
		return err
	}
	up.hush()
	key, err := p.mint(ctx, minting{})
	if err != nil {
		return err
	}
	const limits = "lame_duck: 1s, drain: 20s"
	layouts := make([]layout, 3)
	running := make([]*gateway, 3)
	for i := range layouts {
		if layouts[i], err = p.follower(ctx, fmt.Sprintf("gw_%d", i+1)); err != nil {
			return err
		}
		layouts[i].limits, layouts[i].up, layouts[i].args = limits, up, []string{"--take-over"}
		if running[i], err = newGateway(ctx, t, layouts[i]); err != nil {
			return err
		}
		layouts[i].addr = running[i].addr
	}
	rounds := t.count(2, 1)
	load, stop := context.WithCancel(ctx)
	calls, streams := &tally{}, &tally{}
	var all sync.WaitGroup
	began := time.Now()
	all.Go(func() { roundRobin(load, running, key.Token, t.count(1000, 200), calls) })
	all.Go(func() { streaming(load, running, key.Token, t.count(200, 40), streams) })
	rig.Pause(ctx, 2*time.Second)
	replaced := 0
	for round := range rounds {
		for i, old := range running {
			l := layouts[i]
			l.name = fmt.Sprintf("%s.%d", l.id, round+2)
			fresh, err := newGateway(ctx, t, l)
			if err != nil {
				t.miss("%v", err)
				continue
			}
			if err := old.child.Terminate(25 * time.Second); err != nil {
				t.miss("%s: %v\n%s", old.child.Name, err, old.child.Tail())
			}
			running[i] = fresh
			replaced++
			rig.Pause(ctx, 500*time.Millisecond)
		}
	}
	rig.Pause(ctx, time.Second)
	took := time.Since(began)
	stop()
	all.Wait()
	failed, words := calls.failures()
	t.figure(failed == 0, "0", "%d calls at %.0f a second over %d replacements of 3 gateways: %d failed%s", calls.n, float64(calls.n)/took.Seconds(), replaced, failed, words)
	failed, words = streams.failures()
	t.figure(failed == 0 && streams.n > 0, "0", "%d streams, %d at once: %d failed%s", streams.n, t.count(200, 40), failed, words)
	for _, g := range running {
		g.sound(ctx, key.Token)
	}
	return nil
}

// roundRobin calls at the addresses of gateways in turn. Connections are kept while
// the gateways keep them.
func roundRobin(ctx context.Context, at []*gateway, key string, perSecond int, into *tally) {
	const workers = 48
	addrs := make([]string, len(at)) // these stay, the gateways change
	for i, g := range at {
		addrs[i] = g.addr
	}
	callers := make([]*caller, workers)
	for i := range callers {
		callers[i] = &caller{addr: addrs[i%len(addrs)]}
	}
	quiet := context.WithoutCancel(ctx)
	atRate(ctx, perSecond, workers, func(i int) { into.add(callers[i].ask(quiet, key, call{script: script{id: "call"}})) })
	for _, k := range callers {
		k.close()
	}
}

// streaming keeps so many streams of 2 s open.
func streaming(ctx context.Context, at []*gateway, key string, n int, into *tally) {
	addrs := make([]string, len(at))
	for i, g := range at {
		addrs[i] = g.addr
	}
	quiet := context.WithoutCancel(ctx)
	together(n, n, func(i int) {
		rig.Pause(ctx, time.Duration(i%20)*100*time.Millisecond)
		k := &caller{addr: addrs[i%len(addrs)]}
		defer k.close()
		for ctx.Err() == nil {
			a := k.ask(quiet, key, call{stream: true, script: script{id: "stream", do: "stream", chunks: 20, gap: 100 * time.Millisecond}})
			if a.status == 200 && (!a.done || a.events != 20) {
				a.whole, a.err = false, fmt.Errorf("%d events, done %t", a.events, a.done)
			}
			into.add(a)
			if strings.Contains(fmt.Sprint(a.err), "refused") {
				rig.Pause(ctx, 50*time.Millisecond)
			}
		}
	})
}
