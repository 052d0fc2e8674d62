package controlplane

import (
	"context"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

// Embedded is the control plane for the gateway in the same process: what a Client
// does, without HTTP. It is safe for concurrent use.
type Embedded struct {
	s   *Server
	who runtimeID

	mu       sync.Mutex
	instance store.Instance // as the last report named it
}

// Embedded returns the control plane as the named gateway of OrgDefault sees it.
func (s *Server) Embedded(gatewayID string) *Embedded {
	who := runtimeID{OrgDefault, gatewayID}
	return &Embedded{s: s, who: who, instance: store.Instance{
		OrgID: who.org, GatewayID: who.gateway, MaxStale: defaultMaxStale,
	}}
}

// Introduce names this process as its reports will: without it, calls before the
// first report count for an instance of their own.
func (e *Embedded) Introduce(instance, build string, maxStale time.Duration) {
	i := store.Instance{OrgID: e.who.org, GatewayID: e.who.gateway, ID: instance, Build: build, MaxStale: maxStale}
	if checkInstance(&i) != nil {
		return // a report will say so
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.instance = i
}

// Resolve returns the profile with this digest as this gateway may see it, or
// token.ErrUnknown. Any other error says that the database could not be asked.
func (e *Embedded) Resolve(ctx context.Context, d token.Digest) (Resolved, error) {
	e.mu.Lock()
	i := e.instance
	e.mu.Unlock()
	e.s.hear(ctx, i)
	return e.s.resolve(ctx, e.who, d)
}

// Report takes what the gateway tells of itself.
func (e *Embedded) Report(ctx context.Context, r record.Report) error {
	if err := e.s.report(ctx, e.who, r); err != nil {
		return err
	}
	e.mu.Lock()
	before := e.instance
	e.mu.Unlock()
	if !r.SignOff {
		e.Introduce(r.Instance, r.Build, r.MaxStale)
	}
	if before.ID == r.Instance {
		return nil
	}
	// The same process under the name it had: it can't be forgotten by itself.
	err := e.s.store.Update(ctx, e.s.now(), func(tx *store.Tx) error {
		return tx.Forget(ctx, before.OrgID, before.GatewayID, before.ID)
	})
	e.s.heard.forget(before)
	return err
}
