package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

const (
	watchRetry    = 2 * time.Second        // the longest pause between two watches
	snapshotRetry = 30 * time.Second       // the longest pause between two snapshots that no watch could follow
	tellWithin    = 3 * time.Second        // for a report of what was applied
	vouchWithin   = 100 * time.Millisecond // events closer together than this vouch once
)

// loader loads profiles, and passes on what comes with them, budgets and a team,
// before the profile can be used.
type loader struct {
	from    authority
	budgets *budgets
	teams   *teams
	learned func() // something was
}

// Load asks for a token's profile.
func (l loader) Load(ctx context.Context, d token.Digest) (*abac.Profile, error) {
	r, err := l.from.Resolve(ctx, d)
	if err != nil {
		return nil, err
	}
	l.budgets.upsert(r.Budgets...)
	if r.Team != nil {
		l.teams.upsert(*r.Team)
	}
	l.learned()
	return r.Profile, nil
}

// follower keeps what a gateway knows in step with its control plane: it takes a
// snapshot, watches for changes from its revision on, applies them and reports how far it
// is. Its fields but the last group are set before run.
type follower struct {
	from     authority
	cache    *tokencache.Cache
	ledger   *budget.Ledger
	budgets  *budgets
	teams    *teams
	keeper   *keeper             // nil: nothing is saved
	profiles int                 // that a snapshot brings at most
	changed  func(*abac.Profile) // a token is other than it was
	self     record.Report       // what every report says of this process
	log      *zap.Logger
	metrics  *followerMetrics

	stop chan struct{}
	once sync.Once
	done chan struct{} // closed when run has returned

	applied *atomic.Int64 // all changes up to here are applied; 0: none yet
	durable atomic.Int64  // of those, what a restart does not undo
	tell    chan struct{} // of one: report now

	// Of run's goroutine.
	at     int64     // where the next watch goes on from; noSnapshot: from the one to be taken
	gone   int       // how often in a row the control plane's log did not reach back to at
	synced time.Time // when the present watch last vouched; zero: it has told no head yet
}

const noSnapshot = -1

func newFollower(f *follower, r prometheus.Registerer) *follower {
	f.stop, f.done, f.tell = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	f.at = noSnapshot
	f.metrics = newFollowerMetrics(f, r)
	return f
}

// close ends the watch and waits; nothing is reported afterwards but by Report.
func (f *follower) close() {
	f.once.Do(func() { close(f.stop) })
	<-f.done
}

// Report passes a report on, with what is applied. The one that signs off ends the
// watch first: a watch would bring the instance back.
func (f *follower) Report(ctx context.Context, r record.Report) error {
	if r.SignOff {
		f.close()
	}
	r.Revision, r.Folder = f.settled(), f.self.Folder
	return f.from.Report(ctx, r)
}

// settled makes durable what is applied, and returns up to which revision it is.
func (f *follower) settled() int64 {
	applied := f.applied.Load()
	if f.keeper == nil {
		return applied
	}
	if f.keeper.sync() != nil {
		return f.durable.Load()
	}
	for {
		was := f.durable.Load()
		if was >= applied || f.durable.CompareAndSwap(was, applied) {
			return max(was, applied)
		}
	}
}

// run watches until close.
func (f *follower) run() {
	defer close(f.done)
	ctx, cancel := context.WithCancel(context.Background())
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	telling.Go(func() { f.telling(ctx) })
	go func() {
		select {
		case <-f.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	pause := time.Duration(0)
	for {
		began := time.Now()
		f.synced = time.Time{}
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, controlplane.ErrTooOld):
			f.log.Warn("the control plane's log does not reach back to what is known here: a new snapshot is taken", zap.Int64("revision", f.at))
			f.metrics.gone.Inc()
			f.cache.Gap()
			f.at = noSnapshot
			f.gone++
		case busy(err):
		case f.synced.IsZero() || errors.Is(err, controlplane.ErrSilent):
			if f.synced.After(began) {
				began = f.synced // an answer from before the silence says nothing of it
			}
			f.cache.Lost(began)
		}
		switch {
		case f.gone > 1: // a snapshot that no watch can follow: it must not become a loop of them
			pause = min(max(2*pause, time.Second), snapshotRetry)
		case f.synced.IsZero() && !errors.Is(err, controlplane.ErrTooOld):
			pause = min(max(2*pause, 100*time.Millisecond), watchRetry)
		default:
			pause = 0
		}
		f.log.Debug("the watch of the control plane ended", zap.Error(err))
		// Jitter: gateways that lost their control plane together must not return together.
		timer := time.NewTimer(pause/2 + rand.N(max(pause/2, 100*time.Millisecond)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// busy says whether the control plane is there and has other gateways' snapshots to tell first.
func busy(err error) bool {
	var api *controlplane.APIError
	return errors.As(err, &api) && api.Code == "overloaded"
}

// follow takes a snapshot where one is due, and watches from there on.
func (f *follower) follow(ctx context.Context) error {
	if f.at == noSnapshot {
		if err := f.snapshot(ctx); err != nil {
			return err
		}
	}
	// The control plane takes what a watch goes on from as applied.
	since := min(f.at, f.settled())
	f.metrics.watches.Inc()
	defer f.cache.Cut()
	return f.from.Watch(ctx, since, f.take)
}

// snapshot takes one: budgets and teams before the profiles that lean on them.
func (f *follower) snapshot(ctx context.Context) error {
	began := time.Now()
	s := &snapshotTaker{follower: f, fill: f.cache.Fill(), first: f.applied.Load() == 0}
	if err := f.from.Snapshot(ctx, f.profiles, s.begin, s.take); err != nil {
		s.fill.Abandon()
		if ctx.Err() == nil {
			f.metrics.failed.Inc()
			f.log.Debug("a snapshot of the control plane could not be taken", zap.Error(err))
		}
		return fmt.Errorf("take a snapshot: %w", err)
	}
	s.fill.Done()
	f.teams.settle(s.deleted, s.head.Revision)
	if f.keeper != nil {
		// What is saved lacks revocations that this snapshot was the first to tell.
		if err := f.keeper.invalidate(); err != nil {
			f.log.Error("a snapshot that is out of date can't be taken away", zap.Error(err))
			return err
		}
	}
	f.at = s.head.Revision
	f.applied.Store(s.head.Revision)
	f.durable.Store(s.head.Revision) // nothing is saved that could undo it
	if f.keeper != nil {
		f.keeper.saveSoon()
	}
	took := time.Since(began)
	f.metrics.took(began, took)
	f.log.Info("a snapshot of the control plane was taken", zap.Int64("revision", s.head.Revision), zap.Int("tokens", s.head.Tokens),
		zap.Int("profiles", s.profiles), zap.Duration("took", took))
	return nil
}

// snapshotTaker passes a snapshot on as it comes.
type snapshotTaker struct {
	*follower
	fill     *tokencache.Fill
	first    bool
	head     controlplane.SnapshotHead
	deleted  []abac.Team
	profiles int
}

func (s *snapshotTaker) begin(h controlplane.SnapshotHead) error {
	s.head = h
	s.fill.Head(h.OrgID, h.Tokens)
	return nil
}

func (s *snapshotTaker) take(n *controlplane.SnapshotItem) error {
	switch {
	case n.Token != nil:
		k := n.Token
		return s.fill.Token(k.Digest, tokencache.Known{ID: k.ID, Revision: k.Revision, Status: k.Status, Purpose: k.Purpose, Gateway: k.Gateway})
	case n.Budget != nil:
		s.budgets.upsert(*n.Budget)
	case n.Team != nil:
		s.teams.upsert(*n.Team)
		s.deleted = append(s.deleted, *n.Team)
	case n.Profile != nil:
		s.profiles++
		s.fill.Profile(n.Profile.Digest, n.Profile.Profile)
		if !s.first && n.Profile.Profile.ExpiresAt != nil {
			s.changed(n.Profile.Profile) // no watch has told it
		}
	}
	return nil
}

// take applies one event.
func (f *follower) take(e controlplane.Event) {
	f.metrics.events.WithLabelValues(e.Kind).Inc()
	now := time.Now()
	switch e.Kind {
	case controlplane.KindRecall:
		f.ledger.Recall(*e.Recall)
		return
	case controlplane.KindUpsert:
		switch {
		case e.Budget != nil:
			f.budgets.upsert(*e.Budget)
		case e.Team != nil:
			f.teams.upsert(*e.Team)
		default:
			f.cache.Upsert(e.Digest, e.Profile)
			f.changed(e.Profile)
		}
	case controlplane.KindRevoke:
		f.cache.Stop(e.Digest, e.TokenID, e.Revision)
		if !e.At.IsZero() {
			f.metrics.lag.Observe(max(0, now.Sub(e.At).Seconds()))
		}
	}
	if f.keeper != nil && e.Kind != controlplane.KindHead {
		f.keeper.changed()
	}
	f.at = e.Revision
	f.applied.Store(e.Revision)
	head := e.Kind == controlplane.KindHead
	first := head && f.synced.IsZero()
	if head || !f.synced.IsZero() && now.Sub(f.synced) >= vouchWithin {
		f.synced, f.gone = now, 0
		f.cache.Synced(now)
	}
	if first || e.Kind == controlplane.KindRevoke || e.Team != nil && e.Team.Deleted {
		select {
		case f.tell <- struct{}{}:
		default:
		}
	}
}

// telling reports at once what the control plane waits for.
func (f *follower) telling(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.tell:
		}
		try, cancel := context.WithTimeout(ctx, tellWithin)
		err := f.Report(try, f.self)
		cancel()
		if err != nil && ctx.Err() == nil {
			f.log.Debug("report what is applied", zap.Error(err)) // the next report tells it
		}
	}
}
