package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// provoked is an error of the table, how it is met, and what it must look like.
type provoked struct {
	code   string
	status int
	kind   string
	closes bool   // the connection ends with it
	header string // that it must have
	meet   func(ctx context.Context, p *provoking) *answered
}

// provoking is what errors are provoked at.
type provoking struct {
	*gateway
	key, bound, limited, spent, held string // tokens
}

const (
	invalid    = "invalid_request_error"
	permission = "permission_error"
	ours       = "api_error"
)

// asked makes a call with one thing about it changed.
func asked(token func(p *provoking) string, c call) func(context.Context, *provoking) *answered {
	return func(ctx context.Context, p *provoking) *answered {
		k := p.key
		if token != nil {
			k = token(p)
		}
		return p.call(ctx, k, c)
	}
}

// raw sends bytes in which {K} is the token.
func raw(text string) func(context.Context, *provoking) *answered {
	return func(ctx context.Context, p *provoking) *answered {
		w, err := dial(ctx, p.addr, "")
		if err != nil {
			return &answered{err: err}
		}
		defer w.Close()
		if _, err := io.WriteString(w, strings.ReplaceAll(text, "{K}", p.key)); err != nil {
			return &answered{err: err}
		}
		method, _, _ := strings.Cut(text, " ")
		return w.take(method, nil)
	}
}

// minted makes the call with a token of its own.
func minted(m minting, c call) func(context.Context, *provoking) *answered {
	return func(ctx context.Context, p *provoking) *answered {
		t, err := p.admin.mint(ctx, m)
		if err != nil {
			return &answered{err: err}
		}
		return p.call(ctx, t.Token, c)
	}
}

func bodied(body string) func(context.Context, *provoking) *answered {
	return asked(nil, call{body: body})
}

func revoked(ctx context.Context, p *provoking) *answered {
	t, err := p.admin.mint(ctx, minting{})
	if err == nil {
		err = p.admin.revoke(ctx, t.ID)
	}
	if err != nil {
		return &answered{err: err}
	}
	return p.call(ctx, t.Token, call{})
}

func expired(ctx context.Context, p *provoking) *answered {
	t, err := p.admin.mint(ctx, minting{more: map[string]any{"expires_at": time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)}})
	if err != nil {
		return &answered{err: err}
	}
	rig.Pause(ctx, 1100*time.Millisecond)
	return p.call(ctx, t.Token, call{})
}

// beside makes a call while another of the token is under way.
func beside(token func(p *provoking) string, c call) func(context.Context, *provoking) *answered {
	return func(ctx context.Context, p *provoking) *answered {
		w, err := dial(ctx, p.addr, "")
		if err != nil {
			return &answered{err: err}
		}
		defer w.Close()
		first := c
		first.script = script{id: "beside", do: "silent"}
		if _, err := io.WriteString(w, first.text(token(p))); err != nil {
			return &answered{err: err}
		}
		n := len(p.up.of("beside"))
		settled(ctx, 5*time.Second, func() bool { return len(p.up.of("beside")) > n })
		return p.call(ctx, token(p), c)
	}
}

func provocations() []provoked {
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {K}\r\n"
	bound := func(bindings map[string]any, c call) func(context.Context, *provoking) *answered {
		return minted(minting{bindings: bindings}, c)
	}
	future := map[string]any{"not_before": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}
	return []provoked{
		{"invalid_api_key", 401, invalid, false, "WWW-Authenticate", asked(func(*provoking) string { return "" }, call{})},
		{"token_not_yet_valid", 401, invalid, false, "WWW-Authenticate", minted(minting{more: future}, call{})},
		{"token_expired", 401, invalid, false, "WWW-Authenticate", expired},
		{"token_revoked", 401, invalid, false, "WWW-Authenticate", revoked},
		{"multiple_credentials", 400, invalid, false, "", asked(nil, call{more: "api-key: x\r\n"})},
		{"credential_in_query", 400, invalid, false, "", raw("GET /v1/models?k={K} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {K}\r\n\r\n")},
		{"purpose_not_allowed", 403, permission, false, "", minted(minting{purpose: "gateway_runtime", bindings: map[string]any{"gateway_id": "gw_wire"}}, call{})},
		{"gateway_mismatch", 403, permission, false, "", bound(map[string]any{"gateway_id": "gw_other"}, call{})},
		{"team_mismatch", 403, permission, false, "", asked(nil, call{more: "X-Keeptrusts-Team: other\r\n"})},
		{"team_mismatch", 403, permission, false, "", asked(nil, call{model: "walled"})},
		{"model_not_allowed", 403, permission, false, "", asked(func(p *provoking) string { return p.bound }, call{model: dear})},
		{"provider_not_allowed", 403, permission, false, "", bound(map[string]any{"providers": []string{"none"}}, call{})},
		{"model_not_found", 404, invalid, false, "", asked(nil, call{model: "none"})},
		{"unknown_endpoint", 404, invalid, false, "", raw("GET /v1/none HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {K}\r\n\r\n")},
		{"method_not_allowed", 405, invalid, false, "Allow", raw("GET /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {K}\r\n\r\n")},
		{"invalid_header", 400, invalid, false, "", asked(nil, call{more: "X-Keeptrusts-Team:\r\n"})},
		{"invalid_json", 400, invalid, false, "", bodied("{")},
		{"ambiguous_key", 400, invalid, false, "", bodied(`{"model":"cheap","MODEL":"dear"}`)},
		{"missing_model", 400, invalid, false, "", bodied(`{"messages":[]}`)},
		{"invalid_value", 400, invalid, false, "", bodied(`{"model":"cheap","n":"x"}`)},
		{"unsupported_field", 400, invalid, false, "", bodied(`{"model":"cheap","previous_response_id":"resp_1"}`)},
		{"body_too_large", 413, invalid, true, "", raw(head + "Content-Length: 70000\r\n\r\n" + strings.Repeat(" ", 9<<10))},
		{"unsupported_media_type", 415, invalid, false, "", raw(head + "Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n")},
		{"request_timeout", 408, invalid, true, "", raw(head + "Content-Length: 70\r\n\r\n{")},
		{"request_timeout", 408, invalid, true, "", raw(head)},
		{"invalid_request", 400, invalid, true, "", raw(head + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n")},
		{"unknown_expectation", 417, invalid, true, "", raw(head + "Expect: x\r\n\r\n")},
		{"headers_too_large", 431, invalid, true, "", raw(head + "X: " + strings.Repeat("a", 20_000) + "\r\n\r\n")},
		{"price_unknown", 403, permission, false, "", asked(func(p *provoking) string { return p.limited }, call{model: "unpriced"})},
		{"context_unknown", 403, permission, false, "", asked(func(p *provoking) string { return p.limited }, call{body: `{"model":"unbound","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a.example/b.png"}}]}]}`})},
		{"budget_exceeded", 429, "insufficient_quota", false, "X-Should-Retry", asked(func(p *provoking) string { return p.spent }, call{model: dear})},
		{"budget_held", 429, "rate_limit_error", false, "Retry-After", beside(func(p *provoking) string { return p.held }, call{})},
		{"rate_limited", 429, "rate_limit_error", false, "Retry-After", func(ctx context.Context, p *provoking) *answered {
			t, err := p.admin.mint(ctx, minting{bindings: map[string]any{"rate_limits": map[string]any{"max_parallel_requests": 1}}})
			if err != nil {
				return &answered{err: err}
			}
			return beside(func(*provoking) string { return t.Token }, call{})(ctx, p)
		}},
		{"upstream_error", 502, ours, false, "", asked(nil, call{model: nobody})},
		{"upstream_error", 502, ours, false, "", asked(nil, call{script: script{do: "raw", raw: "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"}})},
		{"upstream_credential_rejected", 502, ours, false, "", asked(nil, call{script: script{status: 401}})},
		{"upstream_credential_rejected", 502, ours, false, "", asked(nil, call{script: script{status: 407}})},
		{"upstream_timeout", 504, ours, false, "", asked(nil, call{script: script{do: "silent"}})},
	}
}

// refusals provokes every error of the table that can be, and compares it, its
// headers and what becomes of the connection with DESIGN §5.
func refusals(ctx context.Context, t *trial) error {
	g, err := newGateway(ctx, t, layout{limits: "headers: 16KiB, request_body: 64KiB, header_read: 1s, body_read: 1s, first_byte: 1500ms"})
	if err != nil {
		return err
	}
	p := &provoking{gateway: g}
	budget := func(limit string) map[string]any {
		return map[string]any{"budgets": []map[string]string{{"id": "b_" + limit[2:], "limit": limit, "unit": "usd", "window": "day"}}}
	}
	for to, bindings := range map[*string]map[string]any{&p.key: nil, &p.bound: {"models": []string{cheap}}, &p.limited: budget("50.00"), &p.spent: budget("0.000001"),
		&p.held: {"budgets": []map[string]string{{"id": "b_one", "limit": "1", "unit": "requests", "window": "total"}}}} {
		m, err := g.admin.mint(ctx, minting{bindings: bindings})
		if err != nil {
			return err
		}
		*to = m.Token
	}
	wrong, codes := 0, map[string]bool{}
	for _, e := range provocations() {
		a := e.meet(ctx, p)
		codes[e.code] = true
		if problem := e.compare(a); problem != "" {
			wrong++
			t.miss("%s: %s: %v %v", e.code, problem, a, a.head)
		}
	}
	for _, e := range elsewhere() {
		a, err := e.meet(ctx, t)
		if err != nil {
			return fmt.Errorf("%s: %w", e.code, err)
		}
		codes[e.code] = true
		if problem := e.compare(a); problem != "" {
			wrong++
			t.miss("%s: %s: %v %v", e.code, problem, a, a.head)
		}
	}
	t.figure(wrong == 0 && len(codes) >= 30, "0", "%d codes provoked, %d not in the table's shape", len(codes), wrong)
	echoed := p.echoes(ctx)
	t.figure(echoed == 0, "0", "%d answers that pass on the provider's credential", echoed)
	g.sound(ctx, p.key)
	return nil
}

// compare says what is wrong with an answer.
func (e *provoked) compare(a *answered) string {
	if a.err != nil || a.status != e.status || a.code != e.code {
		return fmt.Sprintf("not a %d %s", e.status, e.code)
	}
	var shape struct {
		Error map[string]any `json:"error"`
	}
	if err := json.Unmarshal([]byte(a.body), &shape); err != nil || len(shape.Error) != 4 || shape.Error["type"] != e.kind || shape.Error["message"] == "" {
		return "another shape or type"
	}
	if _, ok := shape.Error["param"]; !ok {
		return "no param"
	}
	h := a.head
	switch {
	case !strings.HasPrefix(h.Get("X-Request-Id"), "req_"):
		return "no x-request-id"
	case h.Get("Content-Type") != "application/json":
		return "another content type"
	case e.header != "" && h.Get(e.header) == "":
		return "no " + e.header
	case e.status == http.StatusServiceUnavailable && h.Get("Retry-After") == "":
		return "no Retry-After"
	case e.closes != a.closes:
		return fmt.Sprintf("the connection closes: %t", a.closes)
	case h.Get("X-Keeptrusts-Target") != "":
		return "a refusal with a target"
	}
	return ""
}

// echoes has the provider repeat its key in errors, and counts the answers that
// hold it.
func (p *provoking) echoes(ctx context.Context) (n int) {
	escaped := strings.ReplaceAll(targetSecret, "-", `\u002d`)
	for _, status := range []int{400, 401, 403, 404, 407, 422, 429, 500, 503} {
		for _, secret := range []string{targetSecret, "Bearer " + targetSecret, escaped} {
			body := `{"error":{"message":"Incorrect API key provided: ` + secret + `","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}`
			answer := func(framing, body string) *answered {
				return p.call(ctx, p.key, call{script: script{do: "raw", raw: fmt.Sprintf("HTTP/1.1 %d Scripted\r\nConnection: close\r\nContent-Type: application/json\r\n%s\r\n%s", status, framing, body)}})
			}
			for _, a := range []*answered{
				answer(fmt.Sprintf("Content-Length: %d\r\n", len(body)), body),
				answer("Transfer-Encoding: chunked\r\n", frame(body[:50])+frame(body[50:])+"0\r\n\r\n"),
				answer("", body),
				answer("openai-version: "+secret+"\r\nx-request-id: "+secret+"\r\nContent-Length: 2\r\n", "{}"),
			} {
				if a.err != nil || holdsAny(fmt.Sprint(a.head)+strings.ReplaceAll(a.body, `\u002d`, "-"), []string{targetSecret}) {
					n++
					p.t.miss("an upstream's %d with our key: %v %v", status, a, a.head)
				}
			}
		}
	}
	event := func(secret string) string {
		return streamHead + frame(chunk("a")) + frame(`data: {"error":{"message":"`+secret+`","code":"x"}}`+"\n\n") + frame("data: [DONE]\n\n") + "0\r\n\r\n"
	}
	var text strings.Builder
	w, err := dial(ctx, p.addr, "")
	if err != nil {
		return n
	}
	defer w.Close()
	if _, err := io.WriteString(w, call{stream: true, script: script{do: "raw", raw: event(targetSecret)}}.text(p.key)); err != nil {
		return n
	}
	w.take(http.MethodPost, func(line []byte) { text.Write(line) })
	if strings.Contains(text.String(), targetSecret) {
		n++
		p.t.miss("an upstream's error event with our key passes: %s", text.String())
	}
	return n
}
