package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
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
				step <- struct{}{}
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
		step <- struct{}{}
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
		step <- true
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
	step <- struct{}{}
	g.inLoops(1)
	step <- struct{}{} // and then nothing
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
	step <- struct{}{}
	res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	got, want := make([]byte, len(event(1)+event(2)+event(3))), event(1)+event(2)+event(3)
	if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != want {
		t.Errorf("%v %q", err, got)
	}
	step <- struct{}{}
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
	step <- struct{}{}
	g.inLoops(1)
	l := g.waiting()[0]
	l.mu.Lock()
	l.s = &stream{} // it has no exchange
	l.mu.Unlock()
	step <- struct{}{}
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

// pair is a connection of the upstream leg and its peer.
func pair(t *testing.T) (*upstreamConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSocket(nc.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close(); _ = peer.Close() })
	return &upstreamConn{Conn: s, socket: s, buf: make([]byte, upstreamBuffer)}, peer.(*net.TCPConn)
}

// loopsOf are loops that end with the test.
func loopsOf(t *testing.T) *eventLoops {
	ls := &eventLoops{fault: func(v any) { t.Errorf("a fault: %v", v) }}
	t.Cleanup(ls.close)
	return ls
}

func TestAnInterruptHoldsForTheNextWait(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	c, peer := pair(t)
	x := &exchange{}
	x.life.up, x.stream.x = c, x
	c.interrupt()
	if err := ls.wait(&x.stream); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a wait that was interrupted before it began: %v", err)
	}
	if err := c.resume(); err != nil {
		t.Error(err)
	}
	ended := make(chan error)
	wait := func() { ended <- ls.wait(&x.stream) }
	inLoop := func() {
		t.Helper()
		eventually(t, "a wait", func() bool { c.looped.mu.Lock(); defer c.looped.mu.Unlock(); return c.looped.waits })
	}
	go wait()
	inLoop()
	c.interrupt()
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a wait that is interrupted: %v", err)
	}
	if err := c.resume(); err != nil {
		t.Error(err)
	}
	_, _ = peer.Write([]byte("x"))
	eventually(t, "a byte", func() bool {
		go wait()
		err := <-ended
		return err == nil && c.w == 1
	})
	go wait()
	inLoop()
	_ = c.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a wait whose connection is closed: %v", err)
	}
	if err := ls.wait(&x.stream); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a wait on a closed connection: %v", err)
	}
}

// The kernel gives a closed descriptor's number to the next that is opened.
func TestWhoLeavesALoopTakesNobodyElseOut(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	one, _ := pair(t)
	two, _ := pair(t)
	for _, c := range []*upstreamConn{one, two} {
		if err := ls.enter(c); err != nil {
			t.Fatal(err)
		}
	}
	one.looped.fd = two.looped.fd // as if it had been closed, and its number were the other's
	_ = one.Close()
	ls.leave(one)
	loop := two.looped.loop
	if loop.byFD[two.looped.fd] != &two.looped || loop.streams != 1 {
		t.Errorf("%p is there, %d streams", loop.byFD[two.looped.fd], loop.streams)
	}
	ls.leave(two)
	ls.leave(two)
	if loop.byFD[two.looped.fd] != nil || two.looped.loop != nil || loop.streams != 0 {
		t.Errorf("%d streams after the last has left", loop.streams)
	}
}

func TestStreamsFillOneLoopBeforeTheNext(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	for i := range loopStreams {
		if ls.take() == nil || len(ls.all) != 1 {
			t.Fatalf("%d loops for %d streams", len(ls.all), i+1)
		}
	}
	most := goruntime.GOMAXPROCS(0)
	for range (most + 1) * loopStreams {
		ls.take()
	}
	if len(ls.all) != most {
		t.Errorf("%d loops for %d processors", len(ls.all), most)
	}
	least, all := 1<<30, 0
	for _, l := range ls.all {
		least, all = min(least, l.streams), all+l.streams
	}
	if all != (most+2)*loopStreams || least < all/most-1 {
		t.Errorf("%d streams, %d in the loop that has least", all, least)
	}
	ls.close()
	if ls.take() != nil {
		t.Error("a stream enters after the end")
	}
}

// TLS writes where a peer asks for new keys, and a peer may take nothing.
func TestASocketAtOnceNeverWaits(t *testing.T) {
	t.Parallel()
	c, peer := pair(t)
	s := c.socket
	if _, err := io.WriteString(peer, "some"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	eventually(t, "what was sent", func() bool {
		s.atOnce = true
		n, err := s.Read(b)
		return err == nil && string(b[:n]) == "some"
	})
	if n, err := s.Read(b); n != 0 || err != errWouldBlock {
		t.Errorf("a read of nothing: %d %v", n, err)
	}
	var sent int64
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for range 100 {
		n, err := s.Write(piece)
		if sent += int64(n); err != nil {
			if !errors.Is(err, io.ErrShortWrite) {
				t.Error(err)
			}
			break
		}
	}
	if sent == 0 || sent == 100<<20 {
		t.Errorf("%d bytes were written to a peer that takes none", sent)
	}
	go func() { _, _ = io.CopyN(io.Discard, peer, sent); _ = peer.Close() }()
	eventually(t, "the end", func() bool { _, err := s.Read(b); return err == io.EOF })
	_ = c.Close()
	if _, err := s.Read(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read of what is closed: %v", err)
	}
}

func TestALoopThatIsClosedGivesItsStreamsBack(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	c, peer := pair(t)
	x := &exchange{}
	x.life.up, x.stream.x = c, x
	ended := make(chan error)
	go func() { ended <- ls.wait(&x.stream) }()
	eventually(t, "a wait", func() bool { c.looped.mu.Lock(); defer c.looped.mu.Unlock(); return c.looped.waits })
	ls.close()
	if err := <-ended; err != nil {
		t.Errorf("the wait ends with %v", err)
	}
	if err := ls.wait(&x.stream); err != errNoLoop {
		t.Errorf("one registered still: %v", err)
	}
	ls.leave(c)
	if err := ls.wait(&x.stream); err != errNoLoop {
		t.Errorf("one that would enter: %v", err)
	}
	_, _ = peer.Write([]byte("x"))
	eventually(t, "a byte", func() bool { return ls.wait(&x.stream) == nil })
}

// panickingRead is a connection whose next read panics.
type panickingRead struct{ net.Conn }

func (panickingRead) Read([]byte) (int, error) { panic("in a read") }

func TestWhatFailsInAWaitLocksNothing(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	closed, _ := pair(t)
	_ = closed.Close()
	if err := ls.enter(closed); err != errNoLoop {
		t.Errorf("a closed connection enters: %v", err)
	}
	if ls.all[0].streams != 0 || closed.looped.loop != nil {
		t.Errorf("%d streams are counted", ls.all[0].streams)
	}
	c, _ := pair(t)
	x := &exchange{}
	x.life.up, x.stream.x = c, x
	tcp := c.Conn
	c.Conn = panickingRead{tcp}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = ls.wait(&x.stream)
	}()
	c.Conn = tcp
	if err := ls.enter(c); err != nil {
		t.Errorf("after it: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	ls.leave(c)
}
