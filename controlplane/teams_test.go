package controlplane

import (
	"context"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

func TestATeamIsMadeRenamedDeletedAndRestored(t *testing.T) {
	p := newPlane(t)
	for _, tt := range []struct {
		method, path string
		body         any
		want         int
		state        string // of what is answered: name, deleted
	}{
		{"GET", "/v1/teams/platform", nil, 404, ""},
		{"DELETE", "/v1/teams/platform", nil, 404, ""},
		{"PUT", "/v1/teams/platform", fields{"name": "Platform"}, 201, "Platform false"},
		{"PUT", "/v1/teams/platform", nil, 200, "Platform false"},
		{"PUT", "/v1/teams/platform", fields{"id": "platform", "name": "The platform"}, 200, "The platform false"},
		{"PUT", "/v1/teams/platform", fields{"id": "other"}, 400, ""},
		{"PUT", "/v1/teams/platform", fields{"name": strings.Repeat("x", 201)}, 400, ""},
		{"PUT", "/v1/teams/platform", fields{"deleted": true}, 400, ""},
		{"PUT", "/v1/teams/a,b", nil, 400, ""},
		{"DELETE", "/v1/teams/platform", fields{"force": true}, 400, ""},
		{"DELETE", "/v1/teams/platform", nil, 200, "The platform true"},
		{"DELETE", "/v1/teams/platform", nil, 200, "The platform true"},
		{"GET", "/v1/teams/platform", nil, 200, "The platform true"},
		{"PUT", "/v1/teams/platform", nil, 200, "The platform false"},
		{"GET", "/v1/teams/platform?org_id=org_b", nil, 404, ""},
	} {
		a := p.must(tt.want, tt.method, tt.path, tt.body)
		got := ""
		if a.status < 300 {
			got = a.text("name") + map[any]string{true: " true", false: " false"}[a.body["deleted"]]
		}
		if got != tt.state {
			t.Errorf("%s %s %v: %s", tt.method, tt.path, tt.body, a.raw)
		}
	}
	var log []string
	entries, _ := p.must(200, "GET", "/v1/audit?subject=platform", nil).body["data"].([]any)
	for _, v := range entries {
		log = append(log, v.(map[string]any)["event"].(string))
	}
	if got := strings.Join(log, " "); got != "team.restored team.deleted team.changed team.created" {
		t.Errorf("the audit log has %s", got)
	}
}

func TestTeamsAreListedInPages(t *testing.T) {
	p := newPlane(t)
	for _, id := range []string{"c", "a", "b"} {
		p.must(201, "PUT", "/v1/teams/"+id, nil)
	}
	p.must(200, "DELETE", "/v1/teams/b", nil)
	p.must(201, "PUT", "/v1/teams/z?org_id=org_b", nil)
	ids, cursor := "", ""
	for range 3 {
		a := p.must(200, "GET", "/v1/teams?limit=2"+cursor, nil)
		list, _ := a.body["data"].([]any)
		for _, v := range list {
			ids += v.(map[string]any)["id"].(string)
		}
		next, more := a.body["next_cursor"].(string)
		if !more {
			break
		}
		cursor = "&cursor=" + next
	}
	if ids != "abc" {
		t.Errorf("listed %s", ids)
	}
}

// A team needs no record for its tokens to be denied with it.
func TestATeamWithoutARecordIsDeletedForItsTokens(t *testing.T) {
	p := newPlane(t)
	id, secret := p.mint("general", fields{"team_id": "platform"})
	own := p.server.Embedded("gw_local")
	d := token.Sum([]byte(secret))
	if r, err := own.Resolve(context.Background(), d); err != nil || r.Team != nil {
		t.Fatalf("%+v, %v", r.Team, err)
	}
	p.must(200, "DELETE", "/v1/teams/platform", nil)
	r, err := own.Resolve(context.Background(), d)
	if err != nil || r.Profile.ID != id || r.Team == nil || !r.Team.Deleted || r.Team.ID != "platform" {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Head < r.Team.Revision {
		t.Errorf("team at revision %d, head %d", r.Team.Revision, r.Head)
	}
}

// One deletion is one event, however many tokens it denies.
func TestADeletedTeamIsOneEventOnEveryWatch(t *testing.T) {
	p := newPlane(t)
	for range 3 {
		p.mint("general", fields{"team_id": "platform"})
	}
	_, secret := p.mint("gateway_runtime", fields{"gateway_id": "gw_local"})
	since, err := p.store.Head(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p.must(200, "DELETE", "/v1/teams/platform", nil)
	p.must(201, "PUT", "/v1/teams/other?org_id=org_b", nil)
	p.must(200, "PUT", "/v1/teams/platform", nil)
	p.must(200, "DELETE", "/v1/teams/platform", nil)
	head, err := p.store.Head(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(ClientOptions{URL: p.url, Token: func() (token.Secret, error) { return token.NewSecret(secret), nil }})
	if err != nil {
		t.Fatal(err)
	}
	for name, watch := range map[string]func(context.Context, int64, func(Event)) error{"client": c.Watch, "embedded": p.server.Embedded("gw_local").Watch} {
		ctx, cancel := context.WithCancel(context.Background())
		var met []abac.Team
		_ = watch(ctx, since, func(e Event) {
			if e.Team != nil {
				met = append(met, *e.Team)
			}
			if e.Kind == KindHead {
				cancel()
			}
		})
		cancel()
		if len(met) != 1 || met[0] != (abac.Team{ID: "platform", Deleted: true, Revision: head}) {
			t.Errorf("%s: %+v, head %d", name, met, head)
		}
	}
}
