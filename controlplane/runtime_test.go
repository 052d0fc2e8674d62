package controlplane

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

func TestAGatewaySeesItsOwnOrgAndOfOthersTokensTheLeast(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw_local"})
	resolve := func(secret string) answer {
		return p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha(secret)})
	}
	_, free := p.mint("general", fields{"models": []string{"a"}})
	_, own := p.mint("general", fields{"gateway_id": "gw_local", "models": []string{"a"}})
	for name, secret := range map[string]string{"unbound": free, "bound to this gateway": own, "its own": runtime} {
		a := resolve(secret)
		profile := a.body["profile"].(map[string]any)
		if a.status != 200 || profile["name"] != "t" || profile["revision"] == 0.0 || a.body["head"] != 3.0 || !reflect.DeepEqual(a.body["budgets"], []any{}) {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	for _, purpose := range []string{"general", "gateway_runtime"} {
		id, other := p.mint(purpose, fields{"gateway_id": "gw_other", "team_id": "red", "models": []string{"a"}}, fields{"name": "hidden"})
		a := resolve(other)
		profile := a.body["profile"].(map[string]any)
		want := map[string]any{"gateway_id": "gw_other"}
		if profile["id"] != id || profile["purpose"] != purpose || profile["status"] != "active" || !reflect.DeepEqual(profile["bindings"], any(want)) ||
			strings.Contains(a.raw, "hidden") || strings.Contains(a.raw, "red") || profile["hint"] != "" {
			t.Errorf("%s of another gateway: %s", purpose, a.raw)
		}
	}
	_, foreign := p.mint("general", nil, fields{"org_id": "org_b"})
	for name, secret := range map[string]string{"another org's": foreign, "nobody's": "x"} {
		if a := resolve(secret); a.status != 404 || a.code() != "token_not_found" {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	_, expired := p.mint("general", nil, fields{"expires_at": p.now().Add(-time.Hour)})
	if a := resolve(expired); a.status != 200 {
		t.Errorf("expired: %d; the gateway must be able to say why", a.status)
	}
	for body, param := range map[string]string{`{"sha256":"x"}`: "sha256", `{}`: "sha256", `{"sha":"x"}`: "sha", `{"sha256":1}`: "sha256"} {
		if a := p.call(runtime, "POST", "/v1/runtime/resolve", body); a.status != 400 || a.param() != param {
			t.Errorf("%s: %d %s", body, a.status, a.raw)
		}
	}
}

func TestWhoamiIsTheProfileAtTopLevel(t *testing.T) {
	p := newPlane(t)
	id, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	if a := p.call(runtime, "GET", "/v1/whoami", nil); a.text("id") != id || a.text("purpose") != "gateway_runtime" || strings.Contains(a.raw, runtime) {
		t.Errorf("runtime: %s", a.raw)
	}
	if a := p.admin("GET", "/v1/whoami", nil); a.body["administrator"] != true {
		t.Errorf("administrator: %s", a.raw)
	}
}

// A start that fails has asked who it is, and can never sign off.
func TestOnlyWhoMayHoldATokenIsAnInstance(t *testing.T) {
	for _, tt := range []struct {
		name, method, path string
		body               any
		want               string
	}{
		{"whoami is none", "GET", "/v1/whoami", nil, "[]"},
		{"a report", "POST", "/v1/runtime/report", fields{"instance": "i"}, "[gw]"},
		{"a watch that ended", "GET", "/v1/runtime/watch", nil, "[gw]"},
		{"a look-up", "POST", "/v1/runtime/resolve", fields{"sha256": sha("x")}, "[gw]"},
		{"a snapshot", "GET", "/v1/runtime/snapshot", nil, "[gw]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t)
			_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
			if a := p.call(runtime, tt.method, tt.path, tt.body, "X-Keeptrusts-Instance", "i", "X-Keeptrusts-Max-Stale", "10m"); a.status >= 400 && a.code() != "token_not_found" {
				t.Fatalf("%d %s", a.status, a.raw)
			}
			if got := p.unconfirmed(); got != tt.want {
				t.Errorf("unconfirmed %s, want %s", got, tt.want)
			}
		})
	}
}

// unconfirmed stops a new token and returns the gateways that the answer names.
func (p *plane) unconfirmed() string {
	p.t.Helper()
	id, _ := p.mint("general", nil)
	a := p.must(200, "POST", "/v1/tokens/"+id+"/quarantine", nil)
	b := p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	if !reflect.DeepEqual(a.body["unconfirmed"], b.body["unconfirmed"]) || a.body["confirmed"] != 0.0 {
		p.t.Errorf("quarantine %s, revoke %s", a.raw, b.raw)
	}
	return fmt.Sprint(b.body["unconfirmed"])
}

func TestStoppingATokenNamesEveryGatewayHeardFromLately(t *testing.T) {
	p := newPlane(t)
	_, one := p.mint("gateway_runtime", fields{"gateway_id": "gw_1"})
	_, two := p.mint("gateway_runtime", fields{"gateway_id": "gw_2"})
	_, foreign := p.mint("gateway_runtime", fields{"gateway_id": "gw_b"}, fields{"org_id": "org_b"})
	ask := func(secret string, headers ...string) {
		t.Helper()
		if a := p.call(secret, "POST", "/v1/runtime/resolve", fields{"sha256": sha("x")}, headers...); a.status != 404 {
			t.Fatalf("resolve: %d %s", a.status, a.raw)
		}
	}
	expect := func(want string) {
		t.Helper()
		if got := p.unconfirmed(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	expect("[]")
	ask(two)
	ask(foreign)
	expect("[gw_2]")
	ask(one, "X-Keeptrusts-Instance", "i1", "X-Keeptrusts-Build", "v1", "X-Keeptrusts-Max-Stale", "1m")
	ask(one, "X-Keeptrusts-Instance", "i2", "X-Keeptrusts-Max-Stale", "1m")
	expect("[gw_1 gw_2]")

	a := p.must(200, "GET", "/v1/gateways?limit=2", nil)
	b := p.must(200, "GET", "/v1/gateways?limit=2&cursor="+a.text("next_cursor"), nil)
	var list []string
	for _, v := range append(a.body["data"].([]any), b.body["data"].([]any)...) {
		g := v.(map[string]any)
		list = append(list, fmt.Sprint(g["gateway_id"], " ", g["instance"], " ", g["build"], " ", g["max_stale"]))
	}
	if got := strings.Join(list, ", "); got != "gw_1 i1 v1 1m0s, gw_1 i2  1m0s, gw_2 <nil>  10m0s, gw_b <nil>  10m0s" || b.body["next_cursor"] != nil {
		t.Errorf("gateways: %s", got)
	}

	// One instance signs off: its gateway has another.
	if a := p.call(one, "POST", "/v1/runtime/report", fields{"instance": "i1", "sign_off": true}); a.status != 200 {
		t.Fatalf("sign off: %s", a.raw)
	}
	expect("[gw_1 gw_2]")
	p.wait(62 * time.Second)
	expect("[gw_2]")
	ask(one, "X-Keeptrusts-Instance", "i1", "X-Keeptrusts-Max-Stale", "1m")
	expect("[gw_1 gw_2]")
	if a := p.call(one, "POST", "/v1/runtime/report", fields{"instance": "i1", "sign_off": true}); a.status != 200 {
		t.Fatalf("sign off: %s", a.raw)
	}
	expect("[gw_2]")
	ask(one, "X-Keeptrusts-Instance", "i1", "X-Keeptrusts-Max-Stale", "1m") // heard again within the second
	expect("[gw_1 gw_2]")
	p.wait(11 * time.Minute)
	expect("[]")

	for _, h := range []string{"X-Keeptrusts-Max-Stale=soon", "X-Keeptrusts-Max-Stale=-1s", "X-Keeptrusts-Max-Stale=9000h", "X-Keeptrusts-Instance=" + strings.Repeat("i", 65)} {
		name, v, _ := strings.Cut(h, "=")
		if a := p.call(one, "POST", "/v1/runtime/resolve", fields{"sha256": sha("x")}, name, v); a.status != 400 || a.code() != "invalid_header" {
			t.Errorf("%s: %d", h, a.status)
		}
	}
}

func TestAGatewayThatKeepsAskingIsNotForgotten(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	for range 5 {
		p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha("x")})
		p.wait(9 * time.Minute)
	}
	if got := p.unconfirmed(); got != "[gw]" {
		t.Errorf("got %s", got)
	}
}

func TestARestartRemembersWhoWasHeard(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha("x")})
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	p.open()
	if got := p.unconfirmed(); got != "[gw]" {
		t.Errorf("got %s", got)
	}
}

func TestAReportNotesTheLastUseWithoutAChange(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	id, secret := p.mint("general", nil)
	elsewhere, _ := p.mint("general", fields{"gateway_id": "gw_other"})
	foreign, _ := p.mint("general", nil, fields{"org_id": "org_b"})
	report := func(uses ...fields) {
		t.Helper()
		if a := p.call(runtime, "POST", "/v1/runtime/report", fields{"instance": "i", "max_stale": int64(time.Minute), "last_used": uses}); a.status != 200 {
			t.Fatalf("report: %d %s", a.status, a.raw)
		}
	}
	used := func(id string) any { return p.must(200, "GET", "/v1/tokens/"+id, nil).body["last_used_at"] }
	p.wait(time.Hour)
	now := p.now()
	report(fields{"token_id": id, "at": now.Add(-time.Minute)}, fields{"token_id": id, "at": now.Add(-2 * time.Minute)},
		fields{"token_id": elsewhere, "at": now}, fields{"token_id": foreign, "at": now}, fields{"token_id": "tok_gone", "at": now})
	if got := used(id); got != "2026-11-24T12:59:00Z" {
		t.Errorf("an older use won: %v", got)
	}
	if used(elsewhere) != nil || used(foreign) != nil {
		t.Errorf("a gateway noted a use of a token that is not its: %v %v", used(elsewhere), used(foreign))
	}
	report(fields{"token_id": id, "at": now.Add(time.Hour)})
	a := p.must(200, "POST", "/v1/tokens/identify", fields{"sha256": sha(secret)})
	if want := (map[string]any{"at": "2026-11-24T13:00:00Z", "gateway_id": "gw"}); !reflect.DeepEqual(a.body["last_used"], any(want)) {
		t.Errorf("a use of the future is one of now: %s", a.raw)
	}
	if got := p.must(200, "GET", "/v1/tokens/"+id, nil).body["revision"]; got != 2.0 {
		t.Errorf("a use took revision %v", got)
	}
	for body, param := range map[string]string{
		`{"instance":1}`: "instance", `{"max_stale":"10m"}`: "max_stale", `{"max_stale":-1}`: "max_stale", `{"used":[]}`: "used",
		`{"last_used":[{"token_id":"a","when":1}]}`: "last_used[0].when", `{"misplaced":[{"Client":"a"}]}`: "misplaced[0].Client",
		`{"instance":"` + strings.Repeat("i", 65) + `"}`: "instance",
	} {
		if a := p.call(runtime, "POST", "/v1/runtime/report", body); a.status != 400 || a.param() != param {
			t.Errorf("%s: %d at %q: %s", body, a.status, a.param(), a.raw)
		}
	}
}

func TestAMisplacedCredentialIsNotedOnceAMinuteAGateway(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	strayID, stray := p.mint("gateway_runtime", fields{"gateway_id": "gw_far"})
	_, general := p.mint("general", nil)
	_, foreign := p.mint("gateway_runtime", fields{"gateway_id": "gw_b"}, fields{"org_id": "org_b"})
	report := func(secrets ...string) {
		t.Helper()
		var list []fields
		for _, s := range secrets {
			list = append(list, fields{"sha256": sha(s), "client": "10.1.2.3:999", "at": p.now()})
		}
		if a := p.call(runtime, "POST", "/v1/runtime/report", fields{"instance": "i", "misplaced": list}); a.status != 200 {
			t.Fatalf("report: %s", a.raw)
		}
	}
	count := func() int {
		return len(p.must(200, "GET", "/v1/audit?event=credential.misplaced", nil).body["data"].([]any))
	}
	for _, step := range []struct {
		wait time.Duration
		give []string
		want int
	}{
		{0, []string{general, foreign, "nobody's"}, 0}, // costs nothing of the minute
		{0, []string{general, stray, stray}, 1},
		{59 * time.Second, []string{stray}, 1},
		{time.Second, []string{stray}, 2},
	} {
		p.wait(step.wait)
		report(step.give...)
		if got := count(); got != step.want {
			t.Errorf("got %d, want %d", got, step.want)
		}
	}
	e := p.must(200, "GET", "/v1/audit?event=credential.misplaced", nil).body["data"].([]any)[0].(map[string]any)
	after := e["after"].(map[string]any)
	if e["actor"] != "gateway:gw" || e["subject"] != strayID || after["client"] != "10.1.2.3" || after["gateway_id"] != "gw" || after["token_gateway_id"] != "gw_far" {
		t.Errorf("entry %v", e)
	}
	// Through another replica it is the same minute.
	p.server.strays = throttle{}
	report(stray)
	if got := count(); got != 2 {
		t.Errorf("another replica noted it again: %d", got)
	}
	command := "kt-gateway token quarantine " + strayID
	if e["command"] != command {
		t.Errorf("entry %v", e)
	}
	shown, _ := p.must(200, "GET", "/v1/tokens/"+strayID, nil).body["misplaced"].(map[string]any)
	if shown["at"] != e["at"] || shown["gateway_id"] != "gw" || shown["client"] != "10.1.2.3" || shown["command"] != command {
		t.Errorf("shown %v", shown)
	}
	p.must(200, "POST", "/v1/tokens/"+strayID+"/quarantine", nil)
	shown, _ = p.must(200, "GET", "/v1/tokens/"+strayID, nil).body["misplaced"].(map[string]any)
	if shown == nil || shown["command"] != nil {
		t.Errorf("once it is quarantined: %v", shown)
	}
	if a := p.must(200, "POST", "/v1/tokens/identify", fields{"sha256": sha(general)}); a.text("command") != "kt-gateway token revoke "+a.body["profile"].(map[string]any)["id"].(string) {
		t.Errorf("identified %s", a.raw)
	}
}

func TestEmbeddedIsOneInstanceUnderTheNameItReports(t *testing.T) {
	p := newPlane(t)
	ctx := context.Background()
	e := p.server.Embedded("gw_local")
	_, secret := p.mint("general", nil)
	load := func() {
		t.Helper()
		if _, err := e.Resolve(ctx, token.Sum([]byte(secret))); err != nil {
			t.Fatal(err)
		}
	}
	load()
	if got := p.unconfirmed(); got != "[gw_local]" {
		t.Errorf("after a load: %s", got)
	}
	r := record.Report{Instance: "i1", Build: "v", MaxStale: time.Minute}
	if err := e.Report(ctx, r); err != nil {
		t.Fatal(err)
	}
	p.wait(2 * time.Second)
	load()
	list, err := p.store.Instances(ctx, OrgDefault, p.now())
	if err != nil || len(list) != 1 || list[0].ID != "i1" || !list[0].LastSeen.Equal(p.now()) {
		t.Errorf("instances %v %v", list, err)
	}
	r.SignOff = true
	if err := e.Report(ctx, r); err != nil {
		t.Fatal(err)
	}
	if got := p.unconfirmed(); got != "[]" {
		t.Errorf("after signing off: %s", got)
	}
}
