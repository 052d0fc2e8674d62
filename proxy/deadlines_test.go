package proxy

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// within says whether something took from least to a little more than most, the
// watcher's precision and a busy machine.
func within(t *testing.T, what string, began time.Time, least time.Duration) {
	t.Helper()
	if d := time.Since(began); d < least || d > least+3*time.Second {
		t.Errorf("%s after %v, want %v or a little more", what, d, least)
	}
}

func TestLimitsInTimeApplyAsSoonAsTheyChange(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	long := "header_read: 60s, body_read: 60s, client_idle: 60s, lame_duck: 0s"
	g := start(t, limited(u.url, long))
	kept := g.dial()
	if !kept.alive() {
		t.Fatal("not served")
	}
	reload := func(limits string) error { return g.s.Reload(g.parse(limited(u.url, limits))) }
	if err := reload("header_read: 400ms, body_read: 4s, client_idle: 8s, lame_duck: 0s"); err != nil {
		t.Fatal(err)
	}
	raw := call(g.key, plainBody)
	slow := func(name, raw string, limit time.Duration) {
		w, began := g.dial(), time.Now()
		w.send(raw)
		if r := w.must(); r.status != 408 || r.problem().Code != codeRequestTimeout {
			t.Errorf("%s: %d %q", name, r.status, r.body)
		}
		within(t, name, began, limit)
	}
	var wait sync.WaitGroup
	wait.Go(func() { slow("half a head", raw[:60], 400*time.Millisecond) })
	wait.Go(func() { slow("half a body", raw[:len(raw)-10], 4*time.Second) })
	wait.Go(func() {
		w, began := g.dial(), time.Now()
		if !w.closed() {
			t.Error("a connection on which nothing comes stays open")
		}
		within(t, "nothing", began, 400*time.Millisecond)
	})
	wait.Go(func() {
		if !kept.alive() {
			t.Error("a connection from before is not served")
		}
		began := time.Now()
		_ = kept.SetDeadline(began.Add(2 * patience))
		if !kept.closed() {
			t.Error("a connection from before stays open")
		}
		within(t, "idle", began, 8*time.Second)
	})
	wait.Go(func() { // an empty line is no reason to wait longer
		w := g.dial()
		if !w.alive() {
			t.Error("not served")
		}
		w.send("\r\n")
		began := time.Now()
		if r, ok := w.read(); ok && r.status != 408 {
			t.Errorf("an empty line: %d", r.status)
		}
		within(t, "an empty line", began, 400*time.Millisecond)
	})
	wait.Wait()
	if err := reload(long); err != nil {
		t.Fatal(err)
	}
	w := g.dial()
	w.send(raw[:60])
	time.Sleep(1200 * time.Millisecond)
	w.send(raw[60:])
	if r := w.must(); r.status != 200 {
		t.Errorf("with longer limits again: %d %q", r.status, r.body)
	}
}

// Each wait for a request begins anew, whatever the one before was like, and an answer
// that takes longer than a wait may has no part in it.
func TestEveryWaitForARequestHasAllOfItsTime(t *testing.T) {
	t.Parallel()
	u := delaying(t, func() { time.Sleep(4 * time.Second) })
	g := start(t, limited(u.url, "client_idle: 2s, lame_duck: 0s"))
	for name, raw := range map[string]string{
		"no body": get("/v1/models", g.key), "a body": call(g.key, plainBody), "chunked": chunkedCall(g.key, plainBody),
		"an answer that takes long": call(g.key, slowBody),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, times := g.dial(), 4
			if strings.HasSuffix(raw, slowBody) {
				times = 2
			}
			for i := range times {
				w.send(raw)
				if r, ok := w.read(); !ok || r.status != 200 {
					t.Fatalf("request %d: %d", i, r.status)
				}
				time.Sleep(1400 * time.Millisecond)
			}
		})
	}
}

func TestTheLimitOfAHeadCanBeLoweredAndNotRaised(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, limited(u.url, "headers: 8KiB, lame_duck: 0s"))
	large := func(n int) int {
		return g.do(strings.Replace(call(g.key, plainBody), "Host:", "X-Pad: "+strings.Repeat("x", n)+"\r\nHost:", 1)).status
	}
	reload := func(limits string) error { return g.s.Reload(g.parse(limited(u.url, limits))) }
	if n := large(6 << 10); n != 200 {
		t.Errorf("within the limit: %d", n)
	}
	if err := reload("headers: 4KiB, lame_duck: 0s"); err != nil {
		t.Fatal(err)
	}
	if n := large(6 << 10); n != 431 {
		t.Errorf("beyond the lower limit: %d", n)
	}
	if err := reload("headers: 9KiB, lame_duck: 0s"); err == nil || !strings.Contains(err.Error(), "limits.headers") {
		t.Errorf("raised: %v", err)
	}
	if n := large(6 << 10); n != 431 {
		t.Errorf("after a reload that failed: %d", n)
	}
	if err := reload("headers: 8KiB, lame_duck: 0s"); err != nil {
		t.Fatal(err)
	}
	if n := large(6 << 10); n != 200 {
		t.Errorf("as at the start: %d", n)
	}
}

// Only silence ends a call that lasts: a stream lives longer than every limit, and an
// answer taken whole as long as first_byte.
func TestACallThatLastsIsEndedByNoLimitButItsOwn(t *testing.T) {
	t.Parallel()
	const others = "header_read: 400ms, body_read: 400ms, client_idle: 400ms, lame_duck: 0s, "
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			if claimOf(raw) == "whole" {
				time.Sleep(4 * time.Second)
				c.send(whole(200, completion))
				continue
			}
			c.send(sseHead)
			for i := range 16 {
				time.Sleep(300 * time.Millisecond)
				c.send(chunk(event(i)))
			}
			c.send(chunk(doneEvent) + lastChunk)
		}
	})
	streams := start(t, limited(u.url, others+"first_byte: 400ms, upstream_idle: 700ms"))
	wholes := start(t, limited(u.url, others+"first_byte: 10s, upstream_idle: 400ms"))
	var wait sync.WaitGroup
	for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		wait.Go(func() {
			r := streams.do(strings.Replace(call(streams.key, streamBody, claimed("stream")), "HTTP/1.1", version, 1))
			if r.err != nil || r.status != 200 || !strings.HasSuffix(r.body, event(15)+doneEvent) {
				t.Errorf("a stream, %s: %d %v %q", version, r.status, r.err, r.body)
			}
		})
		wait.Go(func() {
			w := wholes.dial()
			w.send(strings.Replace(call(wholes.key, plainBody, claimed("whole")), "HTTP/1.1", version, 1))
			if r := w.must(); r.status != 200 || r.body != completion {
				t.Errorf("a whole answer, %s: %d %q", version, r.status, r.body)
			}
			if version == "HTTP/1.1" && !w.alive() {
				t.Error("its connection is not served")
			}
		})
	}
	wait.Wait()
}
