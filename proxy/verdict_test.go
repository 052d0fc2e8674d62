package proxy

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

// Whatever was noted with an entry before, and under which config, org and time,
// the answer is that of the whole decision.
func TestWhatIsNotedDecidesAsTheWholeDecision(t *testing.T) {
	t.Parallel()
	config := manyModels(answering(t, whole(200, completion)).url)
	g := start(t, config)
	now := time.Now()
	early, late, blue, bound := now.Add(-time.Hour), now.Add(time.Hour), "blue", testGateway
	var entries []*tokencache.Entry
	for _, change := range []func(*abac.Profile){
		nil,
		func(p *abac.Profile) { p.ExpiresAt, p.NotBefore = &late, &early },
		func(p *abac.Profile) { p.ExpiresAt = &late },
		func(p *abac.Profile) { p.Bindings.TeamID, p.Bindings.GatewayID = &blue, &bound },
		func(p *abac.Profile) {
			p.Bindings.Models, p.Bindings.Providers = []string{"chat", "mixed"}, []string{"*", "!open"}
		},
		func(p *abac.Profile) { p.Bindings.Models = []string{"wild-*", "!wild-y"} },
	} {
		e, err := g.cache.Get(t.Context(), token.Sum([]byte(g.mint(change))))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	var runtimes []*runtime
	for _, yaml := range []string{
		config,
		strings.Replace(config, "gateway_id: "+testGateway, "gateway_id: gw_next", 1),
		strings.Replace(config, "{name: chat, targets: [{id: open}, {id: other, model: chat-upstream}]}", "{name: chat, targets: [{id: blue-only}]}", 1),
	} {
		rt, err := g.s.compile(g.parse(yaml), nil)
		if err != nil {
			t.Fatal(err)
		}
		runtimes = append(runtimes, rt)
	}
	times := []time.Time{now, early, early.Add(-2 * time.Minute), late.Add(-1), late, late.Add(time.Hour), now}
	models := []string{"chat", "chat", "blue", "mixed", "wild-card", "wild-x", "wild-y", "none"}
	gone := []*abac.TeamSet{nil, abac.NewTeamSet("other"), abac.NewTeamSet("blue"), nil}
	r := rand.New(rand.NewPCG(1, 2))
	allowed := 0
	for range 20_000 {
		e, rt := entries[r.IntN(len(entries))], runtimes[r.IntN(len(runtimes))]
		x := &exchange{s: g.s, rt: rt, entry: e, policy: e.Policy}
		x.ask = abac.Request{Now: times[r.IntN(len(times))], OrgID: []string{testOrg, testOrg, testOrg, "org_x"}[r.IntN(4)],
			GatewayID: rt.cfg.GatewayID, Action: []abac.Action{abac.Execute, abac.Execute, abac.List}[r.IntN(3)], Team: []string{"", "", "blue"}[r.IntN(3)],
			DeletedTeams: gone[r.IntN(len(gone))]}
		ask := x.ask
		got, want := x.identified(), abac.Identify(e.Policy, &ask)
		if got != want {
			t.Fatalf("identified %v, want %v: %+v", got.Reason, want.Reason, ask)
		}
		if want.Reason != abac.Allowed || ask.Action != abac.Execute {
			continue
		}
		ask.Model = models[r.IntN(len(models))]
		m := rt.cfg.Find(ask.Model)
		if m != nil {
			ask.Targets = m.AbacTargets()
		}
		got, want = x.decideCall(ask.Model), abac.Decide(e.Policy, &ask)
		if got != want || x.ask.Model != ask.Model || x.serving != rt.served[m] {
			t.Fatalf("decided %+v, want %+v: %+v", got, want, ask)
		}
		if want.Reason == abac.Allowed {
			allowed++
		}
	}
	if allowed < 1000 {
		t.Errorf("%d were allowed: too few to say anything", allowed)
	}
}

// A process that has run out of numbers decides anew each time.
func TestWithoutANumberNothingIsNoted(t *testing.T) {
	t.Parallel()
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	if r := g.do(get("/health", "")); r.status != 200 {
		t.Fatalf("answered %d", r.status)
	}
	e, err := g.cache.Get(t.Context(), token.Sum([]byte(g.mint(func(p *abac.Profile) { p.Bindings.Models = []string{"x"} }))))
	if err != nil {
		t.Fatal(err)
	}
	rt, err := g.s.compile(g.cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	rt.served[rt.cfg.Find("chat")].number = 0
	x := &exchange{s: g.s, rt: rt, entry: e, policy: e.Policy, ask: abac.Request{Now: time.Now(), OrgID: testOrg, GatewayID: testGateway, Action: abac.Execute}}
	for range 2 {
		if d := x.decideCall("chat"); d.Reason != abac.ModelNotAllowed {
			t.Fatalf("decided %+v", d)
		}
	}
}
