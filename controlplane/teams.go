package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane/store"
)

const maxRecordName = 200 // characters, of a team or gateway

// teamAnswer is a team that has a record, as answered.
type teamAnswer struct {
	ID        string     `json:"id"`
	OrgID     string     `json:"org_id"`
	Name      string     `json:"name"`
	Deleted   bool       `json:"deleted"` // its tokens are denied
	DeletedAt *time.Time `json:"deleted_at"`
	Revision  int64      `json:"revision"`
	CreatedAt time.Time  `json:"created_at"`
}

func teamOf(t *store.Team) teamAnswer {
	return teamAnswer{
		ID: t.ID, OrgID: t.OrgID, Name: t.Name, Deleted: t.DeletedAt != nil, DeletedAt: t.DeletedAt,
		Revision: t.Revision, CreatedAt: t.CreatedAt,
	}
}

func encodeTeam(t *store.Team) json.RawMessage {
	if t == nil {
		return nil
	}
	b, err := json.Marshal(teamOf(t))
	if err != nil {
		panic("BUG: a team does not encode: " + err.Error())
	}
	return b
}

func (s *Server) listTeams(c *call) (int, any, error) {
	q, err := query(c, "org_id", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	after := q.get("cursor")
	if after != "" && !abac.ValidID(after) {
		return 0, nil, errCursor
	}
	list, err := s.store.Teams(c.r.Context(), orgOr(q.get("org_id")), after, q.limit+1)
	if err != nil {
		return 0, nil, err
	}
	list, next := cut(list, q.limit, func(t store.Team) string { return t.ID })
	data := make([]teamAnswer, len(list))
	for i := range list {
		data[i] = teamOf(&list[i])
	}
	return http.StatusOK, page{data, next}, nil
}

func (s *Server) showTeam(c *call) (int, any, error) {
	q, err := query(c, "org_id")
	if err != nil {
		return 0, nil, err
	}
	t, err := s.store.Team(c.r.Context(), orgOr(q.get("org_id")), c.token)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil, errNoTeam(c.token)
	}
	return http.StatusOK, teamOf(&t), err
}

func errNoTeam(id string) *problem {
	if !abac.ValidID(id) {
		id = "with this id"
	}
	return refuse("team_not_found", "There is no record of a team %s. Bindings may name teams without one; PUT makes one.", id)
}

// putTeam makes a team's record, renames it, or takes its deletion back.
func (s *Server) putTeam(c *call) (int, any, error) {
	if err := known(c.body, "", "id", "org_id", "name"); err != nil {
		return 0, nil, err
	}
	if err := s.recordID(c, "A team's"); err != nil {
		return 0, nil, err
	}
	name, err := recordName(c)
	if err != nil {
		return 0, nil, err
	}
	org, err := budgetOrg(c)
	if err != nil {
		return 0, nil, err
	}
	ctx, now, status := c.r.Context(), s.now(), http.StatusOK
	var next store.Team
	err = s.store.Update(ctx, now, func(tx *store.Tx) error {
		before, err := tx.Team(ctx, org, c.token)
		if errors.Is(err, store.ErrNotFound) {
			status = http.StatusCreated
			next = store.Team{OrgID: org, ID: c.token, Name: name, CreatedAt: now}
			return s.storeTeam(ctx, tx, teamChange{c.who.name(), eventTeamCreated, nil, &next})
		}
		if err != nil {
			return err
		}
		status, next = http.StatusOK, before
		if c.body["name"] != nil {
			next.Name = name
		}
		event := eventTeamChanged
		switch {
		case before.DeletedAt != nil:
			next.DeletedAt, event = nil, eventTeamRestored
		case next.Name == before.Name:
			return nil
		}
		return s.storeTeam(ctx, tx, teamChange{c.who.name(), event, &before, &next})
	})
	return status, teamOf(&next), err
}

// recordName reads the name of a body; "" where there is none.
func recordName(c *call) (string, error) {
	name, err := text(c.body, "name")
	if err == nil && utf8.RuneCountInString(name) > maxRecordName {
		return "", refuse("invalid_value", "name must have at most %d characters.", maxRecordName).at("name")
	}
	return name, err
}

// deletedTeam is the answer to DELETE: who has applied it, as of a revocation.
type deletedTeam struct {
	teamAnswer
	Confirmed   int      `json:"confirmed"`
	Unconfirmed []string `json:"unconfirmed"`
}

// deleteTeam denies every token that is bound to the team, now and later. One that
// tokens name without a record gets one that says so.
func (s *Server) deleteTeam(c *call) (int, any, error) {
	if err := known(c.body, ""); err != nil {
		return 0, nil, err
	}
	if err := s.recordID(c, "A team's"); err != nil {
		return 0, nil, err
	}
	org, err := budgetOrg(c)
	if err != nil {
		return 0, nil, err
	}
	ctx, now := c.r.Context(), s.now()
	var next store.Team
	err = s.store.Update(ctx, now, func(tx *store.Tx) error {
		found, err := tx.Team(ctx, org, c.token)
		before := &found
		if errors.Is(err, store.ErrNotFound) {
			has, err := tx.TeamHasTokens(ctx, org, c.token)
			if err != nil {
				return err
			}
			if !has {
				return errNoTeam(c.token)
			}
			before, found = nil, store.Team{OrgID: org, ID: c.token, CreatedAt: now}
		} else if err != nil {
			return err
		}
		if next = found; next.DeletedAt != nil {
			return nil
		}
		next.DeletedAt = &now
		return s.storeTeam(ctx, tx, teamChange{c.who.name(), eventTeamDeleted, before, &next})
	})
	if err != nil {
		return 0, nil, err
	}
	t, err := s.confirm(ctx, org, next.Revision)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, deletedTeam{teamOf(&next), t.confirmed, t.unconfirmed}, nil
}

// recordID refuses an id of the path that no record can have. whose is like "A team's".
func (s *Server) recordID(c *call, whose string) error {
	switch {
	case s.holdsToken(c.token):
		return refuse("invalid_value", "The path holds a token's string, which is stored nowhere. Rotate it: URLs are kept in logs.").at("id")
	case !abac.ValidID(c.token):
		return refuse("invalid_value", "%s id %s.", whose, wantID).at("id")
	}
	if id, err := text(c.body, "id"); err != nil {
		return err
	} else if c.body["id"] != nil && id != c.token {
		return refuse("immutable_field", "id is that of the path; it can be left out.").at("id")
	}
	return nil
}

// teamChange is one change of a team; next takes what storing does to it.
type teamChange struct {
	actor, event string
	before, next *store.Team
}

func (s *Server) storeTeam(ctx context.Context, tx *store.Tx, ch teamChange) error {
	if err := tx.PutTeam(ctx, ch.next); err != nil {
		return err
	}
	return tx.Audit(ctx, store.Entry{
		Actor: ch.actor, Event: ch.event, Subject: ch.next.ID, Before: encodeTeam(ch.before), After: encodeTeam(ch.next),
	})
}
