//go:build !race

package abac

import "testing"

func TestDecideDoesNotAllocate(t *testing.T) {
	p := Compile(grant(General, team("platform"), gateway("gw_local"), from(0), until(1),
		models("x", "gpt-*-*i*", "!*-pro", "!é*"), providers("openai", "azure-*", "!azure-us")))
	allowed := ask(asserts("platform"), targets(Target{ID: "openai", Teams: []string{"platform"}}, Target{ID: "azure-eu", Model: "mini"}))
	tests := map[string]struct {
		policy  *Policy
		request *Request
		want    Reason
	}{
		"allowed":           {p, allowed, Allowed},
		"allowed, unbound":  {Compile(grant(General)), ask(), Allowed},
		"list":              {p, ask(action(List)), Allowed},
		"another team gone": {p, ask(gone("research")), Allowed},
		"its team gone":     {p, ask(gone("platform")), TeamMismatch},
		"not allowed":       {p, ask(model("gpt-5.4-pro")), ModelNotAllowed},
		"no provider left":  {p, ask(targets(Target{ID: "azure-us"})), ProviderNotAllowed},
		"an invalid policy": {Compile(grant("x")), ask(), ProfileInvalid},
	}
	for name, tt := range tests {
		if got := Decide(tt.policy, tt.request).Reason; got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		if n := testing.AllocsPerRun(1000, func() { decided = Decide(tt.policy, tt.request) }); n != 0 {
			t.Errorf("%s: Decide allocates %v times", name, n)
		}
		if n := testing.AllocsPerRun(1000, func() { decided = Identify(tt.policy, tt.request) }); n != 0 {
			t.Errorf("%s: Identify allocates %v times", name, n)
		}
	}
}
