package controlplane

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAGatewaysRecordIsMadeRenamedAndForgotten(t *testing.T) {
	p := newPlane(t)
	for _, tt := range []struct {
		method, path string
		body         any
		want         int
		name         string
	}{
		{"GET", "/v1/gateways/edge", nil, 404, ""},
		{"DELETE", "/v1/gateways/edge", nil, 404, ""},
		{"PUT", "/v1/gateways/edge", fields{"name": "Edge"}, 201, "Edge"},
		{"PUT", "/v1/gateways/edge", nil, 200, "Edge"},
		{"PUT", "/v1/gateways/edge", fields{"id": "edge", "name": "The edge"}, 200, "The edge"},
		{"PUT", "/v1/gateways/edge", fields{"id": "other"}, 400, ""},
		{"PUT", "/v1/gateways/edge", fields{"name": strings.Repeat("x", 201)}, 400, ""},
		{"PUT", "/v1/gateways/edge", fields{"watching": true}, 400, ""},
		{"PUT", "/v1/gateways/a,b", nil, 400, ""},
		{"PUT", "/v1/gateways/kt_live_" + strings.Repeat("0", 43) + "1jIOm5", nil, 400, ""},
		{"GET", "/v1/gateways/edge", nil, 200, "The edge"},
		{"GET", "/v1/gateways/edge?org_id=org_b", nil, 404, ""},
		{"DELETE", "/v1/gateways/edge?org_id=org_b", nil, 404, ""},
		{"DELETE", "/v1/gateways/edge", fields{"force": true}, 400, ""},
		{"PUT", "/v1/gateways/edge?org_id=org_c", fields{"name": "Theirs"}, 201, "Theirs"},
		{"DELETE", "/v1/gateways/edge", nil, 200, "The edge"},
		{"GET", "/v1/gateways/edge?org_id=org_c", nil, 200, "Theirs"},
		{"DELETE", "/v1/gateways/edge", nil, 404, ""},
		{"PUT", "/v1/gateways/edge", nil, 201, ""},
	} {
		if a := p.must(tt.want, tt.method, tt.path, tt.body); a.text("name") != tt.name {
			t.Errorf("%s %s %v: %s", tt.method, tt.path, tt.body, a.raw)
		}
	}
	var log []string
	entries, _ := p.must(200, "GET", "/v1/audit?subject=edge", nil).body["data"].([]any)
	for _, v := range entries {
		e := v.(map[string]any)
		name := func(key string) any {
			if m, ok := e[key].(map[string]any); ok {
				return m["name"]
			}
			return nil
		}
		log = append(log, fmt.Sprint(e["event"], " ", name("before"), " ", name("after")))
	}
	if got := strings.Join(log, ", "); got != "gateway.created <nil> , gateway.deleted The edge <nil>, gateway.created <nil> Theirs, gateway.updated Edge The edge, gateway.created <nil> Edge" {
		t.Errorf("the audit log has %s", got)
	}
	if head, err := p.store.Head(t.Context()); err != nil || head != 0 {
		t.Errorf("a record is a change that gateways are told of: %d, %v", head, err)
	}
}

func TestGatewaysAreListedWithTheirProcesses(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw_b"})
	_, bare := p.mint("gateway_runtime", fields{"gateway_id": "gw_d"})
	for _, id := range []string{"gw_a", "gw_b", "gw_c?org_id=org_b"} {
		p.must(201, "PUT", "/v1/gateways/"+id, fields{"name": "Of " + id[:4]})
	}
	for _, call := range [][]string{{runtime, "i2"}, {runtime, "i1"}, {bare, ""}} {
		if a := p.call(call[0], "POST", "/v1/runtime/resolve", fields{"sha256": sha("x")}, "X-Keeptrusts-Instance", call[1]); a.status != 404 {
			t.Fatalf("resolve: %s", a.raw)
		}
	}
	list := func(query string) string {
		t.Helper()
		var rows []string
		next := ""
		for {
			a := p.must(200, "GET", "/v1/gateways?limit=2"+query+next, nil)
			for _, v := range a.body["data"].([]any) {
				g := v.(map[string]any)
				if live := g["live"] == true; live != (g["last_seen"] != nil) || live != (g["max_stale"] != nil) {
					t.Errorf("a row of two kinds: %v", g)
				}
				rows = append(rows, fmt.Sprint(g["gateway_id"], " ", g["org_id"], " ", g["name"], " ", g["live"], " ", g["instance"]))
			}
			if next = a.text("next_cursor"); next == "" {
				return strings.Join(rows, ", ")
			}
			next = "&cursor=" + next
		}
	}
	const ours = "gw_a org_default Of gw_a false <nil>, gw_b org_default Of gw_b true i1, gw_b org_default Of gw_b true i2"
	const theirs, unnamed = "gw_c org_b Of gw_c false <nil>", "gw_d org_default <nil> true <nil>"
	if got := list(""); got != ours+", "+theirs+", "+unnamed {
		t.Errorf("all: %s", got)
	}
	if got := list("&org_id=org_b"); got != theirs {
		t.Errorf("an org's: %s", got)
	}
	if a := p.must(200, "GET", "/v1/gateways/gw_b", nil); a.text("id") != "gw_b" || a.text("name") != "Of gw_b" || len(a.body["instances"].([]any)) != 2 {
		t.Errorf("one: %s", a.raw)
	}
	if a := p.must(200, "GET", "/v1/gateways/gw_a", nil); len(a.body["instances"].([]any)) != 0 {
		t.Errorf("one without a process: %s", a.raw)
	}
	if a := p.must(200, "GET", "/v1/gateways/gw_d", nil); a.body["name"] != nil || len(a.body["instances"].([]any)) != 1 {
		t.Errorf("one without a record: %s", a.raw)
	}
	p.wait(time.Hour)
	if got := list("&org_id=org_default"); got != "gw_a org_default Of gw_a false <nil>, gw_b org_default Of gw_b false <nil>" {
		t.Errorf("once its processes are forgotten: %s", got)
	}
}

// Forgetting a record shuts nobody out, and says what does.
func TestForgettingAGatewayNamesTheTokensThatLetItIn(t *testing.T) {
	p := newPlane(t)
	bound := fields{"gateway_id": "gw"}
	p.must(201, "PUT", "/v1/gateways/gw", nil)
	one, secret := p.mint("gateway_runtime", bound)
	two, _ := p.mint("gateway_runtime", bound)
	p.must(200, "POST", "/v1/tokens/"+two+"/quarantine", nil)
	p.mint("gateway_runtime", bound, fields{"expires_at": p.now()})
	p.mint("gateway_runtime", fields{"gateway_id": "gw_2"})
	p.mint("gateway_runtime", bound, fields{"org_id": "org_b"})
	p.mint("general", bound)
	gone, _ := p.mint("gateway_runtime", bound)
	p.must(200, "POST", "/v1/tokens/"+gone+"/revoke", nil)
	a := p.must(200, "DELETE", "/v1/gateways/gw", nil)
	if got := fmt.Sprint(a.body["runtime_tokens"]); got != "["+one+" "+two+"]" || a.text("command") != "kt-gateway token revoke "+one+" "+two {
		t.Errorf("got %s", a.raw)
	}
	if a := p.call(secret, "GET", "/v1/whoami", nil); a.status != 200 {
		t.Errorf("its token: %s", a.raw)
	}
	p.must(200, "POST", "/v1/tokens/"+one+"/revoke", nil)
	p.must(200, "POST", "/v1/tokens/"+two+"/revoke", nil)
	p.must(201, "PUT", "/v1/gateways/gw", nil)
	if a := p.must(200, "DELETE", "/v1/gateways/gw", nil); fmt.Sprint(a.body["runtime_tokens"]) != "[]" || a.body["command"] != nil {
		t.Errorf("got %s", a.raw)
	}
}
