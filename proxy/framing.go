package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
)

// errFraming ends fasthttp's reading of a head that framing refused.
var errFraming = errors.New("framing refused")

// conn watches the bytes of a client's connection before fasthttp sees them and
// stops at the first head that two parsers could read in two ways: fasthttp
// itself takes bare LF, obs-fold, Content-Length beside Transfer-Encoding and
// more. Only the connection's own goroutine reads, so it needs no lock.
type conn struct {
	*net.TCPConn
	s       *Server
	remote  string // the client's address, without its port
	maxHead int
	once    sync.Once
	limits  bounds
	short   shortcut
	now     unwaiting // writes to it

	state    connState
	bodyLeft int64
	chunks   dechunker
	head     []byte // a head that came in pieces
	later    []byte // what came behind the request that fasthttp has
	ended    bool   // watch has met the end of one
	plain    bool   // its head was one that a shortcut takes
	headLen  int    // of it
	blank    bool   // an empty line was passed before this head
	asked    bool   // a request has come over this connection
	spared   bool   // the next one is served while the drain refuses
	fault    string // what is wrong with the head that comes next; "" nothing
	tooLarge bool   // the fault is its size
	owed     bool   // fasthttp has not been shown that there is a head
}

type connState uint8

const (
	connHead connState = iota
	connBody
	connChunked
	connFault
)

// Read hands over bytes up to, and never into, a head that is refused. Calls that take
// the shortcut are served meanwhile.
func (c *conn) Read(p []byte) (int, error) {
	c.short.taken = false
	if c.state == connFault {
		return c.fail(p)
	}
	if len(c.later) > 0 {
		n := c.watch(p[:copy(p, c.later)])
		c.later = c.later[n:]
		if n == 0 {
			return c.fail(p)
		}
		return n, nil
	}
	if err := c.await(); err != nil {
		return 0, err
	}
	var n int
	var err error
	if !c.asked || c.began() || c.s.draining.Load() == serving {
		n, err = c.serve(p)
	}
	if n == 0 && err == nil { // a drain began
		if n, err = c.lastCall(p); n > 0 {
			n, _, err = c.came(p, n)
		}
	}
	return n, err
}

// came takes the n bytes of p that have come, and says how many fasthttp is to see, or
// that a shortcut's answer lies ready in their place.
func (c *conn) came(p []byte, n int) (show int, served bool, err error) {
	before := c.began() || c.blank
	ok := c.watch(p[:n])
	if ok == n {
		if !c.ended || !c.plain || before || p[0] != 'P' { // an empty line may come first
			return n, false, nil
		}
		c.shorten(p[:n], c.headLen)
		if c.s.serveShort(c) {
			c.short.taken = false
			return 0, true, nil
		}
		return copy(p[:len(shortcutLine)], shownHead), false, nil
	}
	if c.state != connFault {
		c.later = append([]byte(nil), p[ok:n]...)
	}
	if ok == 0 {
		n, err = c.fail(p)
		return n, false, err
	}
	return ok, false, nil
}

// fail ends the reading. A head that is refused opens with a byte all the same:
// to fasthttp nothing, or empty lines, before an error are a client that left,
// and it answers nothing.
func (c *conn) fail(p []byte) (int, error) {
	if c.owed && len(p) > 0 {
		c.owed = false
		p[0] = '?'
		return 1, nil
	}
	return 0, errFraming
}

// watch follows the framing of p and returns how many of its bytes are sound, up to the
// end of one request. fasthttp would keep an answer while it has bytes of the next.
func (c *conn) watch(p []byte) int {
	c.ended = false
	for at := 0; at < len(p); {
		if c.ended {
			return at
		}
		rest := p[at:]
		switch c.state {
		case connBody:
			n := min(c.bodyLeft, int64(len(rest)))
			at += int(n)
			if c.bodyLeft -= n; c.bodyLeft == 0 {
				c.end()
			}
		case connChunked:
			_, used, err := c.chunks.next(rest)
			at += used
			if err != nil {
				c.refuse("the chunked body is malformed")
				return at
			}
			if c.chunks.done() {
				c.end()
			}
		case connHead:
			n := c.watchHead(rest)
			if c.state == connFault {
				return at
			}
			at += n
		default:
			return at
		}
	}
	return len(p)
}

// end is that of a request.
func (c *conn) end() { c.state, c.ended, c.limits.waits = connHead, true, notWaiting }

func (c *conn) refuse(fault string) {
	c.owed = c.state == connHead
	c.state, c.fault, c.head = connFault, fault, nil
}

// watchHead takes what belongs to the head from p and returns how much that is.
func (c *conn) watchHead(p []byte) int {
	if len(c.head) == 0 && p[0] == '\r' && !c.blank { // RFC 9112 §2.2: one empty line may stand before
		if len(p) == 1 {
			c.head = append(c.head, '\r')
			return 1
		}
		if p[1] != '\n' {
			c.refuse("a lone CR")
			return 0
		}
		c.blank = true
		return 2
	}
	if len(c.head) == 1 && c.head[0] == '\r' {
		c.head = c.head[:0]
		if p[0] != '\n' || c.blank {
			c.refuse("a lone CR")
			return 0
		}
		c.blank = true
		return 1
	}
	head, n := p, len(p)
	if len(c.head) > 0 {
		c.head = append(c.head, p...)
		head = c.head
	}
	before := len(head) - len(p)
	end := bytes.Index(head[max(0, before-3):], crlfcrlf)
	if end < 0 {
		c.partialHead(head, p)
		return n
	}
	end += max(0, before-3) + len(crlfcrlf)
	if end > c.maxHead {
		c.refuse("")
		c.tooLarge = true
		return 0
	}
	c.wholeHead(head[:end])
	c.head, c.blank, c.asked = c.head[:0], false, true
	return end - before
}

var crlfcrlf = []byte("\r\n\r\n")

// partialHead keeps a head whose end has not come, unless it is already wrong.
func (c *conn) partialHead(head, p []byte) {
	if len(head) > c.maxHead {
		c.refuse("")
		c.tooLarge = true
		return
	}
	if i := bytes.IndexByte(head, '\n'); i == 0 || i > 0 && head[i-1] != '\r' || bareLF(head) {
		c.refuse("a line that ends in a bare LF")
		return
	}
	if len(c.head) == 0 {
		c.head = append(c.head, p...)
	}
}

func bareLF(b []byte) bool {
	for i := 0; i < len(b); {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return false
		}
		if i+j == 0 || b[i+j-1] != '\r' {
			return true
		}
		i += j + 1
	}
	return false
}

// wholeHead checks a head with its final empty line and learns where its body
// ends.
func (c *conn) wholeHead(head []byte) {
	h, fault := parseHead(head)
	if fault != "" {
		c.refuse(fault)
		return
	}
	c.plain, c.headLen = h.call && !h.special && h.length > 0, len(head)
	switch {
	case h.chunked:
		c.state, c.chunks = connChunked, dechunker{strict: true}
	case h.length > 0:
		c.state, c.bodyLeft = connBody, h.length
	default:
		c.end()
	}
}

type framing struct {
	http10  bool
	call    bool // its line is a shortcut's
	special bool // a header that a shortcut has no eye for
	chunked bool
	length  int64
	hosts   int
	lengths int
	codings int
	types   int
}

// parseHead reads a head under RFC 9112 as strictly as a gateway must, and
// returns what is wrong with it.
func parseHead(head []byte) (h framing, fault string) {
	line, rest, ok := cutLine(head)
	if !ok {
		return h, "a line that ends in a bare LF"
	}
	if fault := h.requestLine(line); fault != "" {
		return h, fault
	}
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return h, "a line that ends in a bare LF"
		}
		if len(line) == 0 {
			break
		}
		if fault := h.field(line); fault != "" {
			return h, fault
		}
	}
	switch {
	case h.lengths > 0 && h.codings > 0:
		return h, "Content-Length beside Transfer-Encoding"
	case h.codings > 0 && h.http10:
		return h, "a transfer coding in an HTTP/1.0 request"
	case h.hosts != 1 && !h.http10:
		return h, "not exactly one Host"
	}
	return h, ""
}

// cutLine cuts at the first LF, which must follow a CR, the only one there.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

func (h *framing) requestLine(line []byte) string {
	if h.call = string(line) == shortcutLine; h.call {
		return ""
	}
	method, rest, ok := bytes.Cut(line, space)
	if !ok || len(method) == 0 || len(method) > 32 || !isToken(method) {
		return "the request line's method"
	}
	target, version, ok := bytes.Cut(rest, space)
	if !ok || len(target) == 0 {
		return "the request line"
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.http10 = true
	default:
		return "the HTTP version: 1.1 and 1.0 are served"
	}
	if target[0] != '/' && (string(target) != "*" || string(method) != "OPTIONS") {
		return "the request target: it must be a path"
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return "the request target: a character that must be escaped"
		}
	}
	return ""
}

var space = []byte{' '}

func (h *framing) field(line []byte) string {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || !isToken(line[:colon]) {
		return "a header name" // obs-fold, a space before the colon, none at all
	}
	name, value := line[:colon], trimOWS(line[colon+1:])
	if hasControl(value) {
		return "a control character in a header value"
	}
	switch len(name) {
	case len("Expect"):
		if foldsTo(name, "expect") {
			h.special = true
			copy(name, "Expect") // fasthttp, which does not normalise names here, knows no other spelling
		}
	case len("Host"):
		if foldsTo(name, "host") {
			h.hosts++
			h.special = h.special || !plainHost(value)
			return hostFault(value)
		}
	case len("Connection"):
		if foldsTo(name, "connection") && !strings.EqualFold(str(value), "keep-alive") {
			h.special = true
		}
	case len("Content-Type"):
		if foldsTo(name, "content-type") {
			if h.types++; h.types > 1 {
				return "more than one Content-Type"
			}
		}
	case len("Content-Length"):
		if foldsTo(name, "content-length") {
			return h.contentLength(name, value)
		}
	case len("Transfer-Encoding"):
		if foldsTo(name, "transfer-encoding") {
			return h.transferEncoding(name, value)
		}
	}
	return ""
}

func (h *framing) contentLength(name, value []byte) string {
	if bytes.IndexByte(name, '_') >= 0 {
		return "a header that some read as Content-Length"
	}
	if h.lengths++; h.lengths > 1 || len(value) == 0 || len(value) > 18 {
		return "the Content-Length"
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return "the Content-Length"
		}
		h.length = h.length*10 + int64(c-'0')
	}
	return ""
}

func (h *framing) transferEncoding(name, value []byte) string {
	if bytes.IndexByte(name, '_') >= 0 {
		return "a header that some read as Transfer-Encoding"
	}
	if h.codings++; h.codings > 1 || !strings.EqualFold(str(value), "chunked") {
		return "the Transfer-Encoding: one chunked is taken"
	}
	h.chunked = true
	return ""
}

// hostFault looks for what makes a Host two things to two parsers. It never
// chooses where a request goes.
func hostFault(v []byte) string {
	for _, c := range v {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`/\@?#,"<>^{}|`, c) >= 0 {
			return "the Host"
		}
	}
	return ""
}

// plainHost takes a name or an IPv4 address, with or without a port, of which fasthttp
// has nothing to say.
func plainHost(v []byte) bool {
	name, port, _ := bytes.Cut(v, []byte{':'})
	for _, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-') {
			return false
		}
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(name) > 0
}

// foldsTo compares a header name with a lower-case one, with "_" as "-": some
// servers hand both to a program under one name.
func foldsTo(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c == '_' {
			c = '-'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// hasControl looks for what no header value may hold (RFC 9110 §5.5), eight bytes at a
// time while there is neither that nor a tab.
func hasControl(value []byte) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; len(value) >= 8; value = value[8:] {
		v := binary.LittleEndian.Uint64(value)
		del := v ^ ones*0x7f
		if ((v-ones*' ')&^v|(del-ones)&^del)&highs != 0 {
			break
		}
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}

func trimOWS(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// isToken says whether b is a token of RFC 9110 §5.6.2.
func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenChars[c] {
			return false
		}
	}
	return len(b) > 0
}

var tokenChars = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-0x20] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()
