package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const patience = 30 * time.Second // with an answer that should come at once

// call is one ordinary request of a client.
type call struct {
	model  string // "" cheap
	stream bool
	script script
	body   string // "" made of the model
	more   string // header lines
}

func (c call) text(bearer string) string {
	model := c.model
	if model == "" {
		model = cheap
	}
	body := c.body
	if body == "" {
		stream := ""
		if c.stream {
			stream = `,"stream":true`
		}
		body = `{"model":"` + model + `"` + stream + `,"messages":[{"role":"user","content":"hello"}]}`
	}
	auth := ""
	if bearer != "" {
		auth = "Authorization: Bearer " + bearer + "\r\n"
	}
	return fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\n%sContent-Type: application/json\r\n%s%sContent-Length: %d\r\n\r\n%s",
		auth, c.script.header(), c.more, len(body), body)
}

// answered is what a client was given.
type answered struct {
	status  int // 0: none
	head    http.Header
	body    string
	code    string // of an error, in a body or in an event
	events  int
	done    bool // [DONE] came
	whole   bool // the message ended as its framing says
	closes  bool
	err     error
	elapsed time.Duration
}

func (a *answered) String() string {
	return fmt.Sprintf("status %d, code %q, %d events, done %t, whole %t, %v %.200s", a.status, a.code, a.events, a.done, a.whole, a.err, a.body)
}

// wire is a client's connection.
type wire struct {
	*net.TCPConn
	r *bufio.Reader
}

func dial(ctx context.Context, addr, from string) (*wire, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return &wire{c.(*net.TCPConn), bufio.NewReaderSize(c, 2<<10)}, nil
}

// leave closes the connection by a FIN, or by a RST.
func (w *wire) leave(reset bool) {
	if reset {
		_ = w.SetLinger(0)
	}
	_ = w.Close()
}

// take reads one answer to its end.
func (w *wire) take(method string, each func(line []byte)) *answered {
	a := &answered{}
	res, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		a.err = err
		return a
	}
	a.status, a.head, a.closes = res.StatusCode, res.Header, res.Close
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		a.readEvents(res.Body, each)
		return a
	}
	b, err := io.ReadAll(res.Body)
	a.body, a.err, a.whole = string(b), err, err == nil
	a.code = errorCode(b)
	return a
}

func errorCode(b []byte) string {
	var e struct{ Error struct{ Code string } }
	if json.Unmarshal(b, &e) != nil {
		return ""
	}
	return e.Error.Code
}

var data = []byte("data: ")

func (a *answered) readEvents(body io.Reader, each func([]byte)) {
	lines := bufio.NewReaderSize(body, 1<<10)
	for {
		line, err := lines.ReadBytes('\n')
		if rest, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), data); ok {
			switch {
			case bytes.Equal(rest, []byte("[DONE]")):
				a.done = true
			case bytes.HasPrefix(rest, []byte(`{"error"`)):
				a.code = errorCode(rest)
			default:
				a.events++
			}
		}
		if each != nil && len(line) > 0 {
			each(line)
		}
		if err != nil {
			if a.whole = errors.Is(err, io.EOF); !a.whole {
				a.err = err
			}
			return
		}
	}
}

// over says whether the peer has closed within d; what still comes is left aside.
func (w *wire) over(d time.Duration) bool {
	_ = w.SetReadDeadline(time.Now().Add(d))
	defer func() { _ = w.SetReadDeadline(time.Now().Add(patience)) }()
	_, err := io.Copy(io.Discard, w.r)
	return !isTimeout(err)
}

// call makes one call over a connection of its own.
func (g *gateway) call(ctx context.Context, bearer string, c call) *answered {
	return g.callFrom(ctx, "", bearer, c)
}

func (g *gateway) callFrom(ctx context.Context, from, bearer string, c call) *answered {
	began := time.Now()
	w, err := dial(ctx, g.addr, from)
	if err != nil {
		return &answered{err: err}
	}
	defer w.Close()
	if _, err := io.WriteString(w, c.text(bearer)); err != nil {
		return &answered{err: err}
	}
	a := w.take(http.MethodPost, nil)
	a.elapsed = time.Since(began)
	return a
}

// caller is a client that keeps its connection while it may.
type caller struct {
	addr, from string
	w          *wire
}

func (k *caller) close() {
	if k.w != nil {
		k.w.Close()
		k.w = nil
	}
}

func (k *caller) ask(ctx context.Context, bearer string, c call) *answered {
	began := time.Now()
	if k.w == nil {
		w, err := dial(ctx, k.addr, k.from)
		if err != nil {
			return &answered{err: err}
		}
		k.w = w
	}
	_ = k.w.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(k.w, c.text(bearer)); err != nil {
		k.close()
		return &answered{err: err}
	}
	a := k.w.take(http.MethodPost, nil)
	if a.closes || !a.whole {
		k.close()
	}
	a.elapsed = time.Since(began)
	return a
}

// together runs f for 0 to n-1, at most so many at once.
func together(n, atOnce int, f func(i int)) {
	var all sync.WaitGroup
	next := make(chan int)
	for range min(n, atOnce) {
		all.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
