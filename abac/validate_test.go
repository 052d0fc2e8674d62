package abac

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	named := func(s string) func(*Profile) { return func(p *Profile) { p.Name = s } }
	budget := func(list ...BudgetBinding) func(*Profile) {
		return bind(func(b *Bindings) { b.Budgets = list })
	}
	rates := func(r RateLimits) func(*Profile) { return bind(func(b *Bindings) { b.RateLimits = &r }) }
	many := func(n int, prefix string) (list []string) {
		for i := range n {
			list = append(list, prefix+strconv.Itoa(i))
		}
		return list
	}
	const empty = "must not be empty; leave it out for no restriction"
	const rate = "must be a whole number from 1 to 1000000000000"
	const decimal = `must be a decimal from 0 on, such as "5.00"`
	const onlyExcludes = `only excludes, so it grants nothing; add "*" to grant everything else`

	tests := []struct {
		name    string
		profile *Profile
		want    []string
	}{
		{"general, unbound", grant(General), nil},
		{"integration, unbound: may be minted, can do nothing", grant(Integration, unbound), nil},
		{"integration, bound", grant(Integration), nil},
		{"gateway_runtime", grant(GatewayRuntime, gateway("gw_local")), nil},
		{"before id, org and status are given", grant(General, func(p *Profile) { p.ID, p.OrgID, p.Status = "", "", "" }), nil},
		{"empty filters grant nothing, and may", grant(General, models(), providers()), nil},
		{"a budget by name", grant(General, budget(BudgetBinding{ID: "b_day"})), nil},
		{"a budget that brings its limit", grant(General, budget(BudgetBinding{ID: "b", Limit: "5.00", Unit: "usd", Window: "day", Mode: "observe"})), nil},
		{"a budget of nothing", grant(General, budget(BudgetBinding{ID: "b", Limit: "0", Unit: "requests", Window: "total"})), nil},
		{"rate limits", grant(General, rates(RateLimits{RequestsPerMinute: 1})), nil},
		{"valid from, then until", grant(General, from(0), until(1)), nil},

		{"no name", grant(General, named("")), []string{"name: required: 1 to 128 characters, not all of them spaces"}},
		{"a name of spaces", grant(General, named(" \t")), []string{"name: required: 1 to 128 characters, not all of them spaces"}},
		{"a name of 128 characters", grant(General, named(strings.Repeat("é", 128))), nil},
		{"a name of 129 characters", grant(General, named(strings.Repeat("é", 129))), []string{"name: too long: at most 128 characters"}},
		{"a name with a newline", grant(General, named("a\nb")), []string{"name: must be UTF-8 without control characters"}},
		{"a name that is not UTF-8", grant(General, named("a\xff")), []string{"name: must be UTF-8 without control characters"}},
		{"an unknown purpose", grant("admin"), []string{"purpose: unknown; allowed: general, gateway_runtime, integration"}},
		{"the wrong principal", grant(Integration, func(p *Profile) { p.PrincipalType = PrincipalGatewayRuntime }), []string{"principal_type: must be api_token with purpose integration"}},
		{"an unknown status", grant(General, status("deleted")), []string{"status: unknown; allowed: active, quarantined, revoked"}},
		{"ids", grant(General, func(p *Profile) { p.ID, p.OrgID = "a b", strings.Repeat("a", 129) }), []string{"id: " + wantID, "org_id: " + wantID}},
		{"runtime of no gateway", grant(GatewayRuntime), []string{"bindings.gateway_id: required with purpose gateway_runtime"}},
		{"expires as it begins", grant(General, from(0), until(0)), []string{"expires_at: must be after not_before"}},
		{"a year that JSON can't write", grant(General, func(p *Profile) { p.ExpiresAt = new(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)) }), []string{"expires_at: must be a year from 1 to 9999"}},

		{"an empty gateway", grant(General, gateway("")), []string{"bindings.gateway_id: " + empty}},
		{"an empty team", grant(General, team("")), []string{"bindings.team_id: " + empty}},
		{"an empty list of budgets", grant(General, bind(func(b *Bindings) { b.Budgets = []BudgetBinding{} })), []string{"bindings.budgets: " + empty}},
		{"empty rate limits", grant(General, rates(RateLimits{})), []string{"bindings.rate_limits: " + empty}},
		{"a gateway with a space", grant(General, gateway("gw 1")), []string{"bindings.gateway_id: " + wantID}},
		{"a team beyond ASCII", grant(General, team("équipe")), []string{"bindings.team_id: " + wantID}},
		{"every character of an id", grant(General, team("aZ09._:-")), nil},

		{"bad patterns, each named", grant(General, models("*", "", "a\n"), providers(strings.Repeat("a", 129))), []string{
			"bindings.providers[0]: a pattern has at most 128 characters, this one has 129",
			"bindings.models[1]: a pattern must not be empty",
			"bindings.models[2]: a pattern must not hold control characters",
		}},
		{"exclusions only", grant(General, models("!a", "!b"), providers("!c")), []string{"bindings.providers: " + onlyExcludes, "bindings.models: " + onlyExcludes}},
		{"1000 patterns", grant(General, models(many(1000, "m")...)), nil},
		{"1001 patterns", grant(General, models(many(1001, "m")...)), []string{"bindings.models: too long: at most 1000 patterns"}},

		{"a budget without id", grant(General, budget(BudgetBinding{})), []string{"bindings.budgets[0].id: " + wantID}},
		{"a budget twice", grant(General, budget(BudgetBinding{ID: "b"}, BudgetBinding{ID: "b"})), []string{"bindings.budgets[1].id: named twice; one id is one budget"}},
		{"a limit alone", grant(General, budget(BudgetBinding{ID: "b", Limit: "5"})), []string{
			"bindings.budgets[0].unit: required beside limit; allowed: usd, tokens, requests",
			"bindings.budgets[0].window: required beside limit; allowed: hour, day, week, month, total",
		}},
		{"unknown words", grant(General, budget(BudgetBinding{ID: "b", Unit: "eur", Window: "year", Mode: "warn"})), []string{
			"bindings.budgets[0].unit: unknown; allowed: usd, tokens, requests",
			"bindings.budgets[0].window: unknown; allowed: hour, day, week, month, total",
			"bindings.budgets[0].mode: unknown; allowed: enforce, observe",
		}},
		{"33 budgets", grant(General, bind(func(b *Bindings) { b.Budgets = make([]BudgetBinding, 33) })), []string{"bindings.budgets: too long: at most 32 budgets"}},
		{"rates below zero and above all", grant(General, rates(RateLimits{-1, maxRate + 1, maxRate})), []string{
			"bindings.rate_limits.requests_per_minute: " + rate, "bindings.rate_limits.tokens_per_minute: " + rate,
		}},
		{"everything at once", grant("x", named(""), team(""), models("!a")), []string{
			"name: required: 1 to 128 characters, not all of them spaces",
			"purpose: unknown; allowed: general, gateway_runtime, integration",
			"bindings.team_id: " + empty,
			"bindings.models: " + onlyExcludes,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkProblems(t, tt.profile, tt.want) })
	}

	for limit, want := range map[string]string{
		"0": "", "0.00": "", "5": "", "5.00": "", "999999999.999999999": "", "000000000005": "",
		"1000000000":   "must have at most 9 digits before the point and 9 after it",
		"0.0000000001": "must have at most 9 digits before the point and 9 after it",
		"-1":           decimal, "+1": decimal, "1e3": decimal, ".5": decimal, "5.": decimal, " 5": decimal, "5,00": decimal, "NaN": decimal, "٣": decimal, ".": decimal,
	} {
		want = strings.TrimSuffix("bindings.budgets[0].limit: "+want, "bindings.budgets[0].limit: ")
		checkProblems(t, grant(General, budget(BudgetBinding{ID: "b", Limit: limit, Unit: "usd", Window: "day"})), slices.DeleteFunc([]string{want}, func(s string) bool { return s == "" }))
	}
	const whole = "bindings.budgets[0].limit: must be a whole number with at most 18 digits"
	checkProblems(t, grant(General, budget(BudgetBinding{ID: "b", Limit: "1.0", Unit: "tokens", Window: "day"})), []string{whole})
	checkProblems(t, grant(General, budget(BudgetBinding{ID: "b", Limit: strings.Repeat("9", 19), Unit: "requests", Window: "day"})), []string{whole})
	checkProblems(t, grant(General, budget(BudgetBinding{ID: "b", Limit: strings.Repeat("9", 18), Unit: "requests", Window: "day"})), nil)
}

func checkProblems(t *testing.T, p *Profile, want []string) {
	t.Helper()
	var got []string
	for _, problem := range Validate(p) {
		got = append(got, problem.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("problems\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What may be minted must not be refused as invalid when it is met.
func TestWhatMayBeMintedCompiles(t *testing.T) {
	for _, seed := range seeds(t) {
		r := newRandom(seed, 103)
		minted := 0
		for range 5000 {
			p := r.profile()
			if p.ID == "" || p.OrgID == "" || p.Status == "" || Validate(&p) != nil {
				continue
			}
			minted++
			if problem := Compile(&p).Problem(); problem != "" {
				t.Fatalf("seed %d: valid, and %s: %+v", seed, problem, p)
			}
		}
		if minted < 1000 {
			t.Errorf("only %d of 5000 were valid", minted)
		}
	}
}

func TestPrincipalTypeFollowsFromPurpose(t *testing.T) {
	for purpose, want := range map[Purpose]PrincipalType{
		General: PrincipalAPIToken, Integration: PrincipalAPIToken, GatewayRuntime: PrincipalGatewayRuntime, "": "", "General": "",
	} {
		if got := purpose.PrincipalType(); got != want {
			t.Errorf("%q: %q, want %q", purpose, got, want)
		}
	}
}
