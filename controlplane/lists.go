package controlplane

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/controlplane/store"
)

// gatewayInstance is one process of a gateway that was heard lately.
type gatewayInstance struct {
	GatewayID string    `json:"gateway_id"`
	OrgID     string    `json:"org_id"`
	Instance  *string   `json:"instance"` // null: it did not name itself
	Build     string    `json:"build"`
	LastSeen  time.Time `json:"last_seen"`
	MaxStale  string    `json:"max_stale"`
	Revision  *int64    `json:"revision"` // applied; null: not known
	Watching  bool      `json:"watching"` // it has a live watch
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
	now := s.now()
	list, err := s.store.Instances(c.r.Context(), q.get("org_id"), now)
	if err != nil {
		return 0, nil, err
	}
	list = slices.DeleteFunc(list, func(i store.Instance) bool { return place(i) <= string(after) })
	list, next := cut(list, q.limit, func(i store.Instance) string {
		return base64.RawURLEncoding.EncodeToString([]byte(place(i)))
	})
	data := make([]gatewayInstance, len(list))
	for n, i := range list {
		data[n] = gatewayInstance{GatewayID: i.GatewayID, OrgID: i.OrgID, Build: i.Build, LastSeen: i.LastSeen, MaxStale: i.MaxStale.String(), Watching: i.Watching(now)}
		if i.ID != "" {
			data[n].Instance = &i.ID
		}
		if i.Revision > 0 {
			data[n].Revision = &i.Revision
		}
	}
	return http.StatusOK, page{data, next}, nil
}

// place is where an instance stands in the list; ids hold no control characters.
func place(i store.Instance) string { return i.GatewayID + "\x00" + i.OrgID + "\x00" + i.ID }

// auditEntry is one row of the audit log, as answered.
type auditEntry struct {
	ID      string          `json:"id"`
	At      time.Time       `json:"at"`
	Actor   string          `json:"actor"`
	Event   string          `json:"event"`
	Subject string          `json:"subject"`
	Before  json.RawMessage `json:"before"`
	After   json.RawMessage `json:"after"`
	Command string          `json:"command,omitempty"` // that answers the event; of credential.misplaced alone
}

const auditPrefix = "aud_"

func (s *Server) listAudit(c *call) (int, any, error) {
	q, err := query(c, "event", "subject", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	f := store.AuditFilter{Event: q.get("event"), Subject: q.get("subject"), Limit: q.limit + 1}
	if f.Event != "" && !slices.Contains(events, f.Event) {
		return 0, nil, refuse("invalid_value", "event is one of %s.", strings.Join(events, ", ")).at("event")
	}
	if v := q.get("cursor"); v != "" {
		n, err := strconv.ParseInt(strings.TrimPrefix(v, auditPrefix), 10, 64)
		if err != nil || n < 1 {
			return 0, nil, errCursor
		}
		f.Before = n
	}
	list, err := s.store.AuditLog(c.r.Context(), f)
	if err != nil {
		return 0, nil, err
	}
	list, next := cut(list, q.limit, func(e store.Entry) string { return auditID(e.Seq) })
	data := make([]auditEntry, len(list))
	for i, e := range list {
		data[i] = auditEntry{ID: auditID(e.Seq), At: e.At, Actor: e.Actor, Event: e.Event, Subject: e.Subject, Before: e.Before, After: e.After}
		if e.Event == eventMisplaced {
			data[i].Command = quarantineCommand(e.Subject)
		}
	}
	return http.StatusOK, page{data, next}, nil
}

func auditID(seq int64) string { return fmt.Sprintf("%s%012d", auditPrefix, seq) }
