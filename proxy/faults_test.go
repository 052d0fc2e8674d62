package proxy

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/keeptrusts/gateway/record"
)

// unwakeable is an upstream's connection that is silent after its head, and panics
// where the watcher would interrupt its read.
type unwakeable struct {
	faultyConn
	over chan struct{}
	once sync.Once
}

func (u *unwakeable) SetReadDeadline(time.Time) error { panic("in the watcher") }
func (u *unwakeable) Close() error                    { u.once.Do(func() { close(u.over) }); return nil }
func (u *unwakeable) Read(p []byte) (int, error) {
	if u.head != "" {
		return u.faultyConn.Read(p)
	}
	<-u.over
	return 0, net.ErrClosed
}

// A fault in what the watcher does for one call must not end its watch over others.
func TestAFaultInTheWatcherEndsOneCallAndNoMore(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		if c.request() != "" {
			c.send(sseHead + chunk(event(1)))
			c.gone()
		}
	})
	g := start(t, limited(u.url, "upstream_idle: 1500ms, keepalive_comment: 300ms, lame_duck: 0s"))
	faulty := &unwakeable{faultyConn: faultyConn{head: sseHead + chunk(event(1))}, over: make(chan struct{})}
	up := g.s.runtime.Load().upstreams["main"]
	up.mu.Lock()
	up.idle = append(up.idle, &upstreamConn{Conn: faulty, buf: make([]byte, upstreamBuffer), idle: time.Now().Add(time.Minute)})
	up.mu.Unlock()
	first, second := g.dial(), g.dial()
	first.send(call(g.key, streamBody))
	eventually(t, "the first is open", func() bool { return g.s.streams.Load() == 1 })
	second.send(call(g.key, streamBody))
	if wrong := cutBy(first.must(), codeInternal, event(1)); wrong != "" {
		t.Errorf("the faulty call: %s", wrong)
	}
	r := second.must()
	if r.body, _ = without(t, "the other call", r.body); cutBy(r, codeUpstreamTimeout, event(1)) != "" {
		t.Errorf("the other call: %s: %q", cutBy(r, codeUpstreamTimeout, event(1)), r.body)
	}
	if n := g.metric("keeptrusts_gateway_panics_total"); n < 1 {
		t.Error("no fault is counted")
	}
}

// faultyClose is an upstream's connection whose Close panics.
type faultyClose struct{ faultyConn }

func (f *faultyClose) Close() error { panic("on close") }

func TestAFaultInTheCloseOfAStreamKeepsItsBooks(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	up := g.s.runtime.Load().upstreams["main"]
	up.mu.Lock()
	c := &upstreamConn{Conn: &faultyClose{faultyConn{head: sseHead + chunk(event(1))}}, buf: make([]byte, upstreamBuffer), idle: time.Now().Add(time.Minute)}
	up.idle = append(up.idle, c)
	up.mu.Unlock()
	r := g.do(call(g.key, streamBody))
	if r.status != 200 || r.err == nil {
		t.Errorf("%d %v %q", r.status, r.err, r.body)
	}
	if l := g.line(r.header.Get("X-Request-Id")); l["code"] != codeInternal {
		t.Errorf("logged as %v", l)
	}
	if n := g.metric("keeptrusts_gateway_panics_total"); n < 2 {
		t.Errorf("%v faults are counted, want the read's and the close's", n)
	}
	if r := g.do(call(g.key, plainBody)); r.status != 200 {
		t.Errorf("the next call: %d", r.status)
	}
}

func TestAnEventWithoutAnEndIsADeadUpstream(t *testing.T) {
	t.Parallel()
	var gone moments
	u := scripted(t, func(c *callee) {
		raw := c.request()
		if raw == "" {
			return
		}
		c.send(sseHead + chunk(event(1)))
		piece := chunk(strings.Repeat("x", 1<<20))
		for range 2 * maxWhole >> 20 {
			if _, err := c.Write([]byte(piece)); err != nil {
				break
			}
		}
		c.gone()
		gone.note("it")
	})
	g := start(t, plainConfig(u.url))
	r := g.do(call(g.key, streamBody))
	if r.status != 200 || r.err == nil || !strings.HasPrefix(r.body, event(1)+"xxx") || len(r.body) > maxWhole+(4<<20) {
		t.Errorf("%d %v, %d bytes", r.status, r.err, len(r.body))
	}
	receive(t, "the end of the call", gone.of("it"))
	if l := g.line(r.header.Get("X-Request-Id")); l["code"] != codeUpstreamError {
		t.Errorf("logged as %v", l)
	}
}

// losing is a sink that has lost records; losingCore a log's that has lost lines.
type losing struct{ n uint64 }

func (l *losing) Write(*record.Record) error { return nil }
func (l *losing) Close() error               { return nil }
func (l *losing) Dropped() uint64            { return l.n }

type losingCore struct{ zapcore.Core }

func (losingCore) Dropped() uint64 { return 5 }

func TestWhatASinkHasLostIsCounted(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url), func(o *Options) {
		o.Records, o.Log = &losing{n: 7}, zap.New(losingCore{o.Log.Core()})
	})
	if n := g.metric("keeptrusts_gateway_records_dropped_total"); n != 7 {
		t.Errorf("%v records", n)
	}
	if n := g.metric("keeptrusts_gateway_log_lines_dropped_total"); n != 5 {
		t.Errorf("%v lines", n)
	}
}
