package proxy

import (
	"errors"
	"io"
	"net"
	"strings"

	"github.com/keeptrusts/gateway/proxy/dialect"
)

// read takes the body in and reads from it what policy and metering need.
func (x *exchange) read() error {
	if x.head.encoded {
		return refuse(codeMediaType, "A Content-Encoding on a request is not taken: send the body as it is.")
	}
	if !isJSON(x.head.contentType) {
		return refuse(codeMediaType, "The Content-Type must be application/json, in UTF-8.")
	}
	if err := x.readBody(); err != nil {
		return err
	}
	if p := dialect.ReadChat(x.body, &x.call); p != nil {
		f := refuse(p.Code, "%s", p.Message)
		if f.param = p.Param; containsToken([]byte(p.Param), x.rt.cfg.LegacyPrefixes) {
			f.param = "(not repeated)"
		}
		return f
	}
	return nil
}

// isJSON takes application/json with any parameters but a charset other than
// UTF-8, in which somebody could read another body; a missing one is JSON.
func isJSON(contentType []byte) bool {
	if contentType == nil {
		return true
	}
	media, rest, _ := strings.Cut(str(contentType), ";")
	if !strings.EqualFold(strings.TrimSpace(media), "application/json") {
		return false
	}
	for rest != "" {
		var param string
		param, rest, _ = strings.Cut(rest, ";")
		name, value, _ := strings.Cut(param, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "charset") {
			continue
		}
		switch strings.ToLower(strings.Trim(value, " \t\"")) {
		case "utf-8", "utf8", "us-ascii":
		default:
			return false
		}
	}
	return true
}

// readBody reads the whole body into the exchange's buffer, within
// limits.request_body, and counts it against limits.bodies while it is held.
func (x *exchange) readBody() error {
	limit := x.rt.cfg.Limits.RequestBody
	if x.short {
		return x.copyBody(limit)
	}
	length := int64(x.ctx.Request.Header.ContentLength())
	if length > limit {
		return tooLarge(limit)
	}
	src := x.ctx.RequestBodyStream()
	if src == nil || length == 0 {
		x.body = x.body[:0]
		return nil
	}
	want := length
	if want < 0 {
		want = 4 << 10
	}
	for {
		if err := x.room(want); err != nil {
			return err
		}
		n, err := src.Read(x.body[len(x.body):want])
		x.body = x.body[:len(x.body)+n]
		got := int64(len(x.body))
		switch {
		case got > limit:
			return tooLarge(limit)
		case length >= 0 && got == length:
			return nil
		case err == io.EOF && length < 0:
			return nil // fasthttp tells a chunked body's end so, and a broken one otherwise
		case err != nil:
			return x.bodyFault(err)
		case got == want:
			want = min(2*want, limit+1)
		}
	}
}

// copyBody takes a body that has come with its head.
func (x *exchange) copyBody(limit int64) error {
	b := x.client.short.body
	if int64(len(b)) > limit {
		return tooLarge(limit)
	}
	if err := x.room(int64(len(b))); err != nil {
		return err
	}
	x.body = append(x.body[:0], b...)
	return nil
}

// room makes the buffer hold n bytes.
func (x *exchange) room(n int64) error {
	if more, slot := n-x.held, tokenSlot(&x.entry.Digest); n <= keptBuffer {
		x.s.bodies.add(slot, more)
	} else if more > 0 && !x.s.bodies.take(slot, more, x.rt.cfg.Limits.Bodies) {
		return refuse(codeOverloaded, "The gateway holds as many bytes of request bodies as it may; send the request again.").closing()
	}
	x.held = n
	if int64(cap(x.body)) < n {
		b := make([]byte, len(x.body), n)
		copy(b, x.body)
		x.body = b
	}
	return nil
}

func tooLarge(limit int64) *refusal {
	return refuse(codeBodyTooLarge, "The body is larger than %d bytes.", limit).closing()
}

func (x *exchange) bodyFault(err error) *refusal {
	var ne net.Error
	if x.client != nil && x.client.fault != "" {
		return refuse(codeInvalidRequest, "The request can't be read in one way only: %s.", x.client.fault).closing()
	}
	if errors.As(err, &ne) && ne.Timeout() {
		return refuse(codeRequestTimeout, "The body came too slowly.").closing()
	}
	return refuse(codeInvalidRequest, "The body ended before its framing said so.").closing()
}
