package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/config"
)

func ofGateway(t *testing.T, id, url string) *succession {
	t.Helper()
	cfg := config.Default()
	cfg.GatewayID, cfg.ControlPlane.URL = id, url
	s, err := newSuccession(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// sharer is a process that serves a port until it retires: what it says is its name.
type sharer struct {
	*succession
	server *http.Server
	served chan struct{} // closed when it takes no more connections
	open   atomic.Int64  // of its connections
	done   func()        // offers no more
}

func share(t *testing.T, name, addr string) (*sharer, net.Listener) {
	t.Helper()
	s := &sharer{succession: ofGateway(t, "gw_1", "https://plane.example"), served: make(chan struct{})}
	ln, err := s.listen(addr)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if !s.await(context.Background(), func() error { return nil }) {
		t.Fatalf("%s is not to serve", name)
	}
	s.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.open.Add(1)
			case http.StateClosed:
				s.open.Add(-1)
			}
		},
	}
	s.done = s.offering(ln)
	go func() { defer close(s.served); _ = s.server.Serve(ln) }()
	t.Cleanup(func() { s.done(); _ = s.server.Close() })
	return s, ln
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestAPortChangesHandsWithoutALostConnection(t *testing.T) {
	t.Parallel()
	now, ln := share(t, "0", "127.0.0.1:0")
	addr := ln.Addr().String()
	var calls, failed atomic.Int64
	var last atomic.Pointer[string]
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range 8 {
		load.Go(func() {
			// A connection a call: each has to be taken from the queue by somebody.
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
			for ctx.Err() == nil {
				res, err := client.Get("http://" + addr)
				if err != nil {
					failed.Add(1)
					t.Error(err)
					return
				}
				b, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				name := string(b)
				last.Store(&name)
				calls.Add(1)
			}
		})
	}
	for i := 1; i <= 5; i++ {
		before := calls.Load()
		name := fmt.Sprint(i)
		next, _ := share(t, name, addr)
		waitFor(t, "the port to be served by two", now.servedByNext)
		now.retire()
		waitFor(t, "calls that the newcomer answers", func() bool { return calls.Load() > before+100 && *last.Load() == name })
		now.done()
		<-now.served
		// Shutdown closes a connection whose request it has not begun to answer.
		waitFor(t, "what it took to be answered", func() bool { return now.open.Load() == 0 })
		if err := now.server.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		now = next
	}
	cancel()
	load.Wait()
	t.Logf("%d calls, %d failed", calls.Load(), failed.Load())
}

func (s *succession) servedByNext() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serving
}

func TestAPortIsRefusedToWhoIsNotItsGateway(t *testing.T) {
	t.Parallel()
	_, ln := share(t, "one", "127.0.0.1:0")
	addr := ln.Addr().String()
	for _, tt := range []struct{ name, id, url, want string }{
		{"another gateway", "gw_2", "https://plane.example", "is gateway gw_1 of https://plane.example, not gw_2 of"},
		{"another control plane", "gw_1", "https://other.example", "not gw_1 of https://other.example"},
	} {
		if got, err := ofGateway(t, tt.id, tt.url).listen(addr); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	first := ofGateway(t, "gw_1", "https://plane.example")
	if _, err := first.listen(addr); err != nil {
		t.Fatal(err)
	}
	_, err := ofGateway(t, "gw_1", "https://plane.example").listen(addr)
	if err == nil || !strings.Contains(err.Error(), "is taking it over already") {
		t.Errorf("a second at the same time: %v", err)
	}
	first.close() // it died before it was ready
	waitFor(t, "the port to be offered again", func() bool {
		s := ofGateway(t, "gw_1", "https://plane.example")
		_, err := s.listen(addr)
		return err == nil
	})

	stranger, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := ofGateway(t, "gw_1", "https://plane.example").listen(stranger.Addr().String()); err == nil || !strings.Contains(err.Error(), "is taken by another program") {
		t.Errorf("a program that hands nothing over: %v", err)
	}
}

func TestAPortIsServedOnlyOnceItsTakerIsReady(t *testing.T) {
	t.Parallel()
	unready := func() error { return errStarting }
	holder, ln := share(t, "one", "127.0.0.1:0")
	addr := ln.Addr().String()

	next := ofGateway(t, "gw_1", "https://plane.example")
	if _, err := next.listen(addr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if next.await(ctx, unready) {
		t.Error("it serves although it is not ready and was told to end")
	}
	if next.await(ctx, func() error { return nil }); holder.servedByNext() {
		t.Error("the holder believes that it is served")
	}
	holder.retire() // it is told to end: until somebody else serves the port, it does
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience / 6}
	if res, err := client.Get("http://" + addr); err != nil {
		t.Errorf("nobody serves it: %v", err)
	} else {
		_ = res.Body.Close()
	}
	holder.done() // and it is gone
	if !next.await(context.Background(), unready) {
		t.Error("nobody serves the port")
	}
}

func TestANewcomerServesOnceItsControlPlaneHasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready, inSync := errNotIdentified, false
		informed := informed(func() error { return ready }, func() bool { return inSync })
		expect := func(what string, want error) {
			t.Helper()
			if got := informed(); !errors.Is(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		expect("not ready", errNotIdentified)
		ready = nil
		expect("by a saved snapshot", errStarting)
		inSync = true
		expect("in sync", nil)
		inSync = false
		time.Sleep(takeOverInSync)
		expect("the control plane is away", nil)
		ready = errNotIdentified
		expect("refused meanwhile", errNotIdentified)
	})
}

func TestAnOfferSurvivesStrangers(t *testing.T) {
	t.Parallel()
	_, ln := share(t, "one", "127.0.0.1:0")
	name := offerName(ln.Addr().(*net.TCPAddr))
	for _, text := range []string{"", "\n", "{}\n", `{"gateway_id":`, strings.Repeat("x", 64<<10), "[]\n", "null\n"} {
		var c *net.UnixConn
		waitFor(t, "the offer", func() (ok bool) {
			var err error
			c, err = net.DialUnix("unix", nil, name)
			return err == nil
		})
		_, _ = io.WriteString(c, text)
		_ = c.CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		if errors.Is(err, context.DeadlineExceeded) || strings.HasPrefix(string(b), "{}") {
			t.Errorf("%.20q: %q, %v", text, b, err)
		}
		_ = c.Close()
	}
	if _, err := ofGateway(t, "gw_1", "https://plane.example").listen(ln.Addr().String()); err != nil {
		t.Error(err)
	}
}
