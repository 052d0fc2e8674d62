package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// cuts are the ways in which an upstream dies, and one in which it lies: each is
// bytes of an answer, after which the connection ends.
func cuts() map[string]script {
	whole := wholeAnswer(script{size: 4000})
	head, _, _ := strings.Cut(whole, "\r\n\r\n")
	body := whole[len(head)+4:]
	chunkedHead := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
	events := streamHead + frame(chunk("a")) + frame(chunk("b"))
	all := map[string]script{}
	for name, raw := range map[string]string{
		"no byte":                        "",
		"in the status line":             "HTTP/1.1 2",
		"in the head":                    head[:60],
		"before the body":                head + "\r\n\r\n",
		"in the body":                    head + "\r\n\r\n" + body[:2000],
		"a byte before the end":          head + "\r\n\r\n" + body[:len(body)-1],
		"before the first chunk":         chunkedHead,
		"in a chunk's size":              chunkedHead + "a",
		"in a chunk":                     chunkedHead + frame(body)[:1000],
		"before a chunk's end":           chunkedHead + frame(body)[:len(frame(body))-1],
		"before the last chunk":          chunkedHead + frame(body),
		"in the last chunk":              chunkedHead + frame(body) + "0\r\n",
		"stream before an event":         streamHead,
		"stream after an event":          events,
		"stream in an event":             events + frame(chunk("c"))[:40],
		"stream between CR and LF":       events + frame(chunk("c"))[:len(frame(chunk("c")))-1],
		"stream after the usage":         events + frame(usageChunk),
		"stream after DONE":              events + frame(usageChunk) + frame("data: [DONE]\n\n"),
		"stream in the last chunk":       events + frame("data: [DONE]\n\n") + "0\r\n",
		"stream whose chunk is no chunk": events + "zz\r\nabc\r\n0\r\n\r\n",
		"stream whose chunk is longer":   events + "3\r\nabcdef\r\n0\r\n\r\n",
		"length too long":                strings.Replace(whole, "Content-Length: ", "Content-Length: 9", 1),
		"a compressed answer":            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
		"a stream with a length":         "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n" + chunk("a"),
		"nonsense":                       "\x16\x03\x01\x02\x00",
	} {
		all[name+", FIN"] = script{do: "raw", raw: raw}
		all[name+", RST"] = script{do: "raw", raw: raw, reset: true}
	}
	return all
}

// toldAsCut says whether a client can't take an answer for a whole one.
func (a *answered) toldAsCut() bool {
	if a.status >= 500 {
		return a.code == "upstream_error" && a.whole
	}
	if !strings.HasPrefix(a.head.Get("Content-Type"), "text/event-stream") {
		return a.status == 0 || !a.whole
	}
	return !a.whole && a.code == "upstream_error"
}

// cut has upstreams die at every point of an answer.
func cut(ctx context.Context, t *trial) error {
	g, key, err := withKey(ctx, t, layout{})
	if err != nil {
		return err
	}
	ways := cuts()
	var names []string
	for name := range ways {
		names = append(names, name)
	}
	n := max(t.count(300, 100), len(names))
	var told atomic.Int64
	together(n, 8, func(i int) {
		s := ways[names[i%len(names)]]
		stream := strings.Contains(names[i%len(names)], "stream") || i%2 == 0
		a := g.call(ctx, key, call{stream: stream, script: s})
		if !a.toldAsCut() {
			t.miss("%s (stream asked: %t): %v", names[i%len(names)], stream, a)
			return
		}
		told.Add(1)
	})
	t.figure(int(told.Load()) == n, "all", "%d of %d cut upstreams told as cut, of %d ways", told.Load(), n, len(names))
	wrong := g.sayTruth(ctx, key)
	t.figure(wrong == 0, "0", "%d of %d sound answers in odd dress not passed whole", wrong, len(oddities())+2)
	g.sound(ctx, key)
	return nil
}

// oddities are answers that are whole, however they look.
func oddities() map[string]string {
	events := frame(chunk("a")) + frame(chunk("b"))
	done := frame("data: [DONE]\n\n") + "0\r\n\r\n"
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	plain := chunk("a") + chunk("b") + usageChunk + "data: [DONE]\n\n"
	return map[string]string{
		"100 before":         "HTTP/1.1 100 Continue\r\n\r\n" + streamHead + events + done,
		"103 before":         "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + streamHead + events + done,
		"several 1xx":        strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 5) + streamHead + events + done,
		"trailers":           streamHead + events + frame("data: [DONE]\n\n") + "0\r\nX-Sum: 1\r\n\r\n",
		"CRLF events":        streamHead + frame(crlf(plain)) + "0\r\n\r\n",
		"comments":           streamHead + frame(": hello\n\n") + frame(chunk("a")+": x\n"+chunk("b")) + done,
		"a byte a chunk":     streamHead + singly(plain) + "0\r\n\r\n",
		"one chunk":          streamHead + frame(plain) + "0\r\n\r\n",
		"until the close":    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + plain,
		"HTTP/1.0":           "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + plain,
		"a length":           fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", len(plain), plain),
		"a byte-order mark":  streamHead + frame("\xef\xbb\xbf"+plain) + "0\r\n\r\n",
		"other fields":       streamHead + frame("event: x\nid: 1\nretry: 5\n"+plain) + "0\r\n\r\n",
		"chunk extensions":   streamHead + "5;a=b\r\n: hi\n\r\n" + frame("\n"+plain) + "0\r\n\r\n",
		"usage over frames":  streamHead + frame(chunk("a")+chunk("b")+usageChunk[:70]) + frame(usageChunk[70:]) + done,
		"no space after the": streamHead + frame(strings.ReplaceAll(plain, "data: ", "data:")) + "0\r\n\r\n",
	}
}

func singly(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteString("1\r\n" + s[i:i+1] + "\r\n")
	}
	return b.String()
}

// sayTruth counts the sound answers that a client does not get whole.
func (g *gateway) sayTruth(ctx context.Context, key string) (wrong int) {
	for name, raw := range oddities() {
		began := time.Now()
		// A connection that ends unannounced is told apart from one that is given back.
		raw = strings.Replace(raw, "200 OK\r\n", "200 OK\r\nConnection: close\r\n", 1)
		a := g.call(ctx, key, call{stream: true, script: script{do: "raw", raw: raw}})
		ended := a.done || name == "no space after the" && a.whole
		if a.status != 200 || !a.whole || !ended || a.code != "" || time.Since(began) > 5*time.Second {
			wrong++
			g.t.miss("a sound answer, %s, was not passed whole: %v", name, a)
		}
	}
	for _, size := range []int{60 << 10, 300 << 10} {
		a := g.call(ctx, key, call{stream: true, script: script{do: "stream", chunks: 2, size: size}})
		if a.status != 200 || !a.whole || !a.done || a.code != "" {
			wrong++
			g.t.miss("events of %d bytes were not passed whole: %v", size, a)
		}
	}
	return wrong
}
