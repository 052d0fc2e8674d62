package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/controlplane/store"
)

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
