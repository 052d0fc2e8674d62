package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"strconv"
	"time"
)

// errCut ends a stream that must not look whole: fasthttp closes the connection
// without the last chunk.
var errCut = errors.New("stream cut")

// stream passes an upstream's events to the client: in run, where a shortcut brought
// its call. Else it is the body of the response, so fasthttp calls WriteTo after the
// handler has returned, and Close at the end.
//
// What each chunk of a long stream needs comes first, so that it lies together: of many
// streams none is in a processor's near cache when its next event comes.
type stream struct {
	x       *exchange
	heard   int64 // the watcher's clock when the client last got something
	chunks  dechunker
	chunked bool // the body comes in chunks, goes on in chunks, and nothing limits it
	began   bool // something has gone on to the client
	first   bool // out holds what goes with the head
	early   bool // the client gets its head before the upstream has answered
	marked  bool // a comment came first: a byte order mark would now spoil an event
	bare    bool // an HTTP/1.0 client's: without chunks
	own     bool // fasthttp does not write the last chunk
	ended   bool // the upstream's body was read to its end
	closed  bool
	pumps   bool // it passes what comes: it may wait in an event loop

	left int64 // of a body with a length
	allotment
	out    []byte // frameRoom bytes, then what goes on to the client
	inside int64  // bytes of an event too large to be held that have passed
	rest   rest   // what the loop left
}

// startStream takes what came with the head and passes it on with what follows, or has
// fasthttp do so.
func (x *exchange) startStream() error {
	s := &x.stream
	s.x = x
	s.begin()
	if err := s.take(); err != nil {
		x.drop()
		if x.ctx != nil {
			x.ctx.Response.Reset()
		}
		if x.rec.Code == codeUnavailable {
			return x.unreserved(err)
		}
		return x.upstreamFault(err)
	}
	s.first = len(s.out) > frameRoom
	if x.ctx == nil {
		s.run()
		return nil
	}
	return s.hand()
}

// begin readies the stream for the upstream's body.
func (s *stream) begin() {
	s.x.meter.Reset(s.x.unasked)
	s.left = s.x.answer.length
	s.x.rec.Stream = true
	s.allot()
	s.chunked = s.left == chunkedBody && !s.bare && s.limit == math.MaxInt64
}

// hand makes the stream the response's body.
func (s *stream) hand() error {
	x := s.x
	h := &x.ctx.Response.Header
	h.SetCanonical(headCacheControl, valueNoCache)
	if !x.ctx.Request.Header.IsHTTP11() {
		return s.hijack()
	}
	// Where bytes came with the head one write carries both.
	x.ctx.Response.ImmediateHeaderFlush = !s.first && !s.ended
	x.ctx.Response.SetBodyStream(s, -1)
	return nil
}

var (
	headCacheControl = []byte("Cache-Control")
	valueNoCache     = []byte("no-cache")
)

// SupportsBodyWriteTo lets fasthttp use WriteTo.
func (s *stream) SupportsBodyWriteTo() bool { return true }

// Read exists for io.Reader; fasthttp uses WriteTo.
func (s *stream) Read([]byte) (int, error) { return 0, errCut }

// WriteTo passes the stream on. The first bytes go through w, behind the head
// that it still holds; what follows is framed here and written straight to the
// connection: one read from the upstream, one write to the client.
func (s *stream) WriteTo(w io.Writer) (n int64, err error) {
	defer func() {
		if v := recover(); v != nil { // fasthttp recovers too, but keeps no books
			s.x.s.panicked(s.x, v)
			s.x.rec.Code = codeInternal
			err = errCut
		}
	}()
	if s.first {
		if !s.early { // else the upstream's time goes on
			s.x.enter(writesClient)
		}
		if _, err := w.Write(s.out[frameRoom:]); err != nil {
			return 0, s.clientGone()
		}
	}
	return 0, s.pump()
}

// pump reads and writes until the upstream's body ends.
func (s *stream) pump() error {
	x := s.x
	s.heard = x.s.watcher.clock.Load()
	if s.early {
		if err := s.await(); err != nil {
			return err
		}
	}
	s.pumps = true
	for !s.ended {
		x.enter(awaitsBody)
		if err := x.more(); err == nil {
			if err := s.pass(); err != nil {
				return err
			}
		} else if err == io.EOF && x.answer.length == untilClose && x.aborted() == notAborted {
			s.ended = true
			s.out = append(s.room(), x.meter.End()...)
			var b []byte
			if len(s.out) > frameRoom {
				b = s.framed()
			}
			if b = s.lastChunk(b); len(b) > 0 && s.write(b) != nil {
				return s.clientGone()
			}
		} else {
			return s.cut()
		}
	}
	x.finishUpstream()
	return nil
}

// next takes what has come and returns what goes on to the client, framed: what came
// before a fault too. It waits for nothing, unless the stream is kept to a limit.
func (s *stream) next(c *upstreamConn) (b []byte, fault error) {
	if b := s.alike(c); b != nil {
		return b, nil
	}
	fault = s.take()
	if len(s.out) == frameRoom {
		return nil, fault
	}
	if s.marked && bytes.HasPrefix(s.out[frameRoom:], byteOrderMark) {
		s.out = append(s.out[:frameRoom], s.out[frameRoom+len(byteOrderMark):]...)
	}
	s.marked = false
	return s.framed(), fault
}

var byteOrderMark = []byte("\ufeff")

// alike takes what has come where that is one chunk with one event like those before
// it, which is most of a stream: it goes on framing and all, for there is nothing in it
// to look for. nil: it is something else, and nothing was taken.
func (s *stream) alike(c *upstreamConn) []byte {
	if !s.chunked || !s.began || !s.chunks.between() {
		return nil
	}
	b := c.buf[c.r:c.w]
	if payload := wholeChunk(b); payload == nil || !s.x.meter.Pass(payload) {
		return nil
	}
	c.r = c.w
	return b
}

// pass hands on what has come, or what the event loop left of it. A client for which
// nothing was whole yet may be due a comment.
func (s *stream) pass() error {
	r := s.rest
	s.rest = rest{}
	if !r.waits {
		r.bytes, r.fault = s.next(s.x.life.up)
	}
	if r.fault == nil {
		r.bytes = s.lastChunk(r.bytes)
	}
	if len(r.bytes) > 0 {
		if s.write(r.bytes) != nil {
			return s.clientGone()
		}
	} else if r.fault == nil && !s.ended && s.comment() != nil {
		return s.clientGone()
	}
	if r.fault != nil {
		return s.cut()
	}
	return nil
}

// write hands b to the client.
func (s *stream) write(b []byte) error {
	s.x.enter(writesClient)
	return s.send(b)
}

func (s *stream) send(b []byte) error {
	_, err := s.x.client.Write(b)
	s.heard = s.x.s.watcher.clock.Load()
	return err
}

// framed is what lies in out, as the client gets it.
func (s *stream) framed() []byte {
	if s.bare {
		return s.out[frameRoom:]
	}
	return frame(s.out)
}

// lastChunk adds the last chunk to b, which is what goes on at the stream's end.
func (s *stream) lastChunk(b []byte) []byte {
	if s.own && s.ended {
		b = append(b, "0\r\n\r\n"...)
	}
	return b
}

func (s *stream) room() []byte {
	if cap(s.out) < frameRoom {
		s.out = make([]byte, frameRoom, 4<<10)
	}
	return s.out[:frameRoom]
}

// take runs what lies in the connection's buffer through the meter into out.
func (s *stream) take() error {
	x := s.x
	c := x.life.up
	s.out = s.room()
	b := c.buf[c.r:c.w]
	switch x.answer.length {
	case chunkedBody:
		for len(b) > 0 && !s.chunks.done() {
			payload, used, err := s.chunks.next(b)
			if err != nil {
				return err
			}
			if len(payload) > 0 {
				if err := s.meter(payload); err != nil || s.spent {
					return err
				}
			}
			b = b[used:]
			c.r += used
		}
		s.ended = s.chunks.done()
	case untilClose:
		if err := s.meter(b); err != nil || s.spent {
			return err
		}
		c.r = c.w
	default:
		n := min(int64(len(b)), s.left)
		if n > 0 {
			if err := s.meter(b[:n]); err != nil || s.spent {
				return err
			}
		}
		c.r += int(n)
		s.left -= n
		s.ended = s.left == 0
	}
	if s.ended {
		s.out = append(s.out, x.meter.End()...)
	}
	if x.target.leaksEvent(s.out[frameRoom:]) {
		s.out = s.out[:frameRoom]
		return errLeak
	}
	if !s.began && len(s.out) > frameRoom {
		s.began, x.rec.FirstByte = true, time.Since(x.began)
	}
	return nil
}

// cut ends a stream that did not end by itself: an error event where one can
// stand, and no clean end.
func (s *stream) cut() error {
	x := s.x
	code, message := codeUpstreamError, "The provider broke off before its answer was whole."
	switch x.aborted() {
	case clientLeft:
		return s.clientGone()
	case upstreamIdle, firstByteLate:
		code, message = codeUpstreamTimeout, "The provider fell silent before its answer was whole."
	case faulted:
		code, message = codeInternal, ownFault
	case drained:
		code, message = codeDraining, "The gateway is shutting down; send the request again."
	case tokenRevoked, tokenExpired:
		code, message, _ = x.endedToken()
	default:
		if x.rec.Code == codeUnavailable {
			code, message = codeUnavailable, "The control plane can't be reached, and what was reserved of the token's budgets is used up."
		}
	}
	return s.endWith(code, message)
}

func (s *stream) clientGone() error {
	s.x.rec.Code = codeClientLeft
	return errCut
}

// codeClientLeft stands in the log only: nobody is left to be told.
const codeClientLeft = "client_closed_request"

// Close keeps the books, once. There must be no CloseWithError: fasthttp would call
// it after Close, on an exchange that serves another request by then.
func (s *stream) Close() error {
	if s.closed || s.x == nil {
		return nil
	}
	s.closed = true
	x := s.x
	defer func() {
		if v := recover(); v != nil {
			x.s.panicked(x, v)
			x.rec.Code = codeInternal
		}
		x.close(x.rec.Code)
	}()
	x.drop()
	return nil
}

// hijack serves an HTTP/1.0 client, which knows no chunks: its body ends with the
// connection (RFC 9112 §6.1).
func (s *stream) hijack() error {
	x := s.x
	head := append([]byte("HTTP/1.1 "), strconv.Itoa(x.ctx.Response.StatusCode())...)
	head = append(head, " OK\r\nConnection: close\r\n"...)
	for k, v := range x.ctx.Response.Header.All() {
		if str(k) != "Content-Length" && str(k) != "Connection" && str(k) != "Transfer-Encoding" {
			head = append(append(append(append(head, k...), ": "...), v...), '\r', '\n')
		}
	}
	head = append(head, '\r', '\n')
	s.bare, s.chunked = true, false
	x.ctx.HijackSetNoResponse(true)
	x.ctx.Hijack(func(c net.Conn) {
		defer func() { _ = s.Close() }()
		defer func() {
			if v := recover(); v != nil {
				x.s.panicked(x, v)
				x.rec.Code = codeInternal
			}
		}()
		w := bufio.NewWriter(c)
		_, _ = w.Write(head)
		if s.first {
			_, _ = w.Write(s.out[frameRoom:])
		}
		if w.Flush() != nil {
			_ = s.clientGone()
			return
		}
		_ = s.pump()
	})
	return nil
}
