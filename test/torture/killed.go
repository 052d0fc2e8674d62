package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// holdOf is what one call of "mixed" holds in units at most: its own limit.
const holdOf = 30

// mixed are whole answers and streams that cost 10 units and hold 30.
func mixed() call {
	c := call{model: metered, limit: holdOf, leaving: stays, script: script{do: "whole", delay: 20 * time.Millisecond, output: 10}}
	if rand.IntN(2) == 0 {
		c.stream = true
		c.script = script{do: "stream", output: 10, gap: 8 * time.Millisecond}
	}
	return c
}

// What LEASES §6 says of the mark: it stands at most a step above what is spent and
// held, and a step is at most this.
func step(unitsPerSecond float64) int64 { return max(int64(unitsPerSecond*0.2), 4*holdOf) }

const ttl = 10 * time.Second

func killed(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	if err := f.admin.put(ctx, limits{id: "b_killed", unit: "usd", window: "total", limit: "1000"}); err != nil {
		return err
	}
	minted, err := f.admin.mint(ctx, minting{budgets: []string{"b_killed"}})
	if err != nil {
		return err
	}
	lasting := 60 * time.Second
	l := &load{f: f, token: minted, name: "killed", call: mixed, gap: 10 * time.Millisecond}
	if t.database == onPostgres {
		lasting += 20 * time.Second // a gateway that starts may have to wait
	}
	loading, stop := context.WithTimeout(ctx, lasting)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { l.run(loading, 24) })
	if t.database == onPostgres {
		all.Go(func() { f.besides(loading, warmUp, func() { <-loading.Done() }) })
	}
	kills, holds := 0, int64(0)
	for loading.Err() == nil {
		rig.Pause(loading, 2*time.Second)
		if loading.Err() != nil {
			break
		}
		g := f.gateways[rand.IntN(3)]
		holds += int64(l.underWay(g.name))
		g.child.Kill()
		kills++
		// What was under way at that moment may have been one more than we saw before.
		rig.Pause(loading, time.Duration(rand.IntN(500))*time.Millisecond)
		if err := g.start(ctx); err != nil {
			return err
		}
	}
	all.Wait()
	stopped := time.Now()
	truth := f.up.sum("killed/").output
	rate := float64(truth) / lasting.Seconds() / 2 // of a gateway: one of three is down for a part of the time
	bound := (holds+int64(kills))*holdOf + int64(kills)*step(rate)
	if _, err := f.settled(ctx, ttl+5*time.Second, func(all map[string]standing) bool {
		return all["b_killed"].held == 0 && time.Since(stopped) > 4*time.Second && all["b_killed"].settled/unit-truth <= bound
	}); err != nil {
		return err
	}
	t.tell("figures stand after %.1f s", time.Since(stopped).Seconds())
	s, err := f.admin.budget(ctx, "b_killed")
	if err != nil {
		return err
	}
	charged := s.settled / unit
	t.figure("%d kills in %.0f s, %d calls whole: the upstream recorded %d units, charged %d: %d over, bound %d; held after: %d",
		kills, lasting.Seconds(), l.words.of("200"), truth, charged, charged-truth, bound, s.held)
	t.must(charged >= truth, "charged %d units, the upstream recorded %d", charged, truth)
	t.must(charged-truth <= bound, "over-charged by %d units, at most %d holds and %d mark steps may be: %d", charged-truth, holds, kills, bound)
	t.must(s.held == 0, "%s: held %s after the last call", s, time.Since(stopped).Round(time.Second))
	refusals := 0             // far from the limit
	if f.plane.befallen > 0 { // a session that is new has no lease, and may find nobody to ask
		refusals = l.words.of(away)
		t.figure("%d calls refused, the control plane was away", refusals)
	}
	t.must(l.words.of("200")+l.words.of("cut")+refusals == l.words.all(), "refused far from the limit: %v", l.words.n)
	t.must(kills >= 20, "%d kills", kills)
	return nil
}

func planeKilled(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	if err := f.admin.put(ctx, limits{id: "b_plane", unit: "usd", window: "total", limit: "1000"}); err != nil {
		return err
	}
	minted, err := f.admin.mint(ctx, minting{budgets: []string{"b_plane"}})
	if err != nil {
		return err
	}
	l := &load{f: f, token: minted, name: "plane", call: mixed, gap: 20 * time.Millisecond}
	loading, stop := context.WithTimeout(ctx, 45*time.Second)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { l.run(loading, 16) })
	rig.Pause(loading, warmUp)
	kinds := f.plane.troubles()
	troubles, dark := 0, time.Duration(0)
	for loading.Err() == nil {
		began := time.Now()
		b := kinds[troubles%len(kinds)]
		troubles++
		if err := f.plane.befall(ctx, b, time.Duration(200+rand.IntN(2800))*time.Millisecond); err != nil {
			return err
		}
		dark += time.Since(began)
		rig.Pause(loading, time.Duration(1000+rand.IntN(2000))*time.Millisecond)
	}
	all.Wait()
	return f.wasExact(ctx, l, "b_plane", fmt.Sprintf("%d deaths in the control plane of %d kinds, %.0f s of 45", troubles, min(troubles, len(kinds)), dark.Seconds()))
}

// wasExact compares what a budget was charged with what the upstream recorded, to
// the unit, and wants every call to have been served.
func (f *fleet) wasExact(ctx context.Context, l *load, id, what string) error {
	truth := f.up.sum(l.name + "/").output
	all, err := f.settled(ctx, 8*time.Second, func(all map[string]standing) bool {
		return all[id].settled == truth*unit && all[id].held == 0
	})
	if err != nil {
		return err
	}
	s := all[id]
	served, calls := l.words.of("200"), l.words.all()
	f.t.figure("%s: %d of %d calls served; the upstream recorded %d units, charged %d, held %d", what, served, calls, truth, s.settled/unit, s.held)
	f.t.must(s.settled == truth*unit, "charged %d units, the upstream recorded %d", s.settled/unit, truth)
	f.t.must(s.held == 0, "held at rest: %s", s)
	f.t.must(served == calls, "not served: %v", l.words.n)
	return nil
}
