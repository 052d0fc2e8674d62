package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/fill"
	"github.com/keeptrusts/gateway/test/rig"
	"github.com/keeptrusts/gateway/token"
)

// million prints what as many tokens as an org may ever have cost its gateways and its
// control plane.
func million(ctx context.Context, t *trial) error {
	const tokens, hot = 1_000_000, 200_000
	f, err := newFleet(ctx, t, layout{fresh: 30 * time.Second, stale: 10 * time.Minute, profiles: []int{hot, 1}})
	if err != nil {
		return err
	}
	began := time.Now()
	known, err := fill.Tokens(ctx, f.database, fill.Options{Tokens: tokens, Used: tokens / 2, Keep: 20_000})
	if err != nil {
		return err
	}
	t.figure("tokens in PostgreSQL", "%d, by COPY in %.1f s", tokens, time.Since(began).Seconds())
	var heap, profiles [2]float64
	for i := range heap { // one with all of the profiles, and one that has the index alone
		g, err := f.add(ctx, fmt.Sprintf("gw_%d", i+1), f.balancer)
		if err != nil {
			return err
		}
		f.gateways = append(f.gateways, g)
		if err := f.big(ctx, g, tokens); err != nil {
			return err
		}
		if heap[i], profiles[i], err = g.living(ctx); err != nil {
			return err
		}
	}
	full, bare := f.gateways[0], f.gateways[1]
	index, err := bare.metric(ctx, "keeptrusts_gateway_token_cache_index_bytes")
	if err != nil {
		return err
	}
	t.figure("memory", "%.0f bytes a cached profile, %.0f bytes an entry of the index; what lives is %.0f MB with %.0f profiles, %.0f MB with %.0f",
		(heap[0]-heap[1])/(profiles[0]-profiles[1]), index/tokens, heap[0]/1e6, profiles[0], heap[1]/1e6, profiles[1])
	t.within(profiles[0] >= hot*0.99, "profiles that are hot in the one", fmt.Sprintf("≥ 99 %% of %d", hot), "%.0f", profiles[0])
	if err := f.servedHot(ctx, full, known); err != nil {
		return err
	}
	for _, workers := range []int{1, 16} {
		if err := f.resolve(ctx, full, workers, known); err != nil {
			return err
		}
	}
	for _, encoding := range []string{"identity", "gzip"} {
		if err := f.snapshot(ctx, full, encoding, hot); err != nil {
			return err
		}
	}
	return nil
}

// big starts a gateway and tells how long it takes to know all.
func (f *fleet) big(ctx context.Context, g *gateway, tokens int) error {
	began := time.Now()
	if err := g.start(ctx); err != nil {
		return err
	}
	ready := time.Since(began)
	for {
		n, err := g.metric(ctx, "keeptrusts_gateway_watch_in_sync")
		if err == nil && n == 1 {
			break
		}
		if time.Since(began) > 3*time.Minute || ctx.Err() != nil {
			return fmt.Errorf("%s is not in sync: %w\n%s", g.name, errors.Join(err, ctx.Err()), g.child.Tail())
		}
		rig.Pause(ctx, 20*time.Millisecond)
	}
	entries, err := g.metric(ctx, "keeptrusts_gateway_token_cache_index_entries")
	if err != nil {
		return err
	}
	resident, err := g.child.Resident()
	if err != nil {
		return err
	}
	f.t.figure(g.name, "ready after %s, in sync after %s; %.0f MB resident then", short(ready), short(time.Since(began)), float64(resident)/1e6)
	f.t.within(int(entries) >= tokens, g.name+": entries of its index", fmt.Sprintf("≥ %d", tokens), "%.0f", entries)
	return nil
}

// living is what a gateway's heap has after a collection, in bytes, and its profiles.
func (g *gateway) living(ctx context.Context) (heap, profiles float64, err error) {
	rig.Pause(ctx, 3*time.Second) // its file is being written
	if _, err := get(ctx, "http://"+g.ops+"/debug/pprof/heap?gc=1"); err != nil {
		return 0, 0, err
	}
	if heap, err = g.metric(ctx, "go_memstats_heap_alloc_bytes"); err != nil {
		return 0, 0, err
	}
	profiles, err = g.metric(ctx, "keeptrusts_gateway_token_cache_profiles")
	return heap, profiles, err
}

// servedHot wants the tokens used last to be served without a look-up.
func (f *fleet) servedHot(ctx context.Context, g *gateway, known []token.Secret) error {
	before := f.sum(ctx, "keeptrusts_gateway_token_cache_loads_total")
	a := g.agent()
	defer a.close()
	ok := 0
	const asked = 2000
	for range asked {
		if a.get("/v1/whoami", known[rand.IntN(len(known))].Reveal()).ok() {
			ok++
		}
	}
	loads := f.sum(ctx, "keeptrusts_gateway_token_cache_loads_total") - before
	f.t.within(ok == asked && loads == 0, "tokens used last: served by it, look-ups", fmt.Sprintf("%d, 0", asked), "%d, %.0f", ok, loads)
	return ctx.Err()
}

// resolve looks tokens up as a gateway does, through the balancer.
func (f *fleet) resolve(ctx context.Context, g *gateway, workers int, known []token.Secret) error {
	took := make(spans, len(known)/4)
	var next atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, workers)
	for range workers {
		all.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(took); i = next.Add(1) - 1 {
				begin := time.Now()
				if _, _, err := f.lookUp(ctx, g, known[i].Digest()); err != nil {
					errs <- err
					return
				}
				took[i] = time.Since(begin)
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return fmt.Errorf("resolve: %w", err)
	default:
	}
	f.t.figure(fmt.Sprintf("resolve, %d at once", workers), "%s, of %d", took, len(took))
	return nil
}

// snapshot takes one as a gateway does, and keeps nothing.
func (f *fleet) snapshot(ctx context.Context, g *gateway, encoding string, profiles int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/runtime/snapshot?profiles=%d", f.admin.url, profiles), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+g.runtime.Token)
	req.Header.Set("Accept-Encoding", encoding)
	client := &http.Client{Transport: &http.Transport{}, Timeout: 5 * time.Minute}
	defer client.CloseIdleConnections()
	began := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("snapshot: %d: %w", res.StatusCode, err)
	}
	f.t.figure("snapshot with "+fmt.Sprint(profiles)+" profiles, "+encoding, "%.1f s, %.1f MB", time.Since(began).Seconds(), float64(n)/1e6)
	return nil
}
