package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// coldRace revokes tokens of which their gateway has no profile, and sends the first
// request at that moment: what is being loaded must not outlive the revocation.
func coldRace(ctx context.Context, t *trial) error {
	count := of(t, 5000, 60)
	var cold []minted
	f, err := newFleet(ctx, t, layout{
		gateways: min(t.gateways, 8), fresh: 30 * time.Second, stale: 10 * time.Minute,
		profiles: []int{32}, // of so many tokens next to none is in the cache
		before: func(ctx context.Context, f *fleet) (err error) {
			cold, err = f.admin.mintAll(ctx, count)
			return err
		},
	})
	if err != nil {
		return err
	}
	if err := f.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	loads := f.sum(ctx, "keeptrusts_gateway_token_cache_loads_total")
	firsts, errs := &tally{}, &tally{}
	usable, usableElsewhere, after := atomic.Int64{}, atomic.Int64{}, &tally{}
	var mu sync.Mutex
	var took spans
	err = together(count, of(t, 64, 20), func(i int) error {
		tok, g := cold[i], f.gateways[i%len(f.gateways)]
		a, b := g.agent(), f.gateways[(i+1)%len(f.gateways)].agent()
		defer a.close()
		defer b.close()
		_ = a.get("/healthz", tok.Token) // the connection is there before the race
		told := make(chan error, 1)
		var at time.Time
		go func() {
			begin := time.Now()
			_, err := f.admin.revoke(ctx, tok.ID)
			at = time.Now()
			mu.Lock()
			took = append(took, at.Sub(begin))
			mu.Unlock()
			told <- err
		}()
		rig.Pause(ctx, rand.N(5*time.Millisecond))
		firsts.add(a.call(tok.Token).word())
		if err := <-told; err != nil {
			errs.add(err.Error())
			return nil
		}
		rig.Pause(ctx, time.Until(at.Add(time.Second)))
		for range 2 { // the first may find a profile that the second finds no more
			if s := a.call(tok.Token); s.ok() {
				usable.Add(1)
			} else {
				after.add(s.word())
			}
		}
		if s := b.call(tok.Token); s.ok() {
			usableElsewhere.Add(1)
		} else {
			after.add(s.word())
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.figure(fmt.Sprintf("%d tokens, %d gateways", count, len(f.gateways)), "first answers: %s; %.0f look-ups; revoke answered after %s",
		firsts, f.sum(ctx, "keeptrusts_gateway_token_cache_loads_total")-loads, took)
	least := of(t, count/100, 0) // few are all won on a machine that is busy
	t.within(firsts.of("200") >= least && firsts.of("token_revoked") >= least, "races that the request won, and the revocation",
		fmt.Sprintf("≥ %d each: else it was no race", least), "%d, %d", firsts.of("200"), firsts.of("token_revoked"))
	t.none(int(usable.Load()), "usable 1 s after at the same gateway")
	t.none(int(usableElsewhere.Load()), "usable 1 s after at another gateway")
	t.none(after.but("token_revoked"), "later refusals other than token_revoked ("+after.String()+")")
	t.none(errs.all(), "revocations that failed ("+errs.String()+")")
	return nil
}

// sum adds a metric up over the gateways; one that does not answer counts nothing.
func (f *fleet) sum(ctx context.Context, name string, with ...string) (sum float64) {
	var mu sync.Mutex
	_ = f.each(func(g *gateway) error {
		n, err := g.metric(ctx, name, with...)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			sum += n
		}
		return nil
	})
	return sum
}
