package proxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/record"
)

// memorySink keeps what matters of each record as text.
type memorySink struct {
	mu    sync.Mutex
	lines []string
}

// Write implements record.Sink.
func (m *memorySink) Write(r *record.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, fmt.Sprintf("%s %s %d %s %s", r.ClientRequestID, r.AgentID, r.Status, r.Model, r.Target))
	return nil
}

// Close implements record.Sink.
func (m *memorySink) Close() error { return nil }

func (m *memorySink) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.lines)
}

// manyModels has what filters, teams and patterns can make a difference over.
func manyModels(url string) string {
	return `gateway_id: ` + testGateway + `
providers:
  targets:
    - {id: open, base_url: "` + url + `/v1"}
    - {id: blue-only, base_url: "` + url + `/v1", teams: [blue]}
    - {id: other, base_url: "` + url + `/v1"}
models:
  - {name: chat, targets: [{id: open}, {id: other, model: chat-upstream}]}
  - {name: blue, targets: [{id: blue-only}]}
  - {name: mixed, targets: [{id: blue-only}, {id: other}]}
  - {name: "org/slashed", targets: [{id: open}]}
  - {name: "wild-*", targets: [{id: other}]}
  - {name: "wild-card", targets: [{id: blue-only}]}
limits: {lame_duck: 0s, drain: 5s}
`
}

func (g *gateway) list(key string, headers ...string) []string {
	g.t.Helper()
	r := g.do(get("/v1/models", key, headers...))
	var list struct {
		Object string
		Data   []map[string]any
	}
	if err := json.Unmarshal([]byte(r.body), &list); err != nil || r.status != 200 || list.Object != "list" || list.Data == nil {
		g.t.Fatalf("the list is %d %s", r.status, r.body)
	}
	ids := []string{}
	for _, m := range list.Data {
		if m["object"] != "model" || m["owned_by"] == "" || m["created"] == nil {
			g.t.Errorf("a model is %v", m)
		}
		ids = append(ids, m["id"].(string))
	}
	return ids
}

func TestTheListHasTheNamedModelsThatACallWouldReach(t *testing.T) {
	g := start(t, manyModels(answering(t, whole(200, completion)).url))
	blue, none := "blue", []string{}
	tests := []struct {
		name   string
		change func(*abac.Profile)
		want   []string
	}{
		{"general", nil, []string{"chat", "mixed", "org/slashed"}},
		{"general of a team", func(p *abac.Profile) { p.Bindings.TeamID = &blue }, []string{"chat", "blue", "mixed", "org/slashed", "wild-card"}},
		{"an exclusion", func(p *abac.Profile) { p.Bindings.Models = []string{"*", "!org/*"} }, []string{"chat", "mixed"}},
		{"a provider", func(p *abac.Profile) { p.Bindings.Providers = []string{"other"} }, []string{"chat", "mixed"}},
		{"an upstream's name excluded", func(p *abac.Profile) {
			p.Bindings.Providers = []string{"other"}
			p.Bindings.Models = []string{"*", "!chat-upstream"}
		}, []string{"mixed"}},
		{"nothing granted", func(p *abac.Profile) { p.Bindings.Models = none }, none},
		{"integration, unbound", func(p *abac.Profile) { p.Purpose = abac.Integration }, none},
		{"integration", func(p *abac.Profile) {
			p.Purpose = abac.Integration
			p.Bindings.Models, p.Bindings.Providers = []string{"chat"}, []string{"*"}
		}, []string{"chat"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := g.list(g.mint(tt.change)); !slices.Equal(got, tt.want) {
				t.Errorf("lists %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAModelIsThereExactlyWhereACallWouldPass(t *testing.T) {
	up := answering(t, whole(200, completion))
	g := start(t, manyModels(up.url))
	names := []string{"chat", "blue", "mixed", "org/slashed", "wild-a/b c", "wild-card", "none", "wild-"}
	patterns := []string{"*", "chat", "blue", "mix*", "org/*", "wild-*", "!wild-card", "!chat-upstream", "!mixed", "none"}
	providers := []string{"*", "open", "other", "blue-*", "!other"}
	teams := []string{"blue", "red"}
	rng := rand.New(rand.NewPCG(1, 2))
	some := func(of []string) []string {
		if rng.IntN(3) == 0 {
			return nil
		}
		list := []string{}
		for _, s := range of {
			if rng.IntN(3) == 0 {
				list = append(list, s)
			}
		}
		return list
	}
	passed, denied := 0, 0
	for range 60 {
		team := ""
		key := g.mint(func(p *abac.Profile) {
			p.Bindings.Models, p.Bindings.Providers = some(patterns), some(providers)
			if rng.IntN(3) == 0 {
				p.Purpose = abac.Integration
			}
			if rng.IntN(2) == 0 {
				team = teams[rng.IntN(2)]
				p.Bindings.TeamID = &team
			}
		})
		var headers []string
		if rng.IntN(2) == 0 && team != "" {
			headers = []string{"X-Keeptrusts-Team: " + team}
		}
		listed := g.list(key, headers...)
		w := g.dial()
		for _, name := range names {
			w.send(call(key, fmt.Sprintf(`{"model":%q,"messages":[]}`, name), headers...))
			called := w.must()
			paths := []string{"/v1/models/" + strings.ReplaceAll(url.PathEscape(name), "%2F", "/"), "/v1/models/" + url.PathEscape(name)}
			for _, path := range paths {
				w.send(get(path, key, headers...))
				got := w.must()
				if got.status != called.status || got.problem().Code != called.problem().Code {
					t.Fatalf("%s: GET gives %d %s, a call %d %s", name, got.status, got.body, called.status, called.body)
				}
				if got.status == 200 && !strings.Contains(got.body, fmt.Sprintf(`"id":%q`, name)) {
					t.Errorf("%s is %s", name, got.body)
				}
			}
			entry := !strings.HasPrefix(name, "wild-") || name == "wild-card"
			if want := called.status == 200 && entry; slices.Contains(listed, name) != want {
				t.Errorf("%s is in the list: %v, a call gives %d", name, !want, called.status)
			}
			if called.status == 200 {
				passed++
			} else {
				denied++
			}
		}
	}
	if passed < 50 || denied < 50 {
		t.Errorf("%d passed, %d were denied: no test of both", passed, denied)
	}
}

func TestWhoamiIsTheProfile(t *testing.T) {
	g := start(t, plainConfig(answering(t, whole(200, completion)).url))
	team, until := "platform", time.Date(2099, 1, 2, 3, 4, 5, 0, time.UTC)
	key := g.mint(func(p *abac.Profile) {
		p.Bindings.TeamID, p.Bindings.Models, p.ExpiresAt, p.Hint = &team, []string{"chat", "!x"}, &until, "kt_live_…9fQ2"
	})
	r := g.do(get("/v1/whoami", key))
	var got map[string]any
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != 200 || r.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s", r.status, r.body)
	}
	want := []string{"bindings", "budgets_left", "created_at", "expires_at", "hint", "id", "last_used_at", "name", "not_before", "org_id", "principal_type", "purpose", "revision", "rotated_from", "status"}
	if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
		t.Errorf("keys %q", keys)
	}
	if got["purpose"] != "general" || got["expires_at"] != "2099-01-02T03:04:05Z" || fmt.Sprint(got["bindings"]) != "map[models:[chat !x] team_id:platform]" || fmt.Sprint(got["budgets_left"]) != "[]" || got["not_before"] != nil {
		t.Errorf("whoami %s", r.body)
	}
}

func TestProbesTellNothing(t *testing.T) {
	ready := error(nil)
	g := start(t, plainConfig("http://127.0.0.1:1"), func(o *Options) { o.Ready = func() error { return ready } })
	for _, tt := range []struct {
		method, path string
		err          error
		status       int
		body         string
	}{
		{"GET", "/health", nil, 200, `{"status":"ok"}`}, {"GET", "/healthz", nil, 200, `{"status":"ok"}`}, {"GET", "/readyz", nil, 200, `{"status":"ready"}`},
		{"HEAD", "/", nil, 200, ""}, {"HEAD", "/readyz", nil, 200, ""}, {"HEAD", "/health", nil, 200, ""},
		{"GET", "/readyz", fmt.Errorf("identity refused: secret detail"), 503, `{"status":"unready"}`}, {"GET", "/healthz", fmt.Errorf("x"), 200, `{"status":"ok"}`},
	} {
		ready = tt.err
		w := g.dial()
		w.send(tt.method + " " + tt.path + " HTTP/1.1\r\nHost: gw\r\n\r\n")
		r, ok := w.readTo(tt.method)
		if !ok || r.status != tt.status || strings.TrimSpace(r.body) != tt.body || !w.alive() {
			t.Errorf("%s %s: %d %q", tt.method, tt.path, r.status, r.body)
		}
	}
}
