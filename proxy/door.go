package proxy

import (
	"bytes"
	"net/url"
	"strings"

	"github.com/keeptrusts/gateway/abac"
)

// endpoint is one path that is served.
type endpoint struct {
	path   string
	method string
	allow  string      // what `Allow` says of another method
	action abac.Action // 0: no token needed
	suffix string      // after the base URL's /v1, where it is forwarded
	serve  func(*exchange) error
}

// headers is what one walk over the request's head found. Slices alias the head.
type headers struct {
	credentials    int
	scheme         bool // the credential stands in Authorization
	credential     []byte
	teams          int
	team           []byte
	contentType    []byte
	encoded        bool // a Content-Encoding
	expect         []byte
	expects        bool
	idempotencyKey []byte
	clientID       []byte // X-Client-Request-Id, else X-Request-Id
	agentID        []byte
	forward        []byte   // the lines that pass upstream
	nominated      [][]byte // what Connection names, beside the usual
}

// door lets a request in: framing, draining, a canonical path. It answers probes
// itself.
func (x *exchange) door() error {
	x.readHeaders(x.headerLines())
	if x.head.expects && x.ctx.Request.Header.IsHTTP11() && !strings.EqualFold(str(x.head.expect), "100-continue") {
		return refuse(codeExpectation, "The only expectation that is met is 100-continue.").closing()
	}
	x.path, x.query, _ = bytes.Cut(x.requestTarget(), questionMark)
	x.route = x.s.find(str(x.path))
	if x.route != nil && x.route.action == 0 && x.method() != "POST" {
		return nil // probes answer while we drain
	}
	if x.s.refuses(x.client) {
		return refuse(codeDraining, "This gateway is shutting down; send the request again.").closing()
	}
	return nil
}

var questionMark = []byte{'?'}

// readHeaders walks the head once. Framing has checked every line.
func (x *exchange) readHeaders(raw []byte) {
	h := &x.head
	for {
		line, rest, ok := cutLine(raw)
		if !ok || len(line) == 0 {
			break
		}
		raw = rest
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			continue
		}
		if h.take(line[:colon], trimOWS(line[colon+1:])) {
			h.forward = append(append(h.forward, line...), '\r', '\n')
		}
	}
	if len(h.nominated) > 0 {
		h.forward = appendLines(h.forward[:0], h.forward, h.keeps)
	}
	// A token never goes upstream, wherever a client put it.
	if legacy := x.rt.cfg.LegacyPrefixes; containsToken(h.forward, legacy) {
		h.forward = appendLines(h.forward[:0], h.forward, func(line []byte) bool { return !containsToken(line, legacy) })
	}
	if h.contentType == nil {
		h.forward = append(h.forward, "Content-Type: application/json\r\n"...)
	}
}

// appendLines appends those of some header lines that are kept; b may be their own
// beginning.
func appendLines(b, lines []byte, keep func(line []byte) bool) []byte {
	for line := range bytes.SplitAfterSeq(lines, crlfcrlf[:2]) {
		if keep(line) {
			b = append(b, line...)
		}
	}
	return b
}

// take notes a header that matters and says whether it passes upstream. Under a name with
// "_" for "-", which many a server takes for the same, none passes.
func (h *headers) take(name, value []byte) bool {
	switch name[0] | 0x20 {
	case 'a':
		switch {
		case foldsTo(name, "authorization"):
			h.credentials++
			h.scheme, h.credential = true, value
		case foldsTo(name, "api-key"):
			h.credentials++
			h.credential = value
		case foldsTo(name, "accept"), strings.EqualFold(str(name), "anthropic-version"), strings.EqualFold(str(name), "anthropic-beta"):
			return true
		}
	case 'b':
		return foldsTo(name, "baggage")
	case 'c':
		switch {
		case strings.EqualFold(str(name), "content-type"):
			h.contentType = value
			return true
		case foldsTo(name, "content-encoding"):
			h.encoded = true
		case foldsTo(name, "connection"):
			h.nominate(value)
		}
	case 'e':
		if foldsTo(name, "expect") {
			if !h.expects || strings.EqualFold(str(h.expect), "100-continue") { // the one that can't be met counts
				h.expect = value
			}
			h.expects = true
		}
	case 'i':
		if foldsTo(name, "idempotency-key") {
			h.idempotencyKey = value
		}
	case 'o':
		return strings.EqualFold(str(name), "openai-beta")
	case 't':
		return foldsTo(name, "traceparent") || foldsTo(name, "tracestate")
	case 'u':
		return strings.EqualFold(str(name), "user-agent")
	case 'x':
		return h.takeX(name, value)
	}
	return false
}

func (h *headers) takeX(name, value []byte) bool {
	switch {
	case foldsTo(name, "x-api-key"):
		h.credentials++
		h.credential = value
	case foldsTo(name, "x-keeptrusts-team"):
		h.teams++
		h.team = value
	case foldsTo(name, "x-keeptrusts-agent-id"):
		h.agentID = value
	case strings.EqualFold(str(name), "x-client-request-id"):
		h.clientID = value
		return true
	case foldsTo(name, "x-request-id"):
		if h.clientID == nil {
			h.clientID = value
		}
	default:
		const prefix = "x-stainless-"
		return len(name) > len(prefix) && strings.EqualFold(str(name[:len(prefix)]), prefix)
	}
	return false
}

// find returns what serves a path as it was sent; nil: nothing does.
func (s *Server) find(path string) *endpoint {
	if e := s.endpoints[path]; e != nil {
		return e
	}
	if rest, ok := strings.CutPrefix(path, modelsPrefix); ok {
		if _, ok := modelOf(rest); ok {
			return s.modelEndpoint
		}
	}
	return nil
}

const modelsPrefix = "/v1/models/"

// modelOf reads the model's name from a path that is written canonically: every
// escape is needed, no segment is empty or dots.
func modelOf(rest string) (string, bool) {
	if rest == "" || len(rest) > 1024 {
		return "", false
	}
	for _, segment := range strings.Split(rest, "/") {
		plain, err := url.PathUnescape(segment)
		if err != nil || plain == "" || plain == "." || plain == ".." {
			return "", false
		}
		if plain != segment && url.PathEscape(plain) != segment {
			return "", false
		}
	}
	name, err := url.PathUnescape(rest)
	return name, err == nil
}
