package controlplane

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
)

func TestPatch(t *testing.T) {
	bound := `{"team_id":"red","providers":["openai"],"models":["gpt-*"],"rate_limits":{"requests_per_minute":5,"tokens_per_minute":7}}`
	for _, tt := range []struct {
		name, purpose, bindings, patch string
		want                           string // bindings afterwards, or the refusal
	}{
		{"nothing named: nothing changes", "general", bound, `{}`, bound},
		{"another key leaves bindings alone", "general", bound, `{"name":"new"}`, bound},
		{"a list is replaced, not joined", "general", `{"models":["a","b"]}`, `{"bindings":{"models":["c"]}}`, `{"models":["c"]}`},
		{"what is not named inside stays", "general", bound, `{"bindings":{"team_id":"blue"}}`,
			`{"team_id":"blue","providers":["openai"],"models":["gpt-*"],"rate_limits":{"requests_per_minute":5,"tokens_per_minute":7}}`},
		{"objects inside are merged", "general", `{"rate_limits":{"requests_per_minute":5,"tokens_per_minute":7}}`,
			`{"bindings":{"rate_limits":{"requests_per_minute":9,"tokens_per_minute":null}}}`, `{"rate_limits":{"requests_per_minute":9}}`},
		{"null removes a restriction", "general", `{"team_id":"red"}`, `{"bindings":{"team_id":null}}`, `{}`},
		{"null for what is not there", "general", `{}`, `{"bindings":{"team_id":null}}`, `{}`},
		{"a filter can be added", "general", `{}`, `{"bindings":{"models":[]}}`, `{"models":[]}`},
		{"taking a filter from a general token is asked back", "general", bound, `{"bindings":{"models":null}}`, "400 widening_not_confirmed bindings.models"},
		{"also with all bindings", "general", bound, `{"bindings":null}`, "400 widening_not_confirmed bindings.providers"},
		{"also from an empty one", "general", `{"models":[]}`, `{"bindings":{"models":null}}`, "400 widening_not_confirmed bindings.models"},
		{"false confirms nothing", "general", `{"models":["a"]}`, `{"bindings":{"models":null},"widen":false}`, "400 widening_not_confirmed bindings.models"},
		{"true confirms", "general", `{"models":["a"]}`, `{"bindings":{"models":null},"widen":true}`, `{}`},
		{"only true and false", "general", `{"models":["a"]}`, `{"bindings":{"models":null},"widen":"yes"}`, "400 invalid_value widen"},
		{"of an integration token it takes all: not asked", "integration", `{"models":["a"],"providers":["b"]}`, `{"bindings":{"models":null}}`, `{"providers":["b"]}`},
		{"a runtime token keeps its gateway", "gateway_runtime", `{"gateway_id":"gw"}`, `{"bindings":{"gateway_id":null}}`, "400 invalid_value bindings.gateway_id"},
		{"a runtime token may move", "gateway_runtime", `{"gateway_id":"gw"}`, `{"bindings":{"gateway_id":"gw2"}}`, `{"gateway_id":"gw2"}`},
		{"an empty object is no restriction", "general", `{"rate_limits":{"requests_per_minute":5}}`, `{"bindings":{"rate_limits":{"requests_per_minute":null}}}`, "400 invalid_value bindings.rate_limits"},
		{"an unknown binding", "general", `{}`, `{"bindings":{"modles":["a"]}}`, "400 unknown_parameter bindings.modles"},
		{"an unknown binding taken away", "general", `{}`, `{"bindings":{"modles":null}}`, "400 unknown_parameter bindings.modles"},
		{"an unknown key", "general", `{}`, `{"team_id":"red"}`, "400 unknown_parameter team_id"},
		{"bindings of a wrong type", "general", `{}`, `{"bindings":[]}`, "400 invalid_value bindings"},
		{"a budget without a record", "general", `{}`, `{"bindings":{"budgets":[{"id":"b"}]}}`, "400 unknown_budget bindings.budgets[0].id"},
		{"no name", "general", `{}`, `{"name":null}`, "400 missing_required_parameter name"},
		{"an end before the beginning", "general", `{}`, `{"not_before":"2027-01-02T00:00:00Z","expires_at":"2027-01-01T00:00:00Z"}`, "400 invalid_value expires_at"},
		{"id", "general", `{}`, `{"id":"tok_x"}`, "400 immutable_field id"},
		{"purpose, even the same", "general", `{}`, `{"purpose":"general"}`, "400 immutable_field purpose"},
		{"principal type", "general", `{}`, `{"principal_type":"api_token"}`, "400 immutable_field principal_type"},
		{"org", "general", `{}`, `{"org_id":"org_b"}`, "400 immutable_field org_id"},
		{"status", "general", `{}`, `{"status":"active"}`, "400 immutable_field status"},
		{"revision", "general", `{}`, `{"revision":1}`, "400 immutable_field revision"},
		{"hint", "general", `{}`, `{"hint":"x"}`, "400 immutable_field hint"},
		{"no object", "general", `{}`, `[]`, "400 invalid_json "},
		{"no body", "general", `{}`, ``, "400 invalid_json "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t)
			a := p.must(201, "POST", "/v1/tokens", fields{"name": "t", "purpose": tt.purpose, "bindings": json.RawMessage(tt.bindings)})
			got := p.admin("PATCH", "/v1/tokens/"+a.text("id"), tt.patch)
			if got.status == 200 {
				var want map[string]any
				if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
					t.Fatalf("got %s, want %s", got.raw, tt.want)
				}
				if !reflect.DeepEqual(got.body["bindings"], any(want)) {
					t.Fatalf("got %s, want %s", got.raw, tt.want)
				}
				return
			}
			if text := fmt.Sprintf("%d %s %s", got.status, got.code(), got.param()); text != tt.want {
				t.Fatalf("got %s, want %s: %s", text, tt.want, got.raw)
			}
		})
	}
}

func TestPatchTakesRevisionsAndTimes(t *testing.T) {
	p := newPlane(t)
	id, _ := p.mint("general", nil)
	path := "/v1/tokens/" + id
	for _, tt := range []struct {
		name, match, patch string
		want               string
		revision           float64
	}{
		{"the revision that is", `"1"`, `{"name":"a"}`, "200 ", 2},
		{"without quotes", `2`, `{"name":"b"}`, "200 ", 3},
		{"one of several", `"1", "3"`, `{"name":"c"}`, "200 ", 4},
		{"any", `*`, `{"name":"d"}`, "200 ", 5},
		{"an old one", `"4"`, `{"name":"e"}`, "412 revision_mismatch", 5},
		{"no revision", `"x"`, `{"name":"e"}`, "400 invalid_header", 5},
		{"a change that changes nothing", `"5"`, `{"name":"d"}`, "200 ", 5},
		{"an end", "", `{"expires_at":"2027-01-01T00:00:00Z"}`, "200 ", 6},
		{"the same end, written otherwise", "", `{"expires_at":"2027-01-01T01:00:00.0000001+01:00"}`, "200 ", 6},
		{"no end", "", `{"expires_at":null}`, "200 ", 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var headers []string
			if tt.match != "" {
				headers = []string{"If-Match", tt.match}
			}
			a := p.admin("PATCH", path, tt.patch, headers...)
			if got := fmt.Sprintf("%d %s", a.status, a.code()); got != tt.want {
				t.Fatalf("got %s, want %s", got, tt.want)
			}
			if got := p.must(200, "GET", path, nil).body["revision"]; got != tt.revision {
				t.Fatalf("revision %v, want %v", got, tt.revision)
			}
		})
	}
}

func TestAPatchNeverLosesARestrictionThatItDoesNotUnderstand(t *testing.T) {
	var p abac.Profile
	if err := json.Unmarshal([]byte(`{"id":"tok_1","name":"n","org_id":"o","purpose":"general","principal_type":"api_token","status":"active",
		"bindings":{"source_cidrs":["10.0.0.0/8"]}}`), &p); err != nil {
		t.Fatal(err)
	}
	for _, patch := range []string{`{"name":"new"}`, `{"bindings":{"team_id":"red"}}`, `{"bindings":{"invalid":null}}`} {
		o, problem := readObject([]byte(patch), nil)
		if problem != nil {
			t.Fatal(problem)
		}
		if _, err := patched(p, o); err == nil {
			t.Errorf("%s was taken", patch)
		}
	}
}

func FuzzPatch(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"name":"new","bindings":{"models":["a","!b"],"team_id":null}}`, `{"bindings":null,"widen":true}`,
		`{"bindings":{"rate_limits":{"tokens_per_minute":1}}}`, `{"expires_at":null,"not_before":"2027-01-01T00:00:00Z"}`,
		`{"bindings":{"budgets":[{"id":"b","limit":"1","unit":"usd","window":"day"}]}}`, `{"bindings":{"models":null}}`,
	} {
		f.Add(`{"team_id":"red","models":["gpt-*"]}`, s)
		f.Add(`{}`, s)
	}
	f.Fuzz(func(t *testing.T, now, patch string) {
		at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
		base := abac.Profile{ID: "tok_1", Name: "n", OrgID: "org", Purpose: abac.General, PrincipalType: abac.PrincipalAPIToken,
			Status: abac.Active, Revision: 3, CreatedAt: at, Hint: "h"}
		held, problem := readObject([]byte(now), nil)
		if problem != nil {
			return
		}
		var err error
		if base.Bindings, err = bindings(held); err != nil || validate(&base) != nil {
			return
		}
		o, problem := readObject([]byte(patch), nil)
		if problem != nil || patchKeys(o) != nil {
			return
		}
		before := encode(&base)
		got, err := patched(base, o)
		if string(encode(&base)) != string(before) {
			t.Fatalf("the profile that was handed in changed: %s", patch)
		}
		if err != nil {
			return
		}
		if list := abac.Validate(&got); list != nil {
			t.Fatalf("%s made an invalid profile: %v", patch, list)
		}
		if got.ID != base.ID || got.Purpose != base.Purpose || got.PrincipalType != base.PrincipalType || got.OrgID != base.OrgID ||
			got.Status != base.Status || got.Revision != base.Revision || got.Hint != base.Hint || !got.CreatedAt.Equal(base.CreatedAt) {
			t.Fatalf("%s changed what is fixed", patch)
		}
		if o["widen"] != true && (base.Bindings.Models != nil && got.Bindings.Models == nil || base.Bindings.Providers != nil && got.Bindings.Providers == nil) {
			t.Fatalf("%s took a filter without being confirmed", patch)
		}
		if _, named := o["bindings"]; !named && !reflect.DeepEqual(got.Bindings, base.Bindings) {
			t.Fatalf("%s changed bindings that it does not name", patch)
		}
		again, err := patched(got, o)
		if err != nil || !same(&got, &again) {
			t.Fatalf("%s twice is not what it is once: %v", patch, err)
		}
	})
}
