package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// upward is what passes to the provider, by DESIGN §5; the rest of these must not.
var (
	upward = []string{"Accept", "User-Agent", "OpenAI-Beta", "anthropic-version", "anthropic-beta", "X-Stainless-Lang", "x-stainless-retry-count", "X-STAINLESS-OS", "X-Client-Request-Id", "traceparent", "tracestate", "baggage"}
	kept   = []string{"Accept-Encoding", "Accept-Language", "OpenAI-Organization", "OpenAI-Project", "Cookie", "Cookie2", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "True-Client-Ip", "CF-Connecting-IP", "Via",
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate", "TE", "Trailer", "Upgrade", "HTTP2-Settings", "X-Request-Id", "X-Keeptrusts-Agent-Id", "Idempotency-Key", "Referer", "Origin", "Range", "If-None-Match", "If-Match",
		"Authentication", "X-Auth-Token", "X-Goog-Api-Key", "X-Amz-Security-Token", "X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "X-Method-Override", "Front-End-Https", "Max-Forwards", "Warning", "Date", "From", "Server", "Pragma", "Cache-Control", "Sec-Fetch-Mode", "DNT",
		"X-Ms-Client-Request-Id", "X-Custom", "A", "X-Stainless", "XStainless-Lang", "X_Forwarded_For", "Proxy", "Content-Language", "Content-Location", "Content-MD5", "Digest", "Link", "Early-Data", "Alt-Used", "Priority", "Expect-CT", "Upgrade-Insecure-Requests", "X-Api-Version", "Http-Proxy", "X-Openai-Client"}
	downward = []string{"Retry-After", "retry-after-ms", "x-should-retry", "openai-processing-ms", "openai-version", "openai-model", "anthropic-ratelimit-requests-limit"}
	withheld = []string{"Set-Cookie", "Set-Cookie2", "openai-organization", "anthropic-organization-id", "Via", "Server", "Connection", "Keep-Alive", "Proxy-Authenticate", "WWW-Authenticate", "Upgrade", "Trailer", "X-Custom", "Location", "Alt-Svc", "Strict-Transport-Security", "CF-Ray", "CF-Cache-Status",
		"X-Powered-By", "Access-Control-Allow-Origin", "Link", "Refresh", "Content-Disposition", "openai-project", "x-keeptrusts-secret", "X-Accel-Redirect", "X-Sendfile"}
)

const marked = "marked-value-7"

// headers sends each header alone and all at once, up and down, and looks at the
// other end.
func headers(ctx context.Context, t *trial) error {
	g, err := newGateway(ctx, t, layout{})
	if err != nil {
		return err
	}
	key, err := g.admin.mint(ctx, minting{})
	if err != nil {
		return err
	}
	wrong, tried := 0, 0
	up := func(name string, nominated bool, want bool) {
		id := fmt.Sprintf("up/%d", tried)
		tried++
		more := name + ": " + marked + "\r\n"
		if nominated {
			more += "Connection: keep-alive, " + name + "\r\n"
		}
		a := g.call(ctx, key.Token, call{script: script{id: id}, more: more})
		seen := g.up.of(id)
		if a.status != 200 || len(seen) != 1 {
			wrong++
			t.miss("%s: %v", name, a)
			return
		}
		r := seen[0]
		if got := strings.Contains(string(r.raw), marked); got != want {
			wrong++
			t.miss("%s (nominated by Connection %t) passes upstream: %t", name, nominated, got)
		}
		if via := r.req.get("Via"); len(via) != 1 || via[0] != "1.1 kt-gateway" || len(r.req.get("Host")) != 1 || r.req.get("Host")[0] != g.up.addr || r.req.get("Connection") != nil {
			wrong++
			t.miss("%s: went upstream with Via %q, Host %q, Connection %q", name, via, r.req.get("Host"), r.req.get("Connection"))
		}
	}
	for _, name := range upward {
		up(name, false, true)
		up(name, true, false)
	}
	for _, name := range kept {
		up(name, false, false)
	}
	t.figure(wrong == 0, "0", "%d headers tried upwards, %d pass or stay against DESIGN §5", tried, wrong)

	wrong, tried = 0, 0
	down := func(names []string, want bool) {
		for _, name := range names {
			for _, status := range []int{200, 429} {
				tried++
				raw := withField(wholeAnswer(script{status: status}), name)
				a := g.call(ctx, key.Token, call{script: script{do: "raw", raw: raw}})
				got := strings.Contains(fmt.Sprint(a.head), marked)
				if a.status != status || got != want || a.head.Get("X-Keeptrusts-Target") != "up" || !strings.HasPrefix(a.head.Get("X-Request-Id"), "req_") {
					wrong++
					t.miss("%s with %d passes to the client: %t; %v", name, status, got, a)
				}
			}
		}
	}
	down(downward, true)
	down(withheld, false)
	for _, name := range []string{"X-Request-Id", "X-Keeptrusts-Target", "X-Keeptrusts-Budget-Remaining", "X-Ratelimit-Limit-Requests"} {
		tried++
		raw := withField(wholeAnswer(script{}), name)
		a := g.call(ctx, key.Token, call{script: script{do: "raw", raw: raw}})
		if slices.Contains(a.head.Values(name), marked) {
			wrong++
			t.miss("the provider's %s passes as ours", name)
		}
	}
	t.figure(wrong == 0, "0", "%d headers tried downwards, %d pass or stay against it", tried, wrong)
	g.sound(ctx, key.Token)
	return nil
}

// withField puts a header into an answer that ends its connection.
func withField(answer, name string) string {
	return strings.Replace(answer, "\r\n", "\r\nConnection: close\r\n"+name+": "+marked+"\r\n", 1)
}
