package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

// reports is a control plane that keeps what it is told, or refuses it.
type reports struct {
	mu  sync.Mutex
	all []record.Report
	err error
}

func (r *reports) Report(_ context.Context, report record.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.all = append(r.all, report)
	return nil
}

func (r *reports) refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// sum joins all reports so far; the last says whether the instance signed off.
func (r *reports) sum() (s record.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.all {
		s.LastUsed = append(s.LastUsed, one.LastUsed...)
		s.Misplaced = append(s.Misplaced, one.Misplaced...)
		s.SignOff = one.SignOff
	}
	return s
}

// holding is an upstream whose streams go on until finish is closed, and whose
// calls named "silent" are never answered.
func holding(t *testing.T, finish chan struct{}) *upstreamScript {
	return scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			switch claimOf(raw) {
			case "held":
				c.send(sseHead + chunk(event(1)))
				select {
				case <-finish:
				case <-time.After(patience):
				}
				c.send(chunk(doneEvent) + lastChunk)
			case "endless":
				c.send(sseHead + chunk(event(1)) + chunk(event(2)[:40]))
				c.gone()
				return
			case "silent":
				c.gone()
				return
			default:
				c.send(whole(200, completion))
			}
		}
	})
}

func limited(url, limits string) string {
	return strings.Replace(plainConfig(url), "limits: {lame_duck: 0s, drain: 5s}", "limits: {"+limits+"}", 1)
}

func TestADrainServesThenRefusesThenEnds(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	u := holding(t, finish)
	var to reports
	g := start(t, limited(u.url, "lame_duck: 1s, drain: 8s"), func(o *Options) { o.Reporter = &to })
	var wait sync.WaitGroup
	wait.Go(func() {
		if r := g.do(call(g.key, streamBody, claimed("held"))); r.err != nil || r.body != event(1)+doneEvent {
			t.Errorf("the stream in flight: %v %q", r.err, r.body)
		}
	})
	eventually(t, "a stream is open", func() bool { return g.s.streams.Load() == 1 })
	if r := g.do(get("/readyz", "")); r.status != 200 || r.close {
		t.Fatalf("readyz before: %d", r.status)
	}
	old := g.dial() // a connection that was kept alive
	if !old.alive() {
		t.Fatal("not served")
	}
	g.waitsForCalls(1) // else it has its last call
	drained := make(chan error, 1)
	began := time.Now()
	go func() { drained <- g.s.Drain(context.Background()) }()
	eventually(t, "readyz is 503", func() bool { return g.do(get("/readyz", "")).status == 503 })
	if d := time.Since(began); d > 500*time.Millisecond {
		t.Errorf("readyz was 503 only after %v", d)
	}
	if g.s.Readiness() == nil {
		t.Error("Readiness says nothing of the drain")
	}
	if r := g.do(call(g.key, plainBody)); r.status != 200 || !r.close {
		t.Errorf("lame duck: %d, close %v", r.status, r.close)
	}
	late := g.dial()
	late.send(call(g.key, streamBody, claimed("held")))
	stream, err := http.ReadResponse(late.r, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	if stream.StatusCode != 200 || !stream.Close {
		t.Errorf("a stream of the lame duck: %d, close %v", stream.StatusCode, stream.Close)
	}
	eventually(t, "the lame duck is over", func() bool { return g.s.draining.Load() == refusing })
	if d := time.Since(began); d < time.Second {
		t.Errorf("the lame duck was over after %v", d)
	}
	old.send(call(g.key, plainBody))
	for _, r := range []reply{old.must(), g.do(call(g.key, plainBody)), g.do(get("/v1/models", "")), g.do(get("/nowhere", g.key))} {
		if r.status != 503 || r.problem().Code != codeDraining || r.header.Get("Retry-After") == "" || !r.close {
			t.Errorf("draining: %d %v %q", r.status, r.header, r.body)
		}
	}
	if r := g.do(get("/healthz", "")); r.status != 200 {
		t.Errorf("healthz while draining: %d", r.status)
	}
	close(finish)
	wait.Wait()
	if b, err := io.ReadAll(stream.Body); err != nil || string(b) != event(1)+doneEvent || !late.closed() {
		t.Errorf("a stream of the lame duck: %v %q, or its connection stays", err, b)
	}
	ends(t, g, drained, 3*time.Second)
	if s := to.sum(); !s.SignOff || len(s.LastUsed) == 0 {
		t.Errorf("the last report: %+v", s)
	}
}

// ends waits for Drain, with nil.
func ends(t *testing.T, g *gateway, drained chan error, within time.Duration) {
	t.Helper()
	select {
	case err := <-drained:
		if err != nil {
			t.Errorf("drain: %v", err)
		}
	case <-time.After(within):
		t.Errorf("Drain did not return within %v", within)
	}
	if n := g.s.open.Load(); n != 0 {
		t.Errorf("%d exchanges are open after Drain", n)
	}
}

func TestWhatDoesNotEndIsCutAtTheDrainLimit(t *testing.T) {
	t.Parallel()
	u := holding(t, nil)
	g := start(t, limited(u.url, "lame_duck: 100ms, drain: 800ms"))
	idle := g.dial()
	if !idle.alive() {
		t.Fatal("not served")
	}
	var wait sync.WaitGroup
	began := time.Now()
	wait.Go(func() {
		if wrong := cutBy(g.do(call(g.key, streamBody, claimed("endless"))), codeDraining, event(1)); wrong != "" {
			t.Errorf("a stream: %s", wrong)
		}
	})
	wait.Go(func() {
		raw := strings.Replace(call(g.key, streamBody, claimed("endless")), "HTTP/1.1", "HTTP/1.0", 1)
		r := g.do(raw)
		r.err = errCut // an HTTP/1.0 body has no end but the connection's
		if wrong := cutBy(r, codeDraining, event(1)); wrong != "" {
			t.Errorf("a stream in HTTP/1.0: %s", wrong)
		}
	})
	wait.Go(func() {
		if r := g.do(call(g.key, plainBody, claimed("silent"))); r.status != 503 || r.problem().Code != codeDraining || !r.close {
			t.Errorf("a call without an answer: %d %q", r.status, r.body)
		}
	})
	eventually(t, "three calls are open", func() bool { return g.s.streams.Load() == 3 })
	drained := make(chan error, 1)
	go func() { drained <- g.s.Drain(context.Background()) }()
	ends(t, g, drained, 4*time.Second)
	wait.Wait()
	if d := time.Since(began); d < 800*time.Millisecond {
		t.Errorf("cut after %v, before limits.drain", d)
	}
	if !idle.closed() {
		t.Error("an idle connection outlived the drain")
	}
}

func TestAReloadIsAllOrNothing(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	auth := func() string {
		t.Helper()
		if r := g.do(call(g.key, plainBody)); r.status != 200 {
			t.Fatalf("%d %q", r.status, r.body)
		}
		seen := u.seen()
		_, h, _ := parts(seen[len(seen)-1])
		return strings.Join(h["authorization"], "|")
	}
	if got := auth(); got != "Bearer "+targetSecret {
		t.Fatalf("authorization %q", got)
	}
	old := g.s.runtime.Load()
	secret := filepath.Join(g.dir, "target-secret")

	for name, content := range map[string]string{"empty": "", "of two words": "sk one", "of control characters": "sk\x01"} {
		if err := os.WriteFile(secret, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		next := g.parse(strings.Replace(plainConfig(u.url), "name: mapped", "name: renamed", 1))
		if err := g.s.Reload(next); err == nil || g.s.runtime.Load() != old {
			t.Errorf("a secret %s: error %v, the old config stays: %v", name, err, g.s.runtime.Load() == old)
		}
		if got := auth(); got != "Bearer "+targetSecret {
			t.Errorf("after a secret %s: authorization %q", name, got)
		}
	}
	err := g.s.Reload(g.parse(strings.Replace(plainConfig(u.url), "gateway_id: "+testGateway, "gateway_id: gw_next\nlisten: 127.0.0.1:1\noperations_listen: 127.0.0.1:2\ndata_dir: elsewhere", 1)))
	for _, field := range []string{"gateway_id", "listen", "operations_listen", "data_dir"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("a reload that changes %s: %v", field, err)
		}
	}
	if g.s.runtime.Load() != old {
		t.Error("a refused reload changed something")
	}
	const fresh = "sk-fresh-0123456789abcdefghij"
	if err := os.WriteFile(secret, []byte(fresh+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := u.accepted()
	if err := g.s.Reload(g.parse(plainConfig(u.url))); err != nil {
		t.Fatal(err)
	}
	if got := auth(); got != "Bearer "+fresh {
		t.Errorf("after the secret changed: authorization %q", got)
	}
	if n := u.accepted(); n != before+1 {
		t.Errorf("a target with another secret: %d connections, want %d", n, before+1)
	}
	next := strings.Replace(plainConfig(u.url), "name: mapped", "name: renamed", 1)
	if err := g.s.Reload(g.parse(strings.Replace(next, "limits: {", "limits: {request_body: 1KiB, ", 1))); err != nil {
		t.Fatal(err)
	}
	auth()
	if n := u.accepted(); n != before+1 {
		t.Errorf("a target that stayed lost its connections: %d, want %d", n, before+1)
	}
	if r := g.do(call(g.key, strings.Repeat(" ", 1025))); r.status != 413 {
		t.Errorf("the new request_body is not in force: %d", r.status)
	}
	if r := g.do(get("/v1/models", g.key)); !strings.Contains(r.body, "renamed") || strings.Contains(r.body, "mapped") {
		t.Errorf("the new models are not listed: %s", r.body)
	}
}

func TestARequestKeepsTheConfigItBeganWith(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	priced := `data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":0,"total_tokens":1000}}` + "\n\n"
	u := scripted(t, func(c *callee) {
		if c.request() != "" {
			c.send(sseHead + chunk(event(1)))
			<-finish
			c.send(chunk(priced) + chunk(doneEvent) + lastChunk)
			c.gone()
		}
	})
	second := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	done := make(chan reply, 1)
	go func() { done <- g.do(call(g.key, streamBody)) }()
	eventually(t, "a stream is open", func() bool { return g.s.streams.Load() == 1 })
	next := strings.NewReplacer("id: main", "id: second", "input: 1,", "input: 50,").Replace(plainConfig(second.url))
	if err := g.s.Reload(g.parse(next)); err != nil {
		t.Fatal(err)
	}
	if r := g.do(call(g.key, plainBody)); r.status != 200 || r.header.Get("X-Keeptrusts-Target") != "second" {
		t.Errorf("a new request: %d %q", r.status, r.header.Get("X-Keeptrusts-Target"))
	}
	close(finish)
	r := receive(t, "the answer", done)
	if r.err != nil || !strings.Contains(r.body, "[DONE]") || r.header.Get("X-Keeptrusts-Target") != "main" {
		t.Errorf("the request in flight: %v %q", r.err, r.body)
	}
	l := g.line(r.header.Get("X-Request-Id"))
	if l["target"] != "main" || l["cost"] != "0.001" && l["cost"] != 0.001 && l["cost"] != "0.001000000" {
		t.Errorf("the request in flight was logged as %v", l)
	}
	eventually(t, "the old target's connections are closed", func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		return g.metric("keeptrusts_gateway_calls_open") == 0
	})
}

// runtimeKey mints a runtime token of the gateway's own.
func (g *gateway) runtimeKey() string {
	return g.mint(func(p *abac.Profile) {
		gateway := testGateway
		p.Purpose, p.PrincipalType, p.Bindings.GatewayID = abac.GatewayRuntime, abac.PrincipalGatewayRuntime, &gateway
	})
}

func TestUsesAndMisplacedCredentialsAreReportedAndNeverLost(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	var to reports
	g := start(t, plainConfig(u.url), func(o *Options) { o.Reporter = &to })
	runtimeKey := g.runtimeKey()
	eventually(t, "the first report, of the start", func() bool {
		to.mu.Lock()
		defer to.mu.Unlock()
		return len(to.all) == 1
	})
	to.refuse(errors.New("away"))
	used := time.Now()
	for range 2 {
		if r := g.do(call(runtimeKey, plainBody)); r.status != 403 || r.problem().Code != "purpose_not_allowed" {
			t.Fatalf("%d %q", r.status, r.body)
		}
	}
	if r := g.do(call(g.key, plainBody)); r.status != 200 {
		t.Fatalf("%d", r.status)
	}
	g.s.reporter.send(false)
	if s := to.sum(); len(s.LastUsed)+len(s.Misplaced) != 0 {
		t.Fatalf("told while away: %+v", s)
	}
	to.refuse(nil)
	g.s.reporter.send(false)
	s := to.sum()
	if len(s.Misplaced) != 1 || s.Misplaced[0].Digest != token.Sum([]byte(runtimeKey)).String() || s.Misplaced[0].Client != "127.0.0.1" || s.Misplaced[0].At.Before(used) {
		t.Errorf("misplaced: %+v", s.Misplaced)
	}
	id := "tok_" + token.Sum([]byte(g.key)).String()[:12]
	if len(s.LastUsed) != 1 || s.LastUsed[0].TokenID != id || s.LastUsed[0].At.Before(used) {
		t.Errorf("last used: %+v, want %s", s.LastUsed, id)
	}
	if n := g.metric("keeptrusts_gateway_misplaced_credentials_total"); n != 2 {
		t.Errorf("misplaced_credentials_total is %v, want 2", n)
	}
	g.s.reporter.send(false)
	if s := to.sum(); len(s.Misplaced) != 1 || len(s.LastUsed) != 1 {
		t.Errorf("told twice: %+v", s)
	}
}

// ledger is a sink that keeps lines, or refuses them.
type ledger struct {
	mu    sync.Mutex
	lines []string
	err   error
}

func (l *ledger) Write(r *record.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.lines = append(l.lines, string(r.AppendJSON(nil)))
	return nil
}

func (l *ledger) Close() error { return nil }

func TestWithoutARecordNothingIsForwardedWhereRecordsAreRequired(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{config.RecordsRequired, config.RecordsBestEffort} {
		u := answering(t, whole(200, completion))
		sink := ledger{err: errors.New("the disk is full")}
		g := start(t, plainConfig(u.url)+"records: {path: records.jsonl, mode: "+mode+"}\n", func(o *Options) { o.Records = &sink })
		r := g.do(call(g.key, plainBody))
		if mode == config.RecordsBestEffort {
			if r.status != 200 {
				t.Errorf("best effort: %d %q", r.status, r.body)
			}
			continue
		}
		overloaded(t, "no record", r)
		if n := len(u.seen()); n != 0 {
			t.Errorf("%d calls were forwarded without a record", n)
		}
		sink.mu.Lock()
		sink.err = nil
		sink.mu.Unlock()
		r = g.do(call(g.key, plainBody))
		if r.status != 200 {
			t.Errorf("with a record: %d %q", r.status, r.body)
		}
		sink.mu.Lock()
		lines := strings.Join(sink.lines, "\n")
		sink.mu.Unlock()
		if strings.Count(lines, r.header.Get("X-Request-Id")) != 2 || !strings.Contains(lines, `"status":0`) || !strings.Contains(lines, `"status":200`) {
			t.Errorf("the records: %s", lines)
		}
	}
}

// Of several the control plane takes one a minute: the others wait for theirs.
func TestMisplacedCredentialsAreReportedOneAMinute(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	var to reports
	g := start(t, plainConfig(u.url), func(o *Options) { o.Reporter = &to })
	for range 2 {
		g.do(call(g.runtimeKey(), plainBody))
	}
	g.s.reporter.send(false)
	g.s.reporter.send(false)
	if n := len(to.sum().Misplaced); n != 1 {
		t.Errorf("%d told at once", n)
	}
	g.s.reporter.mu.Lock()
	g.s.reporter.toldMisplaced = g.s.reporter.toldMisplaced.Add(-misplacedGap)
	g.s.reporter.mu.Unlock()
	g.s.reporter.send(false)
	if s := to.sum(); len(s.Misplaced) != 2 || s.Misplaced[0].Digest == s.Misplaced[1].Digest {
		t.Errorf("told after a minute: %+v", s.Misplaced)
	}
}
