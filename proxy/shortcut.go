package proxy

import "strconv"

// The hot path goes past fasthttp where it can: a call that one read brought whole was
// parsed by framing already, and an answer that came whole needs no Response. fasthttp,
// whose loop this stays, is shown a request without headers or a body, and writes a
// response that gives way to the one that lies ready. Parsing the request again, streaming
// a body that is there and keeping the answer's headers by their kinds cost a tenth of all
// CPU: `go run ./test/benchpeers -budget off -only request`.

// shortcut is a call that lies whole in the buffer that it was read into, behind the
// bytes that fasthttp is shown, until the connection is read again.
type shortcut struct {
	taken  bool
	lines  []byte // the headers, with the empty line
	body   []byte
	answer []byte // what is written for fasthttp's own response; empty: nothing
}

const (
	shortcutLine = "POST " + chatPath + " HTTP/1.1" // of the only calls that are taken
	shownHead    = "GET / HTTP/1.1\r\nHost:-\r\n\r\n"
	// keptAnswer is how much room for an answer a connection keeps.
	keptAnswer = 8 << 10
)

// shorten shows fasthttp a short head for p, which is one whole call. It returns how
// much of p that is.
func (c *conn) shorten(p []byte, head int) int {
	c.short.taken, c.short.lines, c.short.body = true, p[len(shortcutLine)+2:head], p[head:]
	return copy(p[:len(shortcutLine)], shownHead)
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

// passAtOnce writes an answer that has come whole beside fasthttp's response. False: it
// is one for the long way.
func (x *exchange) passAtOnce() bool {
	a, c := &x.answer, x.life.up
	if !x.short || a.status != 200 || a.streams() || a.length < 0 || a.encoded || int64(c.w-c.r) < a.length || x.s.draining.Load() != serving {
		return false
	}
	b := append(x.client.short.answer[:0], "HTTP/1.1 200 OK\r\n"...)
	b = appendHeader(b, headDate, *x.s.watcher.date.Load())
	x.tellHead(func(name, value []byte) { b = appendHeader(b, name, value) })
	b = strconv.AppendInt(append(b, "Content-Length: "...), a.length, 10)
	b = append(b, crlfcrlf...)
	from := len(b)
	b = append(b, c.buf[c.r:c.r+int(a.length)]...)
	c.r += int(a.length)
	x.meterWhole(b[from:])
	x.finishUpstream()
	x.client.short.answer = b // last, so that a fault is answered in its own words
	x.close("")
	return true
}

func appendHeader(b, name, value []byte) []byte {
	b = append(append(b, name...), ':', ' ')
	return append(append(b, value...), '\r', '\n')
}
