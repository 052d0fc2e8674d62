package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// misplacement is the last time that a gateway's own token was met in a client.
type misplacement struct {
	At        time.Time `json:"at"`
	GatewayID string    `json:"gateway_id"`        // where it was met
	Client    *string   `json:"client"`            // the address that sent it; null: not known
	Command   string    `json:"command,omitempty"` // that quarantines it; absent: it is stopped already
}

func quarantineCommand(id string) string { return "kt-gateway token quarantine " + id }

// misplacedLast is nil for a token that was never met where it should not be.
func (s *Server) misplacedLast(ctx context.Context, p *abac.Profile) (*misplacement, error) {
	if p.Purpose != abac.GatewayRuntime {
		return nil, nil
	}
	list, err := s.store.AuditLog(ctx, store.AuditFilter{Event: eventMisplaced, Subject: p.ID, Limit: 1})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var m misplacement
	if err := json.Unmarshal(list[0].After, &m); err != nil {
		return nil, fmt.Errorf("read audit entry %d: %w", list[0].Seq, err)
	}
	m.At, m.Command = list[0].At, ""
	if p.Status == abac.Active {
		m.Command = quarantineCommand(p.ID)
	}
	return &m, nil
}
