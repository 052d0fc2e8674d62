package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy/simulator"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

const (
	// patience bounds every wait of a test: what has not come by then never will.
	patience = 10 * time.Second
	// targetSecret is the credential of the targets in plainConfig.
	targetSecret = "sk-target-0123456789abcdefghij"
	testGateway  = "gw_test"
	testOrg      = "org_default"
	plainBody    = `{"model":"chat","messages":[{"role":"user","content":"hello there"}]}`
)

// gateway is a data plane on a real socket, with all that it needs faked or
// caught. It ends with its test.
type gateway struct {
	t        testing.TB
	s        *Server
	cfg      *config.Config
	addr     string
	listener net.Listener
	tokens   *directory
	cache    *tokencache.Cache
	registry *prometheus.Registry
	log      *logBuffer
	dir      string // where the config's relative paths begin
	served   chan error
	key      string // a general token without bindings
}

// plainConfig serves the models chat (as it is called), mapped (upstream "other")
// and wild-*, from the upstream at url, with short limits.
func plainConfig(url string) string {
	return `gateway_id: ` + testGateway + `
providers:
  targets:
    - {id: main, base_url: "` + url + `/v1", secret_key_ref: {file: target-secret}}
models:
  - {name: chat, targets: [{id: main}], price: {input: 1, cached_input: 0.5, output: 2}}
  - {name: mapped, targets: [{id: main, model: other}]}
  - {name: "wild-*", targets: [{id: main}]}
limits: {lame_duck: 0s, drain: 5s}
`
}

// start runs a gateway with a config in YAML; its relative paths begin in a
// folder that holds the file target-secret.
func start(t testing.TB, yaml string, change ...func(*Options)) *gateway {
	t.Helper()
	g := &gateway{
		t: t, registry: prometheus.NewRegistry(), log: &logBuffer{}, dir: t.TempDir(),
		tokens: &directory{profiles: make(map[token.Digest]*abac.Profile)}, served: make(chan error, 1),
	}
	if err := os.WriteFile(filepath.Join(g.dir, "target-secret"), []byte(targetSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.cfg = g.parse(yaml)
	o := Options{Config: g.cfg, OrgID: testOrg, Log: g.log.logger(), Registerer: g.registry, Instance: "test", Build: "test"}
	var err error
	g.cache, err = tokencache.New(tokencache.Options{
		Profiles: 1000, FreshFor: time.Hour, MaxStale: 2 * time.Hour, Loader: g.tokens, Now: time.Now, Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Tokens = g.cache
	for _, f := range change {
		f(&o)
	}
	if o.Ledger == nil {
		o.Ledger, err = budget.Open(budget.Options{Authority: nobody{}, Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			at, cancel := context.WithCancel(context.Background())
			cancel()
			_ = o.Ledger.Close(at) // nobody answers
		})
	}
	if g.s, err = New(o); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr, g.listener = ln.Addr().String(), ln
	go func() { g.served <- g.s.Serve(ln) }()
	g.key = g.mint(nil)
	t.Cleanup(g.stop)
	return g
}

func (g *gateway) parse(yaml string) *config.Config {
	g.t.Helper()
	c, err := config.Parse(filepath.Join(g.dir, "gateway.yaml"), []byte(yaml))
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// nobody is a control plane out of reach.
type nobody struct{}

func (nobody) Leases(context.Context, *budget.Call) (*budget.Answer, error) {
	return nil, errors.New("nobody is there")
}
func (nobody) Settle(context.Context, []budget.Settlement) error { return nil }

// stop drains at once, unless the test has drained already.
func (g *gateway) stop() {
	if g.s.draining.Load() != refusing {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := g.s.Drain(now); err != nil {
			g.t.Errorf("drain: %v", err)
		}
	}
	select {
	case err := <-g.served:
		if err != nil {
			g.t.Errorf("serve: %v", err)
		}
	case <-time.After(patience):
		g.t.Error("Serve did not return after Drain")
	}
	g.cache.Close()
	if n := g.s.open.Load(); n != 0 {
		g.t.Errorf("%d exchanges are open at the end", n)
	}
	if n := g.s.streams.Load(); n != 0 {
		g.t.Errorf("%d calls are counted at the end", n)
	}
	if n := g.s.bodies.Load(); n != 0 {
		g.t.Errorf("%d bytes of bodies are counted at the end", n)
	}
	if strings.Contains(g.log.text(), "kt_live_") || strings.Contains(g.log.text(), targetSecret) {
		g.t.Error("a secret stands in the log")
	}
	if strings.Contains(g.log.text(), "no refusal") {
		g.t.Error("a room returned an error that is no refusal")
	}
}

// mint makes a token; change may be nil: a general one without bindings.
func (g *gateway) mint(change func(*abac.Profile)) string {
	return g.own(token.Mint().Reveal(), change)
}

// own makes the profile of a string that the test chose.
func (g *gateway) own(key string, change func(*abac.Profile)) string {
	p := &abac.Profile{
		ID: "tok_" + token.Sum([]byte(key)).String()[:12], Name: "test", OrgID: testOrg, Purpose: abac.General,
		PrincipalType: abac.PrincipalAPIToken, Status: abac.Active, Revision: 1, CreatedAt: time.Unix(1767225600, 0).UTC(),
	}
	if change != nil {
		change(p)
	}
	g.tokens.put(token.Sum([]byte(key)), p)
	return key
}

// directory is the control plane, as the cache sees it.
type directory struct {
	mu       sync.Mutex
	profiles map[token.Digest]*abac.Profile
	err      error // told instead of an answer
}

func (d *directory) put(digest token.Digest, p *abac.Profile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.profiles[digest] = p
}

func (d *directory) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// Load implements tokencache.Loader.
func (d *directory) Load(_ context.Context, digest token.Digest) (*abac.Profile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	p := d.profiles[digest]
	if p == nil {
		return nil, token.ErrUnknown
	}
	own := *p
	return &own, nil
}

// logBuffer keeps every log line as JSON: an observer would keep records that are
// used again.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) logger() *zap.Logger {
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(enc, zapcore.AddSync(l), zap.DebugLevel))
}

func (l *logBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// lines are the request lines so far.
func (l *logBuffer) lines() []map[string]any {
	var all []map[string]any
	for _, s := range strings.Split(l.text(), "\n") {
		var m map[string]any
		if json.Unmarshal([]byte(s), &m) == nil && m["msg"] == "request" {
			all = append(all, m)
		}
	}
	return all
}

// line waits for the log line of one request.
func (g *gateway) line(requestID string) map[string]any {
	g.t.Helper()
	var found map[string]any
	eventually(g.t, "the log line of "+requestID, func() bool {
		for _, m := range g.log.lines() {
			if m["request_id"] == requestID {
				found = m
			}
		}
		return found != nil
	})
	return found
}

// metric adds up a counter's or gauge's children that have all the labels, given
// as name=value. A histogram gives its count.
func (g *gateway) metric(name string, labels ...string) float64 {
	g.t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		g.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := 0
			for _, l := range m.GetLabel() {
				for _, want := range labels {
					if l.GetName()+"="+l.GetValue() == want {
						has++
					}
				}
			}
			if has == len(labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// eventually polls until ok, and fails the test when it never is.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// receive waits for what comes. What never does fails the test, and no more: a test
// that waits for ever hides which one it is.
func receive[T any](t testing.TB, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Errorf("%s: not within %v", what, patience)
	}
	return v
}

// give is receive from the other side.
func give[T any](t testing.TB, what string, to chan<- T, v T) {
	t.Helper()
	select {
	case to <- v:
	case <-time.After(patience):
		t.Errorf("%s: not taken within %v", what, patience)
	}
}

// tcpPair is a connection and its peer, closed when the test ends.
func tcpPair(t testing.TB) (c, peer *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	one, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = one.Close() })
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	return one.(*net.TCPConn), other.(*net.TCPConn)
}

// wire is a client's connection, spoken to in raw bytes.
type wire struct {
	t testing.TB
	*net.TCPConn
	r *bufio.Reader
}

func (g *gateway) dial() *wire {
	g.t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	w := &wire{t: g.t, TCPConn: c.(*net.TCPConn), r: bufio.NewReader(c)}
	g.t.Cleanup(func() { _ = c.Close() })
	return w
}

// send writes; a peer that has closed already is no fault of the test.
func (w *wire) send(raw string) { _, _ = io.WriteString(w.TCPConn, raw) }

// reply is one answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // of the body: it was cut
	proto  string
	close  bool
	length int64 // -1: chunked, or until close
}

// read takes one answer to a request of the method POST or GET; ok is false where
// the connection ended instead.
func (w *wire) read() (reply, bool) { return w.readTo("POST") }

func (w *wire) readTo(method string) (reply, bool) {
	w.t.Helper()
	res, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			w.t.Fatal("no answer came")
		}
		return reply{}, false
	}
	body, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(body), err, res.Proto, res.Close, res.ContentLength}, true
}

// must is read where an answer has to come.
func (w *wire) must() reply {
	w.t.Helper()
	r, ok := w.read()
	if !ok {
		w.t.Fatal("the connection ended without an answer")
	}
	return r
}

// closed waits for the connection's end; bytes before it are a fault.
func (w *wire) closed() bool {
	w.t.Helper()
	b, err := io.ReadAll(w.r)
	if len(b) > 0 {
		w.t.Errorf("bytes after the answer: %q", b)
	}
	var ne net.Error
	return err == nil || !(errors.As(err, &ne) && ne.Timeout())
}

// alive says whether the connection serves another request.
func (w *wire) alive() bool {
	w.t.Helper()
	w.send("GET /healthz HTTP/1.1\r\nHost: gw\r\n\r\n")
	r, ok := w.readTo("GET")
	return ok && r.status == 200
}

// problem is the body of an error.
type problem struct{ Message, Type, Param, Code string }

// problem reads an error in OpenAI's shape; the zero value where it is none.
func (r reply) problem() problem {
	var e struct {
		Error *struct {
			Message string  `json:"message"`
			Type    string  `json:"type"`
			Param   *string `json:"param"`
			Code    string  `json:"code"`
		} `json:"error"`
	}
	d := json.NewDecoder(strings.NewReader(r.body))
	d.DisallowUnknownFields()
	if d.Decode(&e) != nil || e.Error == nil {
		return problem{}
	}
	return problem{e.Error.Message, e.Error.Type, deref(e.Error.Param), e.Error.Code}
}

// call writes a POST of a chat call; each header is a whole line.
func call(key, body string, headers ...string) string {
	b := "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\n"
	if key != "" {
		b += "Authorization: Bearer " + key + "\r\n"
	}
	for _, h := range headers {
		b += h + "\r\n"
	}
	return b + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
}

// get writes a GET; key may be "".
func get(path, key string, headers ...string) string {
	b := "GET " + path + " HTTP/1.1\r\nHost: gw\r\n"
	if key != "" {
		b += "Authorization: Bearer " + key + "\r\n"
	}
	for _, h := range headers {
		b += h + "\r\n"
	}
	return b + "\r\n"
}

// do sends raw bytes on a new connection and reads the answer.
func (g *gateway) do(raw string) reply {
	g.t.Helper()
	w := g.dial()
	defer func() { _ = w.Close() }()
	w.send(raw)
	return w.must()
}

// simulated runs the simulator as an upstream.
func simulated(t testing.TB) (url string, sim *simulator.Simulator) {
	sim = simulator.New(simulator.Options{APIKey: targetSecret})
	s := httptest.NewServer(sim)
	t.Cleanup(s.Close)
	return s.URL, sim
}

// upstreamScript is an upstream that does what the test says, byte by byte.
type upstreamScript struct {
	t    testing.TB
	ln   net.Listener
	url  string
	wait sync.WaitGroup

	mu       sync.Mutex
	conns    []net.Conn
	requests []string
}

// callee is one connection to a scripted upstream.
type callee struct {
	net.Conn
	u *upstreamScript
	r *bufio.Reader
	n int // which connection, from 0
}

// scripted runs serve in a goroutine for every connection, which is closed when
// serve returns.
func scripted(t testing.TB, serve func(c *callee)) *upstreamScript {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return scriptedOn(t, ln, serve)
}

// scriptedOn is scripted on a listener of the test's choice.
func scriptedOn(t testing.TB, ln net.Listener, serve func(c *callee)) *upstreamScript {
	u := &upstreamScript{t: t, ln: ln, url: "http://" + ln.Addr().String()}
	u.wait.Add(1)
	go func() {
		defer u.wait.Done()
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.conns = append(u.conns, c)
			u.mu.Unlock()
			u.wait.Add(1)
			go func() {
				defer u.wait.Done()
				defer func() { _ = c.Close() }()
				serve(&callee{Conn: c, u: u, r: bufio.NewReader(c), n: n})
			}()
		}
	}()
	t.Cleanup(u.stop)
	return u
}

func (u *upstreamScript) stop() {
	_ = u.ln.Close()
	u.mu.Lock()
	for _, c := range u.conns {
		_ = c.Close()
	}
	u.mu.Unlock()
	ended := make(chan bool)
	go func() { u.wait.Wait(); close(ended) }()
	receive(u.t, "the end of an upstream's script", ended) // one may wait for a test that has failed
}

// answering serves every request with the same raw answer, keeping connections.
func answering(t testing.TB, raw string) *upstreamScript {
	return scripted(t, func(c *callee) {
		for c.request() != "" {
			c.send(raw)
		}
	})
}

// request reads one whole request and records it; "" at the connection's end.
func (c *callee) request() string {
	var b bytes.Buffer
	length := 0
	for {
		line, err := c.r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			return ""
		}
		if name, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "content-length") {
			_, _ = fmt.Sscan(v, &length)
		}
		if line == "\r\n" {
			break
		}
	}
	if _, err := io.CopyN(&b, c.r, int64(length)); err != nil {
		return ""
	}
	c.u.mu.Lock()
	c.u.requests = append(c.u.requests, b.String())
	c.u.mu.Unlock()
	return b.String()
}

func (c *callee) send(raw string) { _, _ = io.WriteString(c.Conn, raw) }

// gone waits until the gateway has closed the connection.
func (c *callee) gone() { _, _ = io.Copy(io.Discard, c.r) }

// seen are the requests that came so far, whole.
func (u *upstreamScript) seen() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.requests...)
}

// accepted is how many connections came so far.
func (u *upstreamScript) accepted() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.conns)
}

// whole is a raw answer with a body and a length.
func whole(status int, body string, headers ...string) string {
	b := fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n", status, http.StatusText(status))
	for _, h := range headers {
		b += h + "\r\n"
	}
	return b + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
}

// completion is a provider's plain answer, with usage.
const completion = `{"id":"chatcmpl-1","object":"chat.completion","created":1767225600,"model":"chat","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}`

// parts cuts a raw request in its line, its headers (lower-case names) and body.
func parts(raw string) (line string, h map[string][]string, body string) {
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	h = make(map[string][]string)
	for _, l := range lines[1:] {
		name, v, _ := strings.Cut(l, ":")
		name = strings.ToLower(name)
		h[name] = append(h[name], strings.TrimSpace(v))
	}
	return lines[0], h, body
}
