package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/token"
)

// An upstream that repeats the key it was called with is not repeated, wherever in
// an error the key stands.
func TestNoErrorOfAnUpstreamCarriesItsKey(t *testing.T) {
	t.Parallel()
	escaped := ""
	for _, c := range targetSecret {
		escaped += fmt.Sprintf(`\u%04X`, c)
	}
	body := func(key string) string { return `{"error":{"message":"Incorrect API key: ` + key + `"}}` }
	answer := func(status int, head, body string) string {
		return fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", status, head, len(body), body)
	}
	for _, tt := range []struct {
		name, answer string
		status       int
	}{
		{"in a body", answer(400, "", body(targetSecret)), 502},
		{"escaped in a body", answer(403, "", body(escaped)), 502},
		{"partly escaped", answer(500, "", body(strings.Replace(targetSecret, targetSecret[:1], escaped[:6], 1))), 502},
		{"behind other escapes", answer(429, "", body(`\"\/\\`+targetSecret)), 502},
		{"in a header", answer(400, "openai-version: "+targetSecret+"\r\n", "{}"), 400},
		{"as a request id", answer(400, "x-request-id: Bearer "+targetSecret+"\r\n", "{}"), 400},
		{"in the content type", strings.Replace(answer(400, "", "{}"), "application/json", "text/"+targetSecret, 1), 400},
		{"in an event", sseHead + chunk(event(0)) + chunk("data: "+body(targetSecret)+"\n\n") + chunk(doneEvent) + lastChunk, 200},
		{"in the first event", sseHead + chunk("data: "+body(escaped)+"\n\n") + chunk(doneEvent) + lastChunk, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := start(t, plainConfig(answering(t, tt.answer).url))
			r := g.do(call(g.key, streamBody))
			all := r.body + fmt.Sprint(r.header)
			// A stream of which all came in one read is told as 502.
			if r.status != tt.status && (tt.status != 200 || r.status != 502) || strings.Contains(all, targetSecret) || strings.Contains(all, escaped[6:]) {
				t.Errorf("%d %s", r.status, all)
			}
			if strings.Contains(r.body, doneEvent) {
				t.Error("it ends as if all were well")
			}
		})
	}
	apart := scripted(t, func(c *callee) {
		for c.request() != "" {
			c.send(sseHead)
			for _, content := range []string{"a", "b", targetSecret, "c"} {
				c.send(chunk(`data: {"error":null,"choices":[{"index":0,"delta":{"content":"` + content + `"}}]}` + "\n\n"))
				time.Sleep(20 * time.Millisecond)
			}
			c.send(lastChunk)
		}
	})
	alike := start(t, plainConfig(apart.url))
	if r := alike.do(call(alike.key, streamBody)); strings.Contains(r.body, targetSecret) || !strings.Contains(r.body, `"b"`) {
		t.Errorf("in events that are alike: %d %s", r.status, r.body)
	}
	last := scripted(t, func(c *callee) {
		for c.request() != "" {
			c.send(sseHead + chunk(event(0)))
			time.Sleep(50 * time.Millisecond)
			c.send(chunk("data: "+body(targetSecret)+"\n\n") + lastChunk)
		}
	})
	ending := start(t, plainConfig(last.url))
	if r := ending.do(call(ending.key, streamBody)); r.err == nil || strings.Contains(r.body, targetSecret) || !strings.HasPrefix(r.body, event(0)) {
		t.Errorf("in the event that comes with the end: %v %s", r.err, r.body)
	}
	g := start(t, plainConfig(answering(t, answer(400, "openai-version: 1\r\n", body("sk-other"))).url))
	if r := g.do(call(g.key, plainBody)); r.status != 400 || r.body != body("sk-other") || r.header.Get("openai-version") != "1" {
		t.Errorf("another's key: %d %s", r.status, r.body)
	}
}

func FuzzLeaks(f *testing.F) {
	f.Add("before", "after", uint64(0))
	f.Add(`\`, `"`, ^uint64(0))
	f.Add(`\u00`, `\`, uint64(5))
	f.Fuzz(func(t *testing.T, before, after string, mask uint64) {
		if n := len(before) - len(strings.TrimRight(before, `\`)); n%2 == 1 || strings.Contains(before[max(0, len(before)-5):], `\u`) {
			return // the key's first byte is part of an escape
		}
		var b strings.Builder
		for i, c := range targetSecret {
			if mask&(1<<(i%64)) != 0 {
				fmt.Fprintf(&b, `\u%04x`, c)
			} else {
				b.WriteRune(c)
			}
		}
		u := &upstream{secret: token.NewSecret(targetSecret)}
		if !u.leaks([]byte(before + b.String() + after)) {
			t.Fatalf("%q + %q + %q is not found", before, b.String(), after)
		}
	})
}
