package controlplane

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/controlplane/store"
)

// maxRemembered bounds what is kept in memory of callers; past it everything is
// forgotten, which costs a write each or lets one more through.
const maxRemembered = 10_000

// hearing spares the database a write for every call of a gateway: each instance is
// noted once every store.HearEvery, which forgetting allows for.
type hearing struct {
	mu   sync.Mutex
	last map[store.Instance]time.Time // LastSeen in the key is zero
}

func (h *hearing) due(i store.Instance, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.last[i]
	return !ok || now.Sub(at) >= store.HearEvery || now.Before(at)
}

func (h *hearing) note(i store.Instance, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil || len(h.last) >= maxRemembered {
		h.last = map[store.Instance]time.Time{}
	}
	h.last[i] = now
}

// forget makes the next call of this instance be noted at once.
func (h *hearing) forget(i store.Instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.last {
		if k.OrgID == i.OrgID && k.GatewayID == i.GatewayID && k.ID == i.ID {
			delete(h.last, k)
		}
	}
}

// hear notes that an instance asked. A database that takes no writes takes no
// revocation either, so that none can be answered without this instance: the
// gateway gets its answer all the same.
func (s *Server) hear(ctx context.Context, i store.Instance) {
	now := s.now()
	if !s.heard.due(i, now) {
		return
	}
	if err := s.store.Note(ctx, now, func(tx *store.Tx) error { return tx.Hear(ctx, i) }); err != nil {
		s.log.Warn("a gateway's call could not be noted", zap.String("gateway_id", i.GatewayID), zap.Error(err))
		return
	}
	s.heard.note(i, now)
}

// throttle lets something happen once in a while for each gateway.
type throttle struct {
	mu   sync.Mutex
	last map[runtimeID]time.Time
}

func (t *throttle) take(who runtimeID, now time.Time, every time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, ok := t.last[who]; ok && now.Sub(at) < every && !now.Before(at) {
		return false
	}
	if t.last == nil || len(t.last) >= maxRemembered {
		t.last = map[runtimeID]time.Time{}
	}
	t.last[who] = now
	return true
}

func (t *throttle) undo(who runtimeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.last, who)
}
