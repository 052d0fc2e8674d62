package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// ending is a kind of end, with what becomes of calls that meet it.
type ending struct {
	name   string
	weight int
	call   func() call
	words  string // what callers may be told, by blanks; "" anything
	spoilt string // revoked or expired meanwhile: the token is the call's own
}

const silence = 1500 * time.Millisecond // after which the gateways of "endings" give an upstream up

func few() time.Duration { return time.Duration(5+rand.IntN(40)) * time.Millisecond }

func of(model string, stream bool, s script, l leaving) func() call {
	return func() call {
		c := call{model: model, stream: stream, limit: 40, script: s, leaving: l}
		c.script.input, c.script.output = 10, 20
		if c.script.gap == 0 {
			c.script.gap = 4 * time.Millisecond
		}
		if c.when == 0 {
			c.after = few()
		}
		if c.when > 0 {
			c.when = 1 + rand.IntN(15)
		}
		c.script.at = int64(rand.IntN(15))
		c.usage = rand.IntN(2) == 0
		return c
	}
}

// kinds are every way of ending that DESIGN §11 tells apart, but panic: no input is
// known that makes one.
func kinds() []ending {
	slow := script{do: "whole", delay: 150 * time.Millisecond}
	streams := script{do: "stream"}
	return []ending{
		{name: "upstream error without usage", weight: 8, call: of(priced, false, script{do: "error", status: 500, usage: "none"}, stays), words: "500 502"},
		{name: "upstream error with usage", weight: 6, call: of(priced, false, script{do: "error", status: 400}, stays), words: "400"},
		{name: "upstream 429 to a stream", weight: 6, call: of(priced, true, script{do: "error", status: 429, usage: "none"}, stays), words: "429"},
		{name: "client gone by FIN before the head", weight: 8, call: of(priced, false, slow, leaving{})},
		{name: "client gone by RST before the head", weight: 8, call: of(priced, false, slow, leaving{reset: true})},
		{name: "client gone by FIN before a stream", weight: 6, call: of(priced, true, script{do: "stream", delay: 100 * time.Millisecond}, leaving{})},
		{name: "client gone by RST before a stream", weight: 6, call: of(priced, true, script{do: "stream", delay: 100 * time.Millisecond}, leaving{reset: true})},
		{name: "client gone by FIN in a stream", weight: 10, call: of(priced, true, streams, leaving{when: 1}), words: "left"},
		{name: "client gone by RST in a stream", weight: 10, call: of(priced, true, streams, leaving{when: 1, reset: true}), words: "left"},
		{name: "upstream silent", weight: 2, call: of(priced, false, script{do: "silent"}, stays), words: "upstream_timeout"},
		{name: "upstream stalls in a stream", weight: 2, call: of(priced, true, script{do: "stall"}, stays)},
		{name: "upstream stalls in an answer", weight: 2, call: of(priced, false, script{do: "stall"}, stays)},
		{name: "failed connect", weight: 8, call: of(refused, false, script{do: "whole"}, stays), words: "upstream_error"},
		{name: "upstream closes without a word", weight: 5, call: of(priced, false, script{do: "empty"}, stays), words: "upstream_error"},
		{name: "upstream answers nonsense", weight: 4, call: of(priced, false, script{do: "garbage"}, stays), words: "upstream_error"},
		{name: "answer cut by FIN", weight: 4, call: of(priced, false, script{do: "cut"}, stays)},
		{name: "answer cut by RST", weight: 4, call: of(priced, false, script{do: "cut", reset: true}, stays)},
		{name: "stream cut by FIN", weight: 8, call: of(priced, true, script{do: "cut"}, stays)},
		{name: "stream cut by RST", weight: 8, call: of(priced, true, script{do: "cut", reset: true}, stays)},
		{name: "usage missing", weight: 5, call: of(priced, false, script{do: "whole", usage: "none"}, stays), words: "200"},
		{name: "usage missing in a stream", weight: 5, call: of(plain, true, script{do: "stream", usage: "none"}, stays), words: "200"},
		{name: "usage of zero", weight: 5, call: of(priced, false, script{do: "whole", usage: "zero"}, stays), words: "200"},
		{name: "usage of zero in a stream", weight: 5, call: of(priced, true, script{do: "stream", usage: "zero"}, stays), words: "200"},
		{name: "revoked before the head", weight: 2, call: of(priced, false, script{do: "whole", delay: 600 * time.Millisecond}, stays), words: "token_revoked 200", spoilt: "revoked"},
		{name: "revoked in a stream", weight: 2, call: of(priced, true, script{do: "stream", gap: 25 * time.Millisecond}, stays), spoilt: "revoked"},
		{name: "expired in a stream", weight: 1, call: of(priced, true, script{do: "stream", gap: 50 * time.Millisecond}, stays), spoilt: "expired"},
	}
}

// mistreatment is the state of the case.
type mistreatment struct {
	*fleet
	budgets  []string
	shared   token
	draining atomic.Bool // a gateway: callers may be told so, or find nobody
	told     map[string]*tally
	numbers  atomic.Int64
	last     atomic.Int64 // nanoseconds of the last ending
	away     atomic.Int64 // calls not admitted because the control plane was away
}

func endings(ctx context.Context, t *trial) error {
	n := 10_000
	switch {
	case t.short && t.database == onPostgres:
		n = 1500
	case t.short:
		n = 500
	}
	f, err := newFleet(ctx, t, layout{gateways: 2, silence: silence, drain: 150 * time.Millisecond})
	if err != nil {
		return err
	}
	m := &mistreatment{fleet: f, budgets: []string{"b_usd", "b_tokens", "b_requests"}, told: map[string]*tally{}}
	const spare = 50 // more requests than can end
	for id, limit := range map[string]string{"b_usd": "100000", "b_tokens": "100000000", "b_requests": fmt.Sprint(n + spare)} {
		if err := f.admin.put(ctx, limits{id: id, unit: strings.TrimPrefix(id, "b_"), window: "total", limit: limit}); err != nil {
			return err
		}
	}
	if m.shared, err = f.admin.mint(ctx, minting{budgets: m.budgets}); err != nil {
		return err
	}
	began := time.Now()
	if t.database == onPostgres { // and its control plane and database die meanwhile
		f.admin.patience = 15 * time.Second
		f.besides(ctx, 200*time.Millisecond, func() { m.all(ctx, n) })
	} else {
		m.all(ctx, n)
	}
	t.figure("%d endings of %d kinds and drain, in %.0f s; %d calls came again, the control plane was away", m.numbers.Load(), len(m.told), time.Since(began).Seconds(), m.away.Load())
	for _, name := range slices.Sorted(maps.Keys(m.told)) {
		t.tell("%s: %v", name, m.told[name].n)
	}
	return m.spendable(ctx, n+spare)
}

// all mistreats: workers take kinds at random, while one gateway is drained again
// and again.
func (m *mistreatment) all(ctx context.Context, n int) {
	all := kinds()
	var bag []int
	for i, k := range all {
		m.told[k.name] = &tally{}
		bag = append(bag, slices.Repeat([]int{i}, k.weight)...)
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() { m.drain(ctx, stop) })
	together(100, func(worker int) {
		a := &agent{}
		defer a.close()
		for {
			i := m.numbers.Add(1)
			if i > int64(n) || ctx.Err() != nil {
				m.numbers.Add(-1)
				return
			}
			k := &all[bag[rand.IntN(len(bag))]]
			if i <= int64(len(all)) { // every kind, however few
				k = &all[i-1]
			}
			m.one(ctx, a, k, i)
			m.last.Store(time.Now().UnixNano())
		}
	})
	close(stop)
	others.Wait()
}

// drain ends the second gateway in order and starts it again.
func (m *mistreatment) drain(ctx context.Context, stop <-chan struct{}) {
	g := m.gateways[1]
	for i := 0; ; i++ {
		select {
		case <-stop:
			m.t.figure("%d drains of one of two gateways", i)
			return
		case <-time.After(time.Duration(500+min(i, 1)*1000) * time.Millisecond):
		}
		m.draining.Store(true)
		err := g.child.Terminate(20 * time.Second)
		m.t.must(err == nil, "drain: %v\n%s", err, g.child.Tail())
		err = g.start(ctx)
		m.t.must(err == nil, "start after the drain: %v", err)
		m.draining.Store(false)
	}
}

func (m *mistreatment) one(ctx context.Context, a *agent, k *ending, i int64) {
	g := m.gateways[i%2]
	c := k.call()
	c.script.id = fmt.Sprintf("ending/%d", i)
	t := m.shared
	if k.spoilt != "" {
		give := minting{budgets: m.budgets}
		if k.spoilt == "expired" {
			give.lasts = time.Second
		}
		var err error
		if t, err = m.admin.mint(ctx, give); err != nil {
			m.t.miss("%s: %v", k.name, err)
			return
		}
		if k.spoilt == "expired" {
			rig.Pause(ctx, 500*time.Millisecond)
		}
	}
	var spoil sync.WaitGroup
	if k.spoilt == "revoked" {
		spoil.Go(func() {
			rig.Pause(ctx, 3*few())
			if err := m.admin.revoke(ctx, t.ID); err != nil {
				m.t.miss("%s: %v", k.name, err)
			}
		})
	}
	drained := m.draining.Load()
	out := m.admitted(ctx, a, g, t, c)
	if out.nobody || out.code == "draining" && out.status == http.StatusServiceUnavailable {
		g = m.gateways[0] // it was not even admitted: that ends nothing
		out = m.admitted(ctx, a, g, t, c)
	}
	spoil.Wait()
	m.told[k.name].add(out.word())
	if g == m.gateways[1] && (drained || m.draining.Load() || out.word() == "cut" || out.word() == "draining") {
		return // it was drained meanwhile, and may have been told anything
	}
	if k.words != "" && !slices.Contains(strings.Fields(k.words), out.word()) {
		m.t.miss("%s: the client was told: %v", k.name, out)
	}
}

// admitted makes a call, again where the control plane was away: that ends nothing.
// A token that it minted just before may be nobody's while the watch seems in sync.
func (m *mistreatment) admitted(ctx context.Context, a *agent, g *gateway, t token, c call) *answer {
	for try := 0; ; try++ {
		out := a.as(ctx, g, t, c)
		early := out.code == "invalid_api_key" && time.Since(t.minted) < 4*time.Second
		if m.admin.patience == 0 || !out.unavailable() && !early || try == 40 {
			return out
		}
		m.away.Add(1)
		rig.Pause(ctx, 250*time.Millisecond)
	}
}

// spendable shows, a second after the last ending, that nothing is held and that
// every request left of the budget can be made; then the same of the money.
func (m *mistreatment) spendable(ctx context.Context, limit int) error {
	rig.Pause(ctx, time.Until(time.Unix(0, m.last.Load()).Add(time.Second)))
	held, open, err := m.held(ctx, 0)
	if err != nil {
		return err
	}
	m.t.must(held == 0 && open == 0, "1 s after the last ending: %.0f holds, %.0f open requests", held, open)
	c := call{model: priced, limit: 40, leaving: stays, script: script{do: "whole", input: 10, output: 20}}
	spent, words := m.spend(ctx, "requests", 20, c)
	t := m.t
	t.must(words.of("budget_exceeded") > 0, "the last requests: %v", words.n)
	all, err := m.settled(ctx, 4*time.Second, func(all map[string]standing) bool {
		return all["b_requests"].left == 0 && all["b_requests"].settled == int64(limit) && all["b_usd"].held == 0
	})
	if err != nil {
		return err
	}
	s := all["b_requests"]
	t.must(s.settled == int64(limit) && s.held == 0 && s.left == 0, "requests: %s; want all of it settled", s)
	t.must(all["b_usd"].held == 0 && all["b_tokens"].held == 0, "held at rest: usd %s, tokens %s", all["b_usd"], all["b_tokens"])
	t.figure("1 s after the last: Σ holds %.0f, Σ open requests %.0f; the last %d requests were spendable: settled %d of %d, held %d",
		held, open, spent, s.settled, s.limit, s.held)
	return m.money(ctx, all["b_usd"].settled, c)
}

// money leaves exactly 7 calls of the budget in USD, and makes them.
func (m *mistreatment) money(ctx context.Context, settled int64, c call) error {
	const cost, calls = 1_000_000, 7
	c.model, c.limit, c.script.output = metered, 1000, 1000
	for id, l := range map[string]string{"b_requests": "100000000", "b_usd": fmt.Sprintf("%d.%09d", (settled+calls*cost)/dollar, (settled+calls*cost)%dollar)} {
		if err := m.admin.put(ctx, limits{id: id, unit: strings.TrimPrefix(id, "b_"), window: "total", limit: l}); err != nil {
			return err
		}
	}
	rig.Pause(ctx, 1200*time.Millisecond) // in effect within a second
	spent, words := m.spend(ctx, "money", 1, c)
	m.t.must(spent == calls, "%d calls of %d were spendable of the money left: %v", spent, calls, words.n)
	m.t.figure("limit lowered to 7 calls above what is settled: %d were spendable, then budget_exceeded", spent)
	return nil
}

// spend calls until the budget denies for good, and says how often it did not. The
// last of several callers may find it held by the others: one goes on alone.
func (m *mistreatment) spend(ctx context.Context, name string, callers int, c call) (int, *tally) {
	words := &tally{}
	one := func(i int, patient bool) {
		a := &agent{}
		defer a.close()
		for k := 0; ctx.Err() == nil; k++ {
			each := c
			each.script.id = fmt.Sprintf("%s/%d.%d.%t", name, i, k, patient)
			out := m.admitted(ctx, a, m.gateways[(i+k)%2], m.shared, each)
			words.add(out.word())
			switch {
			case out.status == 200:
			case out.code == "budget_held" && patient && k < 1000:
				rig.Pause(ctx, time.Second)
			default:
				m.t.must(out.code == "budget_exceeded" || out.code == "budget_held", "spending the rest: %v", out)
				return
			}
		}
	}
	together(callers, func(i int) { one(i, false) })
	one(0, true)
	return words.of("200"), words
}
