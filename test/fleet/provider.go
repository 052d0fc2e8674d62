package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// provider is the one upstream of all gateways: it answers at once, and a stream goes
// on until its caller leaves.
type provider struct {
	addr  string
	every time.Duration // between the chunks of a stream
	calls atomic.Int64
}

const (
	wholeAnswer = `{"id":"chatcmpl-1","object":"chat.completion","created":1767225600,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`
	chunk = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1767225600,"model":"m","choices":[{"index":0,"delta":{"content":" tok"},"finish_reason":null}]}` + "\n\n"
)

var (
	wholeBytes = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(wholeAnswer), wholeAnswer)
	chunkBytes = fmt.Appendf(nil, "%x\r\n%s\r\n", len(chunk), chunk)
	streamHead = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	streamMark = []byte(`"stream":true`)
)

func newProvider(t *trial) (*provider, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &provider{addr: ln.Addr().String(), every: 250 * time.Millisecond}
	t.closers = append(t.closers, func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	return p, nil
}

func (p *provider) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	var body []byte
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body = append(body[:0], make([]byte, max(req.ContentLength, 0))...)
		if _, err := readFull(req, body); err != nil {
			return
		}
		p.calls.Add(1)
		if bytes.Contains(body, streamMark) {
			p.stream(conn)
			return
		}
		if _, err := conn.Write(wholeBytes); err != nil {
			return
		}
	}
}

func readFull(req *http.Request, body []byte) (n int, err error) {
	for n < len(body) && err == nil {
		var k int
		k, err = req.Body.Read(body[n:])
		n += k
	}
	if n == len(body) {
		err = nil
	}
	return n, err
}

func (p *provider) stream(conn net.Conn) {
	if _, err := conn.Write(streamHead); err != nil {
		return
	}
	for {
		if _, err := conn.Write(chunkBytes); err != nil {
			return
		}
		time.Sleep(p.every)
	}
}
