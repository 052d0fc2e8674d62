package abac

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestBindingsAreReadStrictly(t *testing.T) {
	const unknown = "unknown key; allowed: gateway_id, team_id, providers, models, budgets, rate_limits"
	const rate = "must be a whole number from 1 to 1000000000000"
	tests := []struct {
		name, give string
		invalid    []string // nil: valid
	}{
		{"nothing", `{}`, nil},
		{"null", `null`, nil},
		{"everything", `{"gateway_id":"gw","team_id":"t","providers":["a"],"models":["m","!n"],"budgets":[{"id":"b","limit":"5.00","unit":"usd","window":"day","mode":"observe"}],"rate_limits":{"requests_per_minute":600,"tokens_per_minute":1,"max_parallel_requests":20}}`, nil},
		{"null is absent for every key", `{"gateway_id":null,"team_id":null,"providers":null,"models":null,"budgets":null,"rate_limits":null}`, nil},
		{"null is absent in a budget and in rate limits", `{"budgets":[{"id":"b","limit":null,"unit":null}],"rate_limits":{"tokens_per_minute":null,"requests_per_minute":1}}`, nil},
		{"empty lists and strings are kept for Compile to judge", `{"gateway_id":"","providers":[],"models":[],"budgets":[],"rate_limits":{}}`, nil},
		{"spaces and escapes", " { \"mod\\u0065ls\" : [ \"\\u0061\" ] } ", nil},

		{"an unknown key", `{"endpoints":["x"]}`, []string{"bindings.endpoints: " + unknown}},
		{"an unknown key that is null", `{"endpoints":null}`, []string{"bindings.endpoints: " + unknown}},
		{"a key in another case", `{"Models":["x"]}`, []string{"bindings.Models: " + unknown}},
		{"an empty key", `{"":1}`, []string{"bindings.…: " + unknown}},
		{"a key that could be a token is not repeated", `{"kt_live_00000000000000000000000000000000000000000001jIOm5":1}`, []string{"bindings.…: " + unknown}},
		{"a key twice", `{"models":["a"],"models":["b"]}`, []string{"bindings.models: stands twice"}},
		{"a key twice, once null", `{"models":null,"models":["b"]}`, []string{"bindings.models: stands twice"}},
		{"a key twice, once escaped", `{"models":["a"],"mod\u0065ls":["b"]}`, []string{"bindings.models: stands twice"}},
		{"a key twice, once in capitals", `{"models":["a"],"MODELS":["b"]}`, []string{"bindings.MODELS: stands twice"}},
		{"a key that folds to another", `{"modelſ":["b"],"models":["a"]}`, []string{"bindings.…: " + unknown, "bindings.models: stands twice"}},

		{"a list for the bindings", `[]`, []string{"bindings: must be an object"}},
		{"a string for the bindings", `"x"`, []string{"bindings: must be an object"}},
		{"false for the bindings", `false`, []string{"bindings: must be an object"}},
		{"a number for the gateway", `{"gateway_id":1}`, []string{"bindings.gateway_id: must be a string"}},
		{"a list for the team", `{"team_id":["t"]}`, []string{"bindings.team_id: must be a string"}},
		{"a string for the models", `{"models":"*"}`, []string{"bindings.models: must be a list"}},
		{"an object for the providers", `{"providers":{}}`, []string{"bindings.providers: must be a list"}},
		{"null in a list", `{"models":["a",null]}`, []string{"bindings.models[1]: must be a string, not null"}},
		{"numbers in a list", `{"providers":[1,"a",[]]}`, []string{"bindings.providers[0]: must be a string", "bindings.providers[2]: must be a string"}},
		{"half a surrogate", `{"models":["\ud800"]}`, []string{"bindings.models[0]: must be valid Unicode"}},
		{"bytes that are not UTF-8", "{\"models\":[\"\xff\"]}", []string{"bindings: not valid UTF-8"}},

		{"budgets in an object", `{"budgets":{"id":"b"}}`, []string{"bindings.budgets: must be a list"}},
		{"a budget by name alone", `{"budgets":["b"]}`, []string{"bindings.budgets[0]: must be an object"}},
		{"a budget that is null", `{"budgets":[null]}`, []string{"bindings.budgets[0]: must be an object"}},
		{"an unknown key in a budget", `{"budgets":[{"id":"b","applies_to":{}}]}`, []string{"bindings.budgets[0].applies_to: unknown key; allowed: id, limit, unit, window, mode"}},
		{"a key twice in a budget", `{"budgets":[{"id":"b","limit":"1","limit":"2"}]}`, []string{"bindings.budgets[0].limit: stands twice"}},
		{"a number for a limit", `{"budgets":[{"id":"b","limit":5.00}]}`, []string{"bindings.budgets[0].limit: must be a string"}},
		{"a budget without id", `{"budgets":[{}]}`, []string{"bindings.budgets[0].id: " + wantID}},
		{"a budget of an empty id", `{"budgets":[{"id":""}]}`, []string{"bindings.budgets[0].id: " + wantID}},
		{"an empty unit", `{"budgets":[{"id":"b","unit":""}]}`, []string{"bindings.budgets[0].unit: must not be empty"}},

		{"rate limits in a list", `{"rate_limits":[]}`, []string{"bindings.rate_limits: must be an object"}},
		{"an unknown rate limit", `{"rate_limits":{"rpm":1}}`, []string{"bindings.rate_limits.rpm: unknown key; allowed: requests_per_minute, tokens_per_minute, max_parallel_requests"}},
		{"a rate limit of zero", `{"rate_limits":{"requests_per_minute":0}}`, []string{"bindings.rate_limits.requests_per_minute: " + rate}},
		{"a negative rate limit", `{"rate_limits":{"requests_per_minute":-1}}`, []string{"bindings.rate_limits.requests_per_minute: " + rate}},
		{"a rate limit with a fraction", `{"rate_limits":{"tokens_per_minute":1.5}}`, []string{"bindings.rate_limits.tokens_per_minute: " + rate}},
		{"a rate limit with an exponent", `{"rate_limits":{"tokens_per_minute":1e3}}`, []string{"bindings.rate_limits.tokens_per_minute: " + rate}},
		{"a rate limit beyond 64 bits", `{"rate_limits":{"tokens_per_minute":99999999999999999999}}`, []string{"bindings.rate_limits.tokens_per_minute: " + rate}},
		{"a rate limit in a string", `{"rate_limits":{"max_parallel_requests":"20"}}`, []string{"bindings.rate_limits.max_parallel_requests: " + rate}},
		{"a rate limit twice", `{"rate_limits":{"max_parallel_requests":20,"max_parallel_requests":1}}`, []string{"bindings.rate_limits.max_parallel_requests: stands twice"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Bindings
			if err := json.Unmarshal([]byte(tt.give), &b); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(b.Invalid, tt.invalid) {
				t.Fatalf("invalid %q, want %q", b.Invalid, tt.invalid)
			}
			p := grant(General, bind(func(to *Bindings) { *to = b }))
			if tt.invalid != nil && Decide(Compile(p), ask()).Reason != ProfileInvalid {
				t.Error("does not deny")
			}
			for _, s := range tt.invalid {
				path, message, _ := strings.Cut(s, ": ")
				if n := count(Validate(p), Problem{path, message}); n != 1 {
					t.Errorf("Validate names %s %d times: %v", path, n, Validate(p))
				}
			}
			// Written and read again it means the same, and denies if it did.
			doc, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			var again Bindings
			if err := json.Unmarshal(doc, &again); err != nil {
				t.Fatal(err)
			}
			if tt.invalid == nil && !reflect.DeepEqual(b, again) || tt.invalid != nil && again.Invalid == nil {
				t.Errorf("%+v became %+v by way of %s", b, again, doc)
			}
		})
	}
}

func count(list []Problem, one Problem) (n int) {
	for _, p := range list {
		if p == one {
			n++
		}
	}
	return n
}

func TestAbsentAndEmptyStayApart(t *testing.T) {
	tests := []struct{ give, want string }{
		{`{}`, `{}`},
		{`null`, `{}`},
		{`{"models":null}`, `{}`},
		{`{"models":[]}`, `{"models":[]}`},
		{`{"providers":[],"models":["*"]}`, `{"providers":[],"models":["*"]}`},
		{`{"gateway_id":""}`, `{"gateway_id":""}`},
		{`{"budgets":[]}`, `{"budgets":[]}`},
		{`{"rate_limits":{}}`, `{"rate_limits":{}}`},
		{`{"budgets":[{"id":"b_day","limit":"5.00","unit":"usd","window":"day"}]}`, `{"budgets":[{"id":"b_day","limit":"5.00","unit":"usd","window":"day"}]}`},
	}
	for _, tt := range tests {
		var b Bindings
		if err := json.Unmarshal([]byte(tt.give), &b); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(b); err != nil || string(got) != tt.want {
			t.Errorf("%s became %s, want %s (%v)", tt.give, got, tt.want, err)
		}
	}
}

func TestTheProfileOfTheDesignReads(t *testing.T) {
	const doc = `{
	  "id": "tok_01J", "name": "ide-alice", "org_id": "org_default",
	  "purpose": "general", "principal_type": "api_token",
	  "status": "active", "revision": 7,
	  "not_before": "2026-11-01T00:00:00Z", "expires_at": null,
	  "bindings": {
	    "gateway_id": "gw_local", "team_id": "platform",
	    "providers": ["openai", "azure-*"], "models": ["gpt-5.4-*", "!gpt-5.4-pro"],
	    "budgets": [{"id": "b_day", "limit": "5.00", "unit": "usd", "window": "day"}],
	    "rate_limits": {"requests_per_minute": 600, "tokens_per_minute": 200000, "max_parallel_requests": 20}
	  },
	  "hint": "kt_live_…9fQ2", "created_at": "2026-11-01T00:00:00Z", "last_used_at": null, "rotated_from": null,
	  "endpoints": ["a field of a newer control plane"], "tags": {"x": null}
	}`
	var p Profile
	if err := json.Unmarshal([]byte(doc), &p); err != nil {
		t.Fatal(err)
	}
	if problems := Validate(&p); problems != nil {
		t.Errorf("problems %v", problems)
	}
	if got := Decide(Compile(&p), ask(asserts("platform"))); got.Reason != Allowed {
		t.Errorf("%s", got.Reason)
	}
}

// encoding/json takes the last of two, and a key in any case: a second one must
// not replace what the first one bound.
func TestBindingsThatStandTwiceDeny(t *testing.T) {
	for _, key := range []string{"bindings", "Bindings"} {
		var p Profile
		doc := `{"id":"t","org_id":"org_default","purpose":"general","principal_type":"api_token","status":"active","bindings":{"models":["a"]},"` + key + `":{}}`
		if err := json.Unmarshal([]byte(doc), &p); err != nil {
			t.Fatal(err)
		}
		if got := Decide(Compile(&p), ask()); got.Reason != ProfileInvalid {
			t.Errorf("%s: %s", key, got.Reason)
		}
	}
}

// Keys are compared with each other, so there is an end to how many are read.
func TestManyKeysAreNotReadToTheEnd(t *testing.T) {
	many := `{"a":1`
	for i := range 200 {
		many += `,"k` + strconv.Itoa(i) + `":1`
	}
	var b Bindings
	if err := json.Unmarshal([]byte(many+"}"), &b); err != nil {
		t.Fatal(err)
	}
	if n := len(b.Invalid); n != maxInvalid+1 || b.Invalid[n-1] != "bindings: too many keys" {
		t.Errorf("%d: %q", n, b.Invalid)
	}
}

// Called directly it may meet anything.
func TestUnmarshalNeverFails(t *testing.T) {
	for _, give := range []string{"", " ", "{", "}", `{"models"`, `{"models":`, `{"models":[}`, `{} {}`, `{}x`, `{"a":1,}`, "\x00", "nul", strings.Repeat("[", 20000), `{"models":` + strings.Repeat("[", 20000) + `}`} {
		var b Bindings
		if err := b.UnmarshalJSON([]byte(give)); err != nil || len(b.Invalid) == 0 {
			t.Errorf("%.20q: %v, %d invalid", give, err, len(b.Invalid))
		}
	}
}

func FuzzBindingsJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"models":["gpt-*","!x"],"providers":[]}`, `{"gateway_id":"g","team_id":null}`,
		`{"budgets":[{"id":"b","limit":"5.00","unit":"usd","window":"day","mode":"enforce"}]}`,
		`{"rate_limits":{"requests_per_minute":600}}`, `{"rate_limits":{"requests_per_minute":6e2}}`,
		`{"models":["a"],"mod\u0065ls":["b"]}`, `{"Models":[]}`, `{"models":[null]}`, `{"x":{"y":[{}]}}`, `[]`, `{"a":1}{`, "{\"models\":[\"\xff\"]}",
		`{"models":["\ud800"]}`, `{"budgets":[{}]}`, `{"invalid":["bindings.x: y"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var b Bindings
		kept := string(doc)
		if err := b.UnmarshalJSON(doc); err != nil {
			t.Fatal(err)
		}
		if string(doc) != kept {
			t.Fatal("changed what it was given")
		}
		for _, s := range b.Invalid {
			if !strings.HasPrefix(s, "bindings") || !strings.Contains(s, ": ") {
				t.Fatalf("no path: %q", s)
			}
		}
		out, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var again Bindings
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatal(err)
		}
		if (len(b.Invalid) > 0) != (len(again.Invalid) > 0) {
			t.Fatalf("valid by being copied, or the reverse: %s", out)
		}
		if len(b.Invalid) > 0 {
			return
		}
		if !reflect.DeepEqual(b, again) {
			t.Fatalf("%+v became %+v", b, again)
		}
		// What was taken is all that another reader sees there.
		var any, back map[string]any
		if err := json.Unmarshal(doc, &any); err != nil {
			t.Fatalf("taken, and no JSON object: %v", err)
		}
		if err := json.Unmarshal(out, &back); err != nil {
			t.Fatal(err)
		}
		dropNulls(any)
		if !reflect.DeepEqual(any, back) && len(any)+len(back) > 0 {
			t.Fatalf("%s was read as %s", doc, out)
		}
	})
}

func dropNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				delete(v, k)
			}
			dropNulls(e)
		}
	case []any:
		for _, e := range v {
			dropNulls(e)
		}
	}
}
