package main

import (
	"context"
	"fmt"
	"time"
)

const dollar = 1_000_000_000 // in nano-USD

var tenEach = call{model: ten, leaving: stays, script: script{do: "whole", delay: 20 * time.Millisecond, input: 10, output: 5}}

func fleetEqual(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	var rounds []*round
	charged := map[string]int64{}
	for i := range t.runs() {
		id := fmt.Sprintf("b_equal_%d", i)
		charged[id] = 1000 * dollar
		rounds = append(rounds, &round{name: id, limits: []limits{{id: id, unit: "usd", window: "day", limit: "1000"}}, callers: 400, call: tenEach, want: 100})
	}
	if err := f.shows(ctx, "limit 1,000, cost 10", rounds, charged); err != nil {
		return err
	}
	// Callers that come by and by leave idle money behind, to be recalled: at every
	// gateway, and at one where nobody calls any more.
	for _, r := range []round{
		{name: "over 4 s", over: 4 * time.Second},
		{name: "40 at one gateway over 2 s, the others later at the others", over: 2 * time.Second, first: 40},
	} {
		n := max(t.runs()/4, 1)
		rounds = rounds[:0]
		for i := range n {
			id := fmt.Sprintf("b_idle_%d_%d", r.first, i)
			charged[id] = 1000 * dollar
			each := round{name: id, limits: []limits{{id: id, unit: "usd", window: "day", limit: "1000"}}, callers: 400, over: r.over, first: r.first, call: tenEach, want: 100}
			rounds = append(rounds, &each)
		}
		if err := f.shows(ctx, "the same, "+r.name, rounds, charged); err != nil {
			return err
		}
	}
	return nil
}

// fleetApart lets one gateway have the money while another needs it, which speak to
// different replicas: nothing but the database is between them.
func fleetApart(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 2, apart: true})
	if err != nil {
		return err
	}
	var rounds []*round
	charged := map[string]int64{}
	for i := range max(t.runs()/4, 1) {
		id := fmt.Sprintf("b_apart_%d", i)
		charged[id] = 1000 * dollar
		rounds = append(rounds, &round{name: id, limits: []limits{{id: id, unit: "usd", window: "day", limit: "1000"}}, callers: 400, over: 2 * time.Second, first: 40, call: tenEach, want: 100})
	}
	return f.shows(ctx, "limit 1,000, cost 10, 40 at one gateway over 2 s, the others later at the other", rounds, charged)
}

func (f *fleet) shows(ctx context.Context, what string, rounds []*round, charged map[string]int64) error {
	results, err := f.play(ctx, rounds)
	if err != nil {
		return err
	}
	f.t.judge(what, rounds, results, charged)
	return nil
}

// fleetWide has holds of 20 units for a cost of 10. The limit is 1,010: the last
// call needs 20 to be admitted, and leaves 10 that nobody can use.
func fleetWide(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	var rounds []*round
	charged := map[string]int64{}
	n := t.runs()
	for i := range n {
		id := fmt.Sprintf("b_wide_%d", i)
		charged[id] = 1000 * unit
		c := call{model: metered, limit: 20, leaving: stays, script: script{do: "whole", delay: 20 * time.Millisecond, output: 10}}
		rounds = append(rounds, &round{name: id, limits: []limits{{id: id, unit: "usd", window: "day", limit: "0.00101"}}, callers: 400, call: c, again: true, want: 100})
	}
	if err := f.shows(ctx, "limit 1,010, hold 20, cost 10", rounds, charged); err != nil {
		return err
	}
	return f.unnamed(ctx, max(n/4, 1))
}

// leastOutput is the smallest limit of output that a gateway cuts a call down to.
const leastOutput = 16

// unnamed has calls of 20 units without an output limit of their own: each is given
// what the budget can bear, until that is too little for an answer.
func (f *fleet) unnamed(ctx context.Context, n int) error {
	var rounds []*round
	for i := range n {
		id := fmt.Sprintf("b_unnamed_%d", i)
		c := call{model: metered, leaving: stays, script: script{do: "whole", delay: 20 * time.Millisecond, output: 20}}
		rounds = append(rounds, &round{name: id, limits: []limits{{id: id, unit: "usd", window: "day", limit: "0.001"}}, callers: 150, call: c, again: true})
	}
	results, err := f.play(ctx, rounds)
	if err != nil {
		return err
	}
	least, most := int64(1<<62), int64(0)
	for i, r := range rounds {
		s := results[i].standings[r.name]
		least, most = min(least, s.settled/unit), max(most, s.settled/unit)
		f.t.must(s.settled <= 1000*unit && s.settled > (1000-leastOutput)*unit && s.held+s.leased == 0, "%s: %s; want all of 1,000 units settled but what is too little for an answer (%v)", r.name, s, results[i].words.n)
		f.t.must(len(results[i].wrong) == 0, "%s: unexpected: %v", r.name, first(results[i].wrong))
	}
	f.t.figure("limit 1,000, cost 20, no limit of their own: charged %d to %d units, in %d runs", least, most, n)
	return nil
}

// fleetWindows has a budget a day and one a month; each is the narrower in turn.
func fleetWindows(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	var rounds []*round
	charged := map[string]int64{}
	for i := range t.runs() {
		day, month := fmt.Sprintf("b_day_%d", i), fmt.Sprintf("b_month_%d", i)
		narrow, wide := "1000", "1500"
		if i%2 == 1 {
			narrow, wide = wide, narrow
		}
		charged[day], charged[month] = 1000*dollar, 1000*dollar
		rounds = append(rounds, &round{name: fmt.Sprintf("windows_%d", i), callers: 400, call: tenEach, want: 100, limits: []limits{
			{id: day, unit: "usd", window: "day", limit: narrow}, {id: month, unit: "usd", window: "month", limit: wide},
		}})
	}
	return f.shows(ctx, "a day's and a month's budget, 1,000 and 1,500, cost 10", rounds, charged)
}

// fleetNested has budgets of the token's own, of its team and of the org; the
// narrowest is another in each run.
func fleetNested(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	var rounds []*round
	charged := map[string]int64{}
	for i := range t.runs() {
		name := fmt.Sprintf("nested_%d", i)
		own, team, org := 800, 5000, 1_000_000_000/10 // four tokens
		switch i % 3 {
		case 0:
			own = 250
		case 1:
			team = 1000
		case 2:
			org = (i + 1) * 1000 // what all runs so far have spent, and this one's
		}
		charged["b_"+name] = 1000 * dollar
		rounds = append(rounds, &round{
			name: name, team: name, tokens: 4, callers: 400, call: tenEach, want: 100,
			limits: []limits{
				{id: "b_" + name, unit: "usd", window: "month", limit: fmt.Sprint(team), team: name},
				{id: "b_org", unit: "usd", window: "total", limit: fmt.Sprint(org), org: true},
			},
			own: func(k int) []limits {
				return []limits{{id: fmt.Sprintf("b_own_%d_%d", i, k), unit: "usd", window: "day", limit: fmt.Sprint(own)}}
			},
		})
	}
	charged["b_org"] = int64(len(rounds)) * 1000 * dollar
	return f.shows(ctx, "own, team's and org's budgets, one of them 1,000, cost 10", rounds, charged)
}
