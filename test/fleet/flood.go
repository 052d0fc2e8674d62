package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
	"github.com/keeptrusts/gateway/token"
)

// flooded is what floodRestart goes through: two gateways, of which the second has
// room for next to no profiles, the tokens to be revoked and those that stay.
type flooded struct {
	*fleet
	victims, kept []minted
	accepted      tally // where a victim was accepted after its revocation
}

// floodRestart wants revocations to outlast whatever may push them out.
func floodRestart(ctx context.Context, t *trial) error {
	x := &flooded{}
	var err error
	x.fleet, err = newFleet(ctx, t, layout{
		gateways: 2, fresh: 2 * time.Second, stale: 2 * time.Minute, profiles: []int{200_000, 1}, between: true,
		before: func(ctx context.Context, f *fleet) error {
			all, err := f.admin.mintAll(ctx, of(t, 150, 20))
			x.victims, x.kept = all[:len(all)*2/3], all[len(all)*2/3:]
			return err
		},
	})
	if err != nil {
		return err
	}
	if err := x.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	if err := x.usable(ctx, append(x.victims, x.kept...)...); err != nil {
		return err
	}
	past, err := x.remember(ctx)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return x.revokeUnderWay(ctx) },
		func() error { return x.flood(ctx) },
		func() error { return x.lie(ctx, past) },
		func() error { return x.restartAway(ctx) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	t.none(x.accepted.all(), fmt.Sprintf("times that one of %d revoked tokens was accepted", len(x.victims)))
	if x.accepted.all() > 0 {
		t.fail("accepted: %s", &x.accepted)
	}
	return nil
}

// remember asks as a gateway does what the victims are, while they may be used.
func (x *flooded) remember(ctx context.Context) (map[string]kept, error) {
	past := map[string]kept{}
	for _, v := range x.victims {
		d := v.digest()
		status, body, err := x.lookUp(ctx, x.gateways[0], d)
		if err != nil {
			return nil, err
		}
		past[d.String()] = kept{status: status, body: body, delay: rand.N(1500 * time.Millisecond)}
	}
	return past, nil
}

// ask sends every victim to every gateway, and notes who accepts.
func (x *flooded) ask(when string) *tally {
	var words tally
	_ = together(2*len(x.victims), 16, func(i int) error {
		g := x.gateways[i%2]
		a := g.agent()
		defer a.close()
		s := a.call(x.victims[i/2].Token)
		words.add(s.word())
		if s.ok() {
			x.accepted.add(when + ", at " + g.name)
		}
		return nil
	})
	return &words
}

// revokeUnderWay revokes the victims while the second gateway loads their profiles:
// the answers have left the control plane, and arrive after the revocation.
func (x *flooded) revokeUnderWay(ctx context.Context) error {
	const atOnce = 50 // a gateway has at most 64 loads under way
	var held atomic.Int64
	late := &tally{}
	for from := 0; from < len(x.victims); from += atOnce {
		some := x.victims[from:min(from+atOnce, len(x.victims))]
		let := make(chan struct{})
		x.between.mu.Lock()
		x.between.hold = func(string) <-chan struct{} { held.Add(1); return let }
		x.between.mu.Unlock()
		var asking sync.WaitGroup
		var revoked atomic.Bool
		for _, v := range some {
			asking.Go(func() {
				a := x.gateways[1].agent()
				defer a.close()
				s := a.call(v.Token)
				if late.add(s.word()); s.ok() && revoked.Load() {
					x.accepted.add("by an answer that came late")
				}
			})
		}
		rig.Pause(ctx, 300*time.Millisecond)
		err := together(len(some), len(some), func(i int) error { _, err := x.admin.revoke(ctx, some[i].ID); return err })
		revoked.Store(true)
		close(let)
		asking.Wait()
		x.between.mu.Lock()
		x.between.hold = nil
		x.between.mu.Unlock()
		if err != nil {
			return err
		}
	}
	x.t.figure(fmt.Sprintf("%d revoked", len(x.victims)), "%d of their look-ups were answered before and arrived after: %s", held.Load(), late)
	x.t.within(held.Load() > 0, "look-ups that a revocation overtook", "> 0: else nothing is shown", "%d", held.Load())
	rig.Pause(ctx, time.Second)
	x.ask("after the revocation")
	return nil
}

// flood sends distinct well-formed tokens that nobody has.
func (x *flooded) flood(ctx context.Context) error {
	count := of(x.t, 200_000, 2000)
	before := x.between.lookups.Load()
	began := time.Now()
	var words tally
	const conns = 32
	_ = together(conns, conns, func(n int) error {
		a := x.gateways[n%2].agent()
		defer a.close()
		mine := map[string]int{}
		for i := n; i < count && ctx.Err() == nil; i += conns {
			mine[a.call(token.Mint().Reveal()).word()]++
		}
		for w, k := range mine {
			words.count(w, k)
		}
		return nil
	})
	took := time.Since(began)
	x.t.figure(fmt.Sprintf("%d unknown tokens in %.1f s", count, took.Seconds()), "%.0f/s, %d look-ups: %s",
		float64(count)/took.Seconds(), x.between.lookups.Load()-before, &words)
	x.t.none(words.but("invalid_api_key"), "answers other than invalid_api_key")
	x.ask("after the flood")
	return ctx.Err()
}

// lie answers what is asked about the victims as it was before their revocation, late,
// while the gateways have no watch that would tell them better.
func (x *flooded) lie(ctx context.Context, past map[string]kept) error {
	before := x.between.lookups.Load()
	x.between.mu.Lock()
	x.between.past = past
	x.between.mu.Unlock()
	x.between.withoutWatch(true)
	words := &tally{}
	for deadline := time.Now().Add(of(x.t, 12*time.Second, 4*time.Second)); time.Now().Before(deadline) && ctx.Err() == nil; {
		words = x.ask("by a stale answer")
		rig.Pause(ctx, 200*time.Millisecond)
	}
	x.between.withoutWatch(false)
	if err := x.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	x.ask("in sync again, by a stale answer")
	x.t.figure("stale answers", "%d look-ups without a watch; of the last round %s", x.between.lookups.Load()-before, words)
	return nil
}

// restartAway kills both gateways and starts them where no control plane answers.
func (x *flooded) restartAway(ctx context.Context) error {
	for _, g := range x.gateways {
		g.child.Kill()
		g.way.turnTo(closed)
	}
	began := time.Now()
	for _, g := range x.gateways {
		if err := g.launch(); err != nil {
			return err
		}
	}
	ready := "never"
	words, served := &tally{}, 0
	for deadline := began.Add(of(x.t, 15*time.Second, 4*time.Second)); time.Now().Before(deadline) && ctx.Err() == nil; rig.Pause(ctx, 50*time.Millisecond) {
		words = x.ask("after the restart, in the outage")
		if ready == "never" && x.gateways[0].ready(ctx) && x.gateways[1].ready(ctx) {
			ready = short(time.Since(began))
		}
	}
	a := x.gateways[0].agent()
	defer a.close()
	for _, k := range x.kept {
		if a.call(k.Token).ok() {
			served++
		}
	}
	stranger := a.call(token.Mint().Reveal())
	x.t.within(ready != "never", "killed with -9 and started in the outage: ready from their snapshots", "while they were asked", "after %s", ready)
	x.t.within(served == len(x.kept), "other tokens served from it", fmt.Sprint(len(x.kept)), "%d; the revoked: %s", served, words)
	x.t.within(!stranger.ok(), "an unknown token in the outage", "refused", "%s", stranger.word())
	x.between.mu.Lock()
	x.between.past = nil
	x.between.mu.Unlock()
	for _, g := range x.gateways {
		g.way.turnTo(open)
	}
	if err := x.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	words = x.ask("after the outage")
	x.t.none(words.but("token_revoked"), "answers other than token_revoked after the outage ("+words.String()+")")
	return x.usable(ctx, x.kept...)
}
