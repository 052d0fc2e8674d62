package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

// agent is one client: a connection that is kept while all goes well. It is lean,
// since it shares the machine with those that it asks.
type agent struct {
	addr string
	conn net.Conn
	r    *bufio.Reader
	out  []byte
	body []byte
}

// said is what an agent was answered.
type said struct {
	status int // 0: nothing
	code   string
	err    error
}

func (s said) ok() bool { return s.status == http.StatusOK && s.err == nil }

// word is an answer in one: 200, a code, or what went wrong.
func (s said) word() string {
	switch {
	case s.err != nil:
		return "cut"
	case s.code != "":
		return s.code
	}
	return strconv.Itoa(s.status)
}

const patience = 30 * time.Second // of a client

const (
	callBody   = `{"model":"m","messages":[{"role":"user","content":"hello"}]}`
	streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}`
)

func (a *agent) close() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// call makes one call of the data plane.
func (a *agent) call(bearer string) said { return a.post(bearer, callBody) }

func (a *agent) post(bearer, body string) said {
	a.request(bearer, body)
	return a.ask()
}

func (a *agent) request(bearer, body string) {
	a.out = append(append(append(a.out[:0], "POST /v1/chat/completions HTTP/1.1\r\nHost: "...), a.addr...), "\r\nAuthorization: Bearer "...)
	a.out = append(append(a.out, bearer...), "\r\nContent-Type: application/json\r\nContent-Length: "...)
	a.out = append(append(strconv.AppendInt(a.out, int64(len(body)), 10), "\r\n\r\n"...), body...)
}

// get reads path; the body is in a.body until the next request.
func (a *agent) get(path, bearer string) said {
	a.out = fmt.Appendf(a.out[:0], "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", path, a.addr, bearer)
	return a.ask()
}

func (a *agent) ask() (s said) {
	if err := a.send(); err != nil {
		return said{err: err}
	}
	head, err := a.head()
	if err != nil {
		a.close()
		return said{err: err}
	}
	s.status = head.status
	if s.err = a.whole(head); s.err != nil || head.close {
		a.close()
	}
	if s.status != http.StatusOK {
		s.code = codeIn(a.body)
	}
	return s
}

// send dials, if there is no connection, and writes what is in out.
func (a *agent) send() error {
	if a.conn == nil {
		conn, err := net.DialTimeout("tcp", a.addr, 5*time.Second)
		if err != nil {
			return err
		}
		a.conn = conn
		if a.r == nil {
			a.r = bufio.NewReaderSize(conn, 8<<10)
		}
		a.r.Reset(conn)
	}
	_ = a.conn.SetDeadline(time.Now().Add(patience))
	_, err := a.conn.Write(a.out)
	if err != nil {
		a.close()
	}
	return err
}

// head is what an agent reads of an answer's.
type head struct {
	status  int
	length  int
	chunked bool
	close   bool
}

func (a *agent) head() (h head, err error) {
	line, err := a.r.ReadSlice('\n')
	if err != nil {
		return h, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return h, fmt.Errorf("no status line: %.40q", line)
	}
	if h.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return h, err
	}
	for {
		line, err := a.r.ReadSlice('\n')
		if err != nil {
			return h, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			return h, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case len(name) == len("content-length") && strings.EqualFold(string(name), "content-length"):
			if h.length, err = strconv.Atoi(string(value)); err != nil {
				return h, err
			}
		case len(name) == len("transfer-encoding") && strings.EqualFold(string(name), "transfer-encoding"):
			h.chunked = true
		case len(name) == len("connection") && strings.EqualFold(string(name), "connection"):
			h.close = strings.EqualFold(string(value), "close")
		}
	}
}

func (a *agent) whole(h head) error {
	if h.chunked {
		b, err := io.ReadAll(httputil.NewChunkedReader(a.r))
		a.body = append(a.body[:0], b...)
		if err == nil {
			_, err = a.r.ReadSlice('\n') // the end of the trailers, of which there are none
		}
		return err
	}
	if cap(a.body) < h.length {
		a.body = make([]byte, h.length)
	}
	a.body = a.body[:h.length]
	_, err := io.ReadFull(a.r, a.body)
	return err
}

// codeIn is the code of an error.
func codeIn(body []byte) string {
	_, rest, ok := bytes.Cut(body, []byte(`"code":"`))
	if !ok {
		return ""
	}
	code, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(code)
}

// ending is how a stream ended.
type ending struct {
	at    time.Time
	code  string // of its error event
	done  bool   // it said [DONE]
	first said   // not ok: it never began
	err   error  // with which it was cut; nil: the protocol's own end
}

// stream begins a stream, tells so, and returns how it ended.
func (a *agent) stream(bearer string, began func()) (e ending) {
	a.request(bearer, streamBody)
	defer a.close()
	if e.first.err = a.send(); e.first.err != nil {
		return e
	}
	h, err := a.head()
	if e.first = (said{status: h.status, err: err}); err != nil {
		return e
	}
	if h.status != http.StatusOK {
		_ = a.whole(h) // for its code
		e.first.code = codeIn(a.body)
		return e
	}
	began()
	lines := bufio.NewReader(httputil.NewChunkedReader(a.r))
	for {
		_ = a.conn.SetDeadline(time.Now().Add(patience))
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if e.at = time.Now(); err != io.EOF {
				e.err = err
			}
			return e
		}
		switch {
		case bytes.HasPrefix(line, []byte("data: [DONE]")):
			e.done = true
		case bytes.HasPrefix(line, []byte(`data: {"error"`)):
			e.code = codeIn(line)
		}
	}
}
