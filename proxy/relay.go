package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/proxy/dialect"
)

// maxWhole is the largest answer that is taken whole, in bytes: it is held until
// its end is known. A larger one is an upstream_error.
const maxWhole = 64 << 20

var (
	errClientLeft = errors.New("the client left")
	// errUnsent says that nothing of the request reached the target, so that the
	// next may be tried.
	errUnsent = errors.New("the request was not sent")
)

// relay tries the targets in order and passes the first answer that counts.
func (x *exchange) relay() error {
	x.life.spoke.Store(x.s.watcher.clock.Load())
	_, err := x.answered()
	switch {
	case err == nil && x.ctx == nil && x.streamsAtOnce():
		return x.startStream()
	case err == nil && x.ctx == nil && x.passAtOnce():
		return nil
	case err == nil:
		err = errUnpassed
	case err != errSilent:
		return x.upstreamFault(err)
	}
	if x.ctx == nil {
		return err
	}
	return x.passOn(err)
}

// errUnpassed says that a target has answered, and that its answer is to be passed on.
var errUnpassed = errors.New("the answer is not passed on yet")

// passOn writes into fasthttp's response what serve has left, unless it is an error.
func (x *exchange) passOn(err error) error {
	switch err {
	case errUnpassed:
		return x.pass(&x.serving.targets[x.slot])
	case errSilent:
		return x.startEarly()
	}
	return err
}

// answered tries the targets, from the one whose turn it is, until an answer
// counts. errSilent says that its head is still to come; called again it goes on.
func (x *exchange) answered() (*servedTarget, error) {
	for ; ; x.turn++ {
		last := x.turn == len(x.order)-1
		x.slot = x.order[x.turn]
		t := &x.serving.targets[x.slot]
		x.target = t.up
		err := x.call1(t)
		if err == nil {
			x.owes = x.answer.status < 300
			if !last && retryable(x.answer.status) {
				x.passOver(t)
				continue
			}
			return t, nil
		}
		if err == errSilent {
			return nil, err
		}
		x.drop()
		if last || !errors.Is(err, errUnsent) || x.aborted() != notAborted {
			return nil, err
		}
	}
}

// retryable says whether a provider's status means that it did nothing and that
// another may do better.
func retryable(status int) bool {
	return status == 429 || status == 500 || status == 502 || status == 503 || status == 504
}

// call1 sends the call to one target, unless it has it already, and reads its
// answer's head.
func (x *exchange) call1(t *servedTarget) error {
	if x.awaits {
		return x.awaitHead()
	}
	x.enter(awaitsHead)
	edit := dialect.Edit{Model: t.rename}
	edit.IncludeUsage = x.call.Stream && !x.call.IncludeUsage && t.up.streamUsage
	if x.most.limit > 0 && x.call.OwnLimit(t.up.outputLimit) < 0 {
		edit.OutputLimit, edit.OutputField = x.most.limit, t.up.outputLimit
	}
	x.unasked = edit.IncludeUsage
	x.out = x.appendRequest(x.out[:0], t.up, edit)
	x.sent, x.owes = time.Now(), false

	c, err := x.connect(t.up)
	if err != nil {
		return errors.Join(errUnsent, err)
	}
	if !x.attach(c) {
		_ = c.Close()
		return errClientLeft
	}
	x.reached, x.owes = true, true
	x.unsent = c.ask(x.out)
	return x.awaitHead()
}

// awaitHead reads the answer's head; errSilent: its client should hear something
// meanwhile. An upstream may refuse and close before it has read the body: its
// answer still counts.
func (x *exchange) awaitHead() error {
	err := x.life.up.readAnswer(&x.answer)
	x.awaits = err != nil && x.woken(err)
	switch {
	case x.awaits:
		return errSilent
	case err != nil && x.unsent != nil:
		return x.unsent
	case x.unsent != nil:
		x.answer.keep = false
	}
	return err
}

// connect takes a connection that lies idle, or dials: only that can last, so
// only that can be cancelled.
func (x *exchange) connect(up *upstream) (*upstreamConn, error) {
	if c := up.takeIdle(x.sent); c != nil {
		return c, nil
	}
	ctx, done := x.cancellable(dialTimeout)
	defer done()
	if x.aborted() != notAborted {
		return nil, errClientLeft
	}
	return up.dial(ctx)
}

// appendRequest writes the whole request: the allow-listed headers as they came,
// the target's own, the body with what must change in it.
func (x *exchange) appendRequest(b []byte, up *upstream, edit dialect.Edit) []byte {
	b = append(append(append(b, "POST "...), up.path...), x.route.suffix...)
	if len(x.query) > 0 {
		b = append(append(b, '?'), x.query...)
	}
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), up.host...), '\r', '\n')
	if len(up.names) == 0 {
		b = append(b, x.head.forward...)
	} else {
		b = appendLines(b, x.head.forward, func(line []byte) bool { return !up.sets(line) })
	}
	if !up.secret.Empty() {
		b = append(append(append(b, "Authorization: Bearer "...), up.secret.Reveal()...), '\r', '\n')
	}
	b = append(b, up.headers...)
	if len(x.head.idempotencyKey) > 0 {
		b = append(append(append(b, "Idempotency-Key: "...), x.idempotencyKey()...), '\r', '\n')
	}
	b = append(b, "Via: 1.1 kt-gateway\r\nContent-Length: "...)
	if edit == (dialect.Edit{}) {
		b = strconv.AppendInt(b, int64(len(x.body)), 10)
		b = append(b, crlfcrlf...)
		return append(b, x.body...)
	}
	// The edited length is known only when it is written: leave room for it.
	const room = 12
	at := len(b)
	b = append(b, "            \r\n\r\n"...)
	from := len(b)
	b = x.call.Append(b, x.body, edit)
	var digits [room]byte
	n := strconv.AppendInt(digits[:0], int64(len(b)-from), 10)
	copy(b[at+room-len(n):at+room], n)
	return b
}

// sets says whether a header line is one that the target's config sets.
func (u *upstream) sets(line []byte) bool {
	name, _, _ := bytes.Cut(line, []byte{':'})
	return slices.ContainsFunc(u.names, func(set string) bool { return strings.EqualFold(str(name), set) })
}

// idempotencyKey keeps one token's keys apart from another's at a provider that
// sees them all under one credential.
func (x *exchange) idempotencyKey() string {
	h := sha256.New()
	_, _ = io.WriteString(h, x.entry.ID)
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(x.head.idempotencyKey)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// passOver leaves an answer for the next target's. Usage that a short one tells
// counts all the same.
func (x *exchange) passOver(t *servedTarget) {
	const short, within = 8 << 10, 250 * time.Millisecond
	n, c := x.answer.length, x.life.up
	if n > 0 && n <= short {
		_ = c.SetReadDeadline(time.Now().Add(within))
		for int64(c.w-c.r) < n {
			if c.fill() != nil {
				break
			}
		}
		if int64(c.w-c.r) >= n {
			if u, told := dialect.ReadUsage(c.buf[c.r : c.r+int(n)]); told {
				nano, known := cost(u, t.price)
				x.prior.add(&bill{usage: u, nano: nano, unpriced: !known})
			}
		}
	}
	x.drop()
}

// drop closes the connection of an answer that will not be used.
func (x *exchange) drop() {
	if c := x.detach(); c != nil {
		_ = c.Close()
	}
}

// upstreamFault says what became of a call that brought no answer.
func (x *exchange) upstreamFault(err error) error {
	switch x.aborted() {
	case clientLeft:
		return errClientLeft
	case firstByteLate, upstreamIdle:
		return refuse(codeUpstreamTimeout, "Target %s did not answer in time.", x.target.id)
	case faulted:
		return refuse(codeInternal, ownFault)
	case drained:
		return refuse(codeDraining, "This gateway is shutting down; send the request again.").closing()
	}
	if code, message, told := x.endedToken(); told {
		return refuse(code, "%s", message)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return refuse(codeUpstreamTimeout, "Target %s could not be reached in time.", x.target.id)
	}
	if errors.Is(err, errUnsent) {
		return refuse(codeUpstreamError, "Target %s could not be reached.", x.target.id)
	}
	return refuse(codeUpstreamError, "Target %s broke off before its answer was whole.", x.target.id)
}

// pass hands the answer to the client: as a stream where it is one, else whole.
func (x *exchange) pass(t *servedTarget) error {
	if err := x.rejected(t); err != nil {
		return err
	}
	x.setHead()
	x.enter(awaitsBody)
	if x.answer.streams() {
		return x.startStream()
	}
	body, err := x.takeWhole(t)
	if err != nil {
		x.ctx.Response.Reset()
		return err
	}
	x.ctx.Response.SwapBody(body)
	x.close("")
	return nil
}

// rejected turns an answer that only the gateway's operator can mend into a
// refusal.
func (x *exchange) rejected(t *servedTarget) error {
	if x.answer.status != 401 && x.answer.status != 407 {
		return nil
	}
	x.drop()
	return refuse(codeUpstreamCredential, "Target %s refused the gateway's own credential. Your token is not the cause; tell the gateway's operator.", t.up.id)
}

// setHead writes the answer's head.
func (x *exchange) setHead() {
	h := &x.ctx.Response.Header
	x.ctx.SetStatusCode(x.answer.status)
	h.SetNoDefaultContentType(true)
	x.tellHead(h.SetBytesKV)
}

// tellHead tells the headers of an answer: the allow-list's and what is ours.
func (x *exchange) tellHead(put func(name, value []byte)) {
	a := &x.answer
	echoes := func(b []byte) bool { return a.status >= 400 && x.target.leaks(b) }
	if len(a.contentType) > 0 && !echoes(a.contentType) {
		put(headContentType, a.contentType)
	}
	for _, p := range a.passed {
		if !echoes(p.value) {
			put(p.name, p.value)
		}
	}
	put(headRequestID, x.id[:])
	if len(a.requestID) > 0 && len(a.requestID) <= 128 && !echoes(a.requestID) {
		put(headUpstreamRequestID, a.requestID)
	}
	put(headTarget, x.target.idBytes)
	x.tell(put)
}

var (
	headContentType       = []byte("Content-Type")
	headRequestID         = []byte("X-Request-Id")
	headUpstreamRequestID = []byte("X-Upstream-Request-Id")
	headTarget            = []byte("X-Keeptrusts-Target")
)

// takeWhole reads the answer to its end, so that a cut one is never told as
// whole, and meters it.
func (x *exchange) takeWhole(t *servedTarget) ([]byte, error) {
	body, err := x.readWhole()
	if err != nil {
		if x.emitted = dialect.EmittedWhole(body); x.answer.length > maxWhole {
			x.emitted = unseen
		}
		x.drop()
		return nil, x.upstreamFault(err)
	}
	if x.answer.encoded {
		x.emitted = unseen
		x.drop()
		return nil, refuse(codeUpstreamError, "Target %s sent a compressed answer that nobody asked for.", t.up.id)
	}
	if x.answer.status >= 400 && t.up.leaks(body) {
		x.drop()
		return nil, refuse(codeUpstreamError, "Target %s answered %d with an error that can't be passed on.", t.up.id, x.answer.status)
	}
	x.meterWhole(body)
	x.finishUpstream()
	return body, nil
}

// meterWhole reads what a whole answer used.
func (x *exchange) meterWhole(body []byte) {
	if x.usage, x.metered = dialect.ReadUsage(body); !x.metered && x.owes {
		x.emitted = dialect.EmittedWhole(body)
	}
}

// readWhole reads the body into a buffer that the response will own. With an error
// it returns what came.
func (x *exchange) readWhole() ([]byte, error) {
	a, c := &x.answer, x.life.up
	var body []byte
	if x.stream.x == nil { // else it is not the response's: a stream is
		body = x.ctx.Response.SwapBody(nil)[:0]
	}
	if a.length >= 0 {
		if a.length > maxWhole {
			return nil, errors.New("the answer is too large")
		}
		if int64(cap(body)) < a.length {
			body = make([]byte, 0, a.length)
		}
	}
	var d dechunker
	for {
		b := c.buf[c.r:c.w]
		switch {
		case a.length >= 0:
			n := min(int64(len(b)), a.length-int64(len(body)))
			body = append(body, b[:n]...)
			c.r += int(n)
			if int64(len(body)) == a.length {
				return body, nil
			}
		case a.length == chunkedBody:
			for len(b) > 0 && !d.done() {
				payload, used, err := d.next(b)
				if err != nil {
					return body, err
				}
				body = append(body, payload...)
				b = b[used:]
				c.r += used
			}
			if d.done() {
				return body, nil
			}
		default:
			body = append(body, b...)
			c.r = c.w
		}
		if len(body) > maxWhole {
			return body, errors.New("the answer is too large")
		}
		if err := x.more(); err != nil {
			if err == io.EOF && a.length == untilClose && x.aborted() == notAborted {
				return body, nil
			}
			return body, err
		}
		x.life.since.Store(x.s.watcher.clock.Load())
	}
}

// finishUpstream gives the connection of an answer that was read to its end back,
// or closes it.
func (x *exchange) finishUpstream() {
	c := x.detach()
	if c == nil {
		return
	}
	x.ended = time.Now()
	if x.answer.keep && x.aborted() == notAborted {
		x.target.release(c, x.ended)
		return
	}
	_ = c.Close()
}
