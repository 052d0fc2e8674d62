package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// Each limit of time is a second here, or two.
const timesLimits = "header_read: 1s, body_read: 2s, client_idle: 1s, first_byte: 2s, upstream_idle: 1s, keepalive_comment: 400ms, request_body: 1MiB"

// times has each side be late at every moment, and be slow without being late.
func times(ctx context.Context, t *trial) error {
	g, key, err := withKey(ctx, t, layout{limits: timesLimits})
	if err != nil {
		return err
	}
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer " + key + "\r\n"
	late := func(name, send string, want string, least, most time.Duration) {
		began := time.Now()
		w, err := dial(ctx, g.addr, "")
		if err != nil {
			t.miss("%s: %v", name, err)
			return
		}
		defer w.Close()
		_, _ = io.WriteString(w, send)
		a := w.take(http.MethodPost, nil)
		over := w.over(5 * time.Second)
		took := time.Since(began)
		got := fmt.Sprintf("%d %s", a.status, a.code)
		t.figure(got == want && over && took >= least && took <= most, fmt.Sprintf("%s, closed, in %s to %s", want, least, most), "%s: %s, closed %t, in %.1f s", name, got, over, took.Seconds())
	}
	late("no request", "", "0 ", 900*time.Millisecond, 2500*time.Millisecond)
	late("a head without an end", head, "408 request_timeout", 900*time.Millisecond, 2500*time.Millisecond)
	late("a body without an end", head+"Content-Length: 100\r\n\r\n{", "408 request_timeout", 1900*time.Millisecond, 3500*time.Millisecond)
	late("a long body without an end", head+"Content-Length: 100000\r\n\r\n"+strings.Repeat(" ", 20_000), "408 request_timeout", 1900*time.Millisecond, 3500*time.Millisecond)
	g.lateUpstream(ctx, key)
	g.slowNotLate(ctx, key)
	g.slowReader(ctx, key)
	g.comments(ctx, key)
	g.sound(ctx, key)
	return nil
}

// lateUpstream: no first byte, and silence later on.
func (g *gateway) lateUpstream(ctx context.Context, key string) {
	t := g.t
	a := g.call(ctx, key, call{script: script{id: "t", do: "silent"}})
	t.figure(a.status == 504 && a.code == "upstream_timeout" && a.elapsed > 1900*time.Millisecond && a.elapsed < 3500*time.Millisecond, "504, 1.9 to 3.5 s", "no answer: %d %s, in %.1f s", a.status, a.code, a.elapsed.Seconds())
	a = g.call(ctx, key, call{stream: true, script: script{id: "t", do: "silent"}})
	// Its head may have gone out with the first comment.
	t.figure(a.code == "upstream_timeout" && (a.status == 504 || a.status == 200 && !a.whole) && a.elapsed < 3500*time.Millisecond, "upstream_timeout, 3.5 s", "no answer to a stream: %d %s, whole %t, in %.1f s", a.status, a.code, a.whole, a.elapsed.Seconds())
	a = g.call(ctx, key, call{stream: true, script: script{id: "t", do: "idle"}})
	t.figure(a.status == 200 && !a.whole && a.code != "" && a.events == 1 && a.elapsed > 900*time.Millisecond && a.elapsed < 2500*time.Millisecond, "an error event and a cut, 0.9 to 2.5 s", "silence in a stream: %d %s, whole %t, in %.1f s", a.status, a.code, a.whole, a.elapsed.Seconds())
}

// slowNotLate: what moves within each limit lives on well beyond it.
func (g *gateway) slowNotLate(ctx context.Context, key string) {
	t := g.t
	a := g.call(ctx, key, call{stream: true, script: script{id: "t", do: "stream", chunks: 8, gap: 600 * time.Millisecond}})
	t.figure(a.status == 200 && a.done && a.whole, "whole", "a stream of an event each 0.6 s: whole %t after %.1f s", a.whole, a.elapsed.Seconds())
	a = g.call(ctx, key, call{script: script{id: "t", delay: 1500 * time.Millisecond}})
	t.figure(a.status == 200 && a.whole, "200", "an answer after 1.5 s of the 2 s: %d", a.status)
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		t.miss("%v", err)
		return
	}
	defer w.Close()
	began := time.Now()
	// 2 MB by 200 kB a 0.3 s: three times as long as a client may not read at all.
	_, _ = io.WriteString(w, call{script: script{id: "t", size: 2_000_000}}.text(key))
	res, err := http.ReadResponse(w.r, nil)
	n := int64(0)
	for err == nil && n < 2_000_000 {
		var k int64
		k, err = io.CopyN(io.Discard, res.Body, 200_000)
		n += k
		rig.Pause(ctx, 300*time.Millisecond)
	}
	t.figure(n >= 2_000_000, "2 MB", "a reader of 200 kB each 0.3 s has %d bytes after %.1f s", n, time.Since(began).Seconds())
}

// slowReader takes nothing of a stream that does not end.
func (g *gateway) slowReader(ctx context.Context, key string) {
	t := g.t
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", g.addr)
	if err != nil {
		t.miss("%v", err)
		return
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
	const id = "unread"
	_, _ = io.WriteString(c, call{stream: true, script: script{id: id, do: "stream", chunks: 100_000, size: 32 << 10, gap: time.Millisecond}}.text(key))
	began := time.Now()
	ended := settled(ctx, 15*time.Second, func() bool {
		g.up.mu.Lock()
		defer g.up.mu.Unlock()
		return len(g.up.seen[id]) == 1 && !g.up.seen[id][0].ended.IsZero()
	})
	t.figure(ended, "within 15 s", "a reader that takes nothing is cut, and the provider's call with it: %t, after %.1f s", ended, time.Since(began).Seconds())
}

// comments: an SSE comment while the provider is silent, before its first byte and
// between its events, and never inside one.
func (g *gateway) comments(ctx context.Context, key string) {
	t := g.t
	count := func(s script) (before, all int, a *answered) {
		w, err := dial(ctx, g.addr, "")
		if err != nil {
			return 0, 0, &answered{err: err}
		}
		defer w.Close()
		_, _ = io.WriteString(w, call{stream: true, script: s}.text(key))
		seen, inside := false, false
		a = w.take(http.MethodPost, func(line []byte) {
			switch {
			case bytes.HasPrefix(line, data):
				seen, inside = true, true
			case len(bytes.TrimRight(line, "\r\n")) == 0:
				inside = false
			case line[0] == ':':
				if all++; !seen {
					before++
				}
				if inside {
					t.miss("a comment inside an event")
				}
			}
		})
		return before, all, a
	}
	before, _, a := count(script{id: "t", do: "stream", chunks: 2, delay: 1600 * time.Millisecond})
	t.figure(before >= 2 && before <= 5 && a.done && a.whole, "2 to 5", "%d comments in 1.6 s before the provider's first byte; then %d events, whole %t", before, a.events, a.whole)
	_, all, a := count(script{id: "t", do: "stream", chunks: 5, gap: 900 * time.Millisecond})
	t.figure(all >= 5 && all <= 15 && a.done && a.whole, "5 to 15", "%d comments in 4.5 s between events; %d events, whole %t", all, a.events, a.whole)
	_, all, a = count(script{id: "t", do: "halves", chunks: 3, gap: 900 * time.Millisecond})
	t.figure(a.done && a.whole && a.events == 3, "3 events, whole", "events that come in halves: %d, whole %t, with %d comments", a.events, a.whole, all)
}
