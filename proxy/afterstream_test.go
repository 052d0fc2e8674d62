package proxy

import (
	"context"
	"testing"
	"time"
)

// A stream's head went out before the drain and could not say that the connection
// closes: its client's next call is served, and told so.
func TestAStreamThatTheDrainOutlivedHasItsLastCall(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	u := holding(t, finish)
	g := start(t, limited(u.url, "lame_duck: 10ms, drain: 8s"))
	w, again, pipelined, other, idle := g.dial(), g.dial(), g.dial(), g.dial(), g.dial()
	if !idle.alive() {
		t.Fatal("not served")
	}
	other.send(call(g.key, plainBody, claimed("silent"))) // it keeps the drain from ending
	w.send(call(g.key, streamBody, claimed("held")))
	pipelined.send(call(g.key, streamBody, claimed("held")))
	again.send(call(g.key, streamBody, claimed("held")))
	eventually(t, "three streams and a call are open", func() bool { return g.s.streams.Load() == 4 })
	for _, one := range []*wire{w, again, pipelined} {
		if _, err := one.r.Peek(1); err != nil { // of the head
			t.Fatal(err)
		}
	}
	drained := make(chan error, 1)
	go func() { drained <- g.s.Drain(context.Background()) }()
	eventually(t, "the refusing", func() bool { return g.s.draining.Load() == refusing })
	pipelined.send(call(g.key, plainBody))
	close(finish)
	for _, one := range []*wire{w, again} {
		if r := one.must(); r.err != nil || r.body != event(1)+doneEvent {
			t.Errorf("the stream: %v %q", r.err, r.body)
		}
	}
	again.send(call(g.key, plainBody))
	if r := again.must(); r.status != 200 || !r.close || !again.closed() {
		t.Errorf("a call after the stream: %d, close %v", r.status, r.close)
	}
	idle.send(call(g.key, plainBody))
	if r := idle.must(); r.status != 503 || !r.close {
		t.Errorf("a call on a connection that lay idle when the drain began: %d, close %v", r.status, r.close)
	}
	if !w.closed() || g.s.streams.Load() == 0 { // at the drain's end all connections are closed
		t.Error("a connection on which nothing comes is kept")
	}
	if r := pipelined.must(); r.err != nil || r.body != event(1)+doneEvent {
		t.Errorf("the stream before a call: %v %q", r.err, r.body)
	}
	if r := pipelined.must(); r.status != 200 || !r.close {
		t.Errorf("a call that was sent already: %d, close %v", r.status, r.close)
	}
	_ = other.Close()
	ends(t, g, drained, 8*time.Second)
}

// The drain is not over before the last stream's client had its last call.
func TestTheDrainWaitsForALastCall(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	u := holding(t, finish)
	g := start(t, limited(u.url, "lame_duck: 10ms, drain: 8s"))
	w := g.dial()
	w.send(call(g.key, streamBody, claimed("held")))
	eventually(t, "a stream is open", func() bool { return g.s.streams.Load() == 1 })
	if _, err := w.r.Peek(1); err != nil { // of its head
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- g.s.Drain(context.Background()) }()
	eventually(t, "the refusing", func() bool { return g.s.draining.Load() == refusing })
	close(finish)
	if r := w.must(); r.err != nil || r.body != event(1)+doneEvent {
		t.Errorf("the stream: %v %q", r.err, r.body)
	}
	time.Sleep(lastCallFor / 2) // a client may take its time
	w.send(call(g.key, plainBody))
	if r := w.must(); r.status != 200 || !r.close {
		t.Errorf("the last call: %d, close %v", r.status, r.close)
	}
	ends(t, g, drained, 3*time.Second)
}
