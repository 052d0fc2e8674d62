package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

// readOnce hands raw to a connection in one piece and returns it after its first read,
// with what that gave.
func readOnce(t *testing.T, g *gateway, raw string) (c *conn, got string) {
	t.Helper()
	client, nc := tcpPair(t)
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := client.Write([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	c = &conn{TCPConn: nc, s: g.s, maxHead: 16 << 10}
	p := make([]byte, 32<<10)
	n, err := c.Read(p)
	if err != nil && n == 0 {
		t.Fatal(err)
	}
	return c, string(p[:n])
}

func TestOnlyAPlainWholeCallTakesTheShortcut(t *testing.T) {
	t.Parallel()
	g := start(t, plainConfig("http://127.0.0.1:1"))
	plain := call("k", plainBody, "Content-Type: application/json", "connection: Keep-Alive")
	for _, tt := range []struct {
		name, raw string
		taken     bool
	}{
		{"a call", plain, true},
		{"at a port", strings.Replace(plain, "Host: gw", "Host: 127.0.0.1:41002", 1), true},
		{"of one byte", call("k", "x"), true},
		{"two calls", plain + plain, false},
		{"a call and a byte of the next", plain + "P", false},
		{"a part of its body", plain[:len(plain)-1], false},
		{"no body", strings.Replace(call("k", ""), "Content-Length: 0\r\n", "", 1), false},
		{"an empty body", call("k", ""), false},
		{"in chunks", chunkedCall("k", plainBody), false},
		{"an empty line before", "\r\n" + plain, false},
		{"HTTP/1.0", strings.Replace(plain, "HTTP/1.1", "HTTP/1.0", 1), false},
		{"another method", strings.Replace(plain, "POST", "PUT", 1), false},
		{"another path", strings.Replace(plain, "/chat/completions", "/chat/completion", 1), false},
		{"a query", strings.Replace(plain, "/completions", "/completions?a=b", 1), false},
		{"it closes", strings.Replace(plain, "Keep-Alive", "close", 1), false},
		{"it nominates", strings.Replace(plain, "Keep-Alive", "keep-alive, accept", 1), false},
		{"it expects", call("k", plainBody, "Expect: 100-continue"), false},
		{"a host that is none", strings.Replace(plain, "Host: gw", "Host:", 1), false},
		{"an IPv6 host", strings.Replace(plain, "Host: gw", "Host: [::1]", 1), false},
		{"malformed", strings.Replace(plain, "Content-Length:", "Content-Length :", 1), false},
	} {
		c, got := readOnce(t, g, tt.raw)
		if x := c.short.served.Swap(nil); x != nil {
			x.close("")
		}
		if c.short.taken != tt.taken || (got == shownHead) != tt.taken {
			t.Errorf("%s: taken %v, fasthttp sees %q", tt.name, c.short.taken, got)
		}
		if head, body, _ := strings.Cut(tt.raw, "\r\n\r\n"); tt.taken {
			_, lines, _ := strings.Cut(head, "\r\n")
			if string(c.short.lines) != lines+"\r\n\r\n" || string(c.short.body) != body {
				t.Errorf("%s: %q and %q", tt.name, c.short.lines, c.short.body)
			}
		}
	}
}

// What fasthttp is shown must fit into the line that it takes the place of.
func TestTheHeadThatIsShownFits(t *testing.T) {
	t.Parallel()
	if len(shownHead) > len(shortcutLine) {
		t.Errorf("%d bytes over %d", len(shownHead), len(shortcutLine))
	}
}

func TestACallIsAnsweredAlikeByBothWays(t *testing.T) {
	t.Parallel()
	large := `{"id":"x","choices":[],"filler":"` + strings.Repeat("x", 40<<10) + `"}`
	answers := map[string]string{
		"plain":                   whole(200, completion, "x-request-id: req_up", "openai-version: 2020-10-01", "x-secret: 1"),
		"no content type":         strings.Replace(whole(200, completion), "Content-Type: application/json\r\n", "", 1),
		"empty":                   whole(200, ""),
		"more than a read brings": whole(200, large),
		"created":                 whole(201, completion),
		"no content":              "HTTP/1.1 204 No Content\r\n\r\n",
		"in chunks":               "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(completion), completion),
		"a refusal":               whole(429, `{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}`, "retry-after: 2"),
		"a credential refused":    whole(401, `{"error":{}}`),
		"compressed":              whole(200, "\x1f\x8b", "Content-Encoding: gzip"),
		"events with a length":    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 14\r\n\r\ndata: [DONE]\n\n",
		"events":                  sseHead + chunk(event(1)) + chunk(doneEvent) + lastChunk,
		"events, until close":     "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(1) + doneEvent,
		"events, an open end":     "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(1) + "data: [DONE]",
		"events, cut":             sseHead + chunk(event(1)) + "z",
		"events that are none":    sseHead + "z",
		"events, created":         strings.Replace(sseHead, "200 OK", "201 Created", 1) + chunk(event(1)) + lastChunk,
		"no event":                sseHead + lastChunk,
		"malformed":               "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := scripted(t, func(c *callee) {
				for c.request() != "" {
					if c.send(answer); strings.Contains(name, "close") || strings.Contains(name, "open") {
						return
					}
				}
			})
			m := funded(t, plainConfig(u.url), budget.Record{ID: "u", Unit: budget.USD, Limit: 1 << 50})
			key := m.mint(func(p *abac.Profile) {
				p.Bindings.Budgets = []abac.BudgetBinding{{ID: "u"}}
				p.Bindings.RateLimits = &abac.RateLimits{RequestsPerMinute: 1000}
			})
			raw := call(key, `{"model":"chat","max_tokens":50,"messages":[{"role":"user","content":"hello there"}]}`)
			told := func(pieces ...string) string {
				w := m.dial()
				for _, p := range pieces {
					w.send(p)
					time.Sleep(20 * time.Millisecond)
				}
				r := w.must()
				for _, k := range []string{"X-Request-Id", "X-Keeptrusts-Budget-Remaining", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"} {
					if r.header.Get(k) != "" {
						r.header.Set(k, "some")
					}
				}
				if _, err := time.Parse(time.RFC1123, r.header.Get("Date")); err != nil {
					t.Errorf("Date: %v", err)
				}
				r.header.Del("Date")
				lines := []string{fmt.Sprint(r.status, r.proto, r.close, r.length, r.err)}
				for _, k := range slices.Sorted(maps.Keys(r.header)) {
					lines = append(lines, k+": "+strings.Join(r.header[k], " | "))
				}
				return strings.Join(lines, "\n") + "\n" + r.body + fmt.Sprint(r.close || w.alive())
			}
			short, long := told(raw), told(raw[:len(raw)-9], raw[len(raw)-9:])
			if short != long {
				t.Errorf("by the short way:\n%.900s\nby the long way:\n%.900s", short, long)
			}
			seen := u.seen()
			if len(seen) != 2 || seen[0] != seen[1] {
				t.Errorf("upstream saw %q", seen)
			}
		})
	}
}

func TestALimitOfBodiesHoldsForTheShortWayToo(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url), func(o *Options) { o.Config.Limits.RequestBody = int64(len(plainBody)) })
	w := g.dial()
	if w.send(call(g.key, plainBody)); w.must().status != 200 {
		t.Error("a body of the limit's size is refused")
	}
	if w.send(call(g.key, plainBody+" ")); w.must().problem().Code != codeBodyTooLarge {
		t.Error("a larger one is not")
	}
	if n := len(u.seen()); n != 1 {
		t.Errorf("%d calls upstream", n)
	}
}

// A connection keeps serving, and never writes an answer twice, whichever ways its
// calls take.
func TestTheTwoWaysTakeTurns(t *testing.T) {
	t.Parallel()
	n := 0
	u := scripted(t, func(c *callee) {
		for c.request() != "" {
			n++
			c.send(whole(200, fmt.Sprintf(`{"id":"%d"}`, n)))
		}
	})
	g := start(t, plainConfig(u.url))
	w := g.dial()
	short, denied := call(g.key, plainBody), call(g.key, `{"model":"nobody","messages":[]}`)
	want := 0
	for i := range 40 {
		switch i % 5 {
		case 0, 1:
			w.send(short)
		case 3:
			w.send(denied)
			if r := w.must(); r.status != 404 && r.status != 403 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			continue
		case 2:
			w.send(chunkedCall(g.key, plainBody))
		case 4:
			if !w.alive() {
				t.Fatal("the probe is not answered")
			}
			continue
		}
		want++
		if r := w.must(); r.status != 200 || r.body != fmt.Sprintf(`{"id":"%d"}`, want) {
			t.Fatalf("call %d: %d %s", i, r.status, r.body)
		}
	}
}

func TestAStreamWhoseClientLeftBeforeItsHeadIsToldSo(t *testing.T) {
	t.Parallel()
	came, left := make(chan bool, 1), make(chan bool)
	u := scripted(t, func(c *callee) {
		if c.request() == "" {
			return
		}
		came <- true
		<-left
		c.send(sseHead + chunk(event(1)))
		c.gone()
	})
	g := start(t, plainConfig(u.url))
	w := g.dial()
	w.send(call(g.key, streamBody))
	receive(t, "the call", came)
	_ = w.SetLinger(0)
	_ = w.Close()
	close(left)
	eventually(t, "the books", func() bool { return len(g.log.lines()) == 1 })
	if l := g.log.lines()[0]; l["code"] != codeClientLeft || l["status"] != float64(499) {
		t.Errorf("logged as %v", l)
	}
}
