package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/token"
)

// wireCase is one case of a corpus of raw bytes.
type wireCase struct {
	name, raw string
	want      string // "200, 400 invalid_request | closed | 1"
}

var repetition = regexp.MustCompile(`(?s)\{([^{}]+)\*(\d+)\}`)

// readCorpus reads a corpus and puts the values in for its names.
func readCorpus(t *testing.T, file string, values *strings.Replacer) []wireCase {
	t.Helper()
	src, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var all []wireCase
	for n, line := range strings.Split(string(src), "\n") {
		switch {
		case strings.HasPrefix(line, "= "):
			all = append(all, wireCase{name: line[2:]})
		case strings.HasPrefix(line, "> "):
			s, err := strconv.Unquote(`"` + line[2:] + `"`)
			if err != nil {
				t.Fatalf("%s:%d: %v", file, n+1, err)
			}
			all[len(all)-1].raw += values.Replace(repetition.ReplaceAllStringFunc(s, repeat))
		case strings.HasPrefix(line, "< "):
			all[len(all)-1].want = line[2:]
		case line != "" && line[0] != '#':
			t.Fatalf("%s:%d: what is this line?", file, n+1)
		}
	}
	return all
}

func repeat(s string) string {
	m := repetition.FindStringSubmatch(s)
	n, _ := strconv.Atoi(m[2])
	if m[1] == "body" {
		return plainBody[:len(plainBody)-1] + strings.Repeat(" ", n-len(plainBody)) + "}"
	}
	return strings.Repeat(m[1], n)
}

func TestEveryRequestOfTheCorpusHasOneOutcomeHoweverItsBytesCome(t *testing.T) {
	for _, file := range []struct {
		name  string
		least int // a corpus that has shrunk is no corpus
	}{{"framing.txt", 120}, {"paths.txt", 40}, {"credentials.txt", 40}} {
		t.Run(file.name, func(t *testing.T) {
			up := answering(t, whole(200, completion))
			g := start(t, plainConfig(up.url)+"legacy_prefixes: [kt_ak_]\n", smallBodies)
			other, nobody := g.mint(nil), token.Mint().Reveal()
			legacy := g.own("kt_ak_0123.45~67-89_abc", nil)
			hexLen := fmt.Sprintf("%X", len(plainBody))
			cases := readCorpus(t, file.name, strings.NewReplacer(
				"{P}", "POST /v1/chat/completions HTTP/1.1\r\n", "{H}", "Host: gw\r\n",
				"{A}", "Authorization: Bearer "+g.key+"\r\n", "{K}", g.key, "{K+8}", g.key[8:], "{K2}", other, "{K0}", nobody, "{L}", legacy,
				"{B}", plainBody, "{N}", strconv.Itoa(len(plainBody)), "{NX}", hexLen,
				"{C}", hexLen+"\r\n"+plainBody+"\r\n0\r\n\r\n"))
			if len(cases) < file.least {
				t.Fatalf("%d cases", len(cases))
			}
			secrets := []string{g.key, other, nobody, legacy, targetSecret}
			for _, c := range cases {
				for _, way := range ways {
					t.Run(c.name+"/"+way.name, func(t *testing.T) {
						got := g.outcome(t, up, way.send, c.raw, secrets)
						if got != c.want {
							t.Errorf("\n got %s\nwant %s", got, c.want)
						}
					})
				}
			}
		})
	}
}

func smallBodies(o *Options) {
	o.Config.Limits.RequestBody = 64 << 10
	o.Config.Limits.Headers = 16 << 10
}

// ways are how a request's bytes come.
var ways = []struct {
	name string
	send func(w *wire, raw string)
}{
	{"whole", func(w *wire, raw string) { w.send(raw) }},
	{"byte by byte", func(w *wire, raw string) {
		if len(raw) > 2000 { // its middle is a filling
			w.send(raw[:len(raw)-300])
			raw = raw[len(raw)-300:]
		}
		for i := range len(raw) {
			w.send(raw[i : i+1])
		}
	}},
	{"in two halves", func(w *wire, raw string) {
		w.send(raw[:len(raw)/2])
		time.Sleep(time.Millisecond) // so that they are two reads, mostly
		w.send(raw[len(raw)/2:])
	}},
}

// outcome sends a request and says what became of it, in the corpus's words.
func (g *gateway) outcome(t *testing.T, up *upstreamScript, send func(*wire, string), raw string, secrets []string) string {
	t.Helper()
	before := len(up.seen())
	w := g.dial()
	w.t = t
	defer func() { _ = w.Close() }()
	send(w, raw)
	var answers []string
	last := reply{}
	for len(answers) == 0 || w.more(raw, len(answers), last) {
		method, _, _ := strings.Cut(raw, " ")
		r, ok := w.readTo(method)
		if !ok {
			break
		}
		last = r
		answers = append(answers, describe(t, r, method, secrets))
	}
	state := "open"
	if last.close {
		state = "closed"
		if !w.closed() {
			state = "said to be closed, and open"
		}
	} else if !w.alive() {
		state = "said to be open, and closed"
	}
	sent := up.seen()[before:]
	for _, s := range sent {
		_, h, body := parts(s)
		if strings.ReplaceAll(body, " ", "") != strings.ReplaceAll(plainBody, " ", "") || len(h["content-length"]) != 1 || len(h["transfer-encoding"]) != 0 {
			t.Errorf("sent upstream: %q", s)
		}
	}
	return fmt.Sprintf("%s | %s | %d", strings.Join(answers, ", "), state, len(sent))
}

// more says whether another answer is due: after an interim one, and as many as
// there are requests, as long as the connection lives.
func (w *wire) more(raw string, got int, last reply) bool {
	due := strings.Count(raw, " HTTP/1.1\r\nHost: gw\r\n") + strings.Count(raw, "junk\r\n\r\n")
	if strings.Contains(raw, "X-Pad") { // a request in a body is none
		due--
	}
	if strings.Contains(strings.ToLower(raw), "expect: 100") && got > 0 && last.status == 200 {
		return false
	}
	return last.status == 100 || !last.close && got < due
}

// describe checks what every answer must have and gives its status and code.
func describe(t *testing.T, r reply, method string, secrets []string) string {
	t.Helper()
	for _, s := range secrets {
		if strings.Contains(r.body, s) || strings.Contains(fmt.Sprint(r.header), s) {
			t.Errorf("a secret stands in the answer: %s", r.body)
		}
	}
	if r.status < 200 {
		return strconv.Itoa(r.status)
	}
	if !strings.HasPrefix(r.header.Get("X-Request-Id"), "req_") {
		t.Errorf("x-request-id is %q", r.header.Get("X-Request-Id"))
	}
	if r.proto != "HTTP/1.1" {
		t.Errorf("answered as %s", r.proto)
	}
	if r.status < 400 || method == "HEAD" {
		return strconv.Itoa(r.status)
	}
	p := r.problem()
	row := rowByCode[p.Code]
	if row == nil || row.status != r.status || row.kind != p.Type || p.Message == "" {
		t.Errorf("%d is no error of the table: %s", r.status, r.body)
	}
	if r.header.Get("Content-Type") != "application/json" || r.header.Get("X-Keeptrusts-Target") != "" || r.header.Get("Server") != "" {
		t.Errorf("headers of a refusal: %v", r.header)
	}
	if (r.status == 401) != (r.header.Get("WWW-Authenticate") == "Bearer") || (r.status == 405) != (r.header.Get("Allow") != "") || (r.status == 503) != (r.header.Get("Retry-After") != "") {
		t.Errorf("headers of a %d: %v", r.status, r.header)
	}
	return strconv.Itoa(r.status) + " " + p.Code
}

func TestAHeadOfTheLimitPassesAndOneByteMoreDoesNot(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url), smallBodies)
	for extra, want := range []int{200, 431} {
		head := "GET /healthz HTTP/1.1\r\nHost: gw\r\nX-Pad: \r\n\r\n"
		pad := 16<<10 - len(head) + extra
		if r := g.do(strings.Replace(head, "X-Pad: ", "X-Pad: "+strings.Repeat("a", pad), 1)); r.status != want {
			t.Errorf("a head of %d bytes is answered %d", 16<<10+extra, r.status)
		}
	}
}

func TestABodyIsTheSameWhereverItsReadsEnd(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	body := plainBody[:len(plainBody)-1] + `,"user":"` + strings.Repeat("0123456789", 40) + `"}`
	chunks := "Transfer-Encoding: chunked\r\n\r\n"
	for i := 0; i < len(body); i += 37 {
		piece := body[i:min(i+37, len(body))]
		chunks += fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
	}
	head, _, _ := strings.Cut(call(g.key, ""), "Content-Length")
	for name, raw := range map[string]string{"length": call(g.key, body), "chunked": head + chunks + "0\r\n\r\n"} {
		w := g.dial()
		for at := 1; at < len(raw); at += 5 {
			w.send(raw[:at])
			w.send(raw[at:])
			if r := w.must(); r.status != 200 {
				t.Fatalf("%s cut at %d: %d %s", name, at, r.status, r.body)
			}
		}
	}
	for _, s := range up.seen() {
		if _, _, got := parts(s); got != body {
			t.Fatalf("sent upstream: %q", got)
		}
	}
}

func TestExpectIsAnsweredAfterTheFirstFourChecks(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url), smallBodies)
	tests := []struct{ name, key, header, want string }{
		{"no token", "", "Content-Length: 9000", "401"},
		{"a token that nobody has", token.Mint().Reveal(), "Content-Length: 9000", "401"},
		{"another gateway's token", g.mint(boundTo("gw_other")), "Content-Length: 9000", "403"},
		{"a body that is too large", g.key, "Content-Length: 70000", "413"},
		{"all is well", g.key, fmt.Sprintf("Content-Length: %d", len(plainBody)), "100"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := g.dial()
			w.t = t
			raw := strings.Replace(call(tt.key, "", "Expect: 100-continue"), "Content-Length: 0", tt.header, 1)
			w.send(raw) // and no body
			r := w.must()
			if fmt.Sprint(r.status) != tt.want {
				t.Fatalf("answered %d: %s", r.status, r.body)
			}
			if r.status != 100 {
				if !r.close || !w.closed() {
					t.Error("the connection stays open over a body that was not sent")
				}
				return
			}
			w.send(plainBody)
			if r := w.must(); r.status != 200 || !w.alive() {
				t.Errorf("after the body: %d", r.status)
			}
		})
	}
}

func TestARefusalDoesNotWaitForTheRestOfABody(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	tests := []struct{ name, raw string }{
		{"no token", call("", "")}, {"an unknown token", call(token.Mint().Reveal(), "")},
		{"another gateway's", call(g.mint(boundTo("gw_other")), "")},
		{"another content type", call(g.key, "", "Content-Type: text/plain")},
	}
	for _, tt := range tests {
		for _, framing := range []string{"Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nfffff\r\n"} {
			t.Run(tt.name+framing[:8], func(t *testing.T) {
				w := g.dial()
				w.t = t
				w.send(strings.Replace(tt.raw, "Content-Length: 0\r\n\r\n", framing, 1) + strings.Repeat(" ", 9<<10))
				r := w.must()
				if r.status < 400 || r.status == 408 || !r.close || !w.closed() {
					t.Errorf("answered %d, close %v", r.status, r.close)
				}
			})
		}
	}
}

func TestABodyThatEndsEarlyIsNeverSent(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	chunked := strings.Replace(call(g.key, ""), "Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n", 1)
	for name, raw := range map[string]string{
		"a length":                     strings.Replace(call(g.key, plainBody), "Content-Length: ", "Content-Length: 1", 1),
		"a chunk":                      chunked + "fff\r\n" + plainBody,
		"chunks without the last one":  chunked + fmt.Sprintf("%x\r\n%s\r\n", len(plainBody), plainBody),
		"a last chunk without its end": chunked + fmt.Sprintf("%x\r\n%s\r\n0\r\n", len(plainBody), plainBody),
		"a head":                       "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := g.dial()
			w.t = t
			w.send(raw)
			_ = w.CloseWrite()
			if r, ok := w.read(); ok && r.status != 400 {
				t.Errorf("answered %d: %s", r.status, r.body)
			}
			if !w.closed() {
				t.Error("the connection is open")
			}
		})
	}
	if n := len(up.seen()); n != 0 {
		t.Errorf("%d calls were sent upstream", n)
	}
}
