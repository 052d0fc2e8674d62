package controlplane

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// gatewayRow is one process of a gateway that was heard lately; or, where there is
// none, the gateway's record alone.
type gatewayRow struct {
	GatewayID string     `json:"gateway_id"`
	OrgID     string     `json:"org_id"`
	Name      *string    `json:"name"`     // of the record; null: it has none
	Live      bool       `json:"live"`     // it is a process
	Instance  *string    `json:"instance"` // null: it did not name itself, or is none
	Build     string     `json:"build"`
	LastSeen  *time.Time `json:"last_seen"` // null: it is none
	MaxStale  *string    `json:"max_stale"` // the same
	Revision  *int64     `json:"revision"`  // applied; null: not known
	Watching  bool       `json:"watching"`  // it has a live watch
}

// gatewayRows joins the records and the live instances of an org, or of all where
// org is "", in the order of their places.
func (s *Server) gatewayRows(ctx context.Context, org string) ([]gatewayRow, error) {
	now := s.now()
	records, err := s.store.Gateways(ctx, org)
	if err != nil {
		return nil, err
	}
	live, err := s.store.Instances(ctx, org, now)
	if err != nil {
		return nil, err
	}
	names := make(map[[2]string]*string, len(records))
	for i := range records {
		names[[2]string{records[i].OrgID, records[i].ID}] = &records[i].Name
	}
	rows := make([]gatewayRow, 0, len(records)+len(live))
	met := map[[2]string]bool{}
	for _, i := range live {
		key, stale := [2]string{i.OrgID, i.GatewayID}, i.MaxStale.String()
		met[key] = true
		row := gatewayRow{GatewayID: i.GatewayID, OrgID: i.OrgID, Name: names[key], Live: true, Build: i.Build,
			LastSeen: &i.LastSeen, MaxStale: &stale, Watching: i.Watching(now)}
		if i.ID != "" {
			row.Instance = &i.ID
		}
		if i.Revision > 0 {
			row.Revision = &i.Revision
		}
		rows = append(rows, row)
	}
	for i := range records {
		if g := &records[i]; !met[[2]string{g.OrgID, g.ID}] {
			rows = append(rows, gatewayRow{GatewayID: g.ID, OrgID: g.OrgID, Name: &g.Name})
		}
	}
	slices.SortFunc(rows, func(a, b gatewayRow) int { return strings.Compare(a.place(), b.place()) })
	return rows, nil
}

// place is where an instance stands in the list; ids hold no control characters.
func place(i store.Instance) string { return i.GatewayID + "\x00" + i.OrgID + "\x00" + i.ID }

func (r *gatewayRow) place() string {
	i := store.Instance{GatewayID: r.GatewayID, OrgID: r.OrgID}
	if r.Instance != nil {
		i.ID = *r.Instance
	}
	return place(i)
}

func (s *Server) listGateways(c *call) (int, any, error) {
	q, err := query(c, "org_id", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	after, err := base64.RawURLEncoding.DecodeString(q.get("cursor"))
	if err != nil {
		return 0, nil, errCursor
	}
	list, err := s.gatewayRows(c.r.Context(), q.get("org_id"))
	if err != nil {
		return 0, nil, err
	}
	list = slices.DeleteFunc(list, func(r gatewayRow) bool { return r.place() <= string(after) })
	list, next := cut(list, q.limit, func(r gatewayRow) string {
		return base64.RawURLEncoding.EncodeToString([]byte(r.place()))
	})
	return http.StatusOK, page{list, next}, nil
}

// gatewayAnswer is a gateway's record, as answered.
type gatewayAnswer struct {
	ID        string    `json:"id"`
	OrgID     string    `json:"org_id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

func gatewayOf(g *store.Gateway) gatewayAnswer {
	return gatewayAnswer{ID: g.ID, OrgID: g.OrgID, Name: g.Name, CreatedAt: g.CreatedAt}
}

func encodeGateway(g *store.Gateway) json.RawMessage {
	if g == nil {
		return nil
	}
	b, err := json.Marshal(gatewayOf(g))
	if err != nil {
		panic("BUG: a gateway does not encode: " + err.Error())
	}
	return b
}

type shownGateway struct {
	ID        string       `json:"id"`
	OrgID     string       `json:"org_id"`
	Name      *string      `json:"name"` // null: it has no record
	Instances []gatewayRow `json:"instances"`
}

// showGateway answers what the list has of one gateway.
func (s *Server) showGateway(c *call) (int, any, error) {
	q, err := query(c, "org_id")
	if err != nil {
		return 0, nil, err
	}
	rows, err := s.gatewayRows(c.r.Context(), orgOr(q.get("org_id")))
	if err != nil {
		return 0, nil, err
	}
	rows = slices.DeleteFunc(rows, func(r gatewayRow) bool { return r.GatewayID != c.token })
	if len(rows) == 0 {
		return 0, nil, errNoGateway(c.token)
	}
	answer := shownGateway{ID: c.token, OrgID: rows[0].OrgID, Name: rows[0].Name}
	answer.Instances = slices.DeleteFunc(rows, func(r gatewayRow) bool { return !r.Live })
	return http.StatusOK, answer, nil
}

func errNoGateway(id string) *problem {
	if !abac.ValidID(id) {
		id = "with this id"
	}
	return refuse("gateway_not_found", "There is no record of a gateway %s. Bindings may name gateways without one; PUT makes one.", id)
}

// putGateway makes a gateway's record, or renames it.
func (s *Server) putGateway(c *call) (int, any, error) {
	if err := known(c.body, "", "id", "org_id", "name"); err != nil {
		return 0, nil, err
	}
	if err := s.recordID(c, "A gateway's"); err != nil {
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
	var next store.Gateway
	err = s.store.Update(ctx, now, func(tx *store.Tx) error {
		found, err := tx.Gateway(ctx, org, c.token)
		before, event := &found, eventGatewayUpdated
		status, next = http.StatusOK, found
		switch {
		case errors.Is(err, store.ErrNotFound):
			before, event, status = nil, eventGatewayCreated, http.StatusCreated
			next = store.Gateway{OrgID: org, ID: c.token, Name: name, CreatedAt: now}
		case err != nil:
			return err
		case c.body["name"] == nil || name == found.Name:
			return nil
		}
		next.Name = name
		if err := tx.PutGateway(ctx, &next); err != nil {
			return err
		}
		return auditGateway(ctx, tx, gatewayChange{c.who.name(), event, before, &next})
	})
	return status, gatewayOf(&next), err
}

// maxForgotten is how many tokens the answer to a DELETE names at most.
const maxForgotten = 100

// forgottenGateway is the answer to DELETE: what still lets its processes in.
type forgottenGateway struct {
	gatewayAnswer
	Tokens  []string `json:"runtime_tokens"` // not revoked, not expired; at most 100
	Command string   `json:"command,omitempty"`
}

// deleteGateway forgets a gateway's record. Its processes go on, by tokens that name
// it: the answer says which.
func (s *Server) deleteGateway(c *call) (int, any, error) {
	if err := known(c.body, ""); err != nil {
		return 0, nil, err
	}
	if err := s.recordID(c, "A gateway's"); err != nil {
		return 0, nil, err
	}
	org, err := budgetOrg(c)
	if err != nil {
		return 0, nil, err
	}
	ctx := c.r.Context()
	var answer forgottenGateway
	err = s.store.Update(ctx, s.now(), func(tx *store.Tx) error {
		before, err := tx.Gateway(ctx, org, c.token)
		if errors.Is(err, store.ErrNotFound) {
			return errNoGateway(c.token)
		}
		if err != nil {
			return err
		}
		answer = forgottenGateway{gatewayAnswer: gatewayOf(&before)}
		if answer.Tokens, err = tx.RuntimeTokens(ctx, org, c.token, maxForgotten); err != nil {
			return err
		}
		if err := tx.DropGateway(ctx, org, c.token); err != nil {
			return err
		}
		return auditGateway(ctx, tx, gatewayChange{c.who.name(), eventGatewayDeleted, &before, nil})
	})
	if err != nil {
		return 0, nil, err
	}
	if len(answer.Tokens) > 0 {
		answer.Command = "kt-gateway token revoke " + strings.Join(answer.Tokens, " ")
	}
	return http.StatusOK, answer, nil
}

// gatewayChange is one change of a gateway's record.
type gatewayChange struct {
	actor, event  string
	before, after *store.Gateway
}

func auditGateway(ctx context.Context, tx *store.Tx, ch gatewayChange) error {
	subject := ch.after
	if subject == nil {
		subject = ch.before
	}
	return tx.Audit(ctx, store.Entry{
		Actor: ch.actor, Event: ch.event, Subject: subject.ID, Before: encodeGateway(ch.before), After: encodeGateway(ch.after),
	})
}
