package proxy

import (
	"bytes"
	"io"
	"math"
	"strings"
)

// answer is the head of an upstream's response. Its slices alias the
// connection's buffer until that is filled again.
type answer struct {
	status  int
	length  int64 // of the body; chunkedBody, or untilClose
	keep    bool  // the connection may be used again
	sse     bool  // text/event-stream
	encoded bool  // a Content-Encoding that nobody asked for

	contentType []byte
	requestID   []byte
	passed      []passedHeader // those of the allow-list
}

// streams says whether the body is a stream of events to pass on.
func (a *answer) streams() bool { return a.sse && a.status < 300 && !a.encoded }

type passedHeader struct{ name, value []byte }

const (
	chunkedBody int64 = -1
	untilClose  int64 = -2
)

// readAnswer reads the head that counts; 1xx ones before it are passed over.
func (c *upstreamConn) readAnswer(a *answer) error {
	for range maxInterim {
		head, err := c.readHead()
		if err != nil {
			return err
		}
		*a = answer{passed: a.passed[:0]}
		if err := a.parse(head); err != nil {
			return err
		}
		c.r += len(head)
		if a.status >= 200 {
			return nil
		}
		if a.status == 101 {
			break
		}
	}
	return errUpstreamHead
}

// readHead reads up to and with the empty line.
func (c *upstreamConn) readHead() ([]byte, error) {
	from := 0
	for {
		b := c.buf[c.r:c.w]
		if i := bytes.Index(b[from:], crlfcrlf); i >= 0 {
			return b[:from+i+len(crlfcrlf)], nil
		}
		from = max(0, len(b)-3)
		if err := c.fill(); err != nil {
			if err == io.EOF && len(b) == 0 {
				return nil, errUpstreamClosed
			}
			if err == io.EOF {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

func (a *answer) parse(head []byte) error {
	line, rest, ok := cutLine(head)
	if !ok || len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] < '0' || line[7] > '9' || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errUpstreamHead
	}
	minor := line[7]
	a.keep = minor == '1'
	for _, d := range line[9:12] {
		if d < '0' || d > '9' {
			return errUpstreamHead
		}
		a.status = a.status*10 + int(d-'0')
	}
	if a.status < 100 {
		return errUpstreamHead
	}
	a.length = math.MinInt64
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return errUpstreamHead
		}
		if len(line) == 0 {
			break
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 || !isToken(line[:colon]) {
			return errUpstreamHead
		}
		value := trimOWS(line[colon+1:])
		if hasControl(value) {
			return errUpstreamHead
		}
		if err := a.field(line[:colon], value); err != nil {
			return err
		}
	}
	switch {
	case a.status < 200 || a.status == 204 || a.status == 304:
		a.length = 0
	case a.length == math.MinInt64:
		a.length, a.keep = untilClose, false
	case a.length == chunkedBody && minor != '1': // RFC 9112 §6.1: faulty
		return errUpstreamHead
	}
	return nil
}

func (a *answer) field(name, value []byte) error {
	switch len(name) {
	case len("Connection"):
		if foldsTo(name, "connection") && containsFold(value, "close") {
			a.keep = false
			return nil
		}
	case len("Content-Type"): // and of X-Request-Id
		if foldsTo(name, "content-type") {
			a.contentType = value
			a.sse = hasPrefixFold(value, "text/event-stream")
			return nil
		}
		if foldsTo(name, "x-request-id") {
			a.requestID = value
			return nil
		}
	case len("Content-Length"):
		if foldsTo(name, "content-length") {
			return a.setLength(value)
		}
	case len("Content-Encoding"):
		if foldsTo(name, "content-encoding") && !strings.EqualFold(str(value), "identity") {
			a.encoded = true
			return nil
		}
	case len("Transfer-Encoding"):
		if foldsTo(name, "transfer-encoding") {
			if a.length != math.MinInt64 || !strings.EqualFold(str(value), "chunked") {
				return errUpstreamHead
			}
			a.length = chunkedBody
			return nil
		}
	}
	if passedDown(name) {
		a.passed = append(a.passed, passedHeader{name, value})
	}
	return nil
}

func (a *answer) setLength(value []byte) error {
	if len(value) == 0 || len(value) > 18 {
		return errUpstreamHead
	}
	var n int64
	for _, d := range value {
		if d < '0' || d > '9' {
			return errUpstreamHead
		}
		n = n*10 + int64(d-'0')
	}
	if a.length != math.MinInt64 && a.length != n {
		return errUpstreamHead
	}
	a.length = n
	return nil
}

// passedDown is the allow-list of an answer's headers (DESIGN §5); the content
// type and the request id are read apart.
func passedDown(name []byte) bool {
	switch name[0] | 0x20 {
	case 'r':
		return foldsTo(name, "retry-after") || foldsTo(name, "retry-after-ms")
	case 'x':
		return foldsTo(name, "x-should-retry")
	case 'o':
		return foldsTo(name, "openai-processing-ms") || foldsTo(name, "openai-version") || foldsTo(name, "openai-model")
	case 'a':
		return hasPrefixFold(name, "anthropic-") && !containsFold(name, "organization") && !containsFold(name, "account") && !containsFold(name, "workspace")
	}
	return false
}

func hasPrefixFold(b []byte, lower string) bool {
	return len(b) >= len(lower) && foldsTo(b[:len(lower)], lower)
}

// containsFold looks for a lower-case word without "_".
func containsFold(b []byte, lower string) bool {
	for i := 0; i+len(lower) <= len(b); i++ {
		if foldsTo(b[i:i+len(lower)], lower) {
			return true
		}
	}
	return false
}
