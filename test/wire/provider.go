package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// script is what the provider does with one call. It travels in a header that
// passes upstream, so that bodies and framing are free.
type script struct {
	id     string
	do     string // whole, stream, halves, idle, silent, raw
	status int    // of a whole answer; 0: 200
	size   int    // of a whole answer's content, or what an event has more, in bytes
	chunks int    // of a stream
	gap    time.Duration
	delay  time.Duration // before the answer
	raw    string        // bytes to answer with, then the connection is closed
	reset  bool          // by a RST
}

const scriptHeader = "X-Stainless-Script"

func (s script) header() string {
	v := url.Values{}
	v.Set("id", s.id)
	v.Set("do", s.do)
	for k, n := range map[string]int{"status": s.status, "size": s.size, "chunks": s.chunks, "gap": int(s.gap), "delay": int(s.delay)} {
		if n != 0 {
			v.Set(k, strconv.Itoa(n))
		}
	}
	if s.raw != "" {
		v.Set("raw", base64.RawURLEncoding.EncodeToString([]byte(s.raw)))
	}
	if s.reset {
		v.Set("reset", "true")
	}
	return scriptHeader + ": " + v.Encode() + "\r\n"
}

func readScript(text string) script {
	v, err := url.ParseQuery(text)
	if err != nil {
		return script{}
	}
	// What is missing is 0: scripts are this program's own.
	n := func(name string) int { n, _ := strconv.Atoi(v.Get(name)); return n }
	raw, _ := base64.RawURLEncoding.DecodeString(v.Get("raw"))
	return script{id: v.Get("id"), do: v.Get("do"), status: n("status"), size: n("size"), chunks: n("chunks"),
		gap: time.Duration(n("gap")), delay: time.Duration(n("delay")), raw: string(raw), reset: v.Get("reset") == "true"}
}

// received is one request as it came to the provider.
type received struct {
	script script
	req    *request
	raw    []byte
	odd    string    // why two parsers would not read it alike; "" they do
	at     time.Time // it was read
	ended  time.Time // its connection ended before its answer did, or while it is silent
}

// provider is the upstream: it witnesses what comes, byte for byte, and answers as
// it is told.
type provider struct {
	addr string
	ln   net.Listener

	mu     sync.Mutex
	quiet  bool // what comes is not kept
	seen   map[string][]*received
	all    int
	odd    []*received // what two parsers read in two ways
	strays []*received // what has no script, or two
}

func newProvider(t *trial) (*provider, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := &provider{ln: ln, addr: addr, seen: map[string][]*received{}}
	t.closers = append(t.closers, func() { ln.Close() })
	go p.accept()
	return p, nil
}

func (p *provider) accept() {
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			return
		}
		go p.serve(conn.(*net.TCPConn))
	}
}

// provide is a provider in a process of its own, as providers are: where time counts,
// what wakes whom is part of it.
func provide(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	p := &provider{ln: ln, addr: addr, seen: map[string][]*received{}}
	p.hush()
	p.accept()
	return nil
}

// newProviderApart starts one as a child; it witnesses nothing for us.
func newProviderApart(ctx context.Context, t *trial) (*provider, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if _, err := t.launch("provider", t.path("provider.log"), exec.Command(self, "-provide", addr)); err != nil {
		return nil, err
	}
	up := settled(ctx, 10*time.Second, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if !up {
		return nil, fmt.Errorf("the provider does not listen on %s", addr)
	}
	return &provider{addr: addr}, nil
}

// of gives what came under an id.
func (p *provider) of(id string) []*received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[id]
}

// oddities gives what came and should not have, and how much came in all.
func (p *provider) oddities() (odd, strays []*received, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.odd, p.strays, p.all
}

// hush stops keeping what comes: a load is only counted.
func (p *provider) hush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = true
}

func (p *provider) note(r *received) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all++
	switch {
	case r.odd != "":
		p.odd = append(p.odd, r)
	case r.script.id == "" && len(p.strays) < 1000:
		p.strays = append(p.strays, r)
	}
	if !p.quiet {
		p.seen[r.script.id] = append(p.seen[r.script.id], r)
	}
}

// serve reads requests off one connection. While an answer is under way it goes on
// reading, so that it sees the connection end.
func (p *provider) serve(conn *net.TCPConn) {
	defer conn.Close()
	br := bufio.NewReaderSize(conn, 4<<10)
	var answered chan bool
	var last *received
	for {
		_, err := br.Peek(1)
		if last != nil && err != nil {
			p.mu.Lock()
			last.ended = time.Now()
			p.mu.Unlock()
		}
		if answered != nil {
			if keep := <-answered; !keep {
				return
			}
		}
		if err != nil {
			return
		}
		r := p.read(br)
		p.note(r)
		if r.req == nil {
			return
		}
		last, answered = r, make(chan bool, 1)
		go func(answered chan<- bool) { answered <- answer(conn, r.script, r.req) }(answered)
	}
}

const maxRequest = 64 << 20

// read takes one request and has two parsers read it.
func (p *provider) read(br *bufio.Reader) *received {
	r := &received{at: time.Now()}
	for {
		line, err := br.ReadSlice('\n')
		r.raw = append(r.raw, line...)
		if err != nil && err != bufio.ErrBufferFull || len(r.raw) > maxRequest {
			r.odd = "a head without an end"
			return r
		}
		if bytes.HasSuffix(r.raw, []byte("\r\n\r\n")) || bytes.HasSuffix(r.raw, []byte("\n\n")) {
			break
		}
	}
	head := len(r.raw)
	probe, _, err := strict(r.raw, 0)
	if err == errShort { // its body is on the way; a gateway sends a length
		var n int
		for _, l := range strings.Split(string(r.raw), "\r\n") {
			if k, v, _ := strings.Cut(l, ":"); strings.EqualFold(k, "content-length") {
				n, _ = strconv.Atoi(strings.TrimSpace(v))
			}
		}
		if n <= 0 || n > maxRequest {
			r.odd = "framing of another kind than a length"
			return r
		}
		r.raw = append(r.raw, make([]byte, n)...)
		if _, err := io.ReadFull(br, r.raw[head:]); err != nil {
			r.odd = "a body that is cut"
			return r
		}
		probe, _, err = strict(r.raw, 0)
	}
	if err != nil {
		r.odd = "a strict parser: " + err.Error()
		return r
	}
	r.req = probe
	r.odd = againstGo(r.raw, probe)
	if s := probe.get(scriptHeader); len(s) == 1 {
		r.script = readScript(s[0])
	}
	return r
}

// againstGo has net/http read the same bytes and says where it reads otherwise.
func againstGo(raw []byte, want *request) string {
	br := bufio.NewReader(bytes.NewReader(raw))
	g, err := http.ReadRequest(br)
	if err != nil {
		return "net/http: " + err.Error()
	}
	body, err := io.ReadAll(g.Body)
	if err != nil {
		return "net/http, in the body: " + err.Error()
	}
	switch {
	case g.Method != want.method || g.RequestURI != want.target:
		return fmt.Sprintf("net/http reads %s %s", g.Method, g.RequestURI)
	case !bytes.Equal(body, want.body):
		return "net/http reads another body"
	case br.Buffered() > 0:
		return "net/http has bytes left"
	}
	n := len(g.Header)
	if g.Host != "" {
		n++
	}
	names := map[string]bool{}
	for _, f := range want.fields {
		names[http.CanonicalHeaderKey(f.name)] = true
	}
	if len(names) != n {
		return fmt.Sprintf("net/http reads %d names of fields, not %d", n, len(names))
	}
	return ""
}

// answer does what the script says; false: the connection is spent.
func answer(conn *net.TCPConn, s script, r *request) (keep bool) {
	time.Sleep(s.delay)
	write := func(text string) bool { _, err := io.WriteString(conn, text); return err == nil }
	switch s.do {
	case "", "whole":
		return write(wholeAnswer(s))
	case "stream":
		return stream(conn, s)
	case "halves":
		return halves(conn, s)
	case "idle":
		return write(streamHead + frame(chunk("first")))
	case "silent":
		return true
	case "raw":
		write(s.raw)
		if s.reset {
			_ = conn.SetLinger(0)
			time.Sleep(5 * time.Millisecond) // so that what was written is not lost on the way
		}
		conn.Close()
		return false
	}
	return false
}

func wholeAnswer(s script) string {
	body := `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat("a", max(s.size, 2)) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`
	status := s.status
	if status == 0 {
		status = 200
	}
	if status >= 400 {
		body = `{"error":{"message":"scripted","type":"server_error","param":null,"code":null}}`
	}
	return fmt.Sprintf("HTTP/1.1 %d Scripted\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunk(content string) string {
	return `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"` + content + `"},"finish_reason":null}]}` + "\n\n"
}

func frame(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }

// streamEnd is a finish, the usage and the end, framed.
const usageChunk = `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}` + "\n\n"

// halves sends events cut in two, inside a chunk's frame, with a silence between.
func halves(conn *net.TCPConn, s script) bool {
	for i := range s.chunks + 1 {
		text := frame(chunk("half"))
		switch i {
		case 0:
			text = streamHead + text
		case s.chunks:
			text = frame("data: [DONE]\n\n") + "0\r\n\r\n"
		}
		cut := len(text) / 2
		if i%2 == 1 {
			cut = 1 // inside the chunk's size
		}
		if _, err := io.WriteString(conn, text[:cut]); err != nil {
			return false
		}
		time.Sleep(s.gap)
		if _, err := io.WriteString(conn, text[cut:]); err != nil {
			return false
		}
	}
	return true
}

// stream sends so many events; each carries the moment when it was sent.
func stream(conn *net.TCPConn, s script) bool {
	if _, err := io.WriteString(conn, streamHead); err != nil {
		return false
	}
	filling := strings.Repeat("x", s.size)
	for range s.chunks {
		time.Sleep(s.gap)
		if _, err := io.WriteString(conn, frame(chunk("@"+strconv.FormatInt(time.Now().UnixNano(), 10)+filling))); err != nil {
			return false
		}
	}
	_, err := io.WriteString(conn, frame(usageChunk)+frame("data: [DONE]\n\n")+"0\r\n\r\n")
	return err == nil
}
