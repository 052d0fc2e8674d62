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

// strangers is what unknowns goes through.
type strangers struct {
	*fleet
	known   []minted // cached
	revoked []minted
	rate    int   // unknown tokens a second
	before  int64 // resident bytes of the gateway, before the first of them
}

const mostUnknown = 20_000 // a second: what is asked of any machine

// unknowns floods a gateway with tokens that are nobody's, and watches what it costs those
// that are somebody's.
func unknowns(ctx context.Context, t *trial) error {
	x := &strangers{}
	var err error
	x.fleet, err = newFleet(ctx, t, layout{
		gateways: 1, fresh: 30 * time.Second, stale: 10 * time.Minute, between: true, quiet: true,
		before: func(ctx context.Context, f *fleet) error {
			all, err := f.admin.mintAll(ctx, of(t, 400, 40))
			x.known, x.revoked = all[:len(all)/2], all[len(all)/2:]
			return err
		},
	})
	if err != nil {
		return err
	}
	if err := x.usable(ctx, append(x.known, x.revoked...)...); err != nil {
		return err
	}
	if err := together(len(x.revoked), 16, func(i int) error { _, err := x.admin.revoke(ctx, x.revoked[i].ID); return err }); err != nil {
		return err
	}
	if err := x.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	if x.before, err = x.gateways[0].child.Resident(); err != nil {
		return err
	}
	x.bears(ctx)
	if err := x.rounds(ctx, true); err != nil {
		return err
	}
	x.between.withoutWatch(true)
	rig.Pause(ctx, 4*time.Second)
	return x.rounds(ctx, false)
}

// bears finds out how many unknown tokens a second the machine bears, and takes half.
func (x *strangers) bears(ctx context.Context) {
	d := of(x.t, 5*time.Second, time.Second)
	stop := make(chan struct{})
	time.AfterFunc(d, func() { close(stop) })
	var words tally
	x.flood(stop, load{conns: 16}, &words)
	bears := int(float64(words.all()) / d.Seconds())
	x.rate = min(bears/2, mostUnknown)
	x.t.figure("the machine bears", "%d unknown tokens a second (%s); they come at %d", bears, &words, x.rate)
}

// load is how unknown tokens come.
type load struct{ conns, rate int } // rate: a second, over all; 0: as they are answered

// flood sends unknown tokens until stop is closed, a third each of a bad checksum, a good
// one and revoked. They come evenly: a burst would be another rate.
func (x *strangers) flood(stop <-chan struct{}, l load, words *tally) {
	var each time.Duration // between two of all
	if l.rate > 0 {
		each = time.Second / time.Duration(l.rate)
	}
	start := time.Now()
	var all sync.WaitGroup
	for n := range l.conns {
		all.Go(func() {
			a := x.gateways[0].agent()
			defer a.close()
			mine := map[string]int{}
			for i := n; ; i += l.conns {
				select {
				case <-stop:
					for w, k := range mine {
						words.count(w, k)
					}
					return
				default:
				}
				time.Sleep(time.Until(start.Add(time.Duration(i) * each))) // not at all where it is late
				mine[a.call(x.stranger(i)).word()]++
			}
		})
	}
	all.Wait()
}

func (x *strangers) stranger(i int) string {
	switch i % 3 {
	case 0:
		b := []byte(token.Mint().Reveal())
		if last := &b[len(b)-1]; *last == '1' {
			*last = '2'
		} else {
			*last = '1'
		}
		return string(b)
	case 1:
		return token.Mint().Reveal()
	}
	return x.revoked[i%len(x.revoked)].Token
}

// cost is what the flood was seen to do.
type cost struct {
	rounds []spans // of calls with cached tokens; in every second one, from the second, is the flood
	known  tally   // their answers
	words  tally   // of the flood
	most   int64   // resident bytes
	minted spans   // from a token's 201 to its first accepted call, under the flood
}

// rounds floods for 30 s in all, in rounds between which there is no flood.
func (x *strangers) rounds(ctx context.Context, inSync bool) error {
	t := x.t
	const round = 3 * time.Second
	lookups, loads := x.between.lookups.Load(), x.loads(ctx)
	x.between.most.Store(0)
	c, l := &cost{}, load{16, x.rate}
	if !inSync {
		l.conns = 128 // more than may wait for a look-up each
	}
	stop := make(chan struct{})
	var now atomic.Int64 // the round
	var beside sync.WaitGroup
	beside.Go(func() { x.measureMemory(stop, c) })
	calls := x.measureCalls(&beside, stop, &now)
	for range of(t, 10, 1) {
		rig.Pause(ctx, round)
		end := make(chan struct{})
		time.AfterFunc(round, func() { close(end) })
		var flooding sync.WaitGroup
		flooding.Go(func() { x.flood(end, l, &c.words) })
		now.Add(1)
		if inSync {
			if err := x.mintMeanwhile(ctx, c); err != nil {
				close(stop)
				return err
			}
		}
		flooding.Wait()
		now.Add(1)
	}
	close(stop)
	beside.Wait()
	for _, k := range calls {
		c.merge(k)
	}
	x.judge(inSync, c, x.between.lookups.Load()-lookups, x.loads(ctx)-loads)
	return ctx.Err()
}

// loads is how many look-ups the gateway counts, but for those of tokens that it knows.
func (x *strangers) loads(ctx context.Context) int64 {
	return int64(x.sum(ctx, "keeptrusts_gateway_token_cache_loads_total")) - x.between.wanted.Load()
}

// measureCalls calls with cached tokens, 400 a second, all the time.
func (x *strangers) measureCalls(beside *sync.WaitGroup, stop <-chan struct{}, now *atomic.Int64) []*cost {
	all := make([]*cost, 4)
	for n := range all {
		c := &cost{}
		all[n] = c
		beside.Go(func() {
			a := x.gateways[0].agent()
			defer a.close()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				round := now.Load()
				begin := time.Now()
				c.known.add(a.call(x.known[rand.IntN(len(x.known))].Token).word())
				if now.Load() == round {
					c.took(int(round), time.Since(begin))
				}
			}
		})
	}
	return all
}

func (c *cost) took(round int, d ...time.Duration) {
	for len(c.rounds) <= round {
		c.rounds = append(c.rounds, nil)
	}
	c.rounds[round] = append(c.rounds[round], d...)
}

func (c *cost) merge(o *cost) {
	for round, d := range o.rounds {
		c.took(round, d...)
	}
	c.known.merge(&o.known)
}

// p99 is the median of the rounds' p99, without the flood and with it: one round in which
// the machine does something else counts no more than another.
func (c *cost) p99() (base, flooded spans) {
	for i, r := range c.rounds {
		if at := r.at(0.99); i%2 == 0 {
			base = append(base, at)
		} else {
			flooded = append(flooded, at)
		}
	}
	return base, flooded
}

func (x *strangers) measureMemory(stop <-chan struct{}, c *cost) {
	for {
		if n, err := x.gateways[0].child.Resident(); err == nil {
			c.most = max(c.most, n)
		}
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// mintMeanwhile mints a token and sees when it is taken.
func (x *strangers) mintMeanwhile(ctx context.Context, c *cost) error {
	rig.Pause(ctx, 500*time.Millisecond)
	tok, err := x.admin.mint(ctx, nil)
	if err != nil {
		return err
	}
	began := time.Now()
	x.between.mu.Lock()
	x.between.expected[tok.digest().String()] = true
	x.between.mu.Unlock()
	a := x.gateways[0].agent()
	defer a.close()
	for {
		s := a.call(tok.Token)
		if s.ok() || time.Since(began) > 5*time.Second || ctx.Err() != nil {
			c.minted = append(c.minted, time.Since(began))
			return ctx.Err()
		}
		rig.Pause(ctx, 5*time.Millisecond)
	}
}

func (x *strangers) judge(inSync bool, c *cost, lookups, loads int64) {
	t, how := x.t, "in sync"
	if !inSync {
		how = "without a watch"
	}
	t.figure(fmt.Sprintf("%s, %d unknown tokens", how, c.words.all()), "%s", &c.words)
	if inSync {
		t.within(lookups == 0 && loads == 0, how+": look-ups, as the control plane saw and as the gateway counts", "0", "%d, %d", lookups, loads)
		t.none(c.words.but("invalid_api_key", "token_revoked"), how+": answers other than invalid_api_key and token_revoked")
		t.within(c.minted.at(1) <= time.Second, how+": a token minted meanwhile works", "≤ 1 s", "%s in %d trials", short(c.minted.at(1)), len(c.minted))
	} else {
		t.within(x.between.most.Load() <= 64, how+": look-ups under way at once", "≤ 64", "%d of %d", x.between.most.Load(), lookups)
		t.none(c.words.of("200")+c.words.of("cut"), how+": accepted or cut")
	}
	base, flooded := c.p99()
	b, f := base.at(0.5), flooded.at(0.5)
	const what = ": p99 of calls with a cached token under the flood, median of the rounds"
	if inSync {
		t.within(f <= 2*b, how+what, "≤ 2× that without: "+short(2*b), "%s (%s to %s; without %s to %s)", short(f), short(flooded.at(0)), short(flooded.at(1)), short(base.at(0)), short(base.at(1)))
	} else { // the replicas and their database, which answer the look-ups, are on the same processors
		t.figure(how+what, "%s, without %s", short(f), short(b))
	}
	t.none(c.known.but("200"), how+": calls with a cached token that failed ("+c.known.String()+")")
	grown := float64(c.most-x.before) / (1 << 20)
	t.within(grown <= 64, how+": memory grew", "≤ 64 MB", "%.1f MB from %.1f MB", grown, float64(x.before)/(1<<20))
}
