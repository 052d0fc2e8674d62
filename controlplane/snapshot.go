package controlplane

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// DefaultProfiles is how many profiles a snapshot has at most, unless asked otherwise.
const DefaultProfiles = 200_000

const (
	mostProfiles    = 10_000_000
	snapshotsAtOnce = 4                // that are written; each holds a connection of the database
	snapshotTurn    = 10 * time.Second // that one waits for its turn
	snapshotWithin  = 5 * time.Minute  // that one takes at most
	snapshotRetry   = 5 * time.Second  // until one that had no turn may ask again
)

// SnapshotHead is what a snapshot begins with.
type SnapshotHead struct {
	Revision int64 // of the one moment that all of it is of
	OrgID    string
	Tokens   int // entries of the index
}

// SnapshotItem is one item of a snapshot: exactly one of the pointers is set. Items
// come in the order of the fields, but profiles last.
type SnapshotItem struct {
	Token   *Known    // an entry of the index: all tokens of the org, whatever their status
	Profile *Profiled // may serve, the most recently used first; those bound to other gateways behind
	Budget  *budget.Record
	Team    *abac.Team // a deleted one
}

// Known is an entry of the index: what a gateway knows of a token without its profile.
type Known struct {
	Digest   token.Digest
	ID       string
	Revision int64
	Status   abac.Status // abac.Active where Gateway is set: theirs is not told
	Purpose  abac.Purpose
	Gateway  string // "" unless it is bound to another gateway than the asker
}

// Profiled is a profile as the asker may see it.
type Profiled struct {
	Digest  token.Digest  `json:"sha256"`
	Profile *abac.Profile `json:"profile"`
}

// Snapshot is Client.Snapshot in process. It waits for no turn.
func (e *Embedded) Snapshot(ctx context.Context, profiles int, begin func(SnapshotHead) error, each func(*SnapshotItem) error) error {
	e.mu.Lock()
	i := e.instance
	e.mu.Unlock()
	e.s.hear(ctx, i)
	return e.s.snapshot(ctx, e.who, profiles, snapshotTold{begin, each})
}

// snapshotTold takes a snapshot. What it is told is the teller's once it returns.
type snapshotTold struct {
	begin func(SnapshotHead) error
	each  func(*SnapshotItem) error
}

// snapshot tells all that a gateway may know, as of one moment.
func (s *Server) snapshot(ctx context.Context, who runtimeID, profiles int, told snapshotTold) error {
	of := store.SnapshotOf{OrgID: who.org, GatewayID: who.gateway, Profiles: profiles, Now: s.now()}
	return s.store.Snapshot(ctx, of, &store.SnapshotTold{
		Begin: func(head int64, tokens int) error { return told.begin(SnapshotHead{head, who.org, tokens}) },
		Token: func(k *store.Known) error { return told.each(&SnapshotItem{Token: indexed(k, who.gateway)}) },
		Budget: func(b *budget.Record) error {
			return told.each(&SnapshotItem{Budget: b})
		},
		Team: func(t *store.Team) error {
			team := t.Told()
			return told.each(&SnapshotItem{Team: &team})
		},
		Profile: func(t *store.Token) error {
			p := visible(&t.Profile, who.gateway)
			return told.each(&SnapshotItem{Profile: &Profiled{t.Digest, &p}})
		},
	})
}

// indexed is an entry as a gateway may see it.
func indexed(k *store.Known, gateway string) *Known {
	n := &Known{Digest: k.Digest, ID: k.ID, Revision: k.Revision, Status: k.Status, Purpose: k.Purpose}
	if k.GatewayID != "" && k.GatewayID != gateway {
		n.Gateway, n.Status = k.GatewayID, abac.Active // as reduced tells it
	}
	return n
}

// tellSnapshot is GET /v1/runtime/snapshot.
func (s *Server) tellSnapshot(c *call) (int, any, error) {
	profiles, err := profilesAsked(c)
	if err != nil {
		return 0, nil, err
	}
	i, err := s.instanceFrom(c)
	if err != nil {
		return 0, nil, err
	}
	c.w.Header().Add("Vary", "Accept-Encoding")
	if c.r.Method == http.MethodHead {
		c.w.Header().Set("Content-Type", "application/json")
		return statusWritten, nil, nil
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), snapshotWithin)
	defer cancel()
	if err := s.takeTurn(ctx); err != nil {
		s.metrics.snapshots.WithLabelValues("refused").Inc()
		return 0, nil, err
	}
	defer func() { <-s.snapshots }()
	s.hear(ctx, i)
	out := newSnapshotWriter(c, s.patience)
	err = s.snapshot(ctx, runtimeID{c.who.org(), c.who.gateway()}, profiles, snapshotTold{out.begin, out.item})
	if err == nil {
		err = out.end()
	}
	if err == nil {
		s.metrics.snapshots.WithLabelValues("whole").Inc()
		return statusWritten, nil, nil
	}
	s.metrics.snapshots.WithLabelValues("failed").Inc()
	if c.streams {
		s.log.Warn("a snapshot broke off", zap.String("request_id", c.id), zap.String("gateway_id", i.GatewayID), zap.Error(err))
		panic(http.ErrAbortHandler) // no end that looks like one
	}
	return statusWritten, nil, err
}

// takeTurn waits until a snapshot may be written. Whoever gets a turn gives it back.
func (s *Server) takeTurn(ctx context.Context) error {
	late := time.NewTimer(s.turn)
	defer late.Stop()
	select {
	case s.snapshots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return refuse("overloaded", "Other gateways are being told their snapshots; try again.").after(snapshotRetry)
	}
}

func profilesAsked(c *call) (int, error) {
	q, err := query(c, "profiles")
	if err != nil {
		return 0, err
	}
	text := q.get("profiles")
	if text == "" {
		return DefaultProfiles, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > mostProfiles {
		return 0, refuse("invalid_value", "profiles must be a whole number from 0 to %d.", mostProfiles).at("profiles")
	}
	return n, nil
}
