package abac

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

var checkNames = []string{"profile", "purpose", "gateway_id", "team_id", "models", "entry", "teams", "excluded", "providers", "budgets", "rate_limits"}

// reasonsOf says which reasons the first check that fails may stand for.
var reasonsOf = map[string][]Reason{
	"profile":    {ProfileInvalid, TokenRevoked, TokenNotYetValid, TokenExpired, TokenUnknown},
	"purpose":    {PurposeNotAllowed},
	"gateway_id": {GatewayMismatch},
	"team_id":    {TeamMismatch},
	"models":     {ModelNotAllowed},
	"entry":      {ModelNotFound, ProfileInvalid},
	"teams":      {TeamMismatch},
	"excluded":   {ModelNotAllowed},
	"providers":  {ProviderNotAllowed},
}

// checkExplain holds Explain to Decide: the same verdict, every check, and the
// first one that fails is the reason.
func checkExplain(tb testing.TB, p *Policy, r *Request) {
	tb.Helper()
	checks, got := Explain(p, r)
	if want := Decide(p, r); got != want {
		tb.Errorf("Explain: %s, Decide: %s", got.Reason, want.Reason)
	}
	var listed []string
	failed := ""
	for _, c := range checks {
		listed = append(listed, c.Name)
		if c.Detail == "" || c.OK && !c.Evaluated {
			tb.Errorf("%s: detail %q, OK %v, evaluated %v", c.Name, c.Detail, c.OK, c.Evaluated)
		}
		if failed == "" && c.Evaluated && !c.OK {
			failed = c.Name
		}
	}
	if !slices.Equal(listed, checkNames) {
		tb.Errorf("checks %v", listed)
	}
	if got.Reason == Allowed && failed != "" || got.Reason != Allowed && !slices.Contains(reasonsOf[failed], got.Reason) {
		tb.Errorf("%s, and the first check that fails is %q", got.Reason, failed)
	}
}

func TestExplainReadsAsWritten(t *testing.T) {
	full := func() *Profile {
		return grant(General, gateway("gw_local"), team("platform"), models("gpt-*", "!gpt-5.4-pro", "!*-eu"), providers("openai", "azure-*"), from(-time.Hour), until(time.Hour))
	}
	tests := []struct {
		name    string
		profile *Profile
		request *Request
	}{
		{"general_unbound", grant(General), ask()},
		{"general_bound", full(), ask(asserts("platform"))},
		{"model_excluded", full(), ask(model("gpt-5.4-pro"))},
		{"model_not_granted", full(), ask(model("claude\n-x"), targets())},
		{"everything_wrong", full(), ask(asserts("research"), model("o3"), func(r *Request) { r.GatewayID = "gw_2"; r.Now = noon.Add(2 * time.Hour) }, targets(Target{ID: "x", Teams: []string{"a", "b"}}))},
		{"integration_unbound", grant(Integration, unbound), ask()},
		{"integration_list", grant(Integration), ask(action(List))},
		{"runtime_token", grant(GatewayRuntime, gateway("gw_local")), ask()},
		{"provider_not_allowed", grant(General, providers("anthropic", "!openai")), ask()},
		{"budgets_and_rate_limits", grant(General, bind(func(b *Bindings) {
			b.Budgets = []BudgetBinding{{ID: "b_day"}, {ID: "b_team"}}
			b.RateLimits = &RateLimits{RequestsPerMinute: 600, TokensPerMinute: 200000, MaxParallelRequests: 20}
		})), ask()},
		{"empty_budgets", grant(General, bind(func(b *Bindings) { b.Budgets = []BudgetBinding{} })), ask()},
		{"invalid_pattern", grant(General, models("")), ask()},
		{"revoked", grant(General, status(Revoked)), ask()},
		{"another_org", grant(General), ask(func(r *Request) { r.OrgID = "org_2" })},
		{"unknown_action", grant(General), ask(action(9))},
		{"too_many_targets", grant(General), ask(targets(make([]Target, 65)...))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Compile(tt.profile)
			checkExplain(t, p, tt.request)
			checks, d := Explain(p, tt.request)
			var out strings.Builder
			for _, c := range checks {
				mark := "fail"
				if c.OK {
					mark = "ok"
				} else if !c.Evaluated {
					mark = "-"
				}
				fmt.Fprintf(&out, "%-11s %-4s %s\n", c.Name, mark, c.Detail)
			}
			fmt.Fprintf(&out, "%s %b\n", d.Reason, d.Targets)
			golden(t, filepath.Join("explain", tt.name+".txt"), []byte(out.String()))
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}
