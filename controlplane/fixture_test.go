package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

const adminToken = "admin-token-of-the-tests-0123456789"

// plane is a control plane of a test, with a clock that stands until it is moved.
type plane struct {
	t      testing.TB
	file   string
	dsn    string // "": SQLite in file
	first  *plane // whose clock it has; nil: its own
	quiet  bool   // the database notifies nobody
	store  *store.Store
	server *Server
	logs   *logBuffer

	settled int // requests that spend made up

	mu  sync.Mutex
	at  time.Time
	url string
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newPlane(t testing.TB) *plane {
	t.Helper()
	p := &plane{t: t, logs: &logBuffer{}, at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	if strings.HasPrefix(t.Name(), overPostgres+"/") {
		p.dsn = postgresURL(t)
	} else {
		p.file = filepath.Join(t.TempDir(), "kt-gateway.db")
	}
	p.open()
	return p
}

// another is one more control plane over the same database.
func (p *plane) another() *plane {
	p.t.Helper()
	o := &plane{t: p.t, file: p.file, dsn: p.dsn, first: p, quiet: p.quiet, logs: &logBuffer{}}
	o.open()
	return o
}

func (p *plane) open() {
	p.t.Helper()
	if p.dsn == "" {
		p.dsn = "sqlite:" + p.file
	}
	s, err := store.Open(context.Background(), p.dsn)
	if err != nil {
		p.t.Fatal(err)
	}
	p.store = s
	p.t.Cleanup(func() { _ = s.Close() })
	if p.quiet {
		s.Quiet()
	}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(p.logs), zap.DebugLevel)
	if p.server, err = New(Options{
		Store: s, AdminToken: token.NewSecret(adminToken), Log: zap.New(core), Now: p.now,
		Registerer: prometheus.NewRegistry(), LegacyPrefixes: []string{"kt_ak_", "kt_gk_"},
	}); err != nil {
		p.t.Fatal(err)
	}
	web := httptest.NewServer(p.server.Handler())
	p.t.Cleanup(web.Close)
	p.url = web.URL
}

func (p *plane) now() time.Time {
	if p.first != nil {
		return p.first.now()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

func (p *plane) wait(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = p.at.Add(d)
}

// answer is what came back of a call.
type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

func (a answer) code() string {
	e, _ := a.body["error"].(map[string]any)
	s, _ := e["code"].(string)
	return s
}

func (a answer) param() string {
	e, _ := a.body["error"].(map[string]any)
	s, _ := e["param"].(string)
	return s
}

func (a answer) text(key string) string {
	s, _ := a.body[key].(string)
	return s
}

// call sends body (a string as it is, anything else as JSON, nil none) with a bearer.
func (p *plane) call(bearer, method, path string, body any, headers ...string) answer {
	p.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			p.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, p.url+path, r)
	if err != nil {
		p.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.Header.Get("Content-Type") == eventStream {
		return answer{status: res.StatusCode, header: res.Header} // it has no end
	}
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &a.body); err != nil {
			p.t.Fatalf("%s %s: no JSON: %s", method, path, raw)
		}
	}
	return a
}

func (p *plane) admin(method, path string, body any, headers ...string) answer {
	p.t.Helper()
	return p.call(adminToken, method, path, body, headers...)
}

// must calls as the administrator and fails on another status.
func (p *plane) must(want int, method, path string, body any, headers ...string) answer {
	p.t.Helper()
	a := p.admin(method, path, body, headers...)
	if a.status != want {
		p.t.Fatalf("%s %s %v: got %d %s, want %d\n%s", method, path, body, a.status, a.raw, want, p.logs)
	}
	return a
}

type fields map[string]any

// mint makes a token and returns its id and string.
func (p *plane) mint(purpose string, bindings fields, more ...fields) (id, secret string) {
	p.t.Helper()
	body := fields{"name": "t", "purpose": purpose}
	if bindings != nil {
		body["bindings"] = bindings
	}
	for _, m := range more {
		for k, v := range m {
			body[k] = v
		}
	}
	a := p.must(http.StatusCreated, "POST", "/v1/tokens", body)
	return a.text("id"), a.text("token")
}

func sha(secret string) string { return token.Sum([]byte(secret)).String() }

func newRequest(t *testing.T, bearer string) *http.Request {
	t.Helper()
	r := httptest.NewRequest("GET", "/v1/tokens", nil)
	r.Header.Set("Authorization", "Bearer "+bearer)
	return r
}
