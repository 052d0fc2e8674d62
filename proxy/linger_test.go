package proxy

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestARefusalReachesAClientThatIsStillSending(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, limited(u.url, "request_body: 1MiB, connections: 200, lame_duck: 0s"))
	full := start(t, limited(u.url, "connections: 1, lame_duck: 0s"))
	if !full.dial().alive() {
		t.Fatal("the one connection is not served")
	}
	leaving := start(t, limited(u.url, "lame_duck: 0s, drain: 4s"))
	pad := strings.Repeat("x", 6<<20)
	chunked := func(key string) string {
		return "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer " + key + "\r\nTransfer-Encoding: chunked\r\n\r\n"
	}
	tests := []struct {
		name   string
		g      *gateway
		raw    string
		status int
		code   string
	}{
		{"no credential", g, call("", pad), 401, codeInvalidAPIKey},
		{"an unknown one, in chunks", g, chunked("kt_live_wrong") + strings.Repeat(chunk(pad[:64<<10]), 96) + lastChunk, 401, codeInvalidAPIKey},
		{"two", g, call(g.key, pad, "api-key: "+g.key), 400, codeMultiple},
		{"no such endpoint", g, strings.Replace(call(g.key, pad), "/chat/", "/chats/", 1), 404, codeUnknownEndpoint},
		{"a wrong method", g, strings.Replace(call(g.key, pad), "POST", "PUT", 1), 405, codeMethodNotAllowed},
		{"a body too large", g, call(g.key, pad), 413, codeBodyTooLarge},
		{"one in chunks", g, chunked(g.key) + strings.Repeat(chunk(pad[:64<<10]), 96) + lastChunk, 413, codeBodyTooLarge},
		{"a compressed body", g, call(g.key, pad, "Content-Encoding: gzip"), 415, codeMediaType},
		{"an expectation", g, call(g.key, pad, "Expect: miracles"), 417, codeExpectation},
		{"two lengths", g, strings.Replace(call(g.key, pad), "Host:", "Content-Length: 3\r\nHost:", 1), 400, codeInvalidRequest},
		{"a broken chunk", g, chunked(g.key) + "zz\r\n" + pad, 400, codeInvalidRequest},
		{"a large head", g, strings.Replace(call(g.key, plainBody), "Host:", "X-Pad: "+pad+"\r\nHost:", 1), 431, codeHeadersTooLarge},
		{"one connection too many", full, call(full.key, pad), 503, codeOverloaded},
		{"draining", leaving, call(leaving.key, pad), 503, codeDraining},
	}
	held := leaving.dial()
	held.send(call(leaving.key, plainBody)[:100]) // keeps the drain from ending
	if !leaving.dial().alive() {
		t.Fatal("not served before the drain")
	}
	drained := make(chan error, 1)
	busy := make([]*wire, len(tests))
	for i, tt := range tests {
		if tt.g != full { // it would be turned away now
			busy[i] = tt.g.dial()
		}
	}
	eventually(t, "the connections are there", func() bool { return leaving.s.conns.Load() >= 2 })
	leaving.s.open.Add(1) // so that it refuses until the end
	go func() { drained <- leaving.s.Drain(context.Background()) }()
	eventually(t, "the refusing", func() bool { return leaving.s.draining.Load() == refusing })
	var wait sync.WaitGroup
	for i, tt := range tests {
		wait.Go(func() {
			w := busy[i]
			if w == nil {
				w = tt.g.dial()
			}
			// All of it, before the answer is read. Linux hands over what came before a
			// reset, other systems do not: so a reset is the fault.
			if _, err := io.WriteString(w.TCPConn, tt.raw); err != nil {
				t.Errorf("%s: sending: %v", tt.name, err)
			}
			r, ok := w.read()
			if p := r.problem(); !ok || r.status != tt.status || p.Code != tt.code || !r.close {
				t.Errorf("%s: %v %d %q", tt.name, ok, r.status, r.body)
			}
			if b, err := io.ReadAll(w.r); len(b) > 0 || err != nil {
				t.Errorf("%s: behind the answer: %q %v", tt.name, b, err)
			}
		})
	}
	wait.Wait()
	leaving.s.open.Add(-1)
	leaving.s.wake()
	if err := receive(t, "the drain", drained); err != nil {
		t.Error(err)
	}
	if n := len(u.seen()); n != 0 {
		t.Errorf("%d calls were forwarded", n)
	}
}

func TestAClientThatNeverStopsSendingIsCut(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	w := g.dial()
	w.send(strings.Replace(call("", strings.Repeat("x", prefetchLimit)), "Content-Length: ", "Content-Length: 99999", 1))
	answered := w.must()
	began := time.Now()
	for {
		if _, err := w.Write([]byte("xxxxxxxx")); err != nil {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("it may send for ever")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if d := time.Since(began); answered.status != 401 || d < lingerFor/2 {
		t.Errorf("%d, cut after %v", answered.status, d)
	}
	eventually(t, "its connection is gone", func() bool { return g.s.conns.Load() == 0 })
}
