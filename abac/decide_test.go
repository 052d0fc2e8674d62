package abac

import (
	"fmt"
	"math/bits"
	"slices"
	"testing"
	"time"
)

// grant is a profile that allows everything, for a test to take from.
func grant(purpose Purpose, edits ...func(*Profile)) *Profile {
	p := &Profile{ID: "tok_1", Name: "n", OrgID: "org_default", Purpose: purpose, PrincipalType: purpose.PrincipalType(), Status: Active}
	if purpose == Integration {
		p.Bindings.Models, p.Bindings.Providers = []string{"*"}, []string{"*"}
	}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

// ask is a request that such a profile allows.
func ask(edits ...func(*Request)) *Request {
	r := &Request{
		Now: noon, Action: Execute, OrgID: "org_default", GatewayID: "gw_local", Model: "gpt-5.4-mini",
		Targets: []Target{{ID: "openai"}, {ID: "azure-eu", Model: "mini-eu"}},
	}
	for _, edit := range edits {
		edit(r)
	}
	return r
}

func bind(edit func(*Bindings)) func(*Profile) { return func(p *Profile) { edit(&p.Bindings) } }

func models(list ...string) func(*Profile) {
	return bind(func(b *Bindings) { b.Models = slices.Clip(append([]string{}, list...)) })
}

func providers(list ...string) func(*Profile) {
	return bind(func(b *Bindings) { b.Providers = slices.Clip(append([]string{}, list...)) })
}

func unbound(p *Profile) { p.Bindings = Bindings{} }

func team(name string) func(*Profile)    { return bind(func(b *Bindings) { b.TeamID = &name }) }
func gateway(name string) func(*Profile) { return bind(func(b *Bindings) { b.GatewayID = &name }) }

func from(d time.Duration) func(*Profile) {
	return func(p *Profile) { p.NotBefore = new(noon.Add(d)) }
}

func until(d time.Duration) func(*Profile) {
	return func(p *Profile) { p.ExpiresAt = new(noon.Add(d)) }
}

func status(s Status) func(*Profile) { return func(p *Profile) { p.Status = s } }

func action(a Action) func(*Request)     { return func(r *Request) { r.Action = a } }
func asserts(team string) func(*Request) { return func(r *Request) { r.Team = team } }
func gone(teams ...string) func(*Request) {
	return func(r *Request) { r.DeletedTeams = NewTeamSet(teams...) }
}
func model(name string) func(*Request) { return func(r *Request) { r.Model = name } }

func targets(list ...Target) func(*Request) { return func(r *Request) { r.Targets = list } }

var decisions = []struct {
	name    string
	profile *Profile
	request *Request
	want    Reason
	targets uint64
}{
	{"general, unbound: everything", grant(General), ask(), Allowed, 0b11},
	{"integration, bound to everything", grant(Integration), ask(), Allowed, 0b11},
	{"integration, unbound: nothing", grant(Integration, unbound), ask(), ModelNotAllowed, 0},
	{"integration, no providers bound: nothing", grant(Integration, bind(func(b *Bindings) { b.Providers = nil })), ask(), ProviderNotAllowed, 0},
	{"integration, no models bound: nothing", grant(Integration, bind(func(b *Bindings) { b.Models = nil })), ask(), ModelNotAllowed, 0},
	{"integration, unbound, may list", grant(Integration, unbound), ask(action(List)), Allowed, 0},
	{"integration, unbound, may read itself", grant(Integration, unbound), ask(action(Self)), Allowed, 0},
	{"gateway_runtime calls", grant(GatewayRuntime, gateway("gw_local")), ask(), PurposeNotAllowed, 0},
	{"gateway_runtime lists", grant(GatewayRuntime, gateway("gw_local")), ask(action(List)), PurposeNotAllowed, 0},
	{"gateway_runtime reads itself on the data plane", grant(GatewayRuntime, gateway("gw_local")), ask(action(Self)), PurposeNotAllowed, 0},
	{"gateway_runtime of another gateway: purpose comes first", grant(GatewayRuntime, gateway("gw_2")), ask(), PurposeNotAllowed, 0},
	{"no action", grant(General), ask(action(0)), PurposeNotAllowed, 0},
	{"an unknown action", grant(General), ask(action(Self + 1)), PurposeNotAllowed, 0},
	{"list names no model and needs no target", grant(General, models(), providers()), ask(action(List), model(""), targets()), Allowed, 0},

	{"no id", grant(General, func(p *Profile) { p.ID = "" }), ask(), ProfileInvalid, 0},
	{"no org, at a gateway of no org", grant(General, func(p *Profile) { p.OrgID = "" }), ask(func(r *Request) { r.OrgID = "" }), ProfileInvalid, 0},
	{"an unknown purpose", grant(General, func(p *Profile) { p.Purpose = "admin" }), ask(), ProfileInvalid, 0},
	{"a purpose in capitals", grant(General, func(p *Profile) { p.Purpose = "General" }), ask(), ProfileInvalid, 0},
	{"no principal type", grant(General, func(p *Profile) { p.PrincipalType = "" }), ask(), ProfileInvalid, 0},
	{"general with the runtime's principal", grant(General, func(p *Profile) { p.PrincipalType = PrincipalGatewayRuntime }), ask(), ProfileInvalid, 0},
	{"gateway_runtime with api_token", grant(GatewayRuntime, gateway("gw_local"), func(p *Profile) { p.PrincipalType = PrincipalAPIToken }), ask(), ProfileInvalid, 0},
	{"gateway_runtime of no gateway", grant(GatewayRuntime), ask(), ProfileInvalid, 0},
	{"no status", grant(General, status("")), ask(), ProfileInvalid, 0},
	{"an unknown status", grant(General, status("deleted")), ask(), ProfileInvalid, 0},
	{"an empty gateway", grant(General, gateway("")), ask(func(r *Request) { r.GatewayID = "" }), ProfileInvalid, 0},
	{"an empty team", grant(General, team("")), ask(), ProfileInvalid, 0},
	{"no budgets in the list", grant(General, bind(func(b *Bindings) { b.Budgets = []BudgetBinding{} })), ask(), ProfileInvalid, 0},
	{"empty rate limits", grant(General, bind(func(b *Bindings) { b.RateLimits = &RateLimits{} })), ask(), ProfileInvalid, 0},
	{"a rate limit below zero", grant(General, bind(func(b *Bindings) { b.RateLimits = &RateLimits{RequestsPerMinute: 1, TokensPerMinute: -1} })), ask(), ProfileInvalid, 0},
	{"something not understood in the bindings", grant(General, bind(func(b *Bindings) { b.Invalid = []string{"bindings.x: unknown key"} })), ask(), ProfileInvalid, 0},
	{"an empty model pattern", grant(General, models("*", "")), ask(), ProfileInvalid, 0},
	{"an exclusion of nothing", grant(General, models("*", "!")), ask(), ProfileInvalid, 0},
	{"nine stars among the providers", grant(General, providers("*", "*********")), ask(), ProfileInvalid, 0},
	{"an invalid profile denies list and self", grant(General, models("")), ask(action(Self)), ProfileInvalid, 0},
	{"invalid comes before revoked", grant(General, status(Revoked), models("")), ask(), ProfileInvalid, 0},

	{"revoked", grant(General, status(Revoked)), ask(), TokenRevoked, 0},
	{"quarantined", grant(General, status(Quarantined)), ask(), TokenRevoked, 0},
	{"revoked comes before expired", grant(General, status(Revoked), until(-time.Hour)), ask(), TokenRevoked, 0},
	{"not before in 60 s: the clocks may differ", grant(General, from(time.Minute)), ask(), Allowed, 0b11},
	{"not before in more than 60 s", grant(General, from(time.Minute+1)), ask(), TokenNotYetValid, 0},
	{"not before comes before expired", grant(General, from(time.Hour), until(-time.Hour)), ask(), TokenNotYetValid, 0},
	{"expires in a nanosecond", grant(General, until(1)), ask(), Allowed, 0b11},
	{"expires now", grant(General, until(0)), ask(), TokenExpired, 0},
	{"expired a nanosecond ago", grant(General, until(-1)), ask(), TokenExpired, 0},
	{"expires at the zero time", grant(General, func(p *Profile) { p.ExpiresAt = new(time.Time) }), ask(), TokenExpired, 0},
	{"the hour in another zone is the same hour", grant(General, func(p *Profile) { p.ExpiresAt = new(noon.In(time.FixedZone("", 3600))) }), ask(), TokenExpired, 0},
	{"of another org", grant(General), ask(func(r *Request) { r.OrgID = "org_2" }), TokenUnknown, 0},
	{"expired comes before another org", grant(General, until(0)), ask(func(r *Request) { r.OrgID = "org_2" }), TokenExpired, 0},
	{"another org comes before purpose", grant(GatewayRuntime, gateway("gw_local")), ask(func(r *Request) { r.OrgID = "org_2" }), TokenUnknown, 0},

	{"bound to this gateway", grant(General, gateway("gw_local")), ask(), Allowed, 0b11},
	{"bound to another gateway", grant(General, gateway("gw_2")), ask(), GatewayMismatch, 0},
	{"bound to another gateway, list", grant(General, gateway("gw_2")), ask(action(List)), GatewayMismatch, 0},
	{"gateway ids are case-sensitive", grant(General, gateway("GW_local")), ask(), GatewayMismatch, 0},
	{"gateway comes before team", grant(General, gateway("gw_2")), ask(asserts("x")), GatewayMismatch, 0},

	{"of a team that it need not assert", grant(General, team("platform")), ask(), Allowed, 0b11},
	{"asserts its team", grant(General, team("platform")), ask(asserts("platform")), Allowed, 0b11},
	{"asserts another team", grant(General, team("platform")), ask(asserts("research")), TeamMismatch, 0},
	{"asserts its team in capitals", grant(General, team("platform")), ask(asserts("Platform")), TeamMismatch, 0},
	{"of no team, asserts one", grant(General), ask(asserts("platform")), TeamMismatch, 0},
	{"of no team, asserts one, list", grant(General), ask(action(List), asserts("platform")), TeamMismatch, 0},
	{"its team is deleted", grant(General, team("platform")), ask(gone("platform")), TeamMismatch, 0},
	{"its team is deleted, asserts it", grant(General, team("platform")), ask(asserts("platform"), gone("research", "platform")), TeamMismatch, 0},
	{"its team is deleted, self", grant(Integration, team("platform")), ask(action(Self), gone("platform")), TeamMismatch, 0},
	{"another team is deleted", grant(General, team("platform")), ask(gone("Platform", "research", "")), Allowed, 0b11},
	{"of no team, one is deleted", grant(General), ask(gone("platform", "")), Allowed, 0b11},
	{"gateway comes before a deleted team", grant(General, gateway("gw_2"), team("platform")), ask(gone("platform")), GatewayMismatch, 0},
	{"a deleted team comes before models", grant(General, team("platform"), models()), ask(gone("platform")), TeamMismatch, 0},
	{"team comes before models", grant(General, models()), ask(asserts("platform")), TeamMismatch, 0},

	{"an exact model", grant(General, models("gpt-5.4-mini")), ask(), Allowed, 0b11},
	{"a model that is not granted", grant(General, models("gpt-5.4-pro")), ask(), ModelNotAllowed, 0},
	{"a model in capitals", grant(General, models("GPT-5.4-mini")), ask(), ModelNotAllowed, 0},
	{"a pattern is the whole string", grant(General, models("gpt-5.4")), ask(), ModelNotAllowed, 0},
	{"a star at the end", grant(General, models("gpt-*")), ask(), Allowed, 0b11},
	{"a star matches slashes", grant(General, models("org/*")), ask(model("org/team/model")), Allowed, 0b11},
	{"a star matches nothing too", grant(General, models("gpt-5.4-mini*")), ask(), Allowed, 0b11},
	{"no models: nothing, for general too", grant(General, models()), ask(), ModelNotAllowed, 0},
	{"excluded", grant(General, models("*", "!gpt-5.4-mini")), ask(), ModelNotAllowed, 0},
	{"excluded, the other way round", grant(General, models("!gpt-5.4-mini", "*")), ask(), ModelNotAllowed, 0},
	{"excluded wins over granted by name", grant(General, models("gpt-5.4-mini", "!gpt-*")), ask(), ModelNotAllowed, 0},
	{"another model is excluded", grant(General, models("*", "!gpt-5.4-pro")), ask(), Allowed, 0b11},
	{"exclusions only grant nothing", grant(General, models("!gpt-5.4-pro")), ask(), ModelNotAllowed, 0},
	{"a second ! is a letter", grant(General, models("*", "!!x")), ask(model("!x")), ModelNotAllowed, 0},
	{"granted and not in the config", grant(General), ask(targets()), ModelNotFound, 0},
	{"not granted and not in the config: no probing", grant(General, models("a")), ask(targets()), ModelNotAllowed, 0},
	{"not in the config comes before providers", grant(General, providers()), ask(targets()), ModelNotFound, 0},

	{"a target open to the token's team", grant(General, team("platform")), ask(targets(Target{ID: "a", Teams: []string{"x", "platform"}})), Allowed, 0b1},
	{"a target open to other teams", grant(General, team("platform")), ask(targets(Target{ID: "a", Teams: []string{"x"}})), TeamMismatch, 0},
	{"a target open to teams, a token of none", grant(General), ask(targets(Target{ID: "a", Teams: []string{"x"}})), TeamMismatch, 0},
	{"a target that lists the team of no name", grant(General), ask(targets(Target{ID: "a", Teams: []string{""}})), TeamMismatch, 0},
	{"a fallback stays within what is left", grant(General), ask(targets(Target{ID: "a", Teams: []string{"x"}}, Target{ID: "b"})), Allowed, 0b10},
	{"the upstream's name is excluded", grant(General, models("*", "!mini-eu")), ask(), Allowed, 0b01},
	{"every upstream name is excluded", grant(General, models("*", "!mini-*")), ask(targets(Target{ID: "a", Model: "mini-eu"})), ModelNotAllowed, 0},
	{"the upstream's name need not be granted", grant(General, models("gpt-5.4-mini")), ask(), Allowed, 0b11},
	{"an exact provider", grant(General, providers("openai")), ask(), Allowed, 0b01},
	{"a provider by pattern", grant(General, providers("azure-*")), ask(), Allowed, 0b10},
	{"a provider excluded", grant(General, providers("*", "!openai")), ask(), Allowed, 0b10},
	{"no provider left", grant(General, providers("anthropic")), ask(), ProviderNotAllowed, 0},
	{"no providers: nothing, for general too", grant(General, providers()), ask(), ProviderNotAllowed, 0},
	{"provider exclusions only grant nothing", grant(General, providers("!x")), ask(), ProviderNotAllowed, 0},
	{"teams come before excluded names", grant(General, models("*", "!up")), ask(targets(Target{ID: "a", Model: "up", Teams: []string{"x"}})), TeamMismatch, 0},
	{"excluded names come before providers", grant(General, models("*", "!up"), providers()), ask(targets(Target{ID: "a", Model: "up"})), ModelNotAllowed, 0},
	{"the filter that takes the last one is the reason", grant(General, models("*", "!up"), providers("c")), ask(targets(Target{ID: "a", Model: "up"}, Target{ID: "b"})), ProviderNotAllowed, 0},
	{"64 targets", grant(General), ask(targets(slices.Repeat([]Target{{ID: "a"}}, 64)...)), Allowed, 1<<64 - 1},
	{"65 targets can't be decided on", grant(General), ask(targets(slices.Repeat([]Target{{ID: "a"}}, 65)...)), ProfileInvalid, 0},
}

func TestDecide(t *testing.T) {
	for _, tt := range decisions {
		t.Run(tt.name, func(t *testing.T) {
			p := Compile(tt.profile)
			want := Decision{tt.want, tt.targets}
			if got := Decide(p, tt.request); got != want {
				t.Errorf("Decide: %s %b, want %s %b", got.Reason, got.Targets, tt.want, tt.targets)
			}
			if reason, left := spec(tt.profile, tt.request); reason != tt.want.String() || specTargets(reason, left) != tt.targets {
				t.Errorf("the spec says %s", reason)
			}
			if (p.Problem() != "") != (tt.want == ProfileInvalid && len(tt.request.Targets) <= MaxTargets) {
				t.Errorf("Problem: %q", p.Problem())
			}
			checkIdentify(t, p, tt.request)
			checkExplain(t, p, tt.request)
		})
	}
}

func TestEveryReasonIsInTheTable(t *testing.T) {
	var seen uint16
	for _, tt := range decisions {
		seen |= 1 << tt.want
	}
	if n := bits.OnesCount16(seen); n != len(reasons) {
		t.Errorf("%d of %d reasons", n, len(reasons))
	}
}

// Identify gives what Decide would, as far as checks 1 to 4 go.
func checkIdentify(tb testing.TB, p *Policy, r *Request) {
	tb.Helper()
	early, whole := Identify(p, r), Decide(p, r)
	self := *r
	if r.Action == Execute {
		self.Action = Self
	}
	if want := Decide(p, &self); early != want {
		tb.Errorf("Identify: %s, want %s", early.Reason, want.Reason)
	}
	if early.Reason != Allowed && early != whole {
		tb.Errorf("Identify: %s, Decide: %s", early.Reason, whole.Reason)
	}
}

func TestNothingDenies(t *testing.T) {
	var zero Decision
	for name, got := range map[string]Decision{
		"no policy":            Decide(nil, ask()),
		"no request":           Decide(Compile(grant(General)), nil),
		"zero policy":          Decide(&Policy{}, ask()),
		"zero request":         Decide(Compile(grant(General)), &Request{}),
		"no profile":           Decide(Compile(nil), ask()),
		"zero profile":         Decide(Compile(&Profile{}), ask()),
		"identify, no policy":  Identify(nil, ask()),
		"identify, no request": Identify(Compile(grant(General)), nil),
	} {
		if got.Reason == Allowed || got.Targets != 0 {
			t.Errorf("%s: %s", name, got.Reason)
		}
	}
	if zero.Reason == Allowed || zero.Reason.String() != "profile_invalid" {
		t.Error("a zero decision does not deny")
	}
	if Reason(200).String() != "profile_invalid" {
		t.Error("an unknown reason is not a denial")
	}
	if checks, d := Explain(nil, ask()); checks != nil || d != zero {
		t.Error("Explain without a policy")
	}
}

// A policy keeps nothing of its profile: the cache hands out one, the control
// plane may change the other.
func TestAPolicyIsItsOwn(t *testing.T) {
	p := grant(General, models("gpt-*"), providers("openai"), gateway("gw_local"), team("platform"), until(time.Hour))
	c := Compile(p)
	want := Decide(c, ask())
	p.Bindings.Models[0], p.Bindings.Providers[0] = "none", "none"
	*p.Bindings.GatewayID, *p.Bindings.TeamID = "other", "other"
	*p.ExpiresAt = noon.Add(-time.Hour)
	p.Status = Revoked
	if got := Decide(c, ask()); got != want || got.Reason != Allowed {
		t.Errorf("after its profile changed: %s", got.Reason)
	}
	if got := c.Profile(); got.Bindings.Models[0] != "gpt-*" || *got.Bindings.TeamID != "platform" || got.Status != Active {
		t.Errorf("Profile: %+v", got)
	}
}

func TestProblemNamesThePlace(t *testing.T) {
	tests := []struct {
		profile *Profile
		want    string
	}{
		{grant(General), ""},
		{grant(General, bind(func(b *Bindings) {
			b.Budgets, b.RateLimits = []BudgetBinding{{ID: "b"}}, &RateLimits{TokensPerMinute: 1}
		})), ""},
		{grant(General, bind(func(b *Bindings) { b.Budgets = []BudgetBinding{} })), "bindings.budgets: must not be empty; leave it out for no restriction"},
		{grant(General, bind(func(b *Bindings) { b.RateLimits = &RateLimits{} })), "bindings.rate_limits: must not be empty; leave it out for no restriction"},
		{grant(General, models("*", "")), "bindings.models[1]: a pattern must not be empty"},
		{grant(General, providers("!")), "bindings.providers[0]: a pattern must not be empty"},
		{grant(GatewayRuntime), "bindings.gateway_id: required with purpose gateway_runtime"},
		{grant(General, team("")), "bindings.team_id: must not be empty; leave it out for no restriction"},
		{grant("x"), "purpose: unknown; allowed: general, gateway_runtime, integration"},
		{grant(General, status("x")), "status: unknown"},
		{grant(General, bind(func(b *Bindings) { b.Invalid = []string{"bindings.x: unknown key"} })), "bindings.x: unknown key"},
		{nil, "no profile"},
	}
	for _, tt := range tests {
		if got := Compile(tt.profile).Problem(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestOnePolicyDecidesForManyAtOnce(t *testing.T) {
	p := Compile(grant(General, models("*", "!gpt-5.4-pro"), providers("azure-*")))
	r := ask()
	done := make(chan error)
	for range 8 {
		go func() {
			for range 1000 {
				if d := Decide(p, r); d != (Decision{Allowed, 0b10}) {
					done <- fmt.Errorf("%+v", d)
					return
				}
				Explain(p, r)
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
