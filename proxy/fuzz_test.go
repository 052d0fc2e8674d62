package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/token"
)

// seedHeads are heads of both kinds, to begin from.
var seedHeads = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: a:1\r\nContent-Length: 5\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n", "GET /a HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 05\r\nX:\t a \t\r\n\r\n", "POST /a HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "POST /a HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
	"POST /a HTTP/1.1\nHost: a\n\n", "GET /a HTTP/1.1\r\n\r\n", "GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "GET //h/a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET /%2f HTTP/1.1\r\nhOsT:a\r\ncontent-LENGTH:0\r\n\r\n",
}

// FuzzParseHead: what we take, net/http takes, and reads the same in it.
func FuzzParseHead(f *testing.F) {
	for _, s := range seedHeads {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		if i := bytes.Index(head, crlfcrlf); i < 0 || i+len(crlfcrlf) != len(head) {
			return // the caller cuts it so
		}
		h, fault := parseHead(head)
		if fault != "" {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("0\r\n\r\n"))))
		if err != nil {
			// Escapes are for the router to judge, trailers are dropped.
			if strings.Contains(err.Error(), "parse ") || strings.Contains(err.Error(), "railer") {
				return
			}
			t.Fatalf("taken, and refused by net/http: %v", err)
		}
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		if want := fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, r.Proto); string(line) != want {
			t.Fatalf("request line %q, net/http reads %q", line, want)
		}
		if h.http10 != !r.ProtoAtLeast(1, 1) || h.chunked != (len(r.TransferEncoding) == 1 && r.TransferEncoding[0] == "chunked") {
			t.Fatalf("%+v, net/http reads %s %v", h, r.Proto, r.TransferEncoding)
		}
		if !h.chunked && h.length != r.ContentLength {
			t.Fatalf("length %d, net/http reads %d", h.length, r.ContentLength)
		}
		if h.hosts != 1 && !h.http10 || h.hosts > 1 || h.hosts == 1 && !strings.HasPrefix(r.RequestURI, "//") && !bytes.Contains(head, []byte(r.Host)) {
			t.Fatalf("%d hosts, net/http reads %q", h.hosts, r.Host)
		}
	})
}

// FuzzWatch: a connection's bytes are judged the same however they come.
func FuzzWatch(f *testing.F) {
	body := "Host: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	f.Add([]byte("POST /a HTTP/1.1\r\n"+body+"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), []byte{3, 1, 200, 7})
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"), []byte{1})
	f.Add([]byte("\r\n\r\nGET / HTTP/1.1\r\n\r\n"), []byte{2})
	for _, s := range seedHeads {
		f.Add([]byte(s+s), []byte{5, 1})
	}
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		run := func(cuts []byte) (ok int, c *conn) {
			c = &conn{maxHead: 300}
			for i := 0; ok < len(data); i++ {
				n := len(data) - ok
				if len(cuts) > 0 {
					n = min(n, 1+int(cuts[i%len(cuts)]))
				}
				got := c.watch(data[ok : ok+n])
				ok += got
				if c.state == connFault {
					return ok, c
				}
				if got != n && (got == 0 || !c.ended) {
					t.Fatalf("%d of %d bytes without a fault, and no request ends there", got, n)
				}
			}
			return ok, c
		}
		_, whole := run(nil)
		_, cut := run(cuts)
		if (whole.state == connFault) != (cut.state == connFault) {
			// Pieces may show a fault before the head is whole, never the other way.
			if whole.state == connFault {
				t.Fatalf("%q is refused (%s), and taken in pieces", data, whole.fault)
			}
			if bytes.Contains(data, crlfcrlf) && cut.fault != "a line that ends in a bare LF" && !cut.tooLarge && cut.fault != "a lone CR" {
				t.Fatalf("%q is taken, and refused in pieces (%s)", data, cut.fault)
			}
			return
		}
		if whole.state == connFault {
			return
		}
		if whole.state != cut.state || whole.bodyLeft != cut.bodyLeft || whole.chunks != cut.chunks || !bytes.Equal(whole.head, cut.head) {
			t.Fatalf("%q: state %d %d %q, in pieces %d %d %q", data, whole.state, whole.bodyLeft, whole.head, cut.state, cut.bodyLeft, cut.head)
		}
	})
}

// FuzzDechunker: one payload whatever the pieces, and that of net/http.
func FuzzDechunker(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n", "0\r\nX: 1\r\n\r\n", "00a\r\n0123456789\r\n0\r\n\r\nrest", "5 \r\nhello\r\n0\r\n\r\n",
		"5\nhello\n0\n\n", "FFFFFFFFFFFFFFFFF\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n", "\r\n", "1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
		"5\r\nhello\r\n", "005\r\nhello\r\n", "A\r\n0123456789\r\n", "5\r\nhello\r\nx", "5\r\nhello\r\r", "5;a\r\nhello\r\n", "000000000005\r\nhello\r\n", "FFFFFFFFFFFFFFFF\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(3), true)
		f.Add([]byte(s), uint8(0), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, piece uint8, strict bool) {
		run := func(piece int) (payload []byte, used int, done bool, err error) {
			d := dechunker{strict: strict}
			for used < len(data) && !d.done() {
				end := min(used+piece, len(data))
				for at := used; at < end && !d.done(); {
					p, n, err := d.next(data[at:end])
					payload = append(payload, p...)
					at, used = at+n, used+n
					if err != nil {
						return payload, used, false, err
					}
				}
			}
			return payload, used, d.done(), nil
		}
		if p := wholeChunk(data); p != nil {
			d := dechunker{strict: strict}
			payload, used, err := d.next(data)
			if err != nil || !bytes.Equal(payload, p) {
				t.Fatalf("one chunk of %q, else %q %v", p, payload, err)
			}
			if _, n, err := d.next(data[used:]); err != nil || used+n != len(data) || !d.between() {
				t.Fatalf("%q is more or less than one chunk: %v", data, err)
			}
		}
		payload, used, done, err := run(len(data) + 1)
		payload2, used2, done2, err2 := run(1 + int(piece))
		if !bytes.Equal(payload, payload2) || used != used2 || done != done2 || (err == nil) != (err2 == nil) {
			t.Fatalf("whole: %q %d %v %v; in pieces: %q %d %v %v", payload, used, done, err, payload2, used2, done2, err2)
		}
		if !done {
			return
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(data)))
		if err != nil {
			if strings.Contains(err.Error(), "too much non-data") || strings.Contains(err.Error(), "line too long") || !strict {
				return
			}
			t.Fatalf("taken as %q, and refused by net/http: %v", payload, err)
		}
		if !bytes.Equal(payload, want) {
			t.Fatalf("payload %q, net/http reads %q", payload, want)
		}
	})
}

// FuzzAnswerHead: what we take of an upstream, net/http takes, and ends its body
// at the same byte.
func FuzzAnswerHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 304 x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: a, Close\r\nContent-Type: text/event-stream\r\n\r\n", "HTTP/1.1 999 x\r\nContent-Encoding: gzip\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 100 x\r\n0:\r\r\n\r\n", "HTTP/1.A 200 OK\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		if i := bytes.Index(head, crlfcrlf); i < 0 || i+len(crlfcrlf) != len(head) {
			return
		}
		var a answer
		if a.parse(head) != nil {
			return
		}
		if a.status < 100 || a.status > 999 {
			t.Fatalf("%+v", a)
		}
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: "POST"})
		if err != nil {
			if strings.Contains(err.Error(), "railer") {
				return
			}
			t.Fatalf("%+v, and refused by net/http: %v", a, err)
		}
		if r.StatusCode != a.status {
			t.Fatalf("status %d, net/http reads %d", a.status, r.StatusCode)
		}
		if a.status < 200 || a.status == 204 || a.status == 304 {
			return
		}
		chunked := len(r.TransferEncoding) == 1 && r.TransferEncoding[0] == "chunked"
		if (a.length == chunkedBody) != chunked || a.length >= 0 && a.length != r.ContentLength || a.length == untilClose && (chunked || r.ContentLength != -1) {
			t.Fatalf("length %d, net/http reads %d %v", a.length, r.ContentLength, r.TransferEncoding)
		}
		if a.keep && r.Close {
			t.Fatalf("kept, and net/http closes: %q", head)
		}
		for _, p := range a.passed {
			if lower := strings.ToLower(string(p.name)); strings.Contains(lower, "cookie") || strings.Contains(lower, "organization") {
				t.Fatalf("%s passes", p.name)
			}
		}
	})
}

// FuzzQueryToken: a token in a query is found, wherever and however it is escaped.
func FuzzQueryToken(f *testing.F) {
	key, legacy := token.Mint().Reveal(), "kt_ak_0123.45~67-89_"
	f.Add("a=", "&b=c", uint64(0), uint64(0))
	f.Add("%zz", "%", uint64(1), uint64(1<<60))
	f.Add("a=%", "", ^uint64(0), uint64(5))
	f.Add("+", "+kt_live_", ^uint64(0), ^uint64(0))
	f.Add("kt_live_", "%25", uint64(1<<8), uint64(0))
	f.Fuzz(func(t *testing.T, before, after string, once, twice uint64) {
		for _, s := range []string{key, legacy} {
			var b strings.Builder
			for i := range len(s) {
				switch bit := uint64(1) << (i % 64); {
				case twice&bit != 0:
					fmt.Fprintf(&b, "%%25%02x", s[i])
				case once&bit != 0:
					fmt.Fprintf(&b, "%%%02X", s[i])
				default:
					b.WriteByte(s[i])
				}
			}
			if !holdsToken([]byte(before+b.String()+after), []string{"kt_ak_"}) {
				t.Fatalf("%q + %q + %q is not found", before, b.String(), after)
			}
		}
		if plain := strings.Repeat("a", len(before)) + "=kt_live_short&b=" + strings.Repeat("b", len(after)); holdsToken([]byte(plain), []string{"kt_ak_"}) && len(after) < 40 {
			t.Fatalf("%q holds a token", plain)
		}
	})
}
