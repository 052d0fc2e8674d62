package proxy

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

func TestABodyPassesByteForByte(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	bodies := []string{
		plainBody,
		" \t\r\n{ \"messages\" : [ ] ,\r\n\"model\"\t:\n\"chat\" }\n ",
		`{"model":"chat","seed":12345678901234567890123456789,"temperature":1e400,"x":-0.0e-0}`,
		`{"model":"chat","messages":[{"role":"user","content":"\u0041\ud83d\ude00\/ é 😀"}]}`,
		`{"model":"ch\u0061t","messages":[]}`,
		`{"model":"chat","tools":[{"a":{"b":{"c":[[[[]]]]}}}],"unknown":null,"stream":false}`,
		`{"model":"wild-ft:a/b","messages":[]}`,
		`{"model":"chat","pad":"` + strings.Repeat("x", 300_000) + `"}`,
	}
	for _, body := range bodies {
		if r := g.do(call(g.key, body)); r.status != 200 || r.body != completion {
			t.Errorf("%.80q is answered %d %q", body, r.status, r.body)
			continue
		}
		seen := up.seen()
		if _, _, got := parts(seen[len(seen)-1]); got != body {
			t.Errorf("sent upstream:\n%.300q\nwant\n%.300q", got, body)
		}
	}
}

func TestABodyIsEditedOnlyWhereItMustBe(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	dull := start(t, strings.Replace(plainConfig(up.url), "target-secret}", "target-secret}, stream_usage: false", 1))
	tests := []struct {
		name, give, want string
		at               *gateway
	}{
		{"a mapped name", `{"messages":[], "model" : "mapped" ,"x":1}`, `{"messages":[], "model" : "other" ,"x":1}`, g},
		{"a mapped name with escapes", `{"model":"m\u0061pped","x":"mapped"}`, `{"model":"other","x":"mapped"}`, g},
		{"a stream that tells no usage", `{"model":"chat","stream":true}`, `{"model":"chat","stream":true,"stream_options":{"include_usage":true}}`, g},
		{"a stream that tells it", `{"model":"chat","stream":true,"stream_options":{"include_usage":true}}`, `{"model":"chat","stream":true,"stream_options":{"include_usage":true}}`, g},
		{"a target that does not take it", `{"model":"chat","stream":true}`, `{"model":"chat","stream":true}`, dull},
		{"no stream", `{"model":"chat","stream":false,"stream_options":null}`, `{"model":"chat","stream":false,"stream_options":null}`, g},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.at.do(call(tt.at.key, tt.give))
			seen := up.seen()
			_, h, got := parts(seen[len(seen)-1])
			if !sameJSONEdits(got, tt.want) || h["content-length"][0] != fmt.Sprint(len(got)) {
				t.Errorf("sent %s\nwant %s", got, tt.want)
			}
		})
	}
	for _, options := range []string{`{}`, `null`, `{"include_usage":false}`, `{"include_usage":null}`, `{"include_obfuscation":true}`} {
		g.do(call(g.key, `{"model":"chat","stream":true,"stream_options":`+options+`}`))
		seen := up.seen()
		if _, _, got := parts(seen[len(seen)-1]); !strings.Contains(got, `"include_usage":true`) || strings.Count(got, "include_usage") != 1 || strings.Contains(options, "obfuscation") != strings.Contains(got, "obfuscation") {
			t.Errorf("stream_options %s becomes %s", options, got)
		}
	}
}

// sameJSONEdits compares but for where an added key stands.
func sameJSONEdits(got, want string) bool {
	const added = `"stream_options":{"include_usage":true}`
	strip := func(s string) string {
		return strings.Replace(strings.Replace(s, ","+added, "", 1), added+",", "", 1)
	}
	return got == want || strings.Count(got, added) == strings.Count(want, added) && strip(got) == strip(want)
}

func TestUsageIsMeteredWhetherTheClientAskedForItOrNot(t *testing.T) {
	url, _ := simulated(t)
	g := start(t, plainConfig(url))
	for _, asked := range []bool{false, true} {
		body := plainBody[:len(plainBody)-1] + `,"stream":true}`
		if asked {
			body = body[:len(body)-1] + `,"stream_options":{"include_usage":true}}`
		}
		r := g.do(call(g.key, body))
		if r.status != 200 || r.err != nil || !strings.HasSuffix(r.body, "data: [DONE]\n\n") || r.header.Get("Content-Type") != "text/event-stream; charset=utf-8" && !strings.HasPrefix(r.header.Get("Content-Type"), "text/event-stream") {
			t.Fatalf("%d %v %q", r.status, r.err, r.body)
		}
		if got := strings.Contains(r.body, `"choices":[]`); got != asked {
			t.Errorf("asked %v: the usage chunk is there: %v", asked, got)
		}
		if line := g.line(r.header.Get("X-Request-Id")); line["input_tokens"].(float64) != 9 || line["output_tokens"].(float64) < 1 || line["stream"] != true || line["target"] != "main" {
			t.Errorf("log line %v", line)
		}
	}
	if in := g.metric("keeptrusts_gateway_tokens_total", "direction=input", "model=chat"); in != 18 {
		t.Errorf("tokens_total{input} = %v", in)
	}
}

// everyHeader is all that a client may try to get through.
var everyHeader = []string{
	"Accept: application/json", "Content-Type: application/json; charset=utf-8", "User-Agent: test/1", "OpenAI-Beta: assistants=v2",
	"anthropic-version: 2023-06-01", "anthropic-beta: a,b", "X-Stainless-Lang: go", "x-stainless-retry-count: 0",
	"X-Client-Request-Id: mine", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=b", "baggage: k=v",
	"Idempotency-Key: key-1",
	// never
	"Accept-Encoding: gzip, br", "OpenAI-Organization: org-1", "OpenAI-Project: proj-1", "Cookie: a=b", "Cookie2: a", "X-Forwarded-For: 10.0.0.1",
	"X-Forwarded-Host: h", "X-Forwarded-Proto: https", "X-Real-Ip: 10.0.0.1", "Forwarded: for=10.0.0.1", "Via: 1.0 client", "True-Client-Ip: 1.1.1.1",
	"Connection: keep-alive, X-Nominated", "X-Nominated: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic x",
	"TE: trailers", "Trailer: X-T", "Upgrade: websocket", "X-Request-Id: theirs", "X-Keeptrusts-Agent-Id: agent", "Origin: https://a", "Referer: https://a",
	"X-Whatever: 1", "Accept-Language: de", "Range: bytes=0-1", "If-None-Match: a", "Date: now", "Authorization2: a", "X-Goog-Api-Key: a",
	"Content-Language: de", "Content-Disposition: inline", "Sec-Fetch-Mode: cors", "X-Ms-Client: a", "Anthropic-Dangerous-Direct-Browser-Access: true",
}

func TestOnlyTheHeadersOfTheListPassUpstream(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, strings.Replace(plainConfig(up.url), "target-secret}", `target-secret}, headers: {X-Configured: "yes"}`, 1))
	r := g.do(strings.Replace(call(g.key, plainBody, everyHeader...), "/completions ", "/completions?api-version=2&b=%20c ", 1))
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	raw := up.seen()[0]
	line, h, _ := parts(raw)
	if want := "POST /v1/chat/completions?api-version=2&b=%20c HTTP/1.1"; line != want {
		t.Errorf("request line %q", line)
	}
	want := map[string]string{
		"host": strings.TrimPrefix(up.url, "http://"), "authorization": "Bearer " + targetSecret, "x-configured": "yes", "via": "1.1 kt-gateway",
		"content-length": fmt.Sprint(len(plainBody)), "accept": "application/json", "content-type": "application/json; charset=utf-8",
		"user-agent": "test/1", "openai-beta": "assistants=v2", "anthropic-version": "2023-06-01", "anthropic-beta": "a,b",
		"x-stainless-lang": "go", "x-stainless-retry-count": "0", "x-client-request-id": "mine",
		"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b", "baggage": "k=v",
	}
	if key := h["idempotency-key"]; len(key) != 1 || strings.Contains(key[0], "key-1") || len(key[0]) < 16 {
		t.Errorf("Idempotency-Key %q", key)
	}
	delete(h, "idempotency-key")
	got := make(map[string]string)
	for name, v := range h {
		got[name] = strings.Join(v, "|")
	}
	if !maps.Equal(got, want) {
		t.Errorf("sent upstream:\n%v\nwant\n%v", got, want)
	}
	if strings.Contains(raw, g.key) {
		t.Error("the client's token went upstream")
	}
}

func TestTheTargetsCredentialIsTheOnlyOneWhateverTheClientsHeaderIs(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	bare := start(t, strings.Replace(plainConfig(up.url), ", secret_key_ref: {file: target-secret}", "", 1))
	for _, header := range []string{"Authorization: bearer ", "api-key: ", "X-API-Key: "} {
		for _, at := range []*gateway{g, bare} {
			if r := at.do(call("", plainBody, header+at.key)); r.status != 200 {
				t.Fatalf("%s: %d %s", header, r.status, r.body)
			}
			seen := up.seen()
			_, h, _ := parts(seen[len(seen)-1])
			want := []string{"Bearer " + targetSecret}
			if at == bare {
				want = nil
			}
			if !slices.Equal(h["authorization"], want) || h["api-key"] != nil || h["x-api-key"] != nil || strings.Contains(seen[len(seen)-1], at.key) {
				t.Errorf("%s: sent upstream %v", header, h)
			}
		}
	}
}

func TestATokenInAHeaderThatPassesIsLeftOut(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	for _, name := range []string{"X-Client-Request-Id", "User-Agent", "baggage", "Accept", "X-Stainless-Os"} {
		g.do(call(g.key, plainBody, name+": a"+g.key+"z"))
		if seen := up.seen(); strings.Contains(seen[len(seen)-1], g.key) {
			t.Errorf("%s took the token upstream", name)
		}
	}
}

func TestOnlyTheHeadersOfTheListPassDown(t *testing.T) {
	up := answering(t, whole(200, completion, "Retry-After: 2", "retry-after-ms: 2000", "X-Should-Retry: true", "openai-processing-ms: 7",
		"OpenAI-Version: 2020-10-01", "OpenAI-Model: m", "anthropic-ratelimit-requests-limit: 5", "X-Request-Id: req_theirs",
		// never
		"Set-Cookie: a=b", "OpenAI-Organization: org-1", "openai-project: p", "anthropic-organization-id: o", "x-ratelimit-limit-requests: 5",
		"x-ratelimit-remaining-tokens: 9", "Server: cloud", "CF-Ray: 1", "Alt-Svc: h3", "Strict-Transport-Security: max-age=1", "Keep-Alive: timeout=5",
		"Connection: X-Nominated", "X-Nominated: 1", "Via: 1.1 x", "X-Keeptrusts-Target: evil", "X-Keeptrusts-Budget-Remaining: b=1",
		"X-Upstream-Request-Id: evil", "Access-Control-Allow-Origin: *", "WWW-Authenticate: Basic", "Location: /a", "X-Whatever: 1", "ETag: a", "Upgrade: h2c"))
	g := start(t, plainConfig(up.url))
	r := g.do(call(g.key, plainBody))
	id := r.header.Get("X-Request-Id")
	if !strings.HasPrefix(id, "req_") || id == "req_theirs" {
		t.Errorf("x-request-id %q", id)
	}
	r.header.Del("X-Request-Id")
	r.header.Del("Date")
	want := map[string]string{
		"Content-Type": "application/json", "Content-Length": fmt.Sprint(len(completion)), "Retry-After": "2", "Retry-After-Ms": "2000",
		"X-Should-Retry": "true", "Openai-Processing-Ms": "7", "Openai-Version": "2020-10-01", "Openai-Model": "m",
		"Anthropic-Ratelimit-Requests-Limit": "5", "X-Upstream-Request-Id": "req_theirs", "X-Keeptrusts-Target": "main",
	}
	got := make(map[string]string)
	for name, v := range r.header {
		got[name] = strings.Join(v, "|")
	}
	if !maps.Equal(got, want) {
		t.Errorf("passed down:\n%v\nwant\n%v", got, want)
	}
}

func TestAnIdempotencyKeyIsOneTokensOwn(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	other := g.mint(nil)
	for _, c := range [][2]string{{g.key, "a"}, {g.key, "a"}, {other, "a"}, {g.key, "b"}} {
		g.do(call(c[0], plainBody, "Idempotency-Key: "+c[1]))
	}
	var keys []string
	for _, s := range up.seen() {
		_, h, _ := parts(s)
		keys = append(keys, strings.Join(h["idempotency-key"], "|"))
	}
	if keys[0] != keys[1] || keys[0] == keys[2] || keys[0] == keys[3] || len(keys[0]) < 16 {
		t.Errorf("keys %q", keys)
	}
}

func TestThePathIsTheBaseURLs(t *testing.T) {
	up := answering(t, whole(200, completion))
	for base, want := range map[string]string{"": "/v1/chat/completions", "/v1": "/v1/chat/completions", "/openai/v1/": "/openai/v1/chat/completions", "/api": "/api/chat/completions"} {
		g := start(t, strings.Replace(plainConfig(up.url), up.url+"/v1", up.url+base, 1))
		g.do(call(g.key, plainBody))
		seen := up.seen()
		if line, _, _ := parts(seen[len(seen)-1]); line != "POST "+want+" HTTP/1.1" {
			t.Errorf("base path %q: %s", base, line)
		}
	}
}

func TestAnUpstreamsRefusalPassesWithItsStatusAndBody(t *testing.T) {
	for _, status := range []int{400, 402, 403, 404, 408, 409, 413, 422, 429, 451, 500, 501, 502, 503, 504, 529} {
		body := fmt.Sprintf(`{"error":{"message":"no %d","type":"t","param":null,"code":null}}`, status)
		g := start(t, plainConfig(answering(t, whole(status, body, "Retry-After: 9")).url))
		w := g.dial()
		w.send(call(g.key, plainBody))
		r := w.must()
		if r.status != status || r.body != body || r.header.Get("X-Keeptrusts-Target") != "main" || r.header.Get("Retry-After") != "9" || !w.alive() {
			t.Errorf("%d became %d %s %v", status, r.status, r.body, r.header)
		}
		if n := g.metric("keeptrusts_gateway_requests_total", "provider=main", "model=chat", fmt.Sprintf("status=%d", status)); n != 1 {
			t.Errorf("requests_total of %d: %v", status, n)
		}
	}
	for _, status := range []int{401, 407} {
		up := answering(t, whole(status, `{"error":{"message":"Incorrect API key provided: `+targetSecret+`"}}`, "WWW-Authenticate: Bearer"))
		g := start(t, plainConfig(up.url))
		r := g.do(call(g.key, plainBody))
		if r.status != 502 || r.problem().Code != "upstream_credential_rejected" || strings.Contains(r.body, targetSecret) || r.header.Get("X-Keeptrusts-Target") != "" || r.header.Get("WWW-Authenticate") != "" {
			t.Errorf("%d became %d %s %v", status, r.status, r.body, r.header)
		}
	}
}

func TestAnErrorWithTheTargetsCredentialIsReplaced(t *testing.T) {
	for _, status := range []int{400, 403, 500} {
		g := start(t, plainConfig(answering(t, whole(status, `{"error":{"message":"bad key `+targetSecret+`"}}`)).url))
		r := g.do(call(g.key, plainBody))
		if strings.Contains(r.body, targetSecret) || r.problem().Code != "upstream_error" || r.header.Get("X-Keeptrusts-Target") != "" {
			t.Errorf("%d became %d %s", status, r.status, r.body)
		}
	}
}

// twoTargets serves chat from first and then second.
func twoTargets(first, second string, weights ...int) string {
	if weights == nil {
		weights = []int{1, 0}
	}
	return fmt.Sprintf(`gateway_id: %s
providers:
  targets:
    - {id: first, base_url: "%s/v1", secret_key_ref: {file: target-secret}}
    - {id: second, base_url: "%s/v1", secret_key_ref: {file: second-secret}}
models:
  - {name: chat, targets: [{id: first, weight: %d}, {id: second, model: renamed, weight: %d}]}
limits: {lame_duck: 0s, drain: 5s}
`, testGateway, first, second, weights[0], weights[1])
}

// startTwo is start with a credential for the second target.
func startTwo(t *testing.T, yaml string) *gateway {
	t.Helper()
	file := filepath.Join(t.TempDir(), "second-secret")
	if err := os.WriteFile(file, []byte("sk-second-0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, strings.Replace(yaml, "second-secret", file, 1))
}

// refusingAddress is where nobody listens.
func refusingAddress(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return "http://" + ln.Addr().String()
}

func TestTheNextTargetIsTriedWhereTheFirstDidNothing(t *testing.T) {
	ok := whole(200, completion)
	tests := []struct {
		name       string
		first      string // its raw answer; "": nobody listens, "cut": it closes after the request
		status     int
		target     string
		toSecond   int
		wantInBody string
	}{
		{"nobody listens", "", 200, "second", 1, "chatcmpl"},
		{"503", whole(503, "{}"), 200, "second", 1, "chatcmpl"},
		{"429", whole(429, "{}"), 200, "second", 1, "chatcmpl"},
		{"500", whole(500, "{}"), 200, "second", 1, "chatcmpl"},
		{"502", whole(502, "{}"), 200, "second", 1, "chatcmpl"},
		{"504", whole(504, "{}"), 200, "second", 1, "chatcmpl"},
		{"400 is the caller's", whole(400, `{"a":1}`), 400, "first", 0, `{"a":1}`},
		{"404 is the caller's", whole(404, `{"a":1}`), 404, "first", 0, `{"a":1}`},
		{"401 is the operator's", whole(401, `{"a":1}`), 502, "", 0, "upstream_credential_rejected"},
		{"200", ok, 200, "first", 0, "chatcmpl"},
		{"a cut after sending", "cut", 502, "", 0, "upstream_error"},
		{"half a head", "HTTP/1.1 200 OK\r\nConte", 502, "", 0, "upstream_error"},
		{"half a body", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", 502, "", 0, "upstream_error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			first := scripted(t, func(c *callee) {
				if c.request() != "" && tt.first != "cut" {
					c.send(tt.first)
				}
			})
			second := answering(t, ok)
			url := first.url
			if tt.first == "" {
				url = refusingAddress(t)
			}
			g := startTwo(t, twoTargets(url, second.url))
			r := g.do(call(g.key, plainBody))
			if r.status != tt.status || r.header.Get("X-Keeptrusts-Target") != tt.target || !strings.Contains(r.body, tt.wantInBody) {
				t.Errorf("answered %d by %q: %s", r.status, r.header.Get("X-Keeptrusts-Target"), r.body)
			}
			if n := len(second.seen()); n != tt.toSecond {
				t.Errorf("the second target got %d calls", n)
			}
			if n := len(first.seen()); tt.first != "" && n != 1 {
				t.Errorf("the first target got %d calls", n)
			}
			for _, s := range second.seen() {
				_, h, body := parts(s)
				if h["authorization"][0] != "Bearer sk-second-0123456789abcdef" || strings.Contains(s, targetSecret) || !strings.Contains(body, `"model":"renamed"`) {
					t.Errorf("sent to the second: %s", s)
				}
			}
		})
	}
}

func TestTheLastTargetsAnswerPasses(t *testing.T) {
	g := startTwo(t, twoTargets(answering(t, whole(503, `{"first":1}`)).url, answering(t, whole(429, `{"second":1}`)).url))
	if r := g.do(call(g.key, plainBody)); r.status != 429 || r.body != `{"second":1}` || r.header.Get("X-Keeptrusts-Target") != "second" {
		t.Errorf("%d %s", r.status, r.body)
	}
	g = startTwo(t, twoTargets(refusingAddress(t), refusingAddress(t)))
	if r := g.do(call(g.key, plainBody)); r.status != 502 || r.problem().Code != "upstream_error" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestAFallbackNeverLeavesWhatTheDecisionLeft(t *testing.T) {
	second := answering(t, whole(200, completion))
	g := startTwo(t, twoTargets(answering(t, whole(503, "{}")).url, second.url))
	bound := map[string]func(*abac.Profile){
		"by provider": func(p *abac.Profile) { p.Bindings.Providers = []string{"first"} },
		"by the upstream's name": func(p *abac.Profile) {
			p.Bindings.Models = []string{"*", "!renamed"}
		},
	}
	for name, change := range bound {
		if r := g.do(call(g.mint(change), plainBody)); r.status != 503 || r.header.Get("X-Keeptrusts-Target") != "first" {
			t.Errorf("%s: %d by %q", name, r.status, r.header.Get("X-Keeptrusts-Target"))
		}
	}
	if n := len(second.seen()); n != 0 {
		t.Errorf("the second target got %d calls", n)
	}
}

func TestCallsAreSharedByWeight(t *testing.T) {
	for _, tt := range []struct{ a, b, low, high int }{{1, 0, 0, 0}, {3, 1, 50, 150}, {0, 1, 400, 400}, {0, 0, 0, 0}} {
		first, second := answering(t, whole(200, completion)), answering(t, whole(200, completion))
		g := startTwo(t, twoTargets(first.url, second.url, tt.a, tt.b))
		w := g.dial()
		for range 400 {
			w.send(call(g.key, plainBody))
			if r := w.must(); r.status != 200 {
				t.Fatal(r.status)
			}
		}
		if n := len(second.seen()); n < tt.low || n > tt.high || n+len(first.seen()) != 400 {
			t.Errorf("weights %d:%d: the second got %d of 400", tt.a, tt.b, n)
		}
	}
}

// age makes the idle connections of a target look as if they lay for a while.
func (g *gateway) age(id string) (n int) {
	up := g.s.runtime.Load().upstreams[id]
	up.mu.Lock()
	defer up.mu.Unlock()
	for _, c := range up.idle {
		c.idle = c.idle.Add(-2 * trustedIdle)
	}
	return len(up.idle)
}

func TestACallIsNeverSentTwiceToOneTarget(t *testing.T) {
	t.Run("a connection that died in the pool is found out before", func(t *testing.T) {
		up := scripted(t, func(c *callee) {
			c.request()
			c.send(whole(200, completion))
		})
		g := start(t, plainConfig(up.url))
		for n := 1; n <= 20; n++ {
			if r := g.do(call(g.key, plainBody)); r.status != 200 {
				t.Fatalf("call %d: %d %s", n, r.status, r.body)
			}
			eventually(t, "the upstream's close", func() bool { return g.age("main") == 0 || !g.idleAlive("main") })
		}
		if n := len(up.seen()); n != 20 {
			t.Errorf("the upstream got %d calls", n)
		}
	})
	t.Run("what lies unread in the pool makes a connection useless", func(t *testing.T) {
		up := scripted(t, func(c *callee) {
			for c.request() != "" {
				c.send(whole(200, completion))
				if c.n == 0 {
					c.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nevil")
				}
			}
		})
		g := start(t, plainConfig(up.url))
		g.do(call(g.key, plainBody))
		eventually(t, "the unread bytes", func() bool { return g.age("main") == 0 || !g.idleAlive("main") })
		if r := g.do(call(g.key, plainBody)); r.status != 200 || strings.Contains(r.body, "evil") {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	t.Run("a kept connection that is cut under the second call", func(t *testing.T) {
		up := scripted(t, func(c *callee) {
			c.request()
			c.send(whole(200, completion))
			c.request()
		})
		g := start(t, plainConfig(up.url))
		g.do(call(g.key, plainBody))
		if r := g.do(call(g.key, plainBody)); r.status != 502 || r.problem().Code != "upstream_error" {
			t.Errorf("%d %s", r.status, r.body)
		}
		if n := len(up.seen()); n != 2 {
			t.Errorf("the upstream got %d calls", n)
		}
	})
	t.Run("an answer that says close is not kept", func(t *testing.T) {
		up := answering(t, whole(200, completion, "Connection: close"))
		g := start(t, plainConfig(up.url))
		for range 3 {
			g.do(call(g.key, plainBody))
		}
		if n := up.accepted(); n != 3 {
			t.Errorf("%d connections for 3 calls", n)
		}
	})
}

// idleAlive says whether any idle connection of a target would be used.
func (g *gateway) idleAlive(id string) bool {
	up := g.s.runtime.Load().upstreams[id]
	up.mu.Lock()
	defer up.mu.Unlock()
	return slices.ContainsFunc(up.idle, func(c *upstreamConn) bool { return c.alive() })
}

func TestClaimsAreRecordedAndATokenIsNoClaim(t *testing.T) {
	up := answering(t, whole(200, completion))
	sink := &memorySink{}
	g := start(t, plainConfig(up.url), func(o *Options) { o.Records = sink })
	g.do(call(g.key, plainBody, "X-Client-Request-Id: mine", "X-Request-Id: other", "X-Keeptrusts-Agent-Id: agent-7"))
	g.do(call(g.key, plainBody, "X-Request-Id: second", "X-Keeptrusts-Agent-Id: "+token.Mint().Reveal()))
	eventually(t, "two records", func() bool { return len(sink.all()) == 2 })
	got := sink.all()
	if got[0] != "mine agent-7 200 chat main" || got[1] != "second  200 chat main" {
		t.Errorf("records %q", got)
	}
}

func TestATargetOnlyCountsWhatWasSent(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	r := g.do(call(g.key, plainBody))
	line := g.line(r.header.Get("X-Request-Id"))
	// 5 prompt tokens at 1 and 1 completion token at 2 USD a million.
	if fmt.Sprint(line["cost"]) != "0.000007" && fmt.Sprint(line["cost"]) != "7e-06" {
		t.Errorf("cost %v", line["cost"])
	}
	for name, want := range map[string]float64{
		"keeptrusts_gateway_requests_total": 1, "keeptrusts_gateway_request_duration_seconds": 1, "keeptrusts_gateway_upstream_duration_seconds": 1,
		"keeptrusts_gateway_tokens_total": 6, "keeptrusts_gateway_usage_missing_total": 0, "keeptrusts_gateway_calls_open": 0,
	} {
		if got := g.metric(name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	for _, key := range []string{"ts", "level", "msg", "request_id", "token_id", "purpose", "team", "model", "target", "status", "code", "stream", "ms", "upstream_ms", "first_byte_ms", "input_tokens", "output_tokens", "cost", "client"} {
		if _, ok := line[key]; !ok {
			t.Errorf("the log line has no %s: %v", key, line)
		}
	}
}

var slowBody = strings.Replace(plainBody, "hello", "slow", 1)

// delaying answers a call, a slow one after wait.
func delaying(t *testing.T, wait func()) *upstreamScript {
	return scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			if strings.HasSuffix(raw, slowBody) {
				wait()
			}
			c.send(whole(200, completion))
		}
	})
}

// chunkedCall is call with a chunked body.
func chunkedCall(key, body string) string {
	return "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer " + key +
		fmt.Sprintf("\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
}

// What comes behind a request holds nothing back: its answer goes out when it is ready.
func TestAPipelinedRequestDoesNotHoldBackTheAnswerBeforeIt(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	u := delaying(t, func() { <-release })
	g := start(t, plainConfig(u.url))
	slow, chunked := call(g.key, slowBody), chunkedCall(g.key, plainBody)
	for name, first := range map[string]string{
		"a call": call(g.key, plainBody), "a chunked one": chunked, "a GET": get("/v1/models", g.key), "a refusal": call("kt_live_none", ""),
	} {
		for _, behind := range []string{slow, slow[:len(slow)-5], slow[:200], "\r\n" + slow} {
			w := g.dial()
			w.send(first + behind)
			if r, ok := w.read(); !ok || r.status != 200 && r.status != 401 {
				t.Errorf("%s, %q behind it: %d", name, behind[max(0, len(behind)-5):], r.status)
			}
			_ = w.Close()
		}
	}
	w := g.dial()
	w.send(slow + chunked + slow + get("/v1/models", g.key))
	close(release)
	for i := range 4 {
		if r, ok := w.read(); !ok || r.status != 200 {
			t.Errorf("answer %d of four in a row: %d", i, r.status)
		}
	}
}
