package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane"
)

// teams is what a gateway knows of its org's teams. The zero value is ready; it is
// safe for concurrent use.
type teams struct {
	mu      sync.Mutex
	known   map[string]abac.Team // by id; none of one without a record
	deleted atomic.Pointer[abac.TeamSet]
	told    func(abac.Team) // of each that is deleted; nil: nobody is
}

// upsert takes what teams are now; what is older than what is known changes nothing.
// When it returns, requests that begin see it.
func (t *teams) upsert(list ...abac.Team) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = map[string]abac.Team{}
	}
	changed := false
	for _, n := range list {
		was, known := t.known[n.ID]
		if known && was.Revision >= n.Revision {
			continue
		}
		t.known[n.ID] = n
		if n.Deleted && t.told != nil {
			t.told(n)
		}
		changed = changed || n.Deleted != was.Deleted
	}
	if !changed {
		return
	}
	var ids []string
	for id, n := range t.known {
		if n.Deleted {
			ids = append(ids, id)
		}
	}
	t.deleted.Store(abac.NewTeamSet(ids...))
}

// gone returns those that are deleted.
func (t *teams) gone() (list []abac.Team) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.known {
		if n.Deleted {
			list = append(list, n)
		}
	}
	return list
}

// settle takes all that are deleted as of a revision: of the others that are known none is.
func (t *teams) settle(deleted []abac.Team, revision int64) {
	t.mu.Lock()
	list := make([]abac.Team, 0, len(deleted))
	for id, n := range t.known {
		if n.Deleted && n.Revision <= revision {
			list = append(list, abac.Team{ID: id, Revision: revision}) // unless it is told below
		}
	}
	t.mu.Unlock()
	told := make(map[string]bool, len(deleted))
	for _, n := range deleted {
		told[n.ID] = true
	}
	list = slices.DeleteFunc(list, func(n abac.Team) bool { return told[n.ID] })
	t.upsert(append(list, deleted...)...)
}

// Deleted returns those that are deleted: always the same set until they change.
func (t *teams) Deleted() *abac.TeamSet { return t.deleted.Load() }

// deletedTeam asks whether the team that a token is bound to is deleted.
func deletedTeam(ctx context.Context, p program, a *adminFlags, profile *abac.Profile) (*abac.TeamSet, error) {
	if profile.Bindings.TeamID == nil {
		return nil, nil
	}
	c, err := a.client(p)
	if err != nil {
		return nil, err
	}
	var team abac.Team
	path := "/v1/teams/" + url.PathEscape(*profile.Bindings.TeamID) + "?" + url.Values{"org_id": {profile.OrgID}}.Encode()
	err = c.Call(ctx, http.MethodGet, path, nil, &team)
	var api *controlplane.APIError
	switch {
	case errors.As(err, &api) && api.Status == http.StatusNotFound: // it needs no record
		return nil, nil
	case err != nil:
		return nil, a.explain(err)
	case !team.Deleted:
		return nil, nil
	}
	return abac.NewTeamSet(team.ID), nil
}
