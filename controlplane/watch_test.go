package controlplane

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

// spy is a gateway's process that watches.
type spy struct {
	t      *testing.T
	client *Client
	events chan Event
	ended  chan error
	stop   context.CancelFunc
}

// gateway makes a client of a gateway's process with a new runtime token.
func (p *plane) gateway(id, instance string, more ...fields) (*Client, string) {
	p.t.Helper()
	tok, secret := p.mint("gateway_runtime", fields{"gateway_id": id}, more...)
	c, err := NewClient(ClientOptions{URL: p.url, Insecure: true, Instance: instance, Build: "b", MaxStale: time.Hour,
		Token: func() (token.Secret, error) { return token.NewSecret(secret), nil }})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.http.CloseIdleConnections)
	return c, tok
}

func watchFrom(t *testing.T, c *Client, since int64) *spy {
	ctx, stop := context.WithCancel(context.Background())
	s := &spy{t: t, client: c, events: make(chan Event, 10_000), ended: make(chan error, 1), stop: stop}
	go func() { s.ended <- c.Watch(ctx, since, func(e Event) { s.events <- e }) }()
	t.Cleanup(stop)
	return s
}

// next returns the next event but heads, unless heads are what is waited for.
func (s *spy) next(kind string) Event {
	s.t.Helper()
	late := time.After(5 * time.Second)
	for {
		select {
		case e := <-s.events:
			if e.Kind == kind {
				return e
			}
			if e.Kind != KindHead {
				s.t.Fatalf("got %+v, want %s", e, kind)
			}
		case err := <-s.ended:
			s.t.Fatalf("the watch ended: %v; want %s", err, kind)
		case <-late:
			s.t.Fatalf("no %s came", kind)
		}
	}
}

func (s *spy) end() error {
	s.t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(5 * time.Second):
		s.t.Fatal("the watch goes on")
		return nil
	}
}

func TestAWatchTellsEveryChangeInOrder(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, own := p.gateway("gw", "i")
	start := p.now()
	s := watchFrom(t, c, FromHead)
	began := s.next(KindHead).Revision

	p.wait(time.Second)
	id, secret := p.mint("general", fields{"models": []string{"gpt-*"}})
	e := s.next(KindUpsert)
	if e.Digest.String() != sha(secret) || e.TokenID != id || e.Profile.ID != id || e.Revision != e.Profile.Revision ||
		e.Revision != began+1 || !e.At.Equal(p.now()) || len(e.Profile.Bindings.Models) != 1 {
		t.Errorf("minted: %+v", e)
	}
	p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": "other"})
	if e := s.next(KindUpsert); e.Profile.Name != "other" || e.Revision != began+2 {
		t.Errorf("patched: %+v", e)
	}
	p.wait(1001 * time.Microsecond)
	p.must(200, "POST", "/v1/tokens/"+id+"/quarantine", nil)
	if e := s.next(KindRevoke); e.TokenID != id || e.Digest.String() != sha(secret) || e.Revision != began+3 || !e.At.Equal(p.now()) {
		t.Errorf("quarantined: %+v", e)
	}
	p.must(200, "POST", "/v1/tokens/"+id+"/release", nil)
	if e := s.next(KindUpsert); e.Revision != began+4 {
		t.Errorf("released: %+v", e)
	}
	next := p.must(201, "POST", "/v1/tokens/"+id+"/rotate", nil)
	if e := s.next(KindUpsert); e.TokenID != next.text("id") || e.Digest.String() != sha(next.text("token")) {
		t.Errorf("rotated, the new one: %+v", e)
	}
	if e := s.next(KindUpsert); e.TokenID != id || e.Profile.ExpiresAt == nil {
		t.Errorf("rotated, the old one: %+v", e)
	}
	p.must(200, "DELETE", "/v1/tokens/"+id, nil)
	if e := s.next(KindRevoke); e.TokenID != id {
		t.Errorf("deleted: %+v", e)
	}
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "day", "limit": "2.5"})
	if e := s.next(KindUpsert); e.Budget == nil || e.Budget.ID != "b" || e.Budget.Limit != 2_500_000_000 || e.Profile != nil || !e.At.Equal(p.now()) {
		t.Errorf("a budget: %+v", e)
	}
	p.server.push(OrgDefault, budget.Recall{Budget: "b", Window: "w", Phase: 3})
	if e := s.next(KindRecall); *e.Recall != (budget.Recall{Budget: "b", Window: "w", Phase: 3}) || e.Revision != 0 {
		t.Errorf("a recall: %+v", e)
	}
	head := s.next(KindHead)
	at := time.Now()
	if again := s.next(KindHead); again.Revision != head.Revision || time.Since(at) < 500*time.Millisecond || time.Since(at) > 1500*time.Millisecond {
		t.Errorf("the second head came after %v, at %d after %d", time.Since(at), again.Revision, head.Revision)
	}

	// The same again for a gateway that knows nothing, each subject once.
	s = watchFrom(t, c, 0)
	seen, last := map[string]bool{}, int64(0)
	for {
		e := <-s.events
		if e.Kind == KindHead {
			if e.Revision != head.Revision {
				t.Errorf("head %d, want %d", e.Revision, head.Revision)
			}
			break
		}
		subject := e.TokenID
		if e.Budget != nil {
			subject = e.Budget.ID
		}
		if seen[subject] || e.Revision <= last {
			t.Errorf("%s twice, or %d after %d", subject, e.Revision, last)
		}
		if early := e.TokenID == own; e.At.Equal(start) != early {
			t.Errorf("%s changed at %v", subject, e.At)
		}
		seen[subject], last = true, e.Revision
	}
	if len(seen) != 4 {
		t.Errorf("told of %v", seen)
	}
}

func TestAWatchSeesLittleOfTokensOfOtherGatewaysAndNothingOfOtherOrgs(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	s := watchFrom(t, c, FromHead)
	s.next(KindHead)
	p.mint("general", nil, fields{"org_id": "else"})
	p.server.push("else", budget.Recall{Budget: "theirs"})
	id, secret := p.mint("general", fields{"gateway_id": "gw2", "models": []string{"m"}, "team_id": "red"}, fields{"name": "hidden"})
	check := func(what string) {
		t.Helper()
		e := s.next(KindUpsert)
		b := e.Profile.Bindings
		if e.Digest.String() != sha(secret) || e.Profile.ID != id || b.GatewayID == nil || *b.GatewayID != "gw2" ||
			e.Profile.Name != "" || e.Profile.Hint != "" || b.Models != nil || b.TeamID != nil || e.Profile.Status != "active" {
			t.Errorf("%s: %+v", what, e.Profile)
		}
	}
	check("minted")
	p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	check("revoked")
	raw := readSome(t, p, c, "?since=0", 1)
	if strings.Contains(raw, "hidden") || strings.Contains(raw, "theirs") || strings.Contains(raw, `"else"`) {
		t.Errorf("told too much:\n%s", raw)
	}
}

// readSome reads a raw watch until so many heads have come.
func readSome(t *testing.T, p *plane, c *Client, query string, heads int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	secret, _ := c.o.Token()
	req, _ := http.NewRequestWithContext(ctx, "GET", p.url+"/v1/runtime/watch"+query, nil)
	req.Header.Set("Authorization", "Bearer "+secret.Reveal())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var all []byte
	buf := make([]byte, 4096)
	for strings.Count(string(all), "event: head\n") < heads {
		n, err := res.Body.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			t.Fatalf("%v after %s", err, all)
		}
	}
	return string(all)
}

func TestTheWireOfAWatch(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	id, secret := p.mint("general", nil)
	p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "requests", "window": "day", "limit": "5"})
	got := readSome(t, p, c, "?since=2", 2)
	want := `event: revoke
id: 3
data: {"id":"` + id + `","sha256":"` + sha(secret) + `","revision":3,"at":"2026-11-24T12:00:00.000000Z"}

event: upsert
id: 4
data: {"kind":"budget","budget":{"id":"b","unit":"requests","window":"day","limit":"5","mode":"enforce","applies_to":null,"revision":4},"at":"2026-11-24T12:00:00.000000Z"}

event: head
id: 4
data: {"revision":4}

event: head
id: 4
data: {"revision":4}

`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAWatchGoesOnFromWhereItWasUnderWriters(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	ids := make([]string, 4)
	for i := range ids {
		ids[i], _ = p.mint("general", nil)
	}
	var writers sync.WaitGroup
	done := make(chan struct{})
	for _, id := range ids {
		writers.Go(func() {
			for n := range 60 {
				p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": fmt.Sprint(n)})
			}
		})
	}
	go func() { writers.Wait(); close(done) }()
	defer writers.Wait()
	names := map[string]string{}
	at, cuts := int64(0), 0
	for over := false; !over; cuts++ {
		select {
		case <-done:
			over = true
		default:
		}
		// Cut after some events, anywhere; the last one goes to the head.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := c.Watch(ctx, at, func(e Event) {
			if ctx.Err() != nil {
				return // cut, but read already
			}
			if e.Revision < at || e.Kind != KindHead && e.Revision == at {
				t.Errorf("%d after %d", e.Revision, at)
			}
			at = e.Revision
			if e.Profile != nil {
				names[e.TokenID] = e.Profile.Name
			}
			if e.Kind == KindHead || !over && e.Revision%5 == 0 {
				cancel()
			}
		})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		if names[id] != "59" {
			t.Errorf("%s ended as %q after %d cuts", id, names[id], cuts)
		}
	}
	if cuts < 5 {
		t.Errorf("only %d cuts", cuts)
	}
}

func TestARevisionThatTheLogDoesNotHaveIsGone(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	if err := c.Watch(context.Background(), 99, nil); !errors.Is(err, ErrTooOld) {
		t.Errorf("client: %v", err)
	}
	if err := p.server.Embedded("gw").Watch(context.Background(), 99, nil); !errors.Is(err, ErrTooOld) {
		t.Errorf("in process: %v", err)
	}
	secret, _ := c.o.Token()
	for query, want := range map[string]string{
		"?since=99": "410 revision_gone", "?since=-1": "400 invalid_value", "?since=x": "400 invalid_value",
		"?since=": "400 invalid_value", "?since=1&since=1": "400 ambiguous_key", "?from=1": "400 unknown_parameter",
	} {
		a := p.call(secret.Reveal(), "GET", "/v1/runtime/watch"+query, nil)
		if got := fmt.Sprintf("%d %s", a.status, a.code()); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	if a := p.call(secret.Reveal(), "GET", "/v1/runtime/watch", nil, "Last-Event-ID", "99"); a.status != 410 {
		t.Errorf("an EventSource's: %d", a.status)
	}
	if n := p.server.hub.len(); n != 0 {
		t.Errorf("%d watches left", n)
	}
}

func TestAReaderThatDoesNotReadIsCut(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.server.patience = 200 * time.Millisecond
	web := httptest.NewUnstartedServer(p.server.Handler())
	web.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			_ = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
		}
	}
	web.Start()
	t.Cleanup(web.Close)
	_, secret := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	conn, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := fmt.Fprintf(conn, "GET /v1/runtime/watch HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\n\r\n", secret); err != nil {
		t.Fatal(err)
	}
	for n := 0; p.server.hub.len() != 1; n++ {
		if n == 500 {
			t.Fatal("no watch")
		}
		time.Sleep(10 * time.Millisecond)
	}
	long := strings.Repeat("n", 100)
	id, _ := p.mint("general", nil)
	for n := 0; p.server.hub.len() != 0; n++ {
		if n == 500 {
			t.Fatal("the watch lives on")
		}
		p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": fmt.Sprint(long, n)})
		time.Sleep(5 * time.Millisecond)
	}
}

func TestMoreRecallsThanMayWaitEndAWatch(t *testing.T) {
	w := newWatching(newPlane(t).server.Embedded("gw").instance)
	for i := range maxRecalls {
		w.take([]budget.Recall{{Budget: fmt.Sprint(i), Phase: 1}, {Budget: fmt.Sprint(i), Phase: 3}, {Budget: fmt.Sprint(i), Phase: 2}})
	}
	events, err := w.taken()
	if err != nil || len(events) != maxRecalls || events[0].Recall.Phase != 3 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	for i := range maxRecalls + 1 {
		w.take([]budget.Recall{{Budget: fmt.Sprint(i)}})
	}
	if _, err := w.taken(); !errors.Is(err, errBehind) {
		t.Errorf("one too many: %v", err)
	}
}

func TestAWatchEndsWithItsToken(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*plane, string){
		"revoked": func(p *plane, id string) { p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil) },
		"expired": func(p *plane, _ string) { p.wait(time.Hour) },
		"rotated": func(p *plane, id string) { p.must(201, "POST", "/v1/tokens/"+id+"/rotate", nil) },
		"another": func(p *plane, id string) {
			p.must(200, "PATCH", "/v1/tokens/"+id, fields{"bindings": fields{"gateway_id": "gw2"}})
		},
		"shutdown": func(p *plane, _ string) { p.server.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			c, id := p.gateway("gw", "i", fields{"expires_at": p.now().Add(time.Hour)})
			s := watchFrom(t, c, FromHead)
			s.next(KindHead)
			began := time.Now()
			end(p, id)
			if err := s.end(); err == nil || errors.Is(err, ErrSilent) {
				t.Errorf("ended with %v", err)
			}
			if took := time.Since(began); took > 1500*time.Millisecond {
				t.Errorf("only after %v", took)
			}
			if name == "another" {
				return // the token is the other gateway's now
			}
			var api *APIError
			if err := c.Watch(context.Background(), FromHead, func(Event) {}); !errors.As(err, &api) || name == "shutdown" && api.Code != "draining" {
				t.Errorf("the next one: %v", err)
			}
		})
	}
}

func TestAWatchOutlivesTheServersReadTimeout(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	web := httptest.NewUnstartedServer(p.server.Handler())
	web.Config.ReadTimeout = 300 * time.Millisecond
	web.Start()
	t.Cleanup(web.Close)
	p.url = web.URL
	c, _ := p.gateway("gw", "i")
	s := watchFrom(t, c, FromHead)
	for range 3 {
		s.next(KindHead)
	}
}

func TestWithoutTheDatabaseNoHeadIsToldAndTheWatchFallsSilent(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	s := watchFrom(t, c, FromHead)
	s.next(KindHead)
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	for len(s.events) > 0 {
		<-s.events // of the second in which it closed
	}
	if err := s.end(); !errors.Is(err, ErrSilent) {
		t.Errorf("ended with %v", err)
	}
	if len(s.events) > 0 {
		t.Errorf("told %+v", <-s.events)
	}
}

func TestTheSameEventsComeInProcess(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	own := p.server.Embedded("gw")
	own.Introduce("i", "b", time.Hour)
	ctx, cancel := context.WithCancel(context.Background())
	s := &spy{t: t, events: make(chan Event, 100), ended: make(chan error, 1)}
	go func() { s.ended <- own.Watch(ctx, FromHead, func(e Event) { s.events <- e }) }()
	s.next(KindHead)
	id, _ := p.mint("general", nil)
	if e := s.next(KindUpsert); e.TokenID != id {
		t.Errorf("minted: %+v", e)
	}
	p.server.push(OrgDefault, budget.Recall{Budget: "b", Window: "w", Phase: 1})
	s.next(KindRecall)
	cancel()
	if err := s.end(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if n := p.server.hub.len(); n != 0 {
		t.Errorf("%d watches left", n)
	}
}

func TestSigningOffEndsTheWatchAndForgetsTheInstance(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	s := watchFrom(t, c, FromHead)
	s.next(KindHead)
	if got := p.must(200, "GET", "/v1/gateways", nil).raw; !strings.Contains(got, `"watching":true`) || !strings.Contains(got, `"revision":null`) {
		t.Errorf("while it watches: %s", got)
	}
	report := record.Report{Instance: "i", Build: "b", MaxStale: time.Hour, Revision: 1}
	if err := c.Report(context.Background(), report); err != nil {
		t.Fatal(err)
	}
	if got := p.must(200, "GET", "/v1/gateways", nil).raw; !strings.Contains(got, `"revision":1`) {
		t.Errorf("after a report: %s", got)
	}
	report.SignOff = true
	if err := c.Report(context.Background(), report); err != nil {
		t.Fatal(err)
	}
	if err := s.end(); err == nil {
		t.Error("ended without an error")
	}
	p.server.noteWatches(context.Background())
	if got := p.must(200, "GET", "/v1/gateways", nil).raw; strings.Contains(got, `"gw"`) {
		t.Errorf("after it signed off: %s", got)
	}
}

func TestAWatchPassesOverHTTP2(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	_, secret := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	web := httptest.NewUnstartedServer(p.server.Handler())
	web.EnableHTTP2 = true
	web.StartTLS()
	t.Cleanup(web.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(ClientOptions{URL: web.URL, CA: ca, Token: func() (token.Secret, error) { return token.NewSecret(secret), nil }})
	if err != nil {
		t.Fatal(err)
	}
	s := watchFrom(t, c, FromHead)
	s.next(KindHead)
	p.mint("general", nil)
	s.next(KindUpsert)
	s.next(KindHead)
	s.stop()
	if err := s.end(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.http.CloseIdleConnections()
}
