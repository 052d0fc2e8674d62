package controlplane

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestBodiesAreReadStrictly(t *testing.T) {
	p := newPlane(t)
	for _, tt := range []struct {
		name, body, want, param string
	}{
		{"a body is needed", ``, "400 invalid_json", ""},
		{"a list is no object", `[]`, "400 invalid_json", ""},
		{"two documents", `{"name":"n","purpose":"general"} {}`, "400 invalid_json", ""},
		{"a byte-order mark", "\ufeff{}", "400 invalid_json", ""},
		{"not UTF-8", "{\"name\":\"\xff\",\"purpose\":\"general\"}", "400 invalid_json", ""},
		{"a comma too many", `{"name":"n",}`, "400 invalid_json", ""},
		{"nested too deep", `{"bindings":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "400 invalid_json", ""},
		{"an unknown key", `{"name":"n","purpose":"general","modles":[]}`, "400 unknown_parameter", "modles"},
		{"a key of another case", `{"Name":"n","purpose":"general"}`, "400 ambiguous_key", "Name"},
		{"a key twice", `{"name":"n","name":"m","purpose":"general"}`, "400 ambiguous_key", "name"},
		{"a key twice, escaped", `{"name":"n","n\u0061me":"m","purpose":"general"}`, "400 ambiguous_key", "name"},
		{"a key twice under folding", `{"name":"n","purpose":"general","bindings":{"models":[],"model\u017f":[]}}`, "400 ambiguous_key", "bindings.modelſ"},
		{"a nested key twice", `{"name":"n","purpose":"general","bindings":{"models":[],"models":["*"]}}`, "400 ambiguous_key", "bindings.models"},
		{"an unknown binding", `{"name":"n","purpose":"general","bindings":{"modles":[]}}`, "400 unknown_parameter", "bindings.modles"},
		{"an unknown binding beside a wrong one", `{"name":"n","purpose":"general","bindings":{"models":"*","modles":[]}}`, "400 unknown_parameter", "bindings.modles"},
		{"an unknown binding of a runtime without a gateway", `{"name":"n","purpose":"gateway_runtime","bindings":{"gateway":"gw"}}`, "400 unknown_parameter", "bindings.gateway"},
		{"an unknown rate limit", `{"name":"n","purpose":"general","bindings":{"rate_limits":{"rpm":1}}}`, "400 unknown_parameter", "bindings.rate_limits.rpm"},
		{"an unknown key of a budget", `{"name":"n","purpose":"general","bindings":{"budgets":[{"id":"b"},{"id":"c","max":"5"}]}}`, "400 unknown_parameter", "bindings.budgets[1].max"},
		{"a binding of another case", `{"name":"n","purpose":"general","bindings":{"Models":[]}}`, "400 ambiguous_key", "bindings.Models"},
		{"bindings of a wrong type", `{"name":"n","purpose":"general","bindings":[]}`, "400 invalid_value", "bindings"},
		{"models of a wrong type", `{"name":"n","purpose":"general","bindings":{"models":"*"}}`, "400 invalid_value", "bindings.models"},
		{"exclusions only", `{"name":"n","purpose":"general","bindings":{"models":["!a"]}}`, "400 invalid_value", "bindings.models"},
		{"an empty restriction", `{"name":"n","purpose":"general","bindings":{"team_id":""}}`, "400 invalid_value", "bindings.team_id"},
		{"a budget without a record", `{"name":"n","purpose":"general","bindings":{"budgets":[{"id":"b"}]}}`, "400 unknown_budget", "bindings.budgets[0].id"},
		{"no name", `{"purpose":"general"}`, "400 missing_required_parameter", "name"},
		{"no purpose", `{"name":"n"}`, "400 missing_required_parameter", "purpose"},
		{"a legacy label as purpose", `{"name":"n","purpose":"access"}`, "400 invalid_value", "purpose"},
		{"type is a filter's", `{"name":"n","type":"access"}`, "400 unknown_parameter", "type"},
		{"a principal type that does not follow", `{"name":"n","purpose":"general","principal_type":"gateway_runtime"}`, "400 invalid_value", "principal_type"},
		{"an empty principal type", `{"name":"n","purpose":"general","principal_type":""}`, "400 invalid_value", "principal_type"},
		{"an empty org", `{"name":"n","purpose":"general","org_id":""}`, "400 invalid_value", "org_id"},
		{"a runtime without a gateway", `{"name":"n","purpose":"gateway_runtime"}`, "400 invalid_value", "bindings.gateway_id"},
		{"a date without a time", `{"name":"n","purpose":"general","expires_at":"2027-01-01"}`, "400 invalid_value", "expires_at"},
		{"a time as a number", `{"name":"n","purpose":"general","not_before":1}`, "400 invalid_value", "not_before"},
		{"an end before the beginning", `{"name":"n","purpose":"general","not_before":"2027-01-01T00:00:00Z","expires_at":"2026-01-01T00:00:00Z"}`, "400 invalid_value", "expires_at"},
		{"a lone surrogate", `{"name":"\ud800","purpose":"general"}`, "400 invalid_value", "name"},
		{"a token as name", `{"name":"kt_live_00000000000000000000000000000000000000000001jIOm5","purpose":"general"}`, "400 invalid_value", "name"},
		{"larger than a mebibyte", `{"name":"` + strings.Repeat("n", 1<<20) + `"}`, "413 body_too_large", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := p.admin("POST", "/v1/tokens", tt.body)
			if got := fmt.Sprintf("%d %s", a.status, a.code()); got != tt.want || a.param() != tt.param {
				t.Fatalf("got %s at %q, want %s at %q: %.300s", got, a.param(), tt.want, tt.param, a.raw)
			}
		})
	}
	if a := p.must(200, "GET", "/v1/tokens", nil); len(a.body["data"].([]any)) != 0 {
		t.Fatalf("a refused body left a token: %s", a.raw)
	}
	if a := p.admin("POST", "/v1/tokens", `{"name":"n","purpose":"gateway_runtime"}`); !strings.Contains(a.raw, "general") {
		t.Errorf("no hint at purpose general: %s", a.raw)
	}
}

func TestMediaTypes(t *testing.T) {
	p := newPlane(t)
	body := `{"name":"n","purpose":"general"}`
	for _, tt := range []struct {
		headers []string
		want    int
	}{
		{nil, 201},
		{[]string{"Content-Type", "application/json; charset=utf-8"}, 201},
		{[]string{"Content-Type", "text/plain"}, 415},
		{[]string{"Content-Type", "application/json", "Content-Encoding", "gzip"}, 415},
	} {
		if a := p.admin("POST", "/v1/tokens", body, tt.headers...); a.status != tt.want {
			t.Errorf("%v: got %d, want %d", tt.headers, a.status, tt.want)
		}
	}
}

func TestAProfileIsAnsweredWhole(t *testing.T) {
	p := newPlane(t)
	a := p.must(201, "POST", "/v1/tokens", `{"name":"ide-alice","purpose":"general","expires_at":"2027-01-01T01:00:00.123456789+01:00",
		"bindings":{"gateway_id":"gw_local","team_id":"platform","providers":["openai","azure-*"],"models":["gpt-*","!gpt-pro"],
		"budgets":[{"id":"b_day","limit":"5.00","unit":"usd","window":"day"}],"rate_limits":{"requests_per_minute":600}}}`)
	want := fields{
		"id": a.text("id"), "name": "ide-alice", "org_id": "org_default", "purpose": "general", "principal_type": "api_token",
		"status": "active", "revision": 2.0, "not_before": nil, "expires_at": "2027-01-01T00:00:00.123456Z", // its budget took the first
		"bindings": map[string]any{"gateway_id": "gw_local", "team_id": "platform", "providers": []any{"openai", "azure-*"},
			"models": []any{"gpt-*", "!gpt-pro"}, "rate_limits": map[string]any{"requests_per_minute": 600.0},
			"budgets": []any{map[string]any{"id": "b_day", "limit": "5.00", "unit": "usd", "window": "day"}}},
		"hint": a.text("hint"), "created_at": "2026-11-24T12:00:00Z", "last_used_at": nil, "rotated_from": nil,
	}
	secret := a.text("token")
	if a.text("hint") != "kt_live_…"+secret[len(secret)-4:] {
		t.Errorf("hint %q", a.text("hint"))
	}
	delete(a.body, "token")
	if !reflect.DeepEqual(a.body, map[string]any(want)) {
		t.Errorf("created: %v\nwant %v", a.body, want)
	}
	if got := p.must(200, "GET", "/v1/tokens/"+a.text("id"), nil); !reflect.DeepEqual(got.body, a.body) || got.header.Get("Etag") != `"2"` {
		t.Errorf("shown: %v %v", got.raw, got.header)
	}
}

func TestListsAreFilteredAndPaged(t *testing.T) {
	p := newPlane(t)
	ids := map[string]string{}
	mint := func(name, purpose string, b fields) string {
		id, secret := p.mint(purpose, b, fields{"name": name})
		ids[id] = name
		return secret
	}
	mint("old", "general", nil)
	mint("used", "general", fields{"team_id": "red"})
	runtime := mint("runtime", "gateway_runtime", fields{"gateway_id": "gw"})
	p.wait(48 * time.Hour)
	mint("new", "integration", fields{"team_id": "red"})
	mint("stopped", "general", nil)
	for id, name := range ids {
		switch name {
		case "used":
			p.call(runtime, "POST", "/v1/runtime/report", fields{"last_used": []fields{{"token_id": id, "at": p.now()}}})
		case "stopped":
			p.must(200, "DELETE", "/v1/tokens/"+id, nil)
		}
	}
	for _, tt := range []struct{ query, want string }{
		{"", "old used runtime new stopped"},
		{"purpose=general", "old used stopped"},
		{"type=access", "old used stopped"},
		{"type=gateway", "runtime"},
		{"type=gateway&purpose=gateway_runtime", "runtime"},
		{"team_id=red", "used new"},
		{"team_id=blue", ""},
		{"status=revoked", "stopped"},
		{"status=active&purpose=general", "old used"},
		{"unused_for=24h", "old runtime"},
		{"unused_for=1d&limit=1", "old runtime"},
		{"limit=2", "old used runtime new stopped"},
		{"org_id=org_other", ""},
	} {
		var got []string
		for cursor := ""; ; {
			a := p.must(200, "GET", "/v1/tokens?"+tt.query+cursor, nil)
			for _, v := range a.body["data"].([]any) {
				got = append(got, ids[v.(map[string]any)["id"].(string)])
			}
			if a.body["next_cursor"] == nil {
				break
			}
			cursor = "&cursor=" + a.text("next_cursor")
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("?%s: got %q, want %q", tt.query, got, tt.want)
		}
	}
	for query, param := range map[string]string{
		"purpose=access": "purpose", "type=general": "type", "type=access&purpose=integration": "type", "status=gone": "status",
		"unused_for=soon": "unused_for", "unused_for=-1h": "unused_for", "limit=0": "limit", "limit=1001": "limit", "cursor=x": "cursor",
		"team=red": "team", "team_id=": "team_id", "team_id=a&team_id=b": "team_id",
	} {
		if a := p.admin("GET", "/v1/tokens?"+query, nil); a.status != 400 || a.param() != param {
			t.Errorf("?%s: got %d at %q: %s", query, a.status, a.param(), a.raw)
		}
	}
}

func TestRotation(t *testing.T) {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	stamp := func(d time.Duration) any { return at.Add(d).Format(time.RFC3339) }
	for _, tt := range []struct {
		name       string
		expires    any // of the old one
		body       any
		old, fresh any // expires_at afterwards
	}{
		{"at once by default", nil, nil, stamp(0), nil},
		{"an empty object is the same", nil, `{}`, stamp(0), nil},
		{"a grace", nil, fields{"grace": "24h"}, stamp(24 * time.Hour), nil},
		{"a grace in days", nil, fields{"grace": "2d"}, stamp(48 * time.Hour), nil},
		{"the end that was stays the new one's", stamp(time.Hour), nil, stamp(0), stamp(time.Hour)},
		{"a grace beyond the end does not lengthen it", stamp(time.Hour), fields{"grace": "24h"}, stamp(time.Hour), stamp(time.Hour)},
		{"another end for the new one", stamp(time.Hour), fields{"expires_at": stamp(9 * time.Hour)}, stamp(0), stamp(9 * time.Hour)},
		{"no end for the new one", stamp(time.Hour), fields{"expires_at": nil}, stamp(0), nil},
		{"one that expired stays expired", stamp(-time.Hour), fields{"grace": "1h", "expires_at": nil}, stamp(-time.Hour), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t)
			id, secret := p.mint("general", fields{"models": []string{"a"}}, fields{"expires_at": tt.expires})
			a := p.must(201, "POST", "/v1/tokens/"+id+"/rotate", tt.body)
			if a.text("id") == id || a.text("rotated_from") != id || a.text("token") == secret || a.text("token") == "" {
				t.Errorf("new: %s", a.raw)
			}
			if !reflect.DeepEqual(a.body["bindings"], map[string]any{"models": []any{"a"}}) || a.body["expires_at"] != tt.fresh {
				t.Errorf("new: %s", a.raw)
			}
			old := p.must(200, "GET", "/v1/tokens/"+id, nil)
			if old.body["expires_at"] != tt.old || old.text("status") != "active" || old.body["revision"] != 3.0 {
				t.Errorf("old: %s", old.raw)
			}
		})
	}
	p := newPlane(t)
	id, _ := p.mint("general", nil)
	for _, body := range []string{`{"grace":"soon"}`, `{"grace":"-1s"}`, `{"grace":5}`, `{"graze":"1h"}`, `{"expires_at":"x"}`} {
		if a := p.admin("POST", "/v1/tokens/"+id+"/rotate", body); a.status != 400 || a.param() == "" {
			t.Errorf("%s: %d %s", body, a.status, a.raw)
		}
	}
	if got := p.must(200, "GET", "/v1/tokens", nil); len(got.body["data"].([]any)) != 1 {
		t.Errorf("a refused rotation left a token: %s", got.raw)
	}
}

func TestATokensLife(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps string // calls, each with the status it gets
		end   string
	}{
		{"revoke is final and may be repeated", "revoke 200, revoke 200, quarantine 409, release 409, rotate 409, patch 409", "revoked"},
		{"quarantine is lifted by release", "quarantine 200, quarantine 200, release 200, release 409", "active"},
		{"a quarantined token can be changed and revoked", "quarantine 200, patch 200, rotate 201, revoke 200", "revoked"},
		{"only a quarantined token is released", "release 409", "active"},
		{"delete is revoke", "DELETE 200, patch 409", "revoked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t)
			id, _ := p.mint("general", nil)
			for _, step := range strings.Split(tt.steps, ", ") {
				var what string
				var want int
				if _, err := fmt.Sscan(step, &what, &want); err != nil {
					t.Fatal(err)
				}
				method, path, body := "POST", "/v1/tokens/"+id+"/"+what, any(nil)
				switch what {
				case "patch":
					method, path, body = "PATCH", "/v1/tokens/"+id, fields{"name": "new"}
				case "DELETE":
					method, path = "DELETE", "/v1/tokens/"+id
				}
				a := p.admin(method, path, body)
				if a.status != want {
					t.Fatalf("%s: got %d %s", step, a.status, a.raw)
				}
				if want == 409 && a.code() != "token_revoked" && a.code() != "token_not_quarantined" {
					t.Fatalf("%s: code %s", step, a.code())
				}
			}
			if got := p.must(200, "GET", "/v1/tokens/"+id, nil).text("status"); got != tt.end {
				t.Fatalf("ends %s, want %s", got, tt.end)
			}
		})
	}
	p := newPlane(t)
	for _, path := range []string{"", "/rotate", "/revoke", "/quarantine", "/release"} {
		method := map[bool]string{true: "GET", false: "POST"}[path == ""]
		if a := p.admin(method, "/v1/tokens/tok_01ARZ3NDEKTSV4RRFFQ69G5FAV"+path, nil); a.status != 404 || a.code() != "token_not_found" {
			t.Errorf("%s: %d %s", path, a.status, a.raw)
		}
	}
	id, _ := p.mint("general", nil)
	if a := p.admin("POST", "/v1/tokens/"+id+"/revoke", `{"reason":"leak"}`); a.status != 400 || a.param() != "reason" {
		t.Errorf("an unknown key of an action: %d %s", a.status, a.raw)
	}
}

func TestIdentifyTellsTheReachOfAString(t *testing.T) {
	p := newPlane(t)
	for _, tt := range []struct {
		name, purpose                      string
		bindings                           fields
		gateways, teams, providers, models []any
	}{
		{"unbound general", "general", nil, []any{"*"}, []any{"*"}, []any{"*"}, []any{"*"}},
		{"bound general", "general", fields{"gateway_id": "gw", "team_id": "red", "providers": []string{"a-*"}, "models": []string{"*", "!b"}},
			[]any{"gw"}, []any{"red"}, []any{"a-*"}, []any{"*", "!b"}},
		{"empty filters", "general", fields{"models": []string{}}, []any{"*"}, []any{"*"}, []any{"*"}, []any{}},
		{"unbound integration", "integration", nil, []any{"*"}, []any{"*"}, []any{}, []any{}},
		{"bound integration", "integration", fields{"providers": []string{"a"}, "models": []string{"b"}}, []any{"*"}, []any{"*"}, []any{"a"}, []any{"b"}},
		{"gateway runtime", "gateway_runtime", fields{"gateway_id": "gw"}, []any{"gw"}, []any{}, []any{}, []any{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, secret := p.mint(tt.purpose, tt.bindings)
			a := p.must(200, "POST", "/v1/tokens/identify", fields{"sha256": strings.ToUpper(sha(secret))})
			want := map[string]any{"gateways": tt.gateways, "teams": tt.teams, "providers": tt.providers, "models": tt.models}
			if !reflect.DeepEqual(a.body["reach"], any(want)) || a.body["profile"].(map[string]any)["id"] != id {
				t.Errorf("got %s", a.raw)
			}
			if v, ok := a.body["last_used"]; !ok || v != nil || !reflect.DeepEqual(a.body["budgets"], []any{}) {
				t.Errorf("got %s", a.raw)
			}
		})
	}
	if a := p.admin("POST", "/v1/tokens/identify", fields{"sha256": sha("x")}); a.status != 404 || a.code() != "token_not_found" {
		t.Errorf("unknown: %d %s", a.status, a.raw)
	}
	_, secret := p.mint("general", nil)
	if a := p.admin("POST", "/v1/tokens/identify", fields{"sha256": secret}); a.status != 400 || strings.Contains(a.raw, secret) {
		t.Errorf("the string itself: %d %s", a.status, a.raw)
	}
}

func TestTheAuditLogHasEveryChangeNewestFirst(t *testing.T) {
	p := newPlane(t)
	id, _ := p.mint("general", nil)
	p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": "new"})
	p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": "new"})
	p.must(200, "POST", "/v1/tokens/"+id+"/quarantine", nil)
	p.must(200, "POST", "/v1/tokens/"+id+"/release", nil)
	p.must(201, "POST", "/v1/tokens/"+id+"/rotate", nil)
	p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	var got []string
	for cursor := ""; ; {
		a := p.must(200, "GET", "/v1/audit?limit=3"+cursor, nil)
		for _, v := range a.body["data"].([]any) {
			e := v.(map[string]any)
			got = append(got, e["event"].(string))
			if e["actor"] != "administrator" || e["after"].(map[string]any)["id"] != e["subject"] || (e["before"] == nil) != (e["event"] == "token.created") {
				t.Errorf("entry %v", e)
			}
		}
		if a.body["next_cursor"] == nil {
			break
		}
		cursor = "&cursor=" + a.text("next_cursor")
	}
	want := "token.revoked token.rotated token.created token.released token.quarantined token.updated token.created"
	if strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	a := p.must(200, "GET", "/v1/audit?event=token.revoked&subject="+id, nil)
	e := a.body["data"].([]any)[0].(map[string]any)
	if e["before"].(map[string]any)["status"] != "active" || e["after"].(map[string]any)["status"] != "revoked" {
		t.Errorf("got %s", a.raw)
	}
}

func TestProbesNeedNoCredential(t *testing.T) {
	p := newPlane(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := p.call("", "GET", path, nil); a.status != 200 {
			t.Errorf("%s: %d", path, a.status)
		}
		if a := p.call("", "POST", path, nil); a.status != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", path, a.status)
		}
	}
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	if a := p.call("", "GET", "/readyz", nil); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("without a database: %d", a.status)
	}
	if a := p.call("", "GET", "/healthz", nil); a.status != 200 {
		t.Errorf("healthz without a database: %d", a.status)
	}
	if a := p.admin("GET", "/v1/tokens", nil); a.status != 503 || a.code() != "database_unavailable" {
		t.Errorf("a call without a database: %d %s", a.status, a.raw)
	}
}
