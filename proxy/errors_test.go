package proxy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

var update = flag.Bool("update", false, "write docs/errors.md")

func TestErrorsMarkdownIsTheDocumentation(t *testing.T) {
	const file = "../docs/errors.md"
	if *update {
		if err := os.WriteFile(file, []byte(ErrorsMarkdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != ErrorsMarkdown() {
		t.Error("docs/errors.md is not what the table says; run go test ./proxy -run Errors -update (make docs)")
	}
}

func TestTheTableIsSound(t *testing.T) {
	for _, r := range rows {
		if r.status < 400 || r.status > 599 || r.when == "" || r.do == "" || rowByCode[r.code].status != r.status {
			t.Errorf("row %+v", r)
		}
		want := kindInvalid
		switch {
		case r.status >= 500:
			want = kindAPI
		case r.status == 403:
			want = kindPermission
		case r.code == codeBudgetExceeded:
			want = kindQuota
		case r.status == 429:
			want = kindRate
		}
		if r.kind != want {
			t.Errorf("%s has the type %s", r.code, r.kind)
		}
	}
	if len(rowByCode) != len(rows) {
		t.Error("a code stands twice")
	}
}

// boundTo binds a token to a gateway.
func boundTo(gateway string) func(*abac.Profile) {
	return func(p *abac.Profile) { p.Bindings.GatewayID = &gateway }
}

func TestEveryReasonHasItsStatusAndIsCounted(t *testing.T) {
	g := start(t, manyModels(answering(t, whole(200, completion)).url))
	early, late, team := time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "blue"
	tests := []struct {
		reason abac.Reason
		status int
		change func(*abac.Profile)
		model  string
	}{
		{abac.ProfileInvalid, 403, func(p *abac.Profile) { p.Bindings.Budgets = []abac.BudgetBinding{{ID: "b"}} }, "chat"},
		{abac.ProfileInvalid, 403, func(p *abac.Profile) { p.Bindings.Invalid = []string{"bindings.x: unknown"} }, "chat"},
		{abac.TokenRevoked, 401, func(p *abac.Profile) { p.Status = abac.Revoked }, "chat"},
		{abac.TokenRevoked, 401, func(p *abac.Profile) { p.Status = abac.Quarantined }, "chat"},
		{abac.TokenNotYetValid, 401, func(p *abac.Profile) { p.NotBefore = &late }, "chat"},
		{abac.TokenExpired, 401, func(p *abac.Profile) { p.ExpiresAt = &early }, "chat"},
		{abac.TokenUnknown, 401, func(p *abac.Profile) { p.OrgID = "org_other" }, "chat"},
		{abac.PurposeNotAllowed, 403, func(p *abac.Profile) {
			boundTo(testGateway)(p)
			p.Purpose, p.PrincipalType = abac.GatewayRuntime, abac.PrincipalGatewayRuntime
		}, "chat"},
		{abac.GatewayMismatch, 403, boundTo("gw_other"), "chat"},
		{abac.TeamMismatch, 403, nil, "blue"},
		{abac.ModelNotAllowed, 403, func(p *abac.Profile) { p.Bindings.Models = []string{"x"} }, "chat"},
		{abac.ModelNotFound, 404, nil, "none"},
		{abac.ProviderNotAllowed, 403, func(p *abac.Profile) { p.Bindings.Providers = []string{"x"} }, "chat"},
		{abac.Allowed, 200, func(p *abac.Profile) { p.Bindings.TeamID = &team }, "blue"},
	}
	seen := make(map[abac.Reason]bool)
	for _, tt := range tests {
		t.Run(tt.reason.String(), func(t *testing.T) {
			seen[tt.reason] = true
			before := g.metric("keeptrusts_gateway_decisions_total", "reason="+tt.reason.String())
			key := g.mint(tt.change)
			w := g.dial()
			w.t = t
			w.send(call(key, `{"model":"`+tt.model+`"}`))
			r := w.must()
			describe(t, r, "POST", []string{key})
			if r.status != tt.status || r.status != 200 && r.problem().Code != tt.reason.String() || r.status == 403 && !strings.Contains(r.problem().Message, "tok_") {
				t.Errorf("answered %d %s", r.status, r.body)
			}
			if got := g.metric("keeptrusts_gateway_decisions_total", "reason="+tt.reason.String()); got != before+1 {
				t.Errorf("decisions_total went from %v to %v", before, got)
			}
			if line := g.line(r.header.Get("X-Request-Id")); line["status"] != float64(tt.status) || tt.status != 200 && line["code"] != tt.reason.String() {
				t.Errorf("log line %v", line)
			}
		})
	}
	for reason := abac.Reason(0); reason <= abac.Allowed; reason++ {
		if !seen[reason] {
			t.Errorf("no request was decided %s", reason)
		}
		if reason != abac.Allowed && rowByCode[reason.String()] == nil {
			t.Errorf("%s has no row", reason)
		}
	}
	if n := g.metric("keeptrusts_gateway_misplaced_credentials_total"); n != 1 {
		t.Errorf("misplaced_credentials_total = %v", n)
	}
}

func TestWhenSeveralRefusalsApplyTheFirstOfTheContractIsTold(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	defer g.s.draining.Store(serving)
	narrow := g.mint(func(p *abac.Profile) { p.Bindings.Models = []string{"x"} })
	// Each stage spoils the request in one more way than the one after it.
	stages := []string{"framing", "draining", "credentials", "credential", "route", "method", "checks", "team", "media", "json", "model", ""}
	wants := []string{"400 invalid_request", "503 draining", "400 multiple_credentials", "401 invalid_api_key", "404 unknown_endpoint", "405 method_not_allowed", "403 gateway_mismatch",
		"400 invalid_header", "415 unsupported_media_type", "400 invalid_json", "403 model_not_allowed", "200"}
	foreign := g.mint(func(p *abac.Profile) { boundTo("gw_other")(p); p.Bindings.Models = []string{"x"} })
	for i, stage := range stages {
		t.Run(stage, func(t *testing.T) {
			from := func(s string) bool { // whether the fault s is in this request
				for j, name := range stages {
					if name == s {
						return j >= i
					}
				}
				return false
			}
			pick := func(s, bad, good string) string {
				if from(s) {
					return bad
				}
				return good
			}
			key := pick("credential", token.Mint().Reveal(), pick("checks", foreign, pick("model", narrow, g.key)))
			raw := call(key, pick("json", "{", plainBody), pick("media", "Content-Type: text/plain", "X-A: 1"), pick("team", "X-Keeptrusts-Team:", "X-A: 1"),
				pick("credentials", "api-key: x", "X-A: 1"), pick("framing", "Content_Length: 1", "X-A: 1"))
			raw = strings.Replace(raw, "/v1/chat/completions", pick("route", "/v1/none", "/v1/chat/completions"), 1)
			raw = strings.Replace(raw, "POST", pick("method", "PUT", "POST"), 1)
			g.s.draining.Store(serving)
			if from("draining") {
				g.s.draining.Store(refusing)
			}
			w := g.dial()
			w.t = t
			w.send(raw)
			if got := describe(t, w.must(), "POST", []string{g.key}); got != wants[i] {
				t.Errorf("got %s, want %s", got, wants[i])
			}
		})
	}
	g.s.draining.Store(serving)
	revoked := g.mint(func(p *abac.Profile) { p.Status = abac.Revoked })
	if r := g.do(get("/v1/none", revoked)); r.problem().Code != "token_revoked" {
		t.Errorf("an unknown route of a revoked token: %d %s", r.status, r.body)
	}
}

func TestBodiesAreRefusedByTheirKind(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	tests := []struct{ name, header, body, want, param string }{
		{"no content type", "X-A: 1", plainBody, "200", ""},
		{"JSON with a charset", "Content-Type: application/json; charset=utf-8", plainBody, "200", ""},
		{"JSON in upper case", "Content-Type: APPLICATION/JSON;a=b", plainBody, "200", ""},
		{"text", "Content-Type: text/plain", plainBody, "415 unsupported_media_type", ""},
		{"a form", "Content-Type: application/x-www-form-urlencoded", plainBody, "415 unsupported_media_type", ""},
		{"multipart", "Content-Type: multipart/form-data; boundary=x", plainBody, "415 unsupported_media_type", ""},
		{"a longer name", "Content-Type: application/jsonx", plainBody, "415 unsupported_media_type", ""},
		{"two names", "Content-Type: text/plain, application/json", plainBody, "415 unsupported_media_type", ""},
		{"an empty name", "Content-Type:", plainBody, "415 unsupported_media_type", ""},
		{"gzip", "Content-Encoding: gzip", plainBody, "415 unsupported_media_type", ""},
		{"identity", "Content-Encoding: identity", plainBody, "415 unsupported_media_type", ""},
		{"no JSON", "X-A: 1", `{"model":"chat"`, "400 invalid_json", ""},
		{"a list", "X-A: 1", `[]`, "400 invalid_json", ""},
		{"two objects", "X-A: 1", `{"model":"chat"}{}`, "400 invalid_json", ""},
		{"a byte order mark", "X-A: 1", "\ufeff" + plainBody, "400 invalid_json", ""},
		{"no model", "X-A: 1", `{"messages":[]}`, "400 missing_model", "model"},
		{"a model that is none", "X-A: 1", `{"model":5}`, "400 invalid_value", "model"},
		{"a key twice", "X-A: 1", `{"model":"chat","model":"x"}`, "400 ambiguous_key", "model"},
		{"a key in another case", "X-A: 1", `{"Model":"chat"}`, "400 ambiguous_key", ""},
		{"a stream that is none", "X-A: 1", `{"model":"chat","stream":"yes"}`, "400 invalid_value", "stream"},
		{"a model beyond this gateway", "X-A: 1", `{"model":"none"}`, "404 model_not_found", "model"},
		{"two content types", "Content-Type: application/json\r\nContent-Type: text/plain", plainBody, "400 invalid_request", ""},
		{"an empty team", "X-Keeptrusts-Team:", plainBody, "400 invalid_header", "X-Keeptrusts-Team"},
		{"a team twice", "X-Keeptrusts-Team: a\r\nX-Keeptrusts-Team: a", plainBody, "400 invalid_header", "X-Keeptrusts-Team"},
		{"a team of a token without one", "X-Keeptrusts-Team: a", plainBody, "403 team_mismatch", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := g.do(call(g.key, tt.body, tt.header))
			if got := describe(t, r, "POST", []string{g.key}); got != tt.want || tt.param != "" && r.problem().Param != tt.param {
				t.Errorf("got %s (param %q), want %s (%q): %s", got, r.problem().Param, tt.want, tt.param, r.body)
			}
		})
	}
}

func TestATokenSentAsANameIsNotRepeated(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	narrow := g.mint(func(p *abac.Profile) { p.Bindings.Models = []string{"x"} })
	long := strings.Repeat("m", 3000)
	for name, raw := range map[string]string{
		"a model": call(g.key, `{"model":"`+g.key+`"}`), "a model not allowed": call(narrow, `{"model":"`+g.key+`"}`),
		"a team": call(g.key, plainBody, "X-Keeptrusts-Team: "+g.key), "a path": get("/v1/"+g.key+"/x", g.key), "a long model": call(g.key, `{"model":"`+long+`"}`),
		"a key":                           call(g.key, `{"model":"chat","`+g.key+`":1,"`+g.key+`":2}`),
		"a method":                        strings.Replace(get("/v1/models", g.key), "GET", "DELETE", 1),
		"an upstream's secret as a model": call(g.key, `{"model":"`+targetSecret+`"}`),
	} {
		r := g.do(raw)
		if r.status < 400 || strings.Contains(r.body, g.key) || strings.Contains(r.body, targetSecret) || len(r.body) > 1000 {
			t.Errorf("%s: %d %.300s", name, r.status, r.body)
		}
	}
}

func TestAnUnknownEndpointSaysWhichExist(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	m := g.do(get("/v1/embeddings", g.key)).problem().Message
	for _, want := range []string{"POST /v1/chat/completions", "GET /v1/models", "GET /v1/whoami"} {
		if !strings.Contains(m, want) {
			t.Errorf("%q does not name %s", m, want)
		}
	}
	if m := g.do(get("/models", g.key)).problem().Message; !strings.Contains(m, "base URL ends in /v1") {
		t.Errorf("%q does not tell of /v1", m)
	}
	for path, allow := range map[string]string{"/v1/chat/completions": "POST", "/v1/models": "GET", "/v1/models/chat": "GET", "/v1/whoami": "GET", "/healthz": "GET, HEAD", "/": "HEAD"} {
		r := g.do(strings.Replace(get(path, g.key), "GET", "PATCH", 1))
		if r.status != 405 || r.header.Get("Allow") != allow {
			t.Errorf("%s: %d, Allow %q", path, r.status, r.header.Get("Allow"))
		}
	}
}

func TestAControlPlaneOutOfReachIs503(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	known := g.mint(nil)
	if r := g.do(call(known, plainBody)); r.status != 200 {
		t.Fatal(r.status)
	}
	fresh := g.mint(nil)
	g.tokens.fail(errors.New("no route to host"))
	r := g.do(call(fresh, plainBody))
	if got := describe(t, r, "POST", []string{fresh}); got != "503 control_plane_unavailable" || strings.Contains(r.body, "route to host") {
		t.Errorf("%s: %s", got, r.body)
	}
	if r := g.do(call(known, plainBody)); r.status != 200 {
		t.Errorf("what is known is answered %d", r.status)
	}
}

func TestTheMetricsOfTheContractHaveTheirNamesAndLabels(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	g.do(call(g.key, plainBody))
	g.do(call("", plainBody))
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		got[f.GetName()] = strings.Join(labels, ",")
		if !strings.HasPrefix(f.GetName(), "keeptrusts_gateway_") || f.GetHelp() == "" {
			t.Errorf("metric %s", f.GetName())
		}
	}
	for name, want := range map[string]string{
		"requests_total": "model,provider,status", "request_duration_seconds": "", "tokens_total": "direction,model", "decisions_total": "reason", "misplaced_credentials_total": "",
	} {
		if labels, ok := got["keeptrusts_gateway_"+name]; !ok || labels != want {
			t.Errorf("%s has the labels %q", name, labels)
		}
	}
	for labels, want := range map[string]float64{"provider=main status=200 model=chat": 1, "provider= status=401 model=": 1} {
		if n := g.metric("keeptrusts_gateway_requests_total", strings.Fields(labels)...); n != want {
			t.Errorf("requests_total{%s} = %v", labels, n)
		}
	}
	for _, evil := range []string{"evil-model", "wild-evil"} {
		g.do(call(g.key, fmt.Sprintf(`{"model":%q}`, evil)))
	}
	families, _ = g.registry.Gather()
	if strings.Contains(fmt.Sprint(families), "evil") {
		t.Error("a request made a label value")
	}
}
