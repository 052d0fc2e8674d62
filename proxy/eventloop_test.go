package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// waiting are the connections whose streams wait in an event loop.
func (g *gateway) waiting() (all []*looped) {
	g.s.loops.mu.Lock()
	defer g.s.loops.mu.Unlock()
	for _, loop := range g.s.loops.all {
		loop.mu.Lock()
		for _, l := range loop.byFD {
			if l == nil {
				continue
			}
			l.mu.Lock()
			if l.waits {
				all = append(all, l)
			}
			l.mu.Unlock()
		}
		loop.mu.Unlock()
	}
	return all
}

// inLoops waits until so many streams wait in a loop.
func (g *gateway) inLoops(n int) {
	g.t.Helper()
	eventually(g.t, "streams in a loop", func() bool { return len(g.waiting()) == n })
}

// emptied waits until no stream is counted in a loop.
func (g *gateway) emptied() {
	g.t.Helper()
	eventually(g.t, "no stream in a loop", func() bool {
		g.s.loops.mu.Lock()
		defer g.s.loops.mu.Unlock()
		for _, loop := range g.s.loops.all {
			if loop.streams != 0 {
				return false
			}
		}
		return len(g.s.loops.all) > 0
	})
	if n := len(g.waiting()); n != 0 {
		g.t.Errorf("%d wait still", n)
	}
}

// stepped sends each piece when it is let to.
func stepped(step <-chan struct{}, pieces []string) func(c *callee) {
	return func(c *callee) {
		if c.request() == "" {
			return
		}
		for _, p := range pieces {
			<-step
			c.send(p)
		}
		<-step
		_ = c.Close()
	}
}

func TestAStreamWaitsInALoopAndPassesWhole(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "loop")
	body := event(1) + event(2) + event(3) + event(4) + doneEvent
	chunks := []string{sseHead, chunk(event(1)), chunk(event(2)), chunk(event(3)) + chunk(event(4))[:20], chunk(event(4))[20:], chunk(doneEvent) + lastChunk}
	parted := func(head string) []string {
		return []string{head, body[:30], body[30:200], body[200 : len(body)-9], body[len(body)-9:]}
	}
	for name, tc := range map[string]struct {
		pieces  []string
		version string
		tls     bool
	}{
		"chunks":               {chunks, "HTTP/1.1", false},
		"chunks, to HTTP/1.0":  {chunks, "HTTP/1.0", false},
		"chunks over TLS":      {chunks, "HTTP/1.1", true},
		"a length":             {parted(sizedHead("text/event-stream", len(body))), "HTTP/1.1", false},
		"until close":          {parted("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"), "HTTP/1.1", false},
		"until close over TLS": {parted("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"), "HTTP/1.1", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			step := make(chan struct{})
			serve := stepped(step, tc.pieces)
			var g *gateway
			if tc.tls {
				cert := a.of("127.0.0.1", time.Now().Add(time.Hour))
				u := secured(t, "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, serve)
				g = start(t, trusting(u.url, trust(t, t.TempDir(), a)))
			} else {
				g = start(t, plainConfig(scripted(t, serve).url))
			}
			w := g.dial()
			w.send(strings.Replace(call(g.key, streamBody), "HTTP/1.1", tc.version, 1))
			for i := range tc.pieces {
				give(t, "a piece", step, struct{}{})
				if i < len(tc.pieces)-1 {
					g.inLoops(1)
				}
			}
			close(step)
			r := w.must()
			if r.status != 200 || r.err != nil || r.body != body {
				t.Errorf("%d %v %q", r.status, r.err, r.body)
			}
			g.emptied()
		})
	}
}

// A client that takes nothing must not hold up the streams beside it.
func TestAClientThatTakesNothingLeavesTheLoop(t *testing.T) {
	t.Parallel()
	const events = 4000
	big := "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" + strings.Repeat("x", 4<<10) + "\"}}]}\n\n"
	step := make(chan struct{})
	u := scripted(t, func(c *callee) {
		raw := c.request()
		if raw == "" {
			return
		}
		if claimOf(raw) == "calm" {
			c.send(sseHead)
			for range 20 {
				<-step
				c.send(chunk(event(1)))
			}
			c.send(chunk(doneEvent) + lastChunk)
			return
		}
		c.send(sseHead)
		for range events {
			c.send(chunk(big))
		}
		c.send(chunk(doneEvent) + lastChunk)
	})
	g := start(t, limited(u.url, "client_idle: 60s, lame_duck: 0s"))
	stuck, calm := g.dial(), g.dial()
	stuck.send(call(g.key, streamBody, claimed("stuck")))
	calm.send(call(g.key, streamBody, claimed("calm")))
	eventually(t, "a write that waits", func() bool {
		n := 0
		g.s.watcher.mu.Lock()
		for x := g.s.watcher.root.next; x != &g.s.watcher.root; x = x.life.next {
			if phase(x.life.doing.Load()) == writesClient {
				n++
			}
		}
		g.s.watcher.mu.Unlock()
		return n == 1 && len(g.waiting()) == 1
	})
	for range 20 {
		give(t, "an event", step, struct{}{})
	}
	if r := calm.must(); r.err != nil || r.body != strings.Repeat(event(1), 20)+doneEvent {
		t.Errorf("beside it: %v %q", r.err, r.body)
	}
	if r := stuck.must(); r.err != nil || r.body != strings.Repeat(big, events)+doneEvent {
		t.Errorf("%v, %d bytes, want %d", r.err, len(r.body), events*len(big)+len(doneEvent))
	}
	g.emptied()
}

// Here the loop itself meets the client that takes no more, in the middle of a write.
func TestWhatAClientDoesNotTakeAtOnceIsNotLost(t *testing.T) {
	t.Parallel()
	big := "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" + strings.Repeat("x", 12<<10) + "\"}}]}\n\n"
	step := make(chan bool)
	u := scripted(t, func(c *callee) {
		if c.request() == "" {
			return
		}
		c.send(sseHead)
		for <-step {
			c.send(chunk(big))
		}
		c.send(chunk(doneEvent) + lastChunk)
	})
	g := start(t, limited(u.url, "client_idle: 60s, lame_duck: 0s"))
	w := g.dial()
	w.send(call(g.key, streamBody))
	g.inLoops(1)
	g.s.watcher.mu.Lock()
	_ = g.s.watcher.root.next.client.SetWriteBuffer(64 << 10) // else it grows to megabytes
	g.s.watcher.mu.Unlock()
	n := 0
	for stuck := false; !stuck; n++ {
		g.inLoops(1)
		give(t, "an event", step, true)
		for looks := 0; looks < 10 && !stuck; looks++ {
			time.Sleep(time.Millisecond) // a write that takes longer waits
			g.s.watcher.mu.Lock()
			stuck = phase(g.s.watcher.root.next.life.doing.Load()) == writesClient
			g.s.watcher.mu.Unlock()
			if !stuck && len(g.waiting()) == 1 {
				break
			}
		}
		if n > 2000 {
			t.Fatal("the client takes everything unread")
		}
	}
	close(step)
	if r := w.must(); r.err != nil || r.body != strings.Repeat(big, n)+doneEvent {
		t.Errorf("%v, %d bytes, want %d events of %d", r.err, len(r.body), n, len(big))
	}
}

func TestAMalformedChunkInALoopEndsTheStream(t *testing.T) {
	t.Parallel()
	step := make(chan struct{})
	u := scripted(t, stepped(step, []string{sseHead + chunk(event(1)), chunk(event(2)) + "zz\r\n"}))
	g := start(t, plainConfig(u.url))
	w := g.dial()
	w.send(call(g.key, streamBody))
	give(t, "a piece", step, struct{}{})
	g.inLoops(1)
	give(t, "a piece", step, struct{}{}) // and then nothing
	if wrong := cutBy(w.must(), codeUpstreamError, event(1)+event(2)); wrong != "" {
		t.Error(wrong)
	}
	close(step)
	g.emptied()
}

// corked holds back what is written until it is uncorked, so that several records of TLS
// come as one segment.
type corked struct {
	net.Conn
	held bool
	b    []byte
}

func (c *corked) Write(p []byte) (int, error) {
	if c.held {
		c.b = append(c.b, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

type corkedListener struct {
	net.Listener
	config *tls.Config
}

func (l *corkedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(&corked{Conn: c}, l.config), nil
}

func TestRecordsOfTLSThatComeTogetherPassTogether(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "corked")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	step := make(chan struct{})
	u := scriptedOn(t, &corkedListener{ln, &tls.Config{Certificates: []tls.Certificate{a.of("127.0.0.1", time.Now().Add(time.Hour))}}}, func(c *callee) {
		if c.request() == "" {
			return
		}
		c.send(sseHead + chunk(event(1)))
		<-step
		cork := c.Conn.(*tls.Conn).NetConn().(*corked)
		cork.held = true
		c.send(chunk(event(2)))
		c.send(chunk(event(3)))
		cork.held = false
		_, _ = cork.Write(cork.b)
		<-step // nothing more comes until both were seen
		c.send(chunk(doneEvent) + lastChunk)
	})
	g := start(t, trusting("https://"+ln.Addr().String(), trust(t, t.TempDir(), a)))
	w := g.dial()
	w.send(call(g.key, streamBody))
	g.inLoops(1)
	give(t, "a piece", step, struct{}{})
	res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	got, want := make([]byte, len(event(1)+event(2)+event(3))), event(1)+event(2)+event(3)
	if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != want {
		t.Errorf("%v %q", err, got)
	}
	give(t, "a piece", step, struct{}{})
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != doneEvent {
		t.Errorf("%v %q", err, rest)
	}
	if len(u.seen()) != 1 {
		t.Errorf("%d calls", len(u.seen()))
	}
}

// Bytes that make no event keep the watcher from waking a stream; the loop sees to the
// comments then.
func TestALoopWritesNoCommentTooManyAndNoneTooFew(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		raw := c.request()
		if raw == "" {
			return
		}
		c.send(sseHead + chunk(event(1)))
		digits, pause := 14, 350*time.Millisecond // of a chunk's size, one at a time
		if claimOf(raw) == "lively" {
			for range 6 { // the client hears enough
				time.Sleep(300 * time.Millisecond)
				c.send(chunk(event(1)))
				time.Sleep(20 * time.Millisecond)
				c.send("0")
				time.Sleep(20 * time.Millisecond)
				c.send(chunk(event(1)))
			}
			digits = 0
		}
		for range digits {
			time.Sleep(pause)
			c.send("0")
		}
		c.send(chunk(doneEvent) + lastChunk)
	})
	g := start(t, limited(u.url, "keepalive_comment: 1s, lame_duck: 0s"))
	lively := g.dial()
	lively.send(call(g.key, streamBody, claimed("lively")))
	if r := g.do(call(g.key, streamBody)); r.err != nil || strings.Count(r.body, keepAlive) < 2 {
		t.Errorf("%v, %d comments in 5 s without an event", r.err, strings.Count(r.body, keepAlive))
	}
	if r := lively.must(); r.err != nil || strings.Contains(r.body, keepAlive) {
		t.Errorf("%v, %d comments between events each 0.3 s", r.err, strings.Count(r.body, keepAlive))
	}
}

func TestAFaultInALoopIsOneStreams(t *testing.T) {
	t.Parallel()
	step := make(chan struct{})
	u := scripted(t, stepped(step, []string{sseHead + chunk(event(1)), chunk(event(2)), chunk(doneEvent) + lastChunk}))
	g := start(t, plainConfig(u.url))
	faulty, sound := g.dial(), g.dial()
	faulty.send(call(g.key, streamBody))
	give(t, "a piece", step, struct{}{})
	g.inLoops(1)
	l := g.waiting()[0]
	l.mu.Lock()
	l.s = &stream{} // it has no exchange
	l.mu.Unlock()
	give(t, "a piece", step, struct{}{})
	r := faulty.must()
	if r.status != 200 || r.err == nil || !strings.HasPrefix(r.body, event(1)) {
		t.Errorf("%d %v %q", r.status, r.err, r.body)
	}
	if l := g.line(r.header.Get("X-Request-Id")); l["code"] != codeInternal {
		t.Errorf("logged as %v", l)
	}
	if n := g.metric("keeptrusts_gateway_panics_total"); n != 1 || !strings.Contains(g.log.text(), "looped).event") {
		t.Errorf("%v faults are counted, or the log does not say where: %s", n, g.log.text())
	}
	sound.send(call(g.key, streamBody))
	go func() {
		for {
			select {
			case step <- struct{}{}:
			case <-time.After(patience):
				return
			}
		}
	}()
	if r := sound.must(); r.err != nil || r.body != event(1)+event(2)+doneEvent {
		t.Errorf("the next: %v %q", r.err, r.body)
	}
	g.emptied()
}
