package controlplane

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

// held is a snapshot as it was told.
type held struct {
	head     SnapshotHead
	tokens   map[string]Known // by id
	budgets  []budget.Record
	teams    []abac.Team
	profiles []Profiled
}

func (h *held) begin(head SnapshotHead) error {
	h.head, h.tokens = head, map[string]Known{}
	return nil
}

func (h *held) item(i *SnapshotItem) error {
	switch {
	case i.Token != nil:
		h.tokens[i.Token.ID] = *i.Token
	case i.Budget != nil:
		h.budgets = append(h.budgets, *i.Budget)
	case i.Team != nil:
		h.teams = append(h.teams, *i.Team)
	case i.Profile != nil:
		h.profiles = append(h.profiles, *i.Profile)
	default:
		return errors.New("an empty item")
	}
	return nil
}

type snapshotter interface {
	Snapshot(context.Context, int, func(SnapshotHead) error, func(*SnapshotItem) error) error
}

func take(t *testing.T, from snapshotter, profiles int) *held {
	t.Helper()
	h := &held{}
	if err := from.Snapshot(t.Context(), profiles, h.begin, h.item); err != nil {
		t.Fatal(err)
	}
	if len(h.tokens) != h.head.Tokens {
		t.Errorf("%d entries, the head says %d", len(h.tokens), h.head.Tokens)
	}
	return h
}

func (h *held) order() string {
	names := make([]string, len(h.profiles))
	for i := range h.profiles {
		p := h.profiles[i].Profile
		if names[i] = p.Name; p.Name == "" {
			names[i] = *p.Bindings.GatewayID + "'s"
		}
	}
	return strings.Join(names, " ")
}

func TestASnapshotTellsAllThatAGatewayMayKnow(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, own := p.gateway("gw", "i")
	named := func(name string) fields { return fields{"name": name} }
	first, firstSecret := p.mint("general", fields{"models": []string{"m"}}, named("first"))
	mine, _ := p.mint("general", fields{"gateway_id": "gw"}, named("mine"))
	theirs, _ := p.mint("integration", fields{"gateway_id": "gw2", "team_id": "red", "models": []string{"m"}}, named("theirs"))
	revoked, _ := p.mint("general", nil, named("revoked"))
	p.must(200, "POST", "/v1/tokens/"+revoked+"/revoke", nil)
	odd, _ := p.mint("general", nil, named("odd"))
	p.must(200, "POST", "/v1/tokens/"+odd+"/quarantine", nil)
	past, _ := p.mint("general", nil, named("past"), fields{"expires_at": p.now().Add(time.Minute)})
	stopped, _ := p.mint("general", fields{"gateway_id": "gw2"}, named("stopped"))
	p.must(200, "POST", "/v1/tokens/"+stopped+"/revoke", nil)
	foreign, _ := p.mint("general", nil, named("foreign"), fields{"org_id": "else"})
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "day", "limit": "2.5", "applies_to": fields{"org": true}})
	p.must(201, "PUT", "/v1/budgets/b2?org_id=else", fields{"unit": "usd", "window": "day", "limit": "2.5"})
	p.must(200, "DELETE", "/v1/teams/red", nil)
	p.must(201, "PUT", "/v1/teams/blue", nil)
	p.wait(2 * time.Minute)
	used := func(c *Client, id string, ago time.Duration) {
		t.Helper()
		if err := c.Report(t.Context(), record.Report{Instance: "i", LastUsed: []record.Use{{TokenID: id, At: p.now().Add(-ago)}}}); err != nil {
			t.Fatal(err)
		}
	}
	other, others := p.gateway("gw2", "j")
	used(c, first, time.Minute)
	used(c, odd, time.Second)
	used(other, theirs, 0)
	head, err := p.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	for name, from := range map[string]snapshotter{"over HTTP": c, "in process": p.server.Embedded("gw")} {
		t.Run(name, func(t *testing.T) {
			h := take(t, from, DefaultProfiles)
			if want := (SnapshotHead{head, OrgDefault, 9}); h.head != want {
				t.Errorf("head %+v, want %+v", h.head, want)
			}
			for id, want := range map[string]string{
				own: "active gateway_runtime ", others: "active gateway_runtime gw2", first: "active general ", mine: "active general ",
				theirs: "active integration gw2", revoked: "revoked general ", odd: "quarantined general ", past: "active general ",
				stopped: "active general gw2", // of another gateway's no status is told
			} {
				k := h.tokens[id]
				if got := fmt.Sprintf("%s %s %s", k.Status, k.Purpose, k.Gateway); got != want || k.Revision < 1 || k.Revision > head {
					t.Errorf("%s: %+v, want %s", id, k, want)
				}
			}
			if _, told := h.tokens[foreign]; told || h.tokens[first].Digest.String() != sha(firstSecret) {
				t.Errorf("index: %+v", h.tokens)
			}
			for i := range h.profiles {
				k, profile := h.tokens[h.profiles[i].Profile.ID], h.profiles[i].Profile
				if k.Digest != h.profiles[i].Digest || k.Revision != profile.Revision || k.Status != profile.Status {
					t.Errorf("%+v is not of %+v", profile, k)
				}
				if profile.ID == theirs && (profile.Bindings.Models != nil || profile.Bindings.TeamID != nil || profile.Hint != "") {
					t.Errorf("told too much: %+v", profile)
				}
			}
			// Those used last before all, another gateway's behind its own.
			if got := h.order(); got != "odd first mine t gw2's gw2's" {
				t.Errorf("profiles: %s", got)
			}
			if len(h.budgets) != 1 || h.budgets[0].ID != "b" || h.budgets[0].Limit != 2_500_000_000 || !h.budgets[0].AppliesTo.Org {
				t.Errorf("budgets: %+v", h.budgets)
			}
			if len(h.teams) != 1 || h.teams[0].ID != "red" || !h.teams[0].Deleted {
				t.Errorf("teams: %+v", h.teams)
			}
			if got := take(t, from, 2).order(); got != "odd first" {
				t.Errorf("2 profiles: %s", got)
			}
			if got := take(t, from, 0).order(); got != "" {
				t.Errorf("no profiles: %s", got)
			}
		})
	}
}

func TestASnapshotIsOfOneMomentAndTheWatchGoesOnFromIt(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	id, _ := p.mint("general", nil)
	later := ""
	for name, from := range map[string]snapshotter{"over HTTP": c, "in process": p.server.Embedded("gw")} {
		t.Run(name, func(t *testing.T) {
			h := &held{}
			changed := 0
			err := from.Snapshot(t.Context(), 10, func(head SnapshotHead) error {
				return h.begin(head)
			}, func(i *SnapshotItem) error {
				if changed++; changed == 1 {
					p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": name})
					later, _ = p.mint("general", nil)
				}
				return h.item(i)
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(h.tokens) != h.head.Tokens || h.tokens[id].Revision > h.head.Revision || h.tokens[later].ID != "" {
				t.Errorf("%+v", h)
			}
			for i := range h.profiles {
				if n := h.profiles[i].Profile; n.Name == name || n.Revision > h.head.Revision {
					t.Errorf("told of what came later: %+v", n)
				}
			}
			s := watchFrom(t, c, h.head.Revision)
			if e := s.next(KindUpsert); e.TokenID != id || e.Profile.Name != name {
				t.Errorf("the watch begins with %+v", e)
			}
			if e := s.next(KindUpsert); e.TokenID != later {
				t.Errorf("the watch goes on with %+v", e)
			}
		})
	}
}

func TestASnapshotIsPackedForWhoTakesIt(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	_, secret := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	get := func(method, query, accept string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, p.url+"/v1/runtime/snapshot"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		req.Header.Set("Accept-Encoding", accept)
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	for accept, want := range map[string]string{
		"gzip": "gzip", "br, GZIP;q=0.5": "gzip", "*": "gzip", "deflate,*;q=0.1": "gzip",
		"identity": "", "gzip;q=0": "", "gzip; q=0.0, *": "", "*;q=0": "", "x-gzip": "", "gzip;q=x": "",
	} {
		res := get("GET", "", accept)
		body := io.Reader(res.Body)
		if want == "gzip" {
			var err error
			if body, err = gzip.NewReader(res.Body); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := io.ReadAll(body)
		if err != nil || res.Header.Get("Content-Encoding") != want || res.Header.Get("Vary") != "Accept-Encoding" ||
			!strings.HasPrefix(string(raw), `{"revision":1,"org_id":"org_default","count":1,"tokens":[{"sha256":"`+sha(secret)+`"`) ||
			!strings.HasSuffix(string(raw), `],"complete":true}`) {
			t.Errorf("%q: %v %v\n%s", accept, res.Header, err, raw)
		}
	}
	if res := get("HEAD", "", "gzip"); res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("HEAD: %v", res)
	}
	for _, query := range []string{"?profiles=-1", "?profiles=x", "?profiles=10000001", "?profiles=", "?profiles=1&profiles=1", "?since=1"} {
		if res := get("GET", query, "gzip"); res.StatusCode != 400 {
			t.Errorf("%s: %d", query, res.StatusCode)
		}
	}
}

// large puts so much into the database that no socket's buffers hold a snapshot of it.
func (p *plane) large() {
	p.t.Helper()
	name := strings.Repeat("n", 100<<10)
	err := p.store.Update(context.Background(), p.now(), func(tx *store.Tx) error {
		for range 200 {
			n := store.Token{Profile: abac.Profile{ID: p.store.NewID(p.now()), Name: name, OrgID: OrgDefault, Purpose: abac.General,
				PrincipalType: abac.PrincipalAPIToken, Status: abac.Active, CreatedAt: p.now()}}
			n.Digest = token.Sum([]byte(n.Profile.ID))
			if err := tx.Insert(context.Background(), &n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// stuck asks for a snapshot as it is and reads nothing but its first bytes.
func (p *plane) stuck(secret string) {
	p.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		p.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /v1/runtime/snapshot HTTP/1.1\r\nHost: cp\r\nAuthorization: Bearer %s\r\n\r\n", secret); err != nil {
		p.t.Fatal(err)
	}
	status := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(conn, status); err != nil || string(status) != "HTTP/1.1 200" {
		p.t.Fatalf("%q, %v", status, err)
	}
}

func TestSlowReadersOfSnapshotsHoldUpNobodyAndAreCut(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.server.patience, p.server.turn = 3*time.Second, 50*time.Millisecond
	c, _ := p.gateway("gw", "i")
	_, general := p.mint("general", nil)
	p.large()
	secret, err := c.o.Token()
	if err != nil {
		t.Fatal(err)
	}
	for range snapshotsAtOnce {
		p.stuck(secret.Reveal())
	}
	// The next one waits for its turn, and is told to come again.
	err = c.Snapshot(t.Context(), 0, (&held{}).begin, (&held{}).item)
	var api *APIError
	if !errors.As(err, &api) || api.Status != 503 || api.Code != "overloaded" {
		t.Fatalf("a fifth: %v", err)
	}
	if a := p.call(secret.Reveal(), "GET", "/v1/runtime/snapshot", nil); a.status != 503 || a.header.Get("Retry-After") != "5" {
		t.Errorf("a fifth: %d %v", a.status, a.header)
	}
	// All else goes on, by as many at once as SQLite has connections beside.
	done := make(chan error, readersBeside)
	for range cap(done) {
		go func() {
			_, err := c.Resolve(t.Context(), token.Sum([]byte(general)))
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	p.mint("general", nil)
	take(t, p.server.Embedded("gw"), 0)
	// The slow ones are cut, so that the next has its turn.
	p.server.turn = 20 * time.Second
	take(t, c, 1)
	for deadline := time.Now().Add(10 * time.Second); strings.Count(p.logs.String(), "a snapshot broke off") < snapshotsAtOnce; {
		if time.Now().After(deadline) {
			t.Fatalf("not all were cut:\n%s", p.logs)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := len(p.server.snapshots); n != 0 {
		t.Errorf("%d turns were not given back", n)
	}
}

const readersBeside = 4

func TestACutSnapshotIsNone(t *testing.T) {
	t.Parallel()
	whole := writtenSnapshot(false)
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a connection that breaks": func(w http.ResponseWriter) {
			_, _ = w.Write(whole[:len(whole)-10])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"an end that comes early": func(w http.ResponseWriter) { _, _ = w.Write(whole[:len(whole)-10]) },
		"nothing":                 func(http.ResponseWriter) {},
		"a pack without its sum": func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed(whole)[:len(packed(whole))-4])
		},
	} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				answer(w)
			}))
			defer web.Close()
			c, err := NewClient(ClientOptions{URL: web.URL, Token: func() (token.Secret, error) { return token.NewSecret("x"), nil }})
			if err != nil {
				t.Fatal(err)
			}
			defer c.http.CloseIdleConnections()
			if err := c.Snapshot(t.Context(), 1, (&held{}).begin, (&held{tokens: map[string]Known{}}).item); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// failingWriter takes so many bytes.
type failingWriter struct {
	*httptest.ResponseRecorder
	left int
}

func (f *failingWriter) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return f.ResponseRecorder.Write(b)
}

func TestASnapshotThatBreaksOffBreaksTheConnection(t *testing.T) {
	p := newPlane(t)
	_, secret := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	p.large()
	r := httptest.NewRequest("GET", "/v1/runtime/snapshot", nil)
	r.Header.Set("Authorization", "Bearer "+secret)
	defer func() {
		if v := recover(); v != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
			t.Errorf("the handler ended with %v", v)
		}
	}()
	p.server.Handler().ServeHTTP(&failingWriter{httptest.NewRecorder(), 1 << 20}, r)
}

func packed(raw []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(raw)
	_ = w.Close()
	return b.Bytes()
}

// writtenSnapshot is what the server writes of one item of each kind.
func writtenSnapshot(empty bool) []byte {
	r := httptest.NewRecorder()
	w := newSnapshotWriter(&call{r: httptest.NewRequest("GET", "/", nil), w: r}, time.Minute)
	gw := "gw2"
	items := []SnapshotItem{
		{Token: &Known{token.Sum([]byte("x")), "tok_1", 4, abac.Active, abac.General, ""}},
		{Token: &Known{token.Sum([]byte("y")), "a \"b\" \u2028", 7, abac.Active, abac.GatewayRuntime, gw}},
		{Budget: &budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce, Limit: 7, Revision: 3}},
		{Team: &abac.Team{ID: "red", Deleted: true, Revision: 2}},
		{Profile: &Profiled{token.Sum([]byte("x")), &abac.Profile{ID: "tok_1", Name: "n", OrgID: "o", Status: abac.Active, Revision: 4}}},
		{Profile: &Profiled{token.Sum([]byte("y")), &abac.Profile{ID: "tok_2", Revision: 7, Bindings: abac.Bindings{GatewayID: &gw}}}},
	}
	h := SnapshotHead{Revision: 9, OrgID: "o", Tokens: 2}
	if empty {
		h.Tokens, items = 0, nil
	}
	_ = w.begin(h)
	for i := range items {
		_ = w.item(&items[i])
	}
	_ = w.end()
	return r.Body.Bytes()
}

func TestWhatIsNoSnapshotIsRefused(t *testing.T) {
	whole := string(writtenSnapshot(false))
	change := func(old, with string) string {
		if !strings.Contains(whole, old) {
			t.Fatalf("no %s in %s", old, whole)
		}
		return strings.Replace(whole, old, with, 1)
	}
	for name, raw := range map[string]string{
		"a list that is missing":         change(`"budgets":[`, `"later":[`),
		"keys in another order":          change(`"revision":9,"org_id":"o"`, `"org_id":"o","revision":9`),
		"a key twice":                    change(`"count":2`, `"count":2,"count":2`),
		"fewer entries than it says":     change(`"count":2`, `"count":3`),
		"more entries than it says":      change(`"count":2`, `"count":1`),
		"it says that it is not whole":   change(`"complete":true`, `"complete":false`),
		"it does not say":                change(`,"complete":true`, ``),
		"something behind it":            whole + `{}`,
		"something in it behind the end": change(`"complete":true`, `"complete":true,"tokens":[]`),
		"a digest of another form":       change(`{"sha256":"`, `{"sha256":"0`),
		"an entry without an id":         change(`"id":"tok_1"`, `"id":""`),
		"a revision that was not given":  change(`"id":"tok_1","revision":4`, `"id":"tok_1","revision":10`),
		"a profile without a revision":   change(`"status":"active","revision":4`, `"status":"active","revision":0`),
		"a team that stands":             change(`"deleted":true`, `"deleted":false`),
		"no org":                         change(`"org_id":"o"`, `"org_id":""`),
		"a list":                         `[` + whole + `]`,
		"another object":                 `{"status":"ok"}`,
		"an item without an end":         change(`"name":"n"`, `"name":"`+strings.Repeat("n", 2*maxSnapshotItem)+`"`),
	} {
		t.Run(name, func(t *testing.T) {
			h := &held{}
			var stranger *StrangerError
			if err := readSnapshot(strings.NewReader(raw), snapshotTold{h.begin, h.item}); !errors.As(err, &stranger) {
				t.Errorf("got %v", err)
			}
		})
	}
	for name, raw := range map[string]string{
		"as it is":                 whole,
		"with spaces":              strings.ReplaceAll(whole, `,"`, " ,\n\"") + "\n",
		"a later version's keys":   change(`"budgets":[`, `"later":[{"a":[1,{}]}],"more":null,"budgets":[`),
		"a later version's budget": change(`"budgets":[`, `"budgets":[{"id":"c","unit":"seconds"},`),
	} {
		t.Run(name, func(t *testing.T) {
			h := &held{}
			if err := readSnapshot(iotest.HalfReader(strings.NewReader(raw)), snapshotTold{h.begin, h.item}); err != nil {
				t.Fatal(err)
			}
			if len(h.tokens) != 2 || len(h.budgets) != 1 || len(h.teams) != 1 || len(h.profiles) != 2 || h.tokens["tok_1"].Revision != 4 ||
				h.tokens["a \"b\" \u2028"].Gateway != "gw2" {
				t.Errorf("%+v", h)
			}
		})
	}
	mine := errors.New("mine")
	if err := readSnapshot(strings.NewReader(whole), snapshotTold{func(SnapshotHead) error { return mine }, (&held{}).item}); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	if err := readSnapshot(strings.NewReader(whole), snapshotTold{(&held{}).begin, func(*SnapshotItem) error { return mine }}); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
}

// Whatever comes, reading ends without a panic; what was cut anywhere is an error; and
// what is read as whole is the same however it comes, and written again.
func FuzzASnapshotIsReadWhole(f *testing.F) {
	for _, raw := range [][]byte{writtenSnapshot(false), writtenSnapshot(true)} {
		f.Add(raw, uint(0), false)
		f.Add(raw, uint(len(raw)-1), false)
		f.Add(packed(raw), uint(7), true)
	}
	f.Add([]byte(`{"revision":1,"org_id":"o","x":[{}],"count":0,"tokens":[],"budgets":[],"deleted_teams":[],"profiles":[],"complete":true} `), uint(40), false)
	f.Fuzz(func(t *testing.T, raw []byte, cut uint, zipped bool) {
		read := func(r io.Reader) (string, error) {
			if zipped {
				var err error
				if r, err = gzip.NewReader(r); err != nil {
					return "", err
				}
				// What packs well may be long.
				r = io.LimitReader(r, 1<<20)
			}
			var told []string
			err := readSnapshot(r, snapshotTold{
				func(h SnapshotHead) error { told = append(told, fmt.Sprintf("%+v", h)); return nil },
				func(i *SnapshotItem) error {
					told = append(told, fmt.Sprintf("%+v %+v %+v", i.Token, i.Budget, i.Team))
					if i.Profile != nil {
						told = append(told, fmt.Sprintf("%s %+v", i.Profile.Digest, *i.Profile.Profile))
					}
					return nil
				},
			})
			return strings.Join(told, "\n"), err
		}
		whole, err := read(bytes.NewReader(raw))
		again, errAgain := read(iotest.OneByteReader(bytes.NewReader(raw)))
		if (err == nil) != (errAgain == nil) || err == nil && len(whole) != len(again) {
			t.Fatalf("by bytes: %v and %v", err, errAgain)
		}
		if err != nil {
			return
		}
		if n := len(bytes.TrimRight(raw, " \t\r\n")); !zipped && n > 0 {
			if _, err := read(bytes.NewReader(raw[:cut%uint(n)])); err == nil {
				t.Fatalf("cut at %d it is still a snapshot", cut%uint(n))
			}
		} else if zipped && len(raw) > 0 {
			if part, err := read(bytes.NewReader(raw[:cut%uint(len(raw))])); err == nil && part != whole {
				t.Fatalf("cut at %d it is another snapshot", cut%uint(len(raw)))
			}
		}
	})
}
