package proxy

import (
	"context"
	"testing"
	"time"
)

// A stream's head went out before the drain and could not say that the connection
// closes. Kept, its client would send the next call into a 503.
func TestAConnectionIsClosedAfterAStreamThatTheDrainOutlived(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	u := holding(t, finish)
	g := start(t, limited(u.url, "lame_duck: 10ms, drain: 8s"))
	w, pipelined, other := g.dial(), g.dial(), g.dial()
	other.send(call(g.key, plainBody, claimed("silent"))) // it keeps the drain from ending
	w.send(call(g.key, streamBody, claimed("held")))
	pipelined.send(call(g.key, streamBody, claimed("held")))
	eventually(t, "two streams and a call are open", func() bool { return g.s.streams.Load() == 3 })
	drained := make(chan error, 1)
	go func() { drained <- g.s.Drain(context.Background()) }()
	eventually(t, "the refusing", func() bool { return g.s.draining.Load() == refusing })
	pipelined.send(call(g.key, plainBody))
	close(finish)
	if r := w.must(); r.err != nil || r.body != event(1)+doneEvent {
		t.Errorf("the stream: %v %q", r.err, r.body)
	}
	if !w.closed() || g.s.streams.Load() == 0 { // at the drain's end all connections are closed
		t.Error("its connection is kept")
	}
	if r := pipelined.must(); r.err != nil || r.body != event(1)+doneEvent {
		t.Errorf("the stream before a call: %v %q", r.err, r.body)
	}
	if r := pipelined.must(); r.status != 503 || !r.close {
		t.Errorf("a call that was sent already: %d, close %v", r.status, r.close)
	}
	_ = other.Close()
	ends(t, g, drained, 8*time.Second)
}
