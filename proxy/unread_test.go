package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// accepted is a connection of a client's, and the client.
func accepted(t *testing.T, s *Server) (*conn, *net.TCPConn) {
	t.Helper()
	client, tc := tcpPair(t)
	c := &conn{TCPConn: tc, s: s}
	if err := c.now.of(tc); err != nil {
		t.Fatal(err)
	}
	return c, client
}

// Calls that take the shortcut are waited for unread: what comes while one is served
// must end that wait all the same.
func TestACallThatComesWhileAnotherIsServedIsNotMissed(t *testing.T) {
	t.Parallel()
	came, answer := make(chan bool), make(chan bool)
	u := scripted(t, func(c *callee) {
		for c.request() != "" {
			came <- true
			<-answer
			c.send(whole(200, completion))
		}
	})
	g := start(t, plainConfig(u.url))
	w, raw := g.dial(), call(g.key, plainBody)
	for i := range 4 {
		w.send(raw)
		receive(t, "a call", came)
		w.send(raw)
		time.Sleep(10 * time.Millisecond)
		give(t, "its answer", answer, true)
		receive(t, "the call behind it", came)
		give(t, "its answer", answer, true)
		for range 2 {
			if r := w.must(); r.status != 200 {
				t.Fatalf("round %d: %d %s", i, r.status, r.body)
			}
		}
	}
}

func TestAnEndThatComesWithACallClosesTheConnection(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	raw := call(g.key, plainBody)
	for before := range 3 {
		w := g.dial()
		for range before {
			if w.send(raw); w.must().status != 200 {
				t.Fatal("not served")
			}
		}
		w.send(raw)
		_ = w.CloseWrite()
		if r := w.must(); r.status != 200 {
			t.Errorf("%d calls before: %d %s", before, r.status, r.body)
		}
		if !w.closed() {
			t.Errorf("%d calls before: the connection stays", before)
		}
	}
}

// Such an end is no event of its own. The watcher looks for it, once a wait.
func TestTheWatcherLooksForAnEndThatNoEventTellsOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		do     func(w *wire)
		closed bool
	}{
		{"nothing came", func(*wire) {}, false},
		{"bytes came", func(w *wire) { w.send("P") }, false},
		{"the client closed", func(w *wire) { _ = w.CloseWrite() }, true},
	} {
		g := start(t, plainConfig("http://127.0.0.1:1"))
		c, client := accepted(t, g.s)
		tt.do(&wire{t: t, TCPConn: client})
		time.Sleep(20 * time.Millisecond)
		if c.now.endedUnread() {
			t.Errorf("%s: looked at what is read", tt.name)
		}
		for wait := range 2 {
			c.now.unread.Store(waitsUnread)
			if c.now.endedUnread() {
				t.Errorf("%s: wait %d is looked at before it has lasted", tt.name, wait)
			}
			if c.now.endedUnread() != tt.closed {
				t.Errorf("%s: wait %d: closed %v", tt.name, wait, !tt.closed)
			}
			if c.now.endedUnread() {
				t.Errorf("%s: wait %d is looked at twice", tt.name, wait)
			}
		}
	}
}

func TestAnIdleConnectionEndsHoweverItIsWaitedFor(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url), func(o *Options) { o.Config.Limits.ClientIdle = 600 * time.Millisecond })
	w := g.dial()
	for range 3 {
		if w.send(call(g.key, plainBody)); w.must().status != 200 {
			t.Fatal("not served")
		}
	}
	began := time.Now()
	if !w.closed() {
		t.Error("the connection stays")
	}
	if d := time.Since(began); d < 500*time.Millisecond {
		t.Errorf("ended after %v", d)
	}
}

// fasthttp has seen none of the calls that took the shortcut, and answers a first
// request that it can't read.
func TestAClientThatLeavesAfterItsCallsAskedForNothing(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	for name, leave := range map[string]func(w *wire){
		"closes": func(w *wire) { _ = w.Close() },
		"resets": func(w *wire) { _ = w.SetLinger(0); _ = w.Close() },
	} {
		w := g.dial()
		for range 2 {
			if w.send(call(g.key, plainBody)); w.must().status != 200 {
				t.Fatal("not served")
			}
		}
		leave(w)
		eventually(t, "the connection that "+name+" is gone", func() bool { return g.s.conns.Load() == 0 })
	}
	if lines := g.log.lines(); len(lines) != 4 {
		t.Errorf("%d requests for four calls: %v", len(lines), lines)
	}
}

// A drain may close a connection whose call was served and whose answer fasthttp was
// to write.
func TestACallThatFasthttpNeverTookIsAccountedFor(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(201, completion))
	g := start(t, plainConfig(u.url))
	c, got := readOnce(t, g, call(g.key, plainBody))
	if got != shownHead || g.s.open.Load() != 1 {
		t.Fatalf("fasthttp sees %q, %d exchanges are open", got, g.s.open.Load())
	}
	g.s.conns.take(0, 1, 1)
	_ = c.Close()
	if n := g.s.open.Load(); n != 0 {
		t.Errorf("%d exchanges are open", n)
	}
	lines := g.log.lines()
	if len(lines) != 1 || lines[0]["status"] != 499.0 || lines[0]["input_tokens"] == nil {
		t.Errorf("logged: %v", lines)
	}
	if g.metric("keeptrusts_gateway_client_closed_requests_total") != 1 {
		t.Error("not counted as left")
	}
}

func TestAFaultInACallThatTakesTheShortcutIsAnswered(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	var n atomic.Int64
	g := start(t, plainConfig(u.url), func(o *Options) {
		o.Org = func() string {
			if n.Add(1) == 2 {
				panic("a fault of the test's")
			}
			return testOrg
		}
	})
	w := g.dial()
	for i, want := range []int{200, 500} {
		w.send(call(g.key, plainBody))
		if r := w.must(); r.status != want {
			t.Errorf("call %d: %d %s", i, r.status, r.body)
		}
	}
	if !w.closed() {
		t.Error("the connection stays")
	}
	if g.metric("keeptrusts_gateway_panics_total") != 1 || !strings.Contains(g.log.text(), "unread_test.go") {
		t.Error("the panic is not told, or not with its stack")
	}
}

// An answer that the client's socket does not take at once is written all the same.
func TestAnAnswerOfAShortcutIsWrittenWhole(t *testing.T) {
	t.Parallel()
	g := start(t, plainConfig("http://127.0.0.1:1"))
	c, client := accepted(t, g.s)
	large := strings.Repeat("0123456789abcdef", 1<<20)
	c.short.answer = []byte(large)
	got := make(chan string, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		b, _ := io.ReadAll(client)
		got <- string(b)
	}()
	var taken bool
	_ = c.now.raw.Read(func(fd uintptr) bool {
		taken = c.answer(fd)
		return true
	})
	_ = c.TCPConn.Close()
	if b := receive(t, "the answer", got); !taken || b != large {
		t.Errorf("taken %v, %d bytes of %d", taken, len(b), len(large))
	}
	if cap(c.short.answer) > keptAnswer {
		t.Errorf("%d bytes are kept", cap(c.short.answer))
	}
}

func TestTheWatcherEndsAWaitWhosePeerHasClosed(t *testing.T) {
	t.Parallel()
	g := start(t, plainConfig("http://127.0.0.1:1"))
	c, client := accepted(t, g.s)
	c.limits.read.Store(1 << 60)
	g.s.watcher.addConn(c)
	defer g.s.watcher.removeConn(c)
	c.now.unread.Store(waitsUnread)
	time.Sleep(3 * watchEvery)
	if c.limits.expired.Load() {
		t.Error("an open one was ended")
	}
	_ = client.CloseWrite()
	c.now.unread.Store(waitsUnread)
	eventually(t, "the wait ends", c.limits.expired.Load)
	if _, err := c.TCPConn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read: %v", err)
	}
}

// A read that fills its buffer may have left something behind, of which no event tells.
func TestWhatAFullReadLeavesBehindIsServed(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	size := g.s.http.ReadBufferSize
	short := call(g.key, plainBody)
	padded := func(n int) string {
		return call(g.key, `{"model":"chat","messages":[{"role":"user","content":"`+strings.Repeat("x", n)+`"}]}`)
	}
	full := padded(size - len(padded(10_000)) + 10_000)
	if len(full) != size {
		t.Fatalf("a call of %d bytes for a buffer of %d", len(full), size)
	}
	w := g.dial()
	if w.send(short); w.must().status != 200 {
		t.Fatal("not served")
	}
	for range 3 {
		w.send(full + short)
		for range 2 {
			if r := w.must(); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
		}
	}
}

// The watcher looks after every deadline: it may not wait for whoever holds a connection.
func TestAResetWaitsForNobody(t *testing.T) {
	t.Parallel()
	c, _ := accepted(t, nil)
	held, done := make(chan bool), make(chan bool)
	defer close(done)
	go func() { _ = c.now.raw.Control(func(uintptr) { held <- true; <-done }) }()
	receive(t, "the descriptor", held)
	was := make(chan bool)
	go func() { c.reset(); close(was) }()
	select {
	case <-was:
	case <-time.After(patience):
		t.Error("it waits")
	}
}

// A request that the upstream's socket does not take at once is written all the same.
func TestALargeRequestIsWrittenWhole(t *testing.T) {
	t.Parallel()
	read := make(chan bool)
	u := scripted(t, func(c *callee) {
		<-read
		for c.request() != "" {
			c.send(whole(200, completion))
		}
	})
	g := start(t, plainConfig(u.url), func(o *Options) { o.Config.Limits.RequestBody = 64 << 20 })
	body := `{"model":"chat","messages":[{"role":"user","content":"` + strings.Repeat("0123456789abcdef", 512<<10) + `"}]}`
	w := g.dial()
	go w.send(call(g.key, body))
	time.AfterFunc(300*time.Millisecond, func() { close(read) })
	if r := w.must(); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if seen := u.seen(); len(seen) != 1 || !strings.HasSuffix(seen[0], "\r\n\r\n"+body) {
		t.Errorf("upstream saw %d calls", len(seen))
	}
}

// A drain looks once at who waits. A wait that begins meanwhile must not be one that it
// has missed.
func TestAWaitThatBeginsInADrainIsNone(t *testing.T) {
	t.Parallel()
	g := start(t, plainConfig("http://127.0.0.1:1"))
	c, _ := accepted(t, g.s)
	c.asked = true
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	g.s.draining.Store(lameDuck)
	defer g.s.draining.Store(serving)
	if n, err := c.serve(make([]byte, 10)); n != 0 || err != nil {
		t.Errorf("it waits: %d %v", n, err)
	}
}

func TestADrainEndsConnectionsThatWaitForAnotherCall(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, limited(u.url, "lame_duck: 0s, drain: 1s"))
	var all []*wire
	for calls := range 3 {
		w := g.dial()
		for range calls + 1 {
			if w.send(call(g.key, plainBody)); w.must().status != 200 {
				t.Fatal("not served")
			}
		}
		all = append(all, w)
	}
	g.waitsForCalls(len(all))
	if err := g.s.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	for calls, w := range all {
		_ = w.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if !w.closed() {
			t.Errorf("the connection of %d calls outlives the drain", calls+1)
		}
	}
}

// An upstream may end a connection that lies idle and read on. Of that end no event tells
// the call that comes next.
func TestAnUpstreamThatEndedBeforeTheCallIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		if c.request() != "" {
			c.send(whole(200, completion))
			_ = c.Conn.(*net.TCPConn).CloseWrite()
			c.gone()
		}
	})
	g := start(t, plainConfig(u.url))
	w := g.dial()
	for range 2 {
		if w.send(call(g.key, plainBody)); w.must().status != 200 {
			t.Fatal("not served")
		}
		up := g.s.runtime.Load().upstreams["main"]
		eventually(t, "a connection that lies idle", func() bool { up.mu.Lock(); defer up.mu.Unlock(); return len(up.idle) == 1 })
		time.Sleep(20 * time.Millisecond) // the end has come
		up.mu.Lock()
		up.idle[0].idle = time.Now().Add(time.Hour) // it is never old enough to be looked at
		up.mu.Unlock()
		w.send(call(g.key, plainBody))
		if r := w.must(); r.status != 502 || r.problem().Code != codeUpstreamError {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
}

// waitsForCalls waits until n connections wait for another request.
func (g *gateway) waitsForCalls(n int) {
	g.t.Helper()
	eventually(g.t, "connections wait", func() bool {
		g.s.watcher.conns.mu.Lock()
		defer g.s.watcher.conns.mu.Unlock()
		waits := 0
		for c := range g.s.watcher.conns.all {
			if c.now.unread.Load() != notUnread {
				waits++
			}
		}
		return waits >= n
	})
}

// A connection's descriptor is held while it is served, and closing waits for it.
func TestADrainWaitsForNoConnectionThatIsHeld(t *testing.T) {
	t.Parallel()
	g := start(t, limited("http://127.0.0.1:1", "lame_duck: 0s, drain: 1s"))
	w := g.dial()
	if !w.alive() {
		t.Fatal("not served")
	}
	g.waitsForCalls(1)
	var c *conn
	g.s.watcher.conns.mu.Lock()
	for c = range g.s.watcher.conns.all {
	}
	g.s.watcher.conns.mu.Unlock()
	held, done := make(chan bool), make(chan bool)
	defer close(done)
	go func() { _ = c.now.raw.Control(func(uintptr) { held <- true; <-done }) }()
	receive(t, "the descriptor", held)
	drained := make(chan error, 1)
	go func() { drained <- g.s.Drain(t.Context()) }()
	ends(t, g, drained, patience)
}
