package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// round is one budget, or several, under one burst of callers.
type round struct {
	name    string
	limits  []limits
	tokens  int // that callers share; 0: 1
	team    string
	callers int
	over    time.Duration // that they come in, at random; 0: all at once
	first   int           // of them come so to one gateway, the others to the others, later and at once
	call    call
	again   bool // the refused, and those whom nobody answered, come again after a second, until the budget is spent
	want    int  // calls admitted

	meanwhile func()               // is done while they call
	own       func(i int) []limits // more budgets of the i-th token
}

// result is what a round showed.
type result struct {
	admitted, reached int
	words             tally
	wrong             []string // answers that no caller should have had
	standings         map[string]standing
}

// play runs rounds one after the other and looks at the budgets once all have ended.
func (f *fleet) play(ctx context.Context, rounds []*round) ([]*result, error) {
	results := make([]*result, len(rounds))
	for i, r := range rounds {
		var err error
		if results[i], err = f.burst(ctx, r); err != nil {
			return nil, err
		}
	}
	held, open, err := f.held(ctx, 2*time.Second)
	if err != nil {
		return nil, err
	}
	f.t.must(held == 0 && open == 0, "%.0f holds of %.0f open requests at rest", held, open)
	all, err := f.settled(ctx, 4*time.Second, func(all map[string]standing) bool {
		for _, s := range all {
			if s.held > 0 {
				return false
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	for i, r := range rounds {
		results[i].standings = map[string]standing{}
		for _, l := range r.limits {
			results[i].standings[l.id] = all[l.id]
		}
	}
	return results, nil
}

func (f *fleet) burst(ctx context.Context, r *round) (*result, error) {
	var shared []string
	for _, l := range r.limits {
		if err := f.admin.put(ctx, l); err != nil {
			return nil, err
		}
		if l.team == "" && !l.org {
			shared = append(shared, l.id)
		}
	}
	tokens := make([]token, max(r.tokens, 1))
	for i := range tokens {
		named := slices.Clone(shared)
		if r.own != nil {
			for _, l := range r.own(i) {
				if err := f.admin.put(ctx, l); err != nil {
					return nil, err
				}
				named = append(named, l.id)
			}
		}
		var err error
		if tokens[i], err = f.admin.mint(ctx, minting{budgets: named, team: r.team}); err != nil {
			return nil, err
		}
	}
	if slices.ContainsFunc(r.limits, func(l limits) bool { return l.team != "" || l.org }) {
		rig.Pause(ctx, 1200*time.Millisecond) // a change is in effect within a second
	}
	res := &result{}
	var mu sync.Mutex
	var beside sync.WaitGroup
	if r.meanwhile != nil {
		for _, g := range f.gateways { // it is about budgets
			if err := g.knows(ctx, tokens[0]); err != nil {
				return nil, err
			}
		}
		beside.Go(r.meanwhile)
	}
	together(r.callers, func(i int) {
		a := &agent{}
		defer a.close()
		c := r.call
		g, others := f.gateways[i%len(f.gateways)], f.gateways[1:]
		switch {
		case i < r.first:
			g = f.gateways[0]
			rig.Pause(ctx, rand.N(r.over))
		case r.first > 0:
			g = others[i%len(others)]
			rig.Pause(ctx, r.over+time.Second)
		case r.over > 0:
			rig.Pause(ctx, rand.N(r.over))
		}
		for try := range 40 {
			c.script.id = fmt.Sprintf("%s/%d.%d", r.name, i, try)
			out := a.as(ctx, g, tokens[i%len(tokens)], c)
			res.words.add(out.word())
			switch {
			case out.status == 200 && out.done:
			case out.code == "budget_exceeded":
			case r.again && (out.code == "budget_held" || out.unavailable()):
				rig.Pause(ctx, time.Second)
				continue
			case out.code == "budget_held":
			default:
				mu.Lock()
				res.wrong = append(res.wrong, out.String())
				mu.Unlock()
			}
			return
		}
	})
	beside.Wait()
	res.admitted = res.words.of("200")
	res.reached = f.up.sum(r.name + "/").calls
	return res, nil
}

// judge compares what every round showed with what it must.
func (t *trial) judge(what string, rounds []*round, results []*result, charged map[string]int64) {
	var admitted []int
	held, unavailable := 0, 0
	for i, r := range rounds {
		res := results[i]
		admitted = append(admitted, res.admitted)
		held += res.words.of("budget_held")
		unavailable += res.words.of(away)
		t.must(res.admitted == r.want, "%s: %d admitted, want %d (%v)", r.name, res.admitted, r.want, res.words.n)
		t.must(res.reached == res.admitted, "%s: %d reached the upstream, %d were answered", r.name, res.reached, res.admitted)
		t.must(len(res.wrong) == 0, "%s: %d unexpected answers, one: %v", r.name, len(res.wrong), first(res.wrong))
		for id, s := range res.standings {
			if want, ok := charged[id]; ok {
				t.must(s.settled == want && s.held == 0, "%s: %s: %s; want settled %d", r.name, id, s, want)
			}
			t.must(s.settled+s.held+s.leased <= s.limit, "%s: %s is over: %s", r.name, id, s)
		}
	}
	slices.Sort(admitted)
	t.figure("%s: admitted %d to %d, charged as admitted, in %d runs (%d times budget_held, %d times no control plane)",
		what, admitted[0], admitted[len(admitted)-1], len(rounds), held, unavailable)
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

func exact(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{})
	if err != nil {
		return err
	}
	whole := call{model: cent, leaving: stays, script: script{do: "whole", delay: 30 * time.Millisecond, input: 10, output: 5}}
	streamed := call{model: cent, stream: true, leaving: stays, script: script{do: "stream", input: 10, output: 5, gap: 5 * time.Millisecond}}
	var errs []error
	for _, k := range []struct {
		what, unit, limit string
		call              call
		charge            int64
	}{
		{"10 requests", "requests", "10", whole, 10},
		{"$0.10 at $0.01", "usd", "0.10", whole, 100_000_000},
		{"10 requests, streams", "requests", "10", streamed, 10},
		{"$0.10 at $0.01, streams", "usd", "0.10", streamed, 100_000_000},
	} {
		var rounds []*round
		charged := map[string]int64{}
		for i := range t.runs() {
			id := fmt.Sprintf("b_%s_%t_%d", k.unit, k.call.stream, i)
			charged[id] = k.charge
			rounds = append(rounds, &round{name: id, limits: []limits{{id: id, unit: k.unit, window: "day", limit: k.limit}}, callers: 200, call: k.call, want: 10})
		}
		results, err := f.play(ctx, rounds)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		t.judge(k.what, rounds, results, charged)
	}
	return errors.Join(errs...)
}
