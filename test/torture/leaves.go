package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// parting is one client that left, with a budget of its own.
type parting struct {
	id       string
	received int64 // chunks
	reset    bool
}

// leaves has 500 clients leave after k of 100 chunks, each with a budget of its own.
func leaves(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{})
	if err != nil {
		return err
	}
	const trials, chunks, hold = 500, 100, 120
	all := make([]parting, trials)
	var next atomic.Int64
	together(10, func(int) {
		for i := next.Add(1) - 1; i < trials && ctx.Err() == nil; i = next.Add(1) - 1 {
			p := &all[i]
			p.id, p.reset = fmt.Sprintf("b_leaves_%03d", i), i%2 == 1
			err := f.admin.put(ctx, limits{id: p.id, unit: "usd", window: "day", limit: "1"})
			var minted token
			if err == nil {
				minted, err = f.admin.mint(ctx, minting{budgets: []string{p.id}})
			}
			if err != nil {
				t.miss("%v", err)
				return
			}
			a := &agent{}
			out := a.as(ctx, f.gateways[0], minted, call{
				model: metered, stream: true, limit: hold, usage: i%3 == 0,
				script:  script{id: "leaves/" + p.id, do: "stream", output: chunks, gap: 4 * time.Millisecond},
				leaving: leaving{when: 1 + rand.IntN(chunks-1), reset: p.reset},
			})
			t.must(out.left && out.status == 200, "%s: %v", p.id, out)
			p.received = int64(out.chunks)
		}
	})
	held, open, err := f.held(ctx, 3*time.Second)
	if err != nil {
		return err
	}
	t.must(held == 0 && open == 0, "%.0f holds, %.0f open requests at rest", held, open)
	shown, err := f.settled(ctx, 5*time.Second, func(shown map[string]standing) bool {
		return !slices.ContainsFunc(all, func(p parting) bool { return shown[p.id].settled == 0 || shown[p.id].held > 0 })
	})
	if err != nil {
		return err
	}
	free, under, over, beyond := 0, 0, 0, []int64{}
	for _, p := range all {
		s, truth := shown[p.id], f.up.of("leaves/"+p.id).output
		charged := s.settled / unit
		if charged == 0 {
			free++
		}
		if charged < p.received || charged < truth {
			under++
			t.miss("%s: the client had %d chunks, the upstream sent %d, charged %d", p.id, p.received, truth, charged)
		}
		if s.settled > hold*unit || s.held != 0 {
			over++
			t.miss("%s: %s; the hold was %d", p.id, s, hold*unit)
		}
		beyond = append(beyond, charged-truth)
	}
	slices.Sort(beyond)
	t.figure("%d clients left: %d free, %d charged less than was emitted, %d above the hold; charged − sent by the upstream: %d to %d units, median %d",
		trials, free, under, over, beyond[0], beyond[trials-1], beyond[trials/2])
	return nil
}

// underWay is how many chunks a gateway charges beyond those that it read, when it is
// the one that ends a stream: the provider may have sent them.
const underWay = 3

// storm has 200 agents that go away at random and ask again.
func storm(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 2})
	if err != nil {
		return err
	}
	if err := f.admin.put(ctx, limits{id: "b_storm", unit: "usd", window: "total", limit: "100"}); err != nil {
		return err
	}
	minted, err := f.admin.mint(ctx, minting{budgets: []string{"b_storm"}})
	if err != nil {
		return err
	}
	l := &load{f: f, token: minted, name: "storm", gap: 20 * time.Millisecond, call: func() call {
		c := mixed()
		c.script.output = 20
		switch rand.IntN(4) {
		case 0:
			c.leaving = leaving{when: 0, after: time.Duration(rand.IntN(60)) * time.Millisecond, reset: rand.IntN(2) == 0}
		case 1, 2:
			c.leaving = leaving{when: 1 + rand.IntN(19), reset: rand.IntN(2) == 0}
		}
		return c
	}}
	// What a call may be charged beyond what the upstream recorded: nothing when it was
	// whole; when its client left a whole answer, its hold; a stream, what passed.
	var mu sync.Mutex
	var received, atMost int64
	l.after = func(a *answer, c *call) {
		mu.Lock()
		defer mu.Unlock()
		received += int64(a.chunks)
		switch {
		case a.left && c.stream:
			atMost += underWay
		case a.left:
			atMost += holdOf
		}
	}
	loading, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if t.database == onPostgres {
		f.besides(ctx, warmUp, func() { l.run(loading, 200) })
	} else {
		l.run(loading, 200)
	}
	held, open, err := f.held(ctx, 3*time.Second)
	if err != nil {
		return err
	}
	t.must(held == 0 && open == 0, "%.0f holds, %.0f open requests at rest", held, open)
	truth, left := f.up.sum("storm/").output, int64(l.words.of("left")+l.words.of("0"))
	all, err := f.settled(ctx, 5*time.Second, func(all map[string]standing) bool {
		s := all["b_storm"]
		return s.held == 0 && s.settled/unit >= truth && s.settled/unit <= truth+atMost
	})
	if err != nil {
		return err
	}
	s := all["b_storm"]
	charged := s.settled / unit
	t.figure("%d calls, %d of them left: the upstream recorded %d units, charged %d, at most %d may be; Σ holds %.0f, held %d", l.words.all(), left, truth, charged, truth+atMost, held, s.held)
	t.must(charged >= truth && charged >= received, "charged %d units, %d were emitted to clients, %d by the upstream", charged, received, truth)
	t.must(charged <= truth+atMost, "charged %d units, at most %d may be", charged, truth+atMost)
	t.must(s.held == 0, "held at rest: %s", s)
	t.must(l.words.of("200")+l.words.of("left")+l.words.of("0") == l.words.all(), "answers: %v", l.words.n)
	return nil
}
