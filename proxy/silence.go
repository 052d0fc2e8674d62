package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/keeptrusts/gateway/proxy/dialect"
)

// While an upstream is silent, the client of a stream gets a comment every
// limits.keepalive_comment, so that nothing between the two takes the call for dead.
// The watcher interrupts the read, and the goroutine that reads writes the comment:
// it alone knows where one can stand. Framing and head of the upstream are read so
// that they go on at any byte.

const keepAlive = ": keep-alive\n\n"

// errSilent says that the watcher interrupted the wait for an answer's head.
var errSilent = errors.New("the upstream is silent")

// wake interrupts the read of an exchange whose client has heard nothing for long.
func (x *exchange) wake(now int64, every time.Duration) {
	since := x.life.spoke.Load()
	switch phase(x.life.doing.Load()) {
	case awaitsHead:
	case awaitsBody:
		since = max(since, x.life.since.Load())
	default:
		return
	}
	if time.Duration(now-since) < every {
		return
	}
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	if x.life.up != nil && !x.life.woken {
		x.life.woken = true
		x.life.up.interrupt()
	}
}

// woken says whether a read failed only because the watcher interrupted it, and
// makes the connection fit for the next.
func (x *exchange) woken(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	if !x.life.woken {
		return false
	}
	x.life.woken = false
	x.life.spoke.Store(x.s.watcher.clock.Load())
	return x.life.up.resume() == nil
}

// more reads once more from the upstream, with comments to the client while
// nothing comes.
func (x *exchange) more() error {
	for {
		err := errNoLoop
		if x.stream.x != nil && x.stream.loops() {
			err = x.s.loops.wait(&x.stream)
		}
		if err == errNoLoop {
			err = x.life.up.fill()
		}
		if err == nil || !x.woken(err) {
			return err
		}
		if x.stream.x != nil && x.stream.comment() != nil {
			x.abort(clientLeft)
			return errClientLeft
		}
	}
}

// comment writes one where it is due.
func (s *stream) comment() error {
	if !s.commentDue() {
		return nil
	}
	s.marked = s.marked || !s.began
	s.out = append(s.room(), keepAlive...)
	return s.send(s.framed()) // the phase stays: what the upstream may take goes on
}

// commentDue says whether the client should get one: not if it heard something not
// long ago, nor inside an event too large to be held.
func (s *stream) commentDue() bool {
	every := s.x.rt.cfg.Limits.KeepaliveComment
	return every > 0 && time.Duration(s.x.s.watcher.clock.Load()-s.heard) >= every && s.x.meter.Boundary()
}

// startEarly sends the head of a stream whose upstream has not answered yet. What
// the answer turns out to be is told in the stream.
func (x *exchange) startEarly() error {
	s, h := &x.stream, &x.ctx.Response.Header
	s.x, s.early, s.first, s.marked = x, true, true, true
	x.meter.Reset(false) // that of an answer is begun with it
	s.out = append(s.room(), keepAlive...)
	x.ctx.SetStatusCode(200)
	h.SetContentType("text/event-stream; charset=utf-8")
	h.SetCanonical(headRequestID, x.id[:])
	if x.turn == len(x.order)-1 { // else another may answer
		h.SetCanonical(headTarget, x.target.idBytes)
	}
	x.tell(h.SetBytesKV)
	x.life.spoke.Store(x.s.watcher.clock.Load())
	return s.hand()
}

// await waits for the answer of a stream that began early.
func (s *stream) await() error {
	x := s.x
	for {
		t, err := x.answered()
		if err == errSilent {
			if s.comment() != nil {
				return s.clientGone()
			}
			continue
		}
		if err != nil {
			return s.fail(x.upstreamFault(err))
		}
		if err := x.rejected(t); err != nil {
			return s.fail(err)
		}
		x.enter(awaitsBody)
		if !x.answer.streams() {
			return s.instead(t)
		}
		s.begin()
		return s.pass()
	}
}

// instead ends a stream that began early and whose target answered with something
// else: the provider's own error where there is one.
func (s *stream) instead(t *servedTarget) error {
	x, status := s.x, s.x.answer.status
	body, err := x.takeWhole(t)
	if err != nil {
		return s.fail(err)
	}
	if status < 300 {
		return s.fail(refuse(codeUpstreamError, "Target %s answered without a stream, which was asked for.", t.up.id))
	}
	told := providersError(body)
	if told == nil {
		return s.fail(refuse(codeUpstreamError, "Target %s answered %d.", t.up.id, status))
	}
	x.rec.Code = codeUpstreamError
	s.out = dialect.AppendErrorEvent(s.room(), told, x.requestID())
	return s.last()
}

// providersError is the error of a provider's body as `{"error":…}` in one line;
// nil: there is none of a size that is passed on.
func providersError(body []byte) []byte {
	const most = 64 << 10
	var b struct {
		Error json.RawMessage `json:"error"`
	}
	if len(body) > most || json.Unmarshal(body, &b) != nil || len(b.Error) == 0 || b.Error[0] != '{' {
		return nil
	}
	var one bytes.Buffer
	one.WriteString(`{"error":`)
	if json.Compact(&one, b.Error) != nil {
		return nil
	}
	one.WriteByte('}')
	return one.Bytes()
}

// fail ends a stream with an error that its client can't be told in any other way.
func (s *stream) fail(err error) error {
	var f *refusal
	if !errors.As(err, &f) {
		return s.clientGone()
	}
	return s.endWith(f.row.code, f.message)
}

// endWith ends a stream with an error event where one can stand, and no clean end.
func (s *stream) endWith(code, message string) error {
	x := s.x
	x.rec.Code = code
	if !x.meter.Boundary() {
		return errCut
	}
	r := rowByCode[code]
	s.out = dialect.AppendErrorEvent(s.room(), dialect.AppendError(nil, dialect.Error{
		Message: message, Type: r.kind, Code: code,
	}), x.requestID())
	return s.last()
}

// last writes what ends a stream without a clean end.
func (s *stream) last() error {
	if s.write(s.framed()) != nil {
		return s.clientGone()
	}
	return errCut
}
