package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// streamBody asks for a stream with its usage, so that nothing is edited.
	streamBody = `{"model":"chat","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hello there"}]}`
	sseHead    = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
	lastChunk  = "0\r\n\r\n"
	doneEvent  = "data: [DONE]\n\n"
)

// event is one chunk of an answer, as a provider streams it.
func event(n int) string {
	return fmt.Sprintf(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"piece %d – déjà vu 😀"}}]}`+"\n\n", n)
}

// chunk frames bytes for the chunked coding.
func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func claimed(id string) string { return "X-Client-Request-Id: " + id }

// claimOf is the client's own id of a request that an upstream got.
func claimOf(raw string) string {
	_, h, _ := parts(raw)
	if v := h["x-client-request-id"]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// moments notes when something happened, by the client's id.
type moments struct {
	mu sync.Mutex
	at map[string]chan time.Time
}

func (m *moments) of(id string) chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		m.at = make(map[string]chan time.Time)
	}
	if m.at[id] == nil {
		m.at[id] = make(chan time.Time, 1)
	}
	return m.at[id]
}

func (m *moments) note(id string) { m.of(id) <- time.Now() }

// leaver is a client that leaves before its answer is whole.
type leaver struct {
	name    string
	request string // the call, but for its headers' last line
	reads   bool   // it leaves once the first event has come
	rst     bool
	http10  bool
}

// Not beside others: the package's largest tests, all begun at once, leave a processor no
// time to meet a bound of a second.
func TestTheCallOfAClientThatLeavesEndsWithinASecond(t *testing.T) {
	const each = 100
	leavers := []leaver{
		{name: "before-headers", request: plainBody},
		{name: "before-headers-rst", request: plainBody, rst: true},
		{name: "silent-stream", request: streamBody, reads: true},
		{name: "silent-stream-rst", request: streamBody, reads: true, rst: true},
		{name: "busy-stream", request: streamBody, reads: true},
		{name: "busy-stream-rst", request: streamBody, reads: true, rst: true},
		{name: "http10-stream", request: streamBody, reads: true, http10: true},
	}
	var came, gone moments
	u := scripted(t, func(c *callee) { leftUpstream(c, &came, &gone) })
	g := start(t, plainConfig(u.url))
	for _, l := range leavers {
		var wait sync.WaitGroup
		var mu sync.Mutex
		var slowest time.Duration
		ended := 0
		for i := range each {
			wait.Go(func() {
				id := fmt.Sprintf("%s/%d", l.name, i)
				at := l.leave(g, id, i, &came)
				select {
				case when := <-gone.of(id):
					mu.Lock()
					defer mu.Unlock()
					slowest = max(slowest, when.Sub(at))
					if when.Sub(at) <= time.Second {
						ended++
					}
				case <-time.After(patience):
					t.Errorf("%s: the upstream call goes on", id)
				}
			})
		}
		wait.Wait()
		t.Logf("%-20s ended within 1 s: %d of %d, the slowest in %v", l.name, ended, each, slowest.Round(time.Millisecond))
		if ended != each {
			t.Errorf("%s: %d of %d ended within 1 s", l.name, ended, each)
		}
	}
	all := each * len(leavers)
	eventually(t, "every exchange is free", func() bool { return g.s.open.Load() == 0 })
	if n := g.metric("keeptrusts_gateway_requests_total", "status=499", "provider=main", "model=chat"); n != float64(all) {
		t.Errorf("requests_total{status=499} is %v, want %d", n, all)
	}
	if n := g.metric("keeptrusts_gateway_client_closed_requests_total"); n != float64(all) {
		t.Errorf("client_closed_requests_total is %v, want %d", n, all)
	}
	logged := 0
	for _, l := range g.log.lines() {
		if l["code"] == codeClientLeft && l["status"] == float64(499) {
			logged++
		}
	}
	if logged != all {
		t.Errorf("%d log lines say that the client left, want %d", logged, all)
	}
}

// leftUpstream answers as the name in the request's claim says and notes when the
// gateway closes the connection.
func leftUpstream(c *callee, came, gone *moments) {
	raw := c.request()
	if raw == "" {
		return
	}
	id := claimOf(raw)
	came.note(id)
	if !strings.HasPrefix(id, "before") {
		c.send(sseHead + chunk(event(0)))
	}
	if strings.HasPrefix(id, "busy") {
		go func() {
			for range 500 {
				if _, err := c.Write([]byte(chunk(event(1)))); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	c.gone()
	gone.note(id)
}

// leave makes the call, goes away at some moment of it, and says when.
func (l *leaver) leave(g *gateway, id string, i int, came *moments) time.Time {
	w := g.dial()
	raw := call(g.key, l.request, claimed(id))
	if l.http10 {
		raw = strings.Replace(raw, "HTTP/1.1", "HTTP/1.0", 1)
	}
	if i%2 == 1 { // bytes that nobody reads must not hide the leaving
		raw += get("/healthz", "") + "GET /half"
	}
	w.send(raw)
	receive(g.t, id, came.of(id))
	if l.reads {
		res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
		if err != nil {
			g.t.Errorf("%s: %v", id, err)
			return time.Now()
		}
		b := make([]byte, len(event(0)))
		if _, err := res.Body.Read(b); err != nil {
			g.t.Errorf("%s: %v", id, err)
		}
	}
	time.Sleep(time.Duration(i%5) * 80 * time.Millisecond) // at any age
	if l.rst {
		_ = w.SetLinger(0)
	}
	at := time.Now()
	_ = w.Close()
	return at
}

// A client that sends its FIN with the body and waits is taken for one that
// left: its answer may not be whole, and nobody is charged for it.
func TestAClientThatLeavesWhileItsBodyIsReadIsForgotten(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	for _, rst := range []bool{false, true} {
		w := g.dial()
		w.send(strings.Replace(call(g.key, plainBody), "Content-Length: ", "Content-Length: 9", 1))
		eventually(t, "the request is open", func() bool { return g.s.open.Load() == 1 || g.s.conns.Load() == 1 })
		if rst {
			_ = w.SetLinger(0)
		}
		_ = w.Close()
		eventually(t, "the connection is gone", func() bool { return g.s.conns.Load() == 0 && g.s.open.Load() == 0 })
	}
	if n := len(u.seen()); n != 0 {
		t.Errorf("%d calls were forwarded of bodies that never came", n)
	}
}
