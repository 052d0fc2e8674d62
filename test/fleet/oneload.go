package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// oneLoad sends many requests at once on a token that the gateway knows nothing of.
func oneLoad(ctx context.Context, t *trial) error {
	atOnce, rounds := of(t, 1000, 200), of(t, 10, 3)
	var cold []minted
	f, err := newFleet(ctx, t, layout{
		gateways: 1, fresh: 30 * time.Second, stale: 10 * time.Minute, profiles: []int{1}, between: true,
		before: func(ctx context.Context, f *fleet) (err error) {
			cold, err = f.admin.mintAll(ctx, 2*rounds+2)
			return err
		},
	})
	if err != nil {
		return err
	}
	if err := f.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	agents := make([]*agent, atOnce)
	for i := range agents {
		agents[i] = f.gateways[0].agent()
		defer agents[i].close()
	}
	// All are connected, and the cache is full of another.
	if err := together(atOnce, 64, func(i int) error { return agents[i].get("/healthz", "").err }); err != nil {
		return err
	}
	for _, in := range []struct {
		how  string
		cold []minted
	}{{"in sync", cold[:rounds+1]}, {"without a watch", cold[rounds+1:]}} {
		if in.how != "in sync" {
			f.between.withoutWatch(true)
			rig.Pause(ctx, 4*time.Second)
			for deadline := time.Now().Add(10 * time.Second); !agents[0].call(in.cold[0].Token).ok() && time.Now().Before(deadline); {
				rig.Pause(ctx, 50*time.Millisecond) // the first finds the control plane away, and one probe a second
			}
		}
		if err := f.herd(ctx, agents, in.how, in.cold); err != nil {
			return err
		}
	}
	return nil
}

// herd sends one request of every agent at once, a token after the other. Look-ups are
// held back, so that all of them wait for it.
func (f *fleet) herd(ctx context.Context, agents []*agent, how string, cold []minted) error {
	var words tally
	most, sum := int64(0), int64(0)
	if s := agents[0].call(cold[0].Token); !s.ok() { // now this one fills the cache
		return fmt.Errorf("the first token %s: %s", how, s.word())
	}
	for _, tok := range cold[1:] {
		before := f.between.lookups.Load()
		let := make(chan struct{})
		f.between.mu.Lock()
		f.between.hold = func(string) <-chan struct{} { return let }
		f.between.mu.Unlock()
		release := time.AfterFunc(500*time.Millisecond, func() { close(let) })
		begin := make(chan struct{})
		var all sync.WaitGroup
		for _, a := range agents {
			all.Go(func() {
				<-begin
				words.add(a.call(tok.Token).word())
			})
		}
		close(begin)
		all.Wait()
		if release.Stop() {
			close(let)
		}
		n := f.between.lookups.Load() - before
		most, sum = max(most, n), sum+n
	}
	what := fmt.Sprintf("%d at once on one cold token, %s", len(agents), how)
	f.t.within(most <= 1, what+": look-ups", "≤ 1", "at most %d in %d rounds, %d in all", most, len(cold)-1, sum)
	f.t.none(words.but("200"), what+": refused ("+words.String()+")")
	return ctx.Err()
}
