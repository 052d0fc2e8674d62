package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// framed is one case: the bytes of a connection. Its first request carries the id;
// what hides behind it carries the id and "-hidden".
type framed struct {
	name, id string
	raw      string
}

// framings builds the cases: every way of writing a length beside every way of
// writing a coding, then everything else that parsers differ on.
type framings struct {
	bearer string
	all    []framed
}

const framedBody = `{"model":"cheap","messages":[{"role":"user","content":"hello"}]}`

// parts of a request that a case changes.
type parts struct {
	line    string // with its end
	host    string
	fields  string
	body    string
	before  string
	headEnd string
}

func (f *framings) add(name string, change func(p *parts)) {
	id := fmt.Sprintf("framing/%d", len(f.all))
	p := &parts{line: "POST /v1/chat/completions HTTP/1.1\r\n", host: "Host: gw\r\n", headEnd: "\r\n", fields: length, body: framedBody}
	change(p)
	r := strings.NewReplacer("{N}", fmt.Sprint(len(framedBody)), "{X}", fmt.Sprintf("%x", len(framedBody)), "{B}", framedBody,
		"{C}", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(framedBody), framedBody), "{HIDDEN}", f.call(id+"-hidden"), "{K}", f.bearer)
	raw := p.before + p.line + p.host + "Authorization: Bearer " + f.bearer + "\r\n" + script{id: id}.header() + p.fields + p.headEnd + p.body
	f.all = append(f.all, framed{name: name, id: id, raw: r.Replace(raw)})
}

const length = "Content-Length: {N}\r\n"

func (f *framings) call(id string) string {
	return call{script: script{id: id}, body: framedBody}.text(f.bearer)
}

// everyFraming is all the cases.
func everyFraming(bearer string) []framed {
	f := &framings{bearer: bearer}
	f.good()
	f.lengthsAndCodings()
	f.fieldsOdd()
	f.linesOdd()
	f.chunksOdd()
	f.mixed()
	return f.all
}

func (f *framings) good() {
	for _, fields := range []string{length, "content-length:{N}\r\n", "Content-Length: \t{N} \r\n", "Content-Length: 000{N}\r\n", "X-Empty:\r\n" + length,
		"X-!#$%&'*+-.^_`|~09azAZ: 1\r\n" + length, "X-A: caf\xe9 \xff\r\n" + length, "Expect: 100-continue\r\n" + length, "expect: 100-CONTINUE\r\n" + length,
		"Connection: close\r\n" + length, "Connection: keep-alive, X-Other\r\n" + length, "Upgrade: h2c\r\nConnection: Upgrade\r\n" + length, "TE: trailers\r\n" + length,
		"X-A: " + strings.Repeat("a", 14_000) + "\r\n" + length} {
		f.add("good "+fields[:min(len(fields), 40)], func(p *parts) { p.fields = fields })
	}
	const chunked = "Transfer-Encoding: chunked\r\n"
	for _, body := range []string{"{C}", "000{X}\r\n{B}\r\n0\r\n\r\n", "{X}\r\n{B}\r\n0000\r\n\r\n", "{X}\r\n{B}\r\n0\r\nX-Sum: 1\r\n\r\n",
		"{X}\r\n{B}\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: identity\r\nAuthorization: Bearer x\r\n\r\n", inPieces(1), inPieces(7), inPieces(40)} {
		f.add("good chunks "+body[:min(len(body), 30)], func(p *parts) { p.fields, p.body = chunked, body })
	}
	f.add("a good call and a second one", func(p *parts) { p.body = "{B}{HIDDEN}" })
	f.add("good chunks and a second call", func(p *parts) { p.fields, p.body = chunked, "{C}{HIDDEN}" })
	f.add("an empty line before", func(p *parts) { p.before = "\r\n" })
	f.add("an empty line between", func(p *parts) { p.body = "{B}\r\n{HIDDEN}" })
	f.add("HTTP/1.0", func(p *parts) { p.line = "POST /v1/chat/completions HTTP/1.0\r\n" })
	f.add("HTTP/1.0 without a Host", func(p *parts) { p.line, p.host = "POST /v1/chat/completions HTTP/1.0\r\n", "" })
	f.add("a query", func(p *parts) { p.line = "POST /v1/chat/completions?api-version=1&a=%2f HTTP/1.1\r\n" })
}

func inPieces(n int) string {
	var b strings.Builder
	for rest := framedBody; rest != ""; {
		piece := rest[:min(n, len(rest))]
		rest = rest[len(piece):]
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(piece), piece)
	}
	return b.String() + "0\r\n\r\n"
}

// lengthsAndCodings puts every spelling of one beside every spelling of the other,
// in both orders, over a body that hides a call behind either end.
func (f *framings) lengthsAndCodings() {
	lengths := []string{"", length, length + length, length + "Content-Length: 0\r\n", "Content-Length: 0\r\n", "Content-Length: {N}, {N}\r\n", "Content-Length: +{N}\r\n", "Content-Length: -{N}\r\n",
		"Content-Length: 0x{X}\r\n", "Content-Length: {N} 0\r\n", "Content-Length:\r\n", "Content-Length: {N}\x00\r\n", "Content_Length: {N}\r\n", "Content-Length : {N}\r\n", "Content-Length\t: {N}\r\n",
		" Content-Length: {N}\r\n", "Content-Length: \r\n {N}\r\n", "Content-Length: 1844674407370955{N}\r\n", "Content-Length: {N}.0\r\n", "CONTENT-LENGTH: {N}e0\r\n", "X: y\nContent-Length: {N}\r\n", "X: y\rContent-Length: {N}\r\n"}
	codings := []string{"", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: identity\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked, identity\r\n", "Transfer-Encoding: chunked, chunked\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "Transfer-Encoding: xchunked\r\n", "Transfer-Encoding: \"chunked\"\r\n", "Transfer-Encoding: chunked;a=b\r\n",
		"Transfer-Encoding: chunked,\r\n", "Transfer-Encoding: \x0bchunked\r\n", "Transfer-Encoding: \xa0chunked\r\n", "Transfer-Encoding: chunked\x00\r\n", "Transfer-Encoding:\r\n", "Transfer_Encoding: chunked\r\n",
		"Transfer-Encoding : chunked\r\n", "Transfer-Encoding\t: chunked\r\n", " Transfer-Encoding: chunked\r\n", "Transfer-Encoding:\r\n chunked\r\n", "X: y\nTransfer-Encoding: chunked\r\n", "X: y\rTransfer-Encoding: chunked\r\n", "\x00Transfer-Encoding: chunked\r\n"}
	for i, l := range lengths {
		for j, c := range codings {
			for _, fields := range []string{l + c, c + l} {
				if l == "" && c == "" || (l == "" || c == "") && fields != l+c {
					continue
				}
				body := "{B}{HIDDEN}"
				if strings.Contains(strings.ToLower(c), "chunked") && (i+j)%2 == 0 {
					body = "{C}{HIDDEN}"
				}
				f.add(fmt.Sprintf("%q", fields), func(p *parts) { p.fields, p.body = fields, body })
			}
		}
	}
}

// fieldsOdd puts what is not allowed into fields.
func (f *framings) fieldsOdd() {
	for c := range 256 {
		ch := string([]byte{byte(c)})
		f.add(fmt.Sprintf("byte %#02x in a value", c), func(p *parts) { p.fields = "X-A: 1" + ch + "2\r\n" + length })
		if c < 0x30 || c > 0x7a || c > 0x39 && c < 0x41 {
			f.add(fmt.Sprintf("byte %#02x in a name", c), func(p *parts) { p.fields = "X" + ch + "A: 1\r\n" + length })
		}
	}
	for _, host := range []string{"", "Host: gw\r\nHost: gw\r\n", "Host: gw\r\nHost: other\r\n", "Host:\r\n", "Host: gw/v1\r\n", "Host: u@gw\r\n", "Host: gw other\r\n", "Host: gw, other\r\n", "Host: g\xc3\xbc\r\n", "Host : gw\r\n", "Host: [::1]:1\r\n", "Host: gw:1\r\n", "Host: g\tw\r\n", "Host: gw?a\r\n", "Host: gw#a\r\n", "Host: gw\\a\r\n"} {
		f.add(fmt.Sprintf("host %q", host), func(p *parts) { p.host = host })
	}
	for _, fields := range []string{"X-A: 1\r\n 2\r\n", "X-A: 1\r\n\t2\r\n", "X-A: 1\n", "X-A: 1\r", "X-A: 1\r\r\n", "X-A\r\n", ": 1\r\n", " : 1\r\n", "X-A : 1\r\n", "Expect: bogus\r\n", "Expect: 100-continue, x\r\n", "Expect:\r\n",
		"Expect: 100-continue\r\nExpect: x\r\n", "Expect: x\r\nExpect: 100-continue\r\n", "Content-Type: application/json\r\nContent-Type: text/plain\r\n", "X-A: " + strings.Repeat("a", 20_000) + "\r\n", strings.Repeat("X: 1\r\n", 4000)} {
		f.add(fmt.Sprintf("field %.40q", fields), func(p *parts) { p.fields = fields + length })
		f.add(fmt.Sprintf("field %.40q behind", fields), func(p *parts) { p.fields = length + fields })
	}
	for _, end := range []string{"\n", "\r", "\r\r\n", " \r\n", "\n\r\n", "\x00\r\n"} {
		f.add(fmt.Sprintf("the head's end %q", end), func(p *parts) { p.headEnd = end })
	}
}

// linesOdd is request lines.
func (f *framings) linesOdd() {
	const path = "/v1/chat/completions"
	for _, version := range []string{"HTTP/2.0", "HTTP/1.9", "HTTP/1.2", "HTTP/0.9", "HTTP/1.10", "HTTP/01.1", "HTTP/1", "http/1.1", "HTTP/1.1 ", "HTTP/1.1\t", "HTTP/1,1", "HTTP1.1", "", "HTTP/1.1\x00", "HTTPS/1.1", "HTTP/+1.1", "HTTP/1.1x"} {
		f.add("version "+version, func(p *parts) { p.line = "POST " + path + " " + version + "\r\n" })
	}
	for _, target := range []string{"http://gw" + path, "http://other.example" + path, "https://gw" + path, "gw:443", "*", "v1/chat/completions", "?a=b", "//gw" + path, path + "#a", path + " x", path + "?\xc3\xa9", path + "\x00", path + "?\x7f",
		"/v1/./chat/completions", "/v1/models/../chat/completions", "/v1/%2e%2e/v1/chat/completions", "/v1/chat%2fcompletions", "/v1/chat%2Fcompletions", "/v1/ch%61t/completions", path + "/", path + "%20", path + "%00", path + "%3Fa", path + ";a=b", "/V1/chat/completions", "/v1//chat/completions",
		"\\v1\\chat\\completions", "/v1/chat%c0%afcompletions", "/v1/chat%zzcompletions", "/chat/completions", "/v1/v1/chat/completions", "/..", "/../v1/chat/completions", "/v1/chat/completions/..", "/v1/chat/completions/%2e", "/v1/chat/completions%0d%0aX:1", "/v1/embeddings", "/metrics", "/v1/tokens", path + "?a=\\", path + "?" + strings.Repeat("a", 9000), "/" + strings.Repeat("a", 20_000)} {
		f.add(fmt.Sprintf("target %.60q", target), func(p *parts) { p.line = "POST " + target + " HTTP/1.1\r\n" })
	}
	for _, method := range []string{"post", "PUT", "GET", "PO ST", " POST", "POST ", "PO\tST", "PO(ST", "P\x00ST", "", "CONNECT", "PRI", strings.Repeat("A", 1000), "POST\r\n", "\nPOST", "\r\n\r\nPOST", "\rPOST", "\x16\x03\x01POST"} {
		f.add(fmt.Sprintf("method %.20q", method), func(p *parts) { p.line = method + " " + path + " HTTP/1.1\r\n" })
	}
	for _, end := range []string{"\n", "\r", "\r\r\n", "\r\n "} {
		f.add(fmt.Sprintf("the line's end %q", end), func(p *parts) { p.line = "POST " + path + " HTTP/1.1" + end })
	}
	f.add("tabs in the line", func(p *parts) { p.line = "POST\t" + path + "\tHTTP/1.1\r\n" })
	f.add("two lines in one", func(p *parts) { p.line = "POST /v1/models HTTP/1.1 " + path + " HTTP/1.1\r\n" })
}

// chunksOdd is chunked bodies, each before a call that hides.
func (f *framings) chunksOdd() {
	for _, size := range []string{"{X};a=b", "{X};", "{X} ", " {X}", "\t{X}", "0x{X}", "+{X}", "-{X}", "{X}\x00", "{X}h", "g", "", "1000000000000000{X}", "80000000000000{X}", "ffffffffffffffff", "1000000{X}", "{X},", "{X}\r", "{X}\"", strings.Repeat("0", 1000) + "{X}", strings.Repeat("0", 12) + "{X}", "{X};\n"} {
		f.add(fmt.Sprintf("chunk size %.24q", size), func(p *parts) {
			p.fields, p.body = "Transfer-Encoding: chunked\r\n", size+"\r\n{B}\r\n0\r\n\r\n{HIDDEN}"
		})
	}
	for _, body := range []string{"{X}\n{B}\r\n0\r\n\r\n", "{X}\r{B}\r\n0\r\n\r\n", "{X}\r\n{B}0\r\n\r\n", "{X}\r\n{B}\n0\r\n\r\n", "{X}\r\n{B}\r0\r\n\r\n", "{X}\r\n{B}XX0\r\n\r\n", "2\r\n{B}\r\n0\r\n\r\n", "{X}\r\n{B}\r\n0\n\r\n", "{X}\r\n{B}\r\n0\r\n\n", "{X}\r\n{B}\r\n0;a\r\n\r\n",
		"{X}\r\n{B}\r\n0 \r\n\r\n", "{X}\r\n{B}\r\n0\r\nX: 1\n\r\n", "{X}\r\n{B}\r\n0\r\n: 1\r\n\r\n", "{X}\r\n{B}\r\n0\r\nX\r\n\r\n", "{X}\r\n{B}\r\n0\r\nX: " + strings.Repeat("a", 9000) + "\r\n\r\n", "{X}\r\n{B}\r\n0\r\nX: 1\rY: 2\r\n\r\n",
		"{X}\r\n{B}\r\n", "{X}\r\n{B}\r\n0\r\n", "{X}\r\n{B}\r\n-0\r\n\r\n", "{X}\r\n{B}\r\n0x0\r\n\r\n", "{B}", "\r\n{C}", "0\r\n{C}"} {
		f.add(fmt.Sprintf("chunks %.40q", body), func(p *parts) { p.fields, p.body = "Transfer-Encoding: chunked\r\n", body+"{HIDDEN}" })
	}
}

// mixed changes, inserts or removes bytes of a sound request, the same ones in
// every run.
func (f *framings) mixed() {
	rng := rand.New(rand.NewPCG(6, 6))
	const odd = "\r\n\t :;,\x00\x0b\x7f\xff_-+0x1chunkedTE"
	for i := range 400 {
		f.add(fmt.Sprintf("mutation %d", i), func(p *parts) {
			switch i % 3 {
			case 0:
				p.fields, p.body = "Transfer-Encoding: chunked\r\n", "{C}{HIDDEN}"
			case 1:
				p.body = "{B}{HIDDEN}"
			}
			at, c := rng.IntN(1<<16), string(odd[rng.IntN(len(odd))])
			where := []*string{&p.line, &p.host, &p.fields, &p.fields, &p.fields}[rng.IntN(5)]
			s := *where
			at %= len(s)
			switch rng.IntN(3) {
			case 0:
				s = s[:at] + c + s[at+1:]
			case 1:
				s = s[:at] + c + s[at:]
			case 2:
				s = s[:at] + s[at+1:]
			}
			*where = s
		})
	}
}
