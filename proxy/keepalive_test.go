package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

// commented is a config whose silent streams get a comment every 300 ms.
func commented(url, more string) string {
	return limited(url, "keepalive_comment: 300ms, lame_duck: 0s, drain: 5s"+more)
}

// paused is an upstream that sends pieces with pauses of two comments between: the
// watcher looks every 250 ms, so one comes every half second, and a tick may be late.
// The client's id names them.
func paused(t *testing.T, pieces map[string][]string) *upstreamScript {
	return scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			for _, p := range pieces[claimOf(raw)] {
				time.Sleep(1400 * time.Millisecond)
				c.send(p)
			}
			if last := pieces[claimOf(raw)]; len(last) == 0 || !strings.HasSuffix(last[len(last)-1], lastChunk) {
				return
			}
		}
	})
}

// without takes the comments out of a stream, which must stand between events.
func without(t *testing.T, name, body string) (rest string, n int) {
	t.Helper()
	n = strings.Count(body, keepAlive)
	for i, part := range strings.Split(body, keepAlive) {
		if i < n && part != "" && !strings.HasSuffix(part, "\n\n") {
			t.Errorf("%s: a comment inside an event: %q", name, body)
		}
		rest += part
	}
	return rest, n
}

// halves cuts a raw answer in two at i.
func halves(raw string, i int) []string { return []string{raw[:i], raw[i:]} }

func TestASilentStreamGetsCommentsBetweenItsEvents(t *testing.T) {
	t.Parallel()
	one, two := event(1), event(2)
	body := one + two + doneEvent
	ended := chunk(one) + chunk(two) + chunk(doneEvent) + lastChunk
	big := "data: {\"b\":\"" + strings.Repeat("x", 3<<20) + "\"}\n\n"
	tests := map[string]struct {
		pieces []string
		body   string // "": as above
		least  int    // comments
	}{
		"before the head":               {pieces: []string{sseHead + ended}, least: 2},
		"inside the status line":        {pieces: halves(sseHead+ended, 11), least: 4},
		"inside the head":               {pieces: halves(sseHead+ended, 40), least: 4},
		"inside the head's last bytes":  {pieces: halves(sseHead+ended, len(sseHead)-1), least: 4},
		"after an interim head":         {pieces: []string{"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", sseHead + ended}, least: 4},
		"after the head":                {pieces: halves(sseHead+ended, len(sseHead)), least: 4},
		"inside a chunk's size":         {pieces: halves(sseHead+ended, len(sseHead)+1), least: 4},
		"between CR and LF":             {pieces: halves(sseHead+ended, len(sseHead)+3), least: 4},
		"inside an event":               {pieces: halves(sseHead+ended, len(sseHead)+30), least: 4},
		"inside a character":            {pieces: halves(sseHead+ended, len(sseHead)+strings.Index(ended, "–")+1), least: 4},
		"between an event's line ends":  {pieces: halves(sseHead+ended, len(sseHead)+len(chunk(one))-3), least: 4},
		"after a chunk's data":          {pieces: halves(sseHead+ended, len(sseHead)+len(chunk(one))-2), least: 4},
		"between events":                {pieces: halves(sseHead+ended, len(sseHead)+len(chunk(one))), least: 4},
		"before the last chunk":         {pieces: halves(sseHead+ended, len(sseHead)+len(ended)-len(lastChunk)), least: 4},
		"inside the last chunk":         {pieces: halves(sseHead+ended, len(sseHead)+len(ended)-3), least: 4},
		"a length":                      {pieces: halves(sizedHead("text/event-stream", len(body))+body, 150), least: 4},
		"until close":                   {pieces: halves("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"+body, 90), least: 4},
		"CRLF, between the two":         {pieces: halves(sizedHead("text/event-stream", 12)+"data: 1\r\n\r\n\n", len(sizedHead("text/event-stream", 12))+10), body: "data: 1\r\n\r\n\n", least: 4},
		"a byte order mark":             {pieces: halves(sseHead+chunk("\ufeff"+one)+chunk(doneEvent)+lastChunk, len(sseHead)), body: one + doneEvent, least: 4},
		"inside an event of many bytes": {pieces: halves(sseHead+chunk(big)+chunk(doneEvent)+lastChunk, len(sseHead)+2<<20), body: big + doneEvent, least: 2},
	}
	pieces := make(map[string][]string)
	for name, tt := range tests {
		pieces[name] = tt.pieces
	}
	u := paused(t, pieces)
	quiet := start(t, limited(u.url, "keepalive_comment: 0s, lame_duck: 0s"))
	g := start(t, commented(u.url, ""))
	var wait sync.WaitGroup
	for name, tt := range tests {
		want := tt.body
		if want == "" {
			want = body
		}
		for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
			wait.Go(func() {
				w := g.dial()
				w.send(strings.Replace(call(g.key, streamBody, claimed(name)), "HTTP/1.1", version, 1))
				r := w.must()
				rest, n := without(t, name, r.body)
				if r.status != 200 || r.err != nil || rest != want || n < tt.least || n > 8 {
					t.Errorf("%s, %s: %d %v, %d comments, want %d or more: %.300q", name, version, r.status, r.err, n, tt.least, r.body)
				}
				if r.header.Get("Content-Type") == "" || r.header.Get("Cache-Control") != "no-cache" || r.header.Get("X-Request-Id") == "" || r.header.Get("X-Keeptrusts-Target") != "main" {
					t.Errorf("%s: the head %v", name, r.header)
				}
				if version == "HTTP/1.1" && !w.alive() {
					t.Errorf("%s: the connection serves no other request", name)
				}
			})
		}
		wait.Go(func() {
			r := quiet.do(call(quiet.key, streamBody, claimed(name)))
			if r.status != 200 || r.err != nil || strings.TrimPrefix(r.body, "\ufeff") != want {
				t.Errorf("%s, without comments: %d %v %.200q", name, r.status, r.err, r.body)
			}
		})
	}
	wait.Wait()
	if l := g.log.lines(); len(l) < 2*len(tests) {
		t.Errorf("%d lines for %d calls", len(l), 2*len(tests))
	}
}

func TestTheHeadOfASilentStreamComesEarlyAndOfNothingElse(t *testing.T) {
	t.Parallel()
	u := holding(t, nil)
	g := start(t, commented(u.url, ", first_byte: 2s"))
	heads := make(map[string]time.Duration)
	var mu sync.Mutex
	var wait sync.WaitGroup
	for name, body := range map[string]string{"stream": streamBody, "whole": plainBody} {
		wait.Go(func() {
			w := g.dial()
			began := time.Now()
			w.send(call(g.key, body, claimed("silent")))
			res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			mu.Lock()
			heads[name] = time.Since(began)
			mu.Unlock()
			if name == "whole" && res.StatusCode != 504 {
				t.Errorf("%s: %d", name, res.StatusCode)
			}
			_, _ = io.Copy(io.Discard, res.Body)
		})
	}
	wait.Wait()
	if heads["stream"] < 250*time.Millisecond || heads["stream"] > 1800*time.Millisecond || heads["whole"] < 1900*time.Millisecond {
		t.Errorf("heads came after %v", heads)
	}
}

// early is how a stream ends whose head was sent before the upstream answered.
type early struct {
	name string
	sent string // what the upstream sends after a second; "": nothing
	code string
	says string // in the error's message
}

func TestWhatComesOfAStreamThatBeganEarlyIsToldInIt(t *testing.T) {
	t.Parallel()
	tests := []early{
		{"the provider's error", whole(400, "{\n \"error\": {\n  \"message\": \"too\\nlong\", \"type\": \"t\", \"code\": \"context_length_exceeded\"}}"), "context_length_exceeded", "too\nlong"},
		{"an error of another form", whole(500, `{"detail":"no"}`), codeUpstreamError, "answered 500"},
		{"an error that is no JSON", whole(503, `<html>`), codeUpstreamError, "answered 503"},
		{"an error with our credential", whole(500, `{"error":{"message":"`+targetSecret+`"}}`), codeUpstreamError, "can't be passed on"},
		{"our credential refused", whole(401, `{"error":{"message":"`+targetSecret+`"}}`), codeUpstreamCredential, "own credential"},
		{"an answer that is no stream", whole(200, completion), codeUpstreamError, "without a stream"},
		{"a compressed one", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx", codeUpstreamError, "compressed"},
		{"a cut inside an error", sizedHead("application/json", 500) + `{"error":`, codeUpstreamError, "broke off"},
		{"a cut head", "HTTP/1.1 200 OK\r\nConte", codeUpstreamError, "broke off"},
		{"a malformed head", "nonsense\r\n\r\n", codeUpstreamError, "broke off"},
		{"a cut", " ", codeUpstreamError, "broke off"},
		{"silence", "", codeUpstreamTimeout, "in time"},
	}
	u := scripted(t, func(c *callee) {
		raw := c.request()
		for _, tt := range tests {
			if tt.name == claimOf(raw) && tt.sent != "" {
				time.Sleep(time.Second)
				c.send(tt.sent)
				return
			}
		}
		if raw != "" {
			c.gone()
		}
	})
	g := start(t, commented(u.url, ", first_byte: 2s"))
	var wait sync.WaitGroup
	for _, tt := range tests {
		for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
			wait.Go(func() {
				r := g.do(strings.Replace(call(g.key, streamBody, claimed(tt.name)), "HTTP/1.1", version, 1))
				rest, n := without(t, tt.name, r.body)
				r.body = rest
				if version == "HTTP/1.0" {
					r.err = errCut
				}
				if strings.Contains(r.body, targetSecret) || n < 1 || !strings.Contains(r.body, strings.ReplaceAll(tt.says, "\n", `\n`)) {
					t.Errorf("%s: %d comments, %q", tt.name, n, r.body)
				}
				if wrong := cutByAny(r, tt.code); wrong != "" {
					t.Errorf("%s, %s: %s: %q", tt.name, version, wrong, r.body)
				}
				want := tt.code
				if rowByCode[want] == nil { // the provider's own
					want = codeUpstreamError
				}
				if l := g.line(r.header.Get("X-Request-Id")); l["code"] != want || l["status"] != 200.0 {
					t.Errorf("%s: logged as %v", tt.name, l)
				}
			})
		}
	}
	wait.Wait()
}

// cutByAny is cutBy for codes that may be a provider's.
func cutByAny(r reply, code string) string {
	if rowByCode[code] != nil {
		return cutBy(r, code, "")
	}
	if r.err == nil {
		return "the body ends cleanly"
	}
	if !strings.HasPrefix(r.body, `data: {"error":{"message":`) || !strings.Contains(r.body, `"code":"`+code+`"`) ||
		!strings.HasSuffix(r.body, `,"request_id":"`+r.header.Get("X-Request-Id")+"\"}\n\n") || strings.Count(r.body, "\n") != 2 {
		return "the provider's error is not told"
	}
	return ""
}

func TestTheNextTargetIsTriedAlsoForAStreamThatBeganEarly(t *testing.T) {
	t.Parallel()
	first := scripted(t, func(c *callee) {
		if c.request() != "" {
			time.Sleep(time.Second)
			c.send(whole(503, `{"error":{"message":"busy"}}`))
		}
	})
	second := paused(t, map[string][]string{"x": {sseHead, chunk(event(1)) + chunk(doneEvent) + lastChunk}})
	yaml := strings.Replace(commented(first.url, ""), "  targets:\n", "  targets:\n    - {id: second, base_url: \""+second.url+"/v1\"}\n", 1)
	yaml = strings.Replace(yaml, "{name: chat, targets: [{id: main}]", "{name: chat, targets: [{id: main}, {id: second, weight: 0}]", 1)
	g := start(t, yaml)
	r := g.do(call(g.key, streamBody, claimed("x")))
	rest, n := without(t, "fallback", r.body)
	if r.status != 200 || r.err != nil || rest != event(1)+doneEvent || n < 4 {
		t.Errorf("%d %v %d comments %q", r.status, r.err, n, r.body)
	}
	if h := r.header.Get("X-Keeptrusts-Target"); h != "" {
		t.Errorf("the head names target %q, and another answered", h)
	}
	if l := g.line(r.header.Get("X-Request-Id")); l["target"] != "second" || l["stream"] != true {
		t.Errorf("logged as %v", l)
	}
}

func TestTheEndOfATokenADrainAndALeaverReachAStreamThatBeganEarly(t *testing.T) {
	t.Parallel()
	var came, gone moments
	u := scripted(t, func(c *callee) {
		if raw := c.request(); raw != "" {
			came.note(claimOf(raw))
			c.gone()
			gone.note(claimOf(raw))
		}
	})
	g := start(t, commented(u.url, ""))
	// open makes a call and waits for its second comment.
	open := func(key, id string) *wire {
		w := g.dial()
		w.send(call(key, streamBody, claimed(id)))
		receive(t, id, came.of(id))
		for n := 0; n < 2; {
			line, err := w.r.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			if line == ": keep-alive\n" {
				n++
			}
		}
		return w
	}
	within := func(id string, at time.Time) {
		t.Helper()
		select {
		case when := <-gone.of(id):
			if d := when.Sub(at); d > time.Second {
				t.Errorf("%s: the upstream's call ended after %v", id, d)
			}
		case <-time.After(patience):
			t.Errorf("%s: the upstream's call goes on", id)
		}
	}
	told := func(id, code string, w *wire) {
		t.Helper()
		b, _ := io.ReadAll(w.r)
		if s := string(b); !strings.Contains(s, `"code":"`+code+`"`) || !strings.Contains(s, `,"request_id":"req_`) || strings.HasSuffix(s, lastChunk) {
			t.Errorf("%s: %q", id, s)
		}
	}
	for i, id := range []string{"fin", "rst", "pipelined"} {
		w := open(g.key, id)
		if id == "pipelined" {
			w.send(get("/healthz", ""))
		}
		if i == 1 {
			_ = w.SetLinger(0)
		}
		at := time.Now()
		_ = w.Close()
		within(id, at)
	}
	eventually(t, "three are told as left", func() bool { return g.metric("keeptrusts_gateway_client_closed_requests_total") == 3 })
	var profile abac.Profile
	w := open(g.mint(func(p *abac.Profile) { profile = *p }), "revoked")
	at := time.Now()
	g.cache.Revoke(profile.ID, 2)
	within("revoked", at)
	told("revoked", codeTokenRevoked, w)

	w = open(g.key, "drained")
	at = time.Now()
	g.s.watcher.all(drained)
	within("drained", at)
	told("drained", codeDraining, w)
	eventually(t, "every exchange is free", func() bool { return g.s.open.Load() == 0 })
}

// What a call is charged must not depend on whether its head came early.
func TestAStreamThatBeganEarlyIsChargedAsAnyOther(t *testing.T) {
	t.Parallel()
	const usage = `,"usage":{"prompt_tokens":5,"completion_tokens":11}`
	scripts := map[string]string{
		"streamed":      `"delay_ms":2000` + usage,
		"without usage": `"delay_ms":2000,"no_usage":true,"chunks":20`,
		"cut":           `"delay_ms":2000,"cut_after_chunks":8,"chunks":20`,
		"400 and usage": `"delay_ms":2000,"status":400,"body":"{\"error\":{\"message\":\"m\"},\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}"`,
		"no answer":     `"delay_ms":9000`,
		"left":          `"delay_ms":9000`,
	}
	charged := func(name, script, comments string) (left int64, early bool) {
		yaml, seen := endingTargets(t)
		yaml = strings.Replace(yaml, "limits: {first_byte: 700ms, upstream_idle: 700ms, ", "limits: {first_byte: 6s, upstream_idle: 6s, keepalive_comment: "+comments+", ", 1)
		m := funded(t, yaml, budget.Record{ID: "u", Unit: budget.USD, Limit: 1 << 40}, budget.Record{ID: "t", Unit: budget.Tokens, Limit: 1 << 40})
		key := m.spender("u", "t")
		e := ending{stream: true, script: script}
		if name == "left" {
			w := m.dial()
			w.send(call(key, e.body(), claimed(name)))
			eventually(t, "the call is with the provider", func() bool { return seen()[name] })
			time.Sleep(900 * time.Millisecond)
			_ = w.Close()
		} else {
			early = strings.Contains(m.do(call(key, e.body())).body, keepAlive)
		}
		m.atRest()
		return m.left(key, "u")<<20 + m.left(key, "t"), early
	}
	var wait sync.WaitGroup
	few := make(chan struct{}, 3) // each has a control plane
	for name, script := range scripts {
		wait.Go(func() {
			few <- struct{}{}
			defer func() { <-few }()
			late, _ := charged(name, script, "0s")
			soon, early := charged(name, script, "300ms")
			if late != soon || !early && name != "left" {
				t.Errorf("%s: left %d with an early head (%v), %d without", name, soon, early, late)
			}
		})
	}
	wait.Wait()
}

func TestASilentUpstreamOverTLSGoesOnAfterAComment(t *testing.T) {
	t.Parallel()
	u := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(800 * time.Millisecond)
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = io.WriteString(w, event(i))
			w.(http.Flusher).Flush()
			time.Sleep(800 * time.Millisecond)
		}
	}))
	t.Cleanup(u.Close)
	g := start(t, commented(u.URL, ""))
	roots := x509.NewCertPool()
	roots.AddCert(u.Certificate())
	g.s.runtime.Load().upstreams["main"].tls = &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: []string{"http/1.1"}}
	for range 2 { // the second on the connection that was kept
		r := g.do(call(g.key, streamBody))
		rest, n := without(t, "TLS", r.body)
		if r.status != 200 || r.err != nil || rest != event(0)+event(1)+event(2) || n < 4 {
			t.Errorf("%d %v, %d comments: %q", r.status, r.err, n, r.body)
		}
	}
}

// A connection that the watcher woke must not fail whoever uses it next.
func TestAWokenConnectionIsKeptInGoodOrder(t *testing.T) {
	t.Parallel()
	u := paused(t, map[string][]string{"x": {sseHead + chunk(event(1)), chunk(doneEvent) + lastChunk}, "": {whole(200, completion) + lastChunk}})
	g := start(t, commented(u.url, ""))
	for i := range 3 {
		if r := g.do(call(g.key, streamBody, claimed("x"))); r.err != nil || !strings.Contains(r.body, keepAlive) {
			t.Fatalf("%d: %v %q", i, r.err, r.body)
		}
		if n := u.accepted(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	}
	a, b := net.Pipe()
	defer func() { _ = b.Close() }()
	x := &exchange{s: g.s}
	if !x.attach(&upstreamConn{Conn: a, buf: make([]byte, 100)}) {
		t.Fatal("not attached")
	}
	x.life.doing.Store(int32(awaitsHead))
	x.wake(int64(time.Hour), time.Second) // and it is given back before it reads
	c := x.detach()
	go func() { _, _ = fmt.Fprint(b, "x") }()
	if err := c.fill(); err != nil || x.life.woken {
		t.Errorf("the next read: %v, woken %v", err, x.life.woken)
	}
	_ = c.Close()
}

func TestAStreamThatBeganEarlyEndsWithItsBudgetAsAnyOther(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		if c.request() != "" {
			time.Sleep(time.Second)
			c.send(sseHead + chunk(letter(0)+letter(0)))
			time.Sleep(time.Second)
			c.send(chunk(strings.Repeat(letter(0), 40)))
			c.gone()
		}
	})
	body := `{"model":"chat","max_tokens":5,"stream":true,"stream_options":{"include_usage":true},"messages":[]}`
	input := inputBound(t, body)
	m := funded(t, commented(u.url, ""), budget.Record{ID: "b", Unit: budget.Tokens, Limit: input + 5})
	key := m.spender("b")
	r := m.do(call(key, body))
	rest, n := without(t, "budget", r.body)
	if want := strings.Repeat(letter(0), 5) + tail("b", input, 5, true, 0); r.status != 200 || r.err != nil || rest != want || n < 4 {
		t.Errorf("%d %v, %d comments\n%s\nwant\n%s", r.status, r.err, n, r.body, want)
	}
	m.atRest()
	if n := m.left(key, "b"); n != 0 {
		t.Errorf("%d left, want 0", n)
	}
}

// Exchanges are pooled, and one may have ended inside an event.
func TestAStreamThatBeginsEarlyHasNothingOfTheOneBefore(t *testing.T) {
	t.Parallel()
	u := paused(t, map[string][]string{"late": {sseHead + chunk(event(1)) + chunk(doneEvent) + lastChunk}})
	g := start(t, commented(u.url, ""))
	inside := []byte("data: " + strings.Repeat("x", 2<<20))
	for range 8 {
		x := &exchange{}
		if x.meter.Next(inside); x.meter.Boundary() {
			t.Fatal("the meter is not inside an event")
		}
		g.s.exchanges.Put(x)
	}
	for range 2 {
		r := g.do(call(g.key, streamBody, claimed("late")))
		if rest, n := without(t, "late", r.body); rest != event(1)+doneEvent || n < 2 {
			t.Errorf("%d comments, %q", n, r.body)
		}
	}
}
