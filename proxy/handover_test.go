package proxy

import (
	"context"
	"net"
	"testing"
	"time"
)

func TestADrainBeforeServeEndsIt(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	g.stop() // it has drained

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.s.served = make(chan struct{})
	go func() { g.served <- g.s.Serve(ln) }()
	select {
	case err := <-g.served:
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(patience):
		t.Error("Serve still runs")
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("somebody still listens")
	}
	g.served <- nil // for stop
}

// A port that another process serves too is closed here before the drain begins.
func TestConnectionsOutliveTheListener(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	u := holding(t, finish)
	g := start(t, limited(u.url, "lame_duck: 5s, drain: 8s"))
	streamed := make(chan reply, 1)
	go func() { streamed <- g.do(call(g.key, streamBody, claimed("held"))) }()
	eventually(t, "a stream is open", func() bool { return g.s.streams.Load() == 1 })
	kept := g.dial()
	if !kept.alive() {
		t.Fatal("not served")
	}
	if err := g.listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the end of Serve", g.served); err != nil {
		t.Errorf("Serve: %v", err)
	}
	drained := make(chan error, 1)
	go func() { drained <- g.s.Drain(context.Background()) }()
	eventually(t, "the lame duck", func() bool { return g.s.draining.Load() == lameDuck })
	kept.send(call(g.key, plainBody))
	if r := kept.must(); r.status != 200 || !r.close {
		t.Errorf("a connection that was kept: %d, close %v", r.status, r.close)
	}
	close(finish)
	if r := receive(t, "the stream", streamed); r.err != nil || r.body != event(1)+doneEvent {
		t.Errorf("the stream in flight: %v %q", r.err, r.body)
	}
	ends(t, g, drained, 8*time.Second)
	g.served <- nil // for stop
}
