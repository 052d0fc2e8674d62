package proxy

import (
	"io"
	"strconv"
	"sync/atomic"
	"syscall"

	"github.com/valyala/fasthttp"
)

// The hot path goes past fasthttp where it can. A call that one read brought whole was
// parsed by framing already, so it is served right there, while fasthttp waits for its
// read; and an answer that came whole, or is a stream, is written without a Response.
// Only where the answer is another is fasthttp shown a request, without headers or a
// body, of which the handler finds the exchange. Parsing the request again, streaming a
// body that is there and keeping the answer's headers by their kinds cost a tenth of all
// CPU, and fasthttp's loop itself some more: `go run ./test/benchpeers -budget off`.

// shortcut is a call that lies whole in the buffer that it was read into, until the
// connection is read again.
type shortcut struct {
	taken  bool
	lines  []byte // the headers, with the empty line
	body   []byte
	answer []byte // for the client
	cut    bool   // its answer was a stream that did not end well
	// served has run without fasthttp, which is to write its answer.
	served atomic.Pointer[exchange]
	turn   turn
}

const (
	shortcutLine = "POST " + chatPath + " HTTP/1.1" // of the only calls that are taken
	shownHead    = "GET / HTTP/1.1\r\nHost:-\r\n\r\n"
	// keptAnswer is how much room for an answer a connection keeps.
	keptAnswer = 8 << 10
)

// shorten takes p, which is one whole call.
func (c *conn) shorten(p []byte, head int) {
	c.short.taken, c.short.lines, c.short.body = true, p[len(shortcutLine)+2:head], p[head:]
}

// serveShort serves c's shortcut. True: the answer lies ready. False: fasthttp is to
// write it, from the exchange that waits for it.
func (s *Server) serveShort(c *conn) (done bool) {
	x := s.take(c)
	defer func() {
		if v := recover(); v != nil {
			x.outcome = s.broken(x, v)
			c.short.served.Store(x)
		}
	}()
	x.short = true
	err := x.serve()
	if err == nil {
		return true // and x is gone
	}
	x.outcome = err
	c.short.served.Store(x)
	return false
}

// resume returns the exchange of a request, and whether it was served already. nil: it
// is gone, with its connection.
func (s *Server) resume(ctx *fasthttp.RequestCtx) (x *exchange, already bool) {
	c, _ := ctx.Conn().(*conn)
	if c == nil || !c.short.taken {
		return s.begin(ctx), false
	}
	if x = c.short.served.Swap(nil); x != nil {
		x.ctx = ctx
	}
	return x, true
}

// serve reads for fasthttp, and serves calls that take the shortcut for as long as they
// come. All that time it is in one wait of the netpoller: whatever comes meanwhile ends
// the next wait at once, so that nothing is read only to find that nothing is there.
func (c *conn) serve(p []byte) (int, error) {
	if err := c.now.of(c.TCPConn); err != nil {
		return 0, err
	}
	t := &c.short.turn
	if t.come == nil {
		t.come = c.come
	}
	t.p, t.n, t.err = p, 0, nil
	err := c.now.raw.Read(t.come)
	c.now.unread.Store(notUnread)
	t.p = nil
	if err != nil {
		return 0, err
	}
	return t.n, t.err
}

// turn is a serve under way: what it reads into, and what it returns.
type turn struct {
	p    []byte
	n    int
	err  error
	come func(fd uintptr) bool // conn.come
}

// come takes what has come; false: it is waited for.
func (c *conn) come(fd uintptr) (done bool) {
	t := &c.short.turn
	c.now.unread.Store(notUnread)
	for {
		n, err := readFD(int(fd), t.p)
		switch {
		case err == syscall.EAGAIN:
			return c.asked && !c.began() && !c.waits()
		case n <= 0:
			if t.err = cameNot(err); c.asked && !c.began() {
				t.err = io.EOF // fasthttp, which may have seen no request yet, would answer one that can't be read
			}
			return true
		}
		first := !c.asked
		var served bool
		if t.n, served, t.err = c.came(t.p, n); !served {
			return true
		}
		if c.short.cut || !c.answer(fd) {
			t.err = io.EOF
			return true
		}
		if t.err = c.await(); t.err != nil {
			return true
		}
		if c.s.draining.Load() != serving {
			return true // with nothing read
		}
		if n < len(t.p) && !first {
			return !c.waits()
		}
	}
}

// waits tells that another call is waited for. False: a drain began, which may have
// looked before it was told.
func (c *conn) waits() bool {
	c.now.unread.Store(waitsUnread)
	return c.s.draining.Load() == serving
}

// answer writes the answer that lies ready; false: the client does not take it.
func (c *conn) answer(fd uintptr) bool {
	b := c.short.answer
	if c.short.answer = b[:0]; cap(b) > keptAnswer {
		c.short.answer = nil
	}
	if len(b) == 0 { // a stream was written meanwhile
		return true
	}
	n, _ := syscall.Write(int(fd), b)
	if n = max(n, 0); n == len(b) {
		return true
	}
	_, err := c.Write(b[n:])
	return err == nil
}

var (
	chatTarget = []byte(chatPath)
	headDate   = []byte("Date")
)

// method, requestTarget and headerLines are those of the request as it came.
func (x *exchange) method() string {
	if x.short {
		return "POST"
	}
	return str(x.ctx.Method())
}

func (x *exchange) requestTarget() []byte {
	if x.short {
		return chatTarget
	}
	return x.ctx.Request.Header.RequestURI()
}

func (x *exchange) headerLines() []byte {
	if x.short {
		return x.client.short.lines
	}
	return x.ctx.Request.Header.RawHeaders()
}

// passAtOnce makes the client's answer of one that has come whole. False: it is one for
// the long way.
func (x *exchange) passAtOnce() bool {
	a, c := &x.answer, x.life.up
	if a.status != 200 || a.streams() || a.length < 0 || a.encoded || int64(c.w-c.r) < a.length || x.s.draining.Load() != serving {
		return false
	}
	b := x.appendHead(x.client.short.answer[:0])
	b = strconv.AppendInt(append(b, "Content-Length: "...), a.length, 10)
	b = append(b, crlfcrlf...)
	from := len(b)
	b = append(b, c.buf[c.r:c.r+int(a.length)]...)
	c.r += int(a.length)
	x.meterWhole(b[from:])
	x.finishUpstream()
	x.client.short.answer = b
	x.close("")
	return true
}

// streamsAtOnce says whether the answer is a stream that run may pass on.
func (x *exchange) streamsAtOnce() bool {
	return x.answer.status == 200 && x.answer.streams() && x.s.draining.Load() == serving
}

// run passes a stream on, from its head to its last chunk. Whatever breaks it off, its
// head may have gone out by then, so nothing is answered but by the connection's end.
func (s *stream) run() {
	x, c := s.x, s.x.client
	c.short.cut = true
	defer func() { _ = s.Close() }()
	defer func() {
		if v := recover(); v != nil {
			x.s.panicked(x, v)
			x.rec.Code = codeInternal
		}
	}()
	s.own = true
	b := x.appendHead(c.short.answer[:0])
	b = append(appendHeader(b, headCacheControl, valueNoCache), "Transfer-Encoding: chunked\r\n\r\n"...)
	if s.first {
		b = append(b, s.framed()...)
	}
	b = s.lastChunk(b)
	c.short.answer = b[:0]
	if s.write(b) != nil {
		_ = s.clientGone()
		return
	}
	c.short.cut = s.pump() != nil
}

// appendHead writes the head of an answer of 200, but for its framing.
func (x *exchange) appendHead(b []byte) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\n"...)
	b = appendHeader(b, headDate, *x.s.watcher.date.Load())
	x.tellHead(func(name, value []byte) { b = appendHeader(b, name, value) })
	return b
}

func appendHeader(b, name, value []byte) []byte {
	b = append(append(b, name...), ':', ' ')
	return append(append(b, value...), '\r', '\n')
}
