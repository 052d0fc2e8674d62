package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/record"
)

// panicking is a sink that panics while on is set.
type panicking struct{ on atomic.Bool }

func (p *panicking) Write(*record.Record) error {
	if p.on.Load() {
		panic("the sink's fault: " + targetSecret)
	}
	return nil
}

func (p *panicking) Close() error { return nil }

func TestAFaultOfOursEndsOneRequestAndNoMore(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	var org, ready atomic.Bool
	var sink panicking
	g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {request_body: 1MiB, ", 1), func(o *Options) {
		o.Records = &sink
		o.Org = func() string {
			if org.Load() {
				panic(errors.New("org: " + targetSecret))
			}
			return testOrg
		}
		o.Ready = func() error {
			if ready.Load() {
				panic(io.EOF)
			}
			return nil
		}
	})
	faults := 0
	fault := func(on *atomic.Bool, raw string) {
		t.Helper()
		on.Store(true)
		r := g.do(raw)
		on.Store(false)
		faults++
		if r.status != 500 || r.problem().Code != codeInternal || r.problem().Type != kindAPI || !r.close {
			t.Errorf("%.30q: %d %q close %v", raw, r.status, r.body, r.close)
		}
		if strings.Contains(r.body, "org") || strings.Contains(r.body, targetSecret) {
			t.Errorf("the fault's content is told: %q", r.body)
		}
		if l := g.line(r.header.Get("X-Request-Id")); l["code"] != codeInternal || l["status"] != 500.0 {
			t.Errorf("logged as %v", l)
		}
	}
	fault(&org, call(g.key, plainBody))
	fault(&org, get("/v1/models", g.key))
	fault(&org, strings.Split(call(g.key, plainBody, "Expect: 100-continue"), "{")[0])
	fault(&ready, get("/readyz", ""))

	// The books are kept when the answer is made: it stands.
	sink.on.Store(true)
	for _, raw := range []string{call(g.key, plainBody), call("", plainBody), get("/v1/models", g.key)} {
		if r := g.do(raw); r.status != 200 && r.status != 401 {
			t.Errorf("a fault of the sink's: %d %q", r.status, r.body)
		}
		faults++
	}
	sink.on.Store(false)
	eventually(t, "all faults are counted", func() bool { return g.metric("keeptrusts_gateway_panics_total") == float64(faults) })
	if r := g.do(call(g.key, plainBody)); r.status != 200 {
		t.Errorf("the next call: %d", r.status)
	}
}

// faultyConn is an upstream's connection that answers with a stream and then
// panics.
type faultyConn struct {
	net.Conn
	head   string
	closed atomic.Bool
}

func (f *faultyConn) Write(p []byte) (int, error) { return len(p), nil }
func (f *faultyConn) Close() error                { f.closed.Store(true); return nil }
func (f *faultyConn) Read(p []byte) (int, error) {
	if f.head == "" {
		panic("inside the stream")
	}
	n := copy(p, f.head)
	f.head = f.head[n:]
	return n, nil
}

func TestAFaultInsideAStreamCutsIt(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	for i, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		faulty := &faultyConn{head: sseHead + chunk(event(1))}
		up := g.s.runtime.Load().upstreams["main"]
		up.mu.Lock()
		up.idle = append(up.idle, &upstreamConn{Conn: faulty, buf: make([]byte, upstreamBuffer), idle: time.Now().Add(time.Minute)})
		up.mu.Unlock()
		r := g.do(strings.Replace(call(g.key, streamBody), "HTTP/1.1", version, 1))
		if r.status != 200 || version == "HTTP/1.1" && r.err == nil || strings.Contains(r.body, "[DONE]") {
			t.Errorf("%s: %d %q %v", version, r.status, r.body, r.err)
		}
		if l := g.line(r.header.Get("X-Request-Id")); l["code"] != codeInternal {
			t.Errorf("%s: logged as %v", version, l)
		}
		if !faulty.closed.Load() {
			t.Errorf("%s: the upstream's connection is open", version)
		}
		if n := g.metric("keeptrusts_gateway_panics_total"); n != float64(i+1) {
			t.Errorf("%s: %v faults are counted, want %d", version, n, i+1)
		}
	}
	if r := g.do(call(g.key, plainBody)); r.status != 200 {
		t.Errorf("the next call: %d", r.status)
	}
}

func overloaded(t *testing.T, what string, r reply) {
	t.Helper()
	if p := r.problem(); r.status != 503 || p.Code != codeOverloaded || p.Type != kindAPI || r.header.Get("Retry-After") == "" || r.header.Get("X-Request-Id") == "" {
		t.Errorf("%s: %d %v %q", what, r.status, r.header, r.body)
	}
}

func TestBeyondALimitIs503AndBelowItServesAgain(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			if claimOf(raw) != "held" {
				c.send(whole(200, completion))
				continue
			}
			c.send(sseHead + chunk(event(1)))
			<-release
			c.send(chunk(doneEvent) + lastChunk)
		}
	})
	served := func(g *gateway) func() bool {
		return func() bool { return g.do(call(g.key, plainBody)).status == 200 }
	}
	t.Run("connections", func(t *testing.T) {
		g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {connections: 4, ", 1))
		var held []*wire
		for range 4 {
			w := g.dial()
			if !w.alive() {
				t.Fatal("a connection within the limit is not served")
			}
			held = append(held, w)
		}
		for range 3 {
			overloaded(t, "one connection too many", g.do(call(g.key, plainBody)))
		}
		_ = held[0].Close()
		eventually(t, "a place is free", served(g))
		if !held[1].alive() {
			t.Error("a connection that was there suffered")
		}
	})
	t.Run("streams", func(t *testing.T) {
		g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {streams: 2, ", 1))
		var wait sync.WaitGroup
		for range 2 {
			wait.Go(func() {
				if r := g.do(call(g.key, streamBody, claimed("held"))); r.err != nil || r.body != event(1)+doneEvent {
					t.Errorf("a stream within the limit: %v %q", r.err, r.body)
				}
			})
		}
		eventually(t, "two streams are open", func() bool { return g.s.streams.Load() == 2 })
		overloaded(t, "one call too many", g.do(call(g.key, plainBody)))
		if r := g.do(get("/v1/models", g.key)); r.status != 200 {
			t.Errorf("what is no call suffers: %d", r.status)
		}
		close(release)
		wait.Wait()
		eventually(t, "a place is free", served(g))
	})
	t.Run("bodies", func(t *testing.T) {
		g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {request_body: 150KiB, bodies: 200KiB, ", 1))
		large := `{"model":"chat","messages":[{"role":"user","content":"` + strings.Repeat("x", 140<<10) + `"}]}`
		raw := call(g.key, large)
		w := g.dial()
		w.send(raw[:len(raw)-10])
		eventually(t, "a body is held", func() bool { return g.s.bodies.Load() > 100<<10 })
		overloaded(t, "one body too many", g.do(raw))
		if r := g.do(call(g.key, plainBody)); r.status != 200 {
			t.Errorf("a small body suffers: %d %q", r.status, r.body)
		}
		w.send(raw[len(raw)-10:])
		if r := w.must(); r.status != 200 {
			t.Errorf("the body within the limit: %d %q", r.status, r.body)
		}
		eventually(t, "no body is held", func() bool { return g.s.bodies.Load() == 0 })
		chunked := "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer " + g.key + "\r\nTransfer-Encoding: chunked\r\n\r\n"
		for name, raw := range map[string]string{
			"a length": call(g.key, strings.Repeat(" ", 151<<10)), "chunks": chunked + strings.Repeat(chunk(strings.Repeat(" ", 1000)), 155),
		} {
			if r := g.do(raw); r.status != 413 || r.problem().Code != codeBodyTooLarge || !r.close {
				t.Errorf("beyond request_body with %s: %d %q", name, r.status, r.body)
			}
		}
		eventually(t, "no body is held", func() bool { return g.s.bodies.Load() == 0 })
	})
}

func TestARequestThatComesTooSlowlyIsRefused(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {header_read: 400ms, body_read: 400ms, client_idle: 700ms, ", 1))
	raw := call(g.key, plainBody)
	large := call(g.key, `{"model":"chat","pad":"`+strings.Repeat("x", 30<<10)+`"}`)
	tests := []struct {
		name, raw string
		trickle   bool // a byte every 50 ms: slow, but never silent
		answer    bool
	}{
		{name: "nothing at all"},
		{name: "half a request line", raw: "POST /v1/ch", answer: true},
		{name: "half a head", raw: raw[:60], answer: true},
		{name: "a trickling head", raw: raw[:60], trickle: true, answer: true},
		{name: "no body", raw: raw[:strings.Index(raw, "{")], answer: true},
		{name: "half a body", raw: raw[:len(raw)-10], answer: true},
		{name: "a trickling body", raw: raw[:len(raw)-40], trickle: true, answer: true},
		{name: "half a large body", raw: large[:20<<10], answer: true},
	}
	var wait sync.WaitGroup
	for _, test := range tests {
		wait.Go(func() {
			w := g.dial()
			w.send(test.raw)
			began := time.Now()
			if test.trickle {
				go func() {
					for range 60 {
						time.Sleep(50 * time.Millisecond)
						if _, err := w.Write([]byte("x")); err != nil {
							return
						}
					}
				}()
			}
			r, ok := w.read()
			took := time.Since(began)
			if took < 400*time.Millisecond || took > 3*time.Second {
				t.Errorf("%s: ended after %v", test.name, took)
			}
			if ok != test.answer || ok && (r.status != 408 || r.problem().Code != codeRequestTimeout || !r.close) {
				t.Errorf("%s: %v %d %q", test.name, ok, r.status, r.body)
			}
		})
	}
	wait.Go(func() {
		w := g.dial()
		if !w.alive() {
			t.Error("a prompt request is not served")
		}
		time.Sleep(500 * time.Millisecond) // longer than header_read, less than client_idle
		if !w.alive() {
			t.Error("a connection that lay idle within client_idle is not served")
		}
		if !w.closed() {
			t.Error("a connection idle beyond client_idle stays open")
		}
	})
	wait.Wait()
	if n := len(u.seen()); n != 0 {
		t.Errorf("%d calls were forwarded", n)
	}
}

func openFiles(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// goroutines counts those at work: the HTTP server's workers wait for 10 s before
// they end.
func goroutines() int {
	b := make([]byte, 8<<20)
	n := 0
	for _, stack := range strings.Split(string(b[:goruntime.Stack(b, true)]), "\n\n") {
		if !strings.Contains(stack, "workerPool") {
			n++
		}
	}
	return n
}

// restIdle closes what lies idle in the pools, which is no leak.
func restIdle(g *gateway) {
	for _, up := range g.s.runtime.Load().upstreams {
		for c := up.takeIdle(time.Now()); c != nil; c = up.takeIdle(time.Now()) {
			_ = c.Close()
		}
	}
}

// Not parallel: it counts what the whole process holds.
func TestFilesAndGoroutinesComeBackAfterMixedExchanges(t *testing.T) {
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			switch kind := claimOf(raw); kind {
			case "cut":
				c.send(sseHead + chunk(event(1)) + "ff\r\ndata")
				return
			case "reset":
				c.send(sseHead + chunk(event(1)))
				_ = c.Conn.(*net.TCPConn).SetLinger(0)
				return
			case "malformed":
				c.send(sseHead + "zz\r\n")
				c.gone()
				return
			case "endless":
				c.send(sseHead + chunk(event(1)))
				c.gone()
				return
			case "error":
				c.send(whole(500, `{"error":{}}`))
			case "stream":
				c.send(sseHead + chunk(event(1)) + chunk(doneEvent) + lastChunk)
			default:
				c.send(whole(200, completion))
			}
		}
	})
	g := start(t, plainConfig(u.url))
	kinds := []string{"whole", "stream", "cut", "reset", "malformed", "endless", "error", "refused", "half", "http10"}
	round := func(n int) {
		var wait sync.WaitGroup
		for worker := range 20 {
			wait.Go(func() {
				for i := range n / 20 {
					mixed(g, kinds[(worker+i)%len(kinds)])
				}
			})
		}
		wait.Wait()
		eventually(t, "every exchange is free", func() bool { return g.s.open.Load() == 0 && g.s.conns.Load() == 0 })
		restIdle(g)
	}
	round(100)
	files, running := openFiles(t), goroutines()
	eventually(t, "the base is at rest", func() bool {
		time.Sleep(100 * time.Millisecond)
		f, n := openFiles(t), goroutines()
		rest := f >= files && n >= running
		files, running = f, n
		return rest
	})
	round(500)
	var f, n int
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		f, n = openFiles(t), goroutines()
		if f <= files+5 && n <= running+5 || time.Now().After(end) {
			break
		}
	}
	t.Logf("files %d → %d, goroutines %d → %d after 500 exchanges", files, f, running, n)
	if f > files+5 || n > running+5 {
		b := make([]byte, 1<<20)
		t.Errorf("not back within %v\n%s", patience, b[:goruntime.Stack(b, true)])
	}
}

// mixed makes one exchange of a kind and closes its connection.
func mixed(g *gateway, kind string) {
	w := g.dial()
	defer func() { _ = w.Close() }()
	switch kind {
	case "refused":
		w.send(call("kt_live_wrong", plainBody))
	case "half":
		w.send(call(g.key, plainBody)[:150])
		return
	case "whole", "error":
		w.send(call(g.key, plainBody, claimed(kind)))
	case "http10":
		w.send(strings.Replace(call(g.key, streamBody, claimed("stream")), "HTTP/1.1", "HTTP/1.0", 1))
	default:
		w.send(call(g.key, streamBody, claimed(kind)))
	}
	if kind == "endless" { // and this client leaves
		if _, err := http.ReadResponse(w.r, &http.Request{Method: "POST"}); err != nil {
			g.t.Errorf("%s: %v", kind, err)
		}
		return
	}
	if r, ok := w.read(); !ok {
		g.t.Errorf("%s: %s", kind, fmt.Sprint(r))
	}
}
