package main

import (
	"context"
	"errors"
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
	watchRetry  = 2 * time.Second        // the longest pause between two watches
	tellWithin  = 3 * time.Second        // for a report of what was applied
	vouchWithin = 100 * time.Millisecond // events closer together than this vouch once
)

// loader loads profiles, and passes on what comes with them, budgets and a team,
// before the profile can be used.
type loader struct {
	from   authority
	ledger *budget.Ledger
	teams  *teams
}

// Load asks for a token's profile.
func (l loader) Load(ctx context.Context, d token.Digest) (*abac.Profile, error) {
	r, err := l.from.Resolve(ctx, d)
	if err != nil {
		return nil, err
	}
	l.ledger.Upsert(r.Budgets...)
	if r.Team != nil {
		l.teams.upsert(*r.Team)
	}
	return r.Profile, nil
}

// follower keeps what a gateway knows in step with its control plane: it watches for
// changes, applies them and reports how far it is. Its fields but the last group are
// set before run.
type follower struct {
	from    authority
	cache   *tokencache.Cache
	ledger  *budget.Ledger
	teams   *teams
	changed func(*abac.Profile) // a token is other than it was
	self    record.Report       // what every report says of this process
	log     *zap.Logger
	events  *prometheus.CounterVec

	stop chan struct{}
	once sync.Once
	done chan struct{} // closed when run has returned

	applied atomic.Int64  // all changes up to here are applied; 0: none yet
	tell    chan struct{} // of one: report now

	// Of run's goroutine.
	at     int64     // where the next watch goes on from
	synced time.Time // when the present watch last vouched; zero: it has told no head yet
}

func newFollower(f *follower, r prometheus.Registerer) *follower {
	f.stop, f.done, f.tell = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	f.at = controlplane.FromHead
	f.events = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keeptrusts_gateway_watch_events_total",
		Help: "Events that came on the watch of the control plane, by kind.",
	}, []string{"event"})
	for _, kind := range []string{controlplane.KindUpsert, controlplane.KindRevoke, controlplane.KindRecall, controlplane.KindHead} {
		f.events.WithLabelValues(kind)
	}
	r.MustRegister(f.events, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keeptrusts_gateway_watch_in_sync",
		Help: "Whether the watch of the control plane is in sync: 1 or 0. While it is, all that the gateway knows is fresh.",
	}, func() float64 {
		if f.cache.InSync() {
			return 1
		}
		return 0
	}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keeptrusts_gateway_watch_revision",
		Help: "The revision up to which all changes are applied; 0 before the first head.",
	}, func() float64 { return float64(f.applied.Load()) }))
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
	r.Revision, r.Folder = f.applied.Load(), f.self.Folder
	return f.from.Report(ctx, r)
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
		err := f.from.Watch(ctx, f.at, f.take)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, controlplane.ErrTooOld):
			f.log.Warn("the control plane's log does not reach back to what is known here: everything is asked for anew", zap.Int64("revision", f.at))
			f.cache.Gap()
			f.at = controlplane.FromHead
		case f.synced.IsZero() || errors.Is(err, controlplane.ErrSilent):
			if f.synced.After(began) {
				began = f.synced // an answer from before the silence says nothing of it
			}
			f.cache.Lost(began)
		}
		if f.synced.IsZero() {
			pause = min(max(2*pause, 100*time.Millisecond), watchRetry)
		} else {
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

// take applies one event.
func (f *follower) take(e controlplane.Event) {
	f.events.WithLabelValues(e.Kind).Inc()
	now := time.Now()
	switch e.Kind {
	case controlplane.KindRecall:
		f.ledger.Recall(*e.Recall)
		return
	case controlplane.KindUpsert:
		switch {
		case e.Budget != nil:
			f.ledger.Upsert(*e.Budget)
		case e.Team != nil:
			f.teams.upsert(*e.Team)
		default:
			f.cache.Upsert(e.Digest, e.Profile)
			f.changed(e.Profile)
		}
	case controlplane.KindRevoke:
		f.cache.Revoke(e.TokenID, e.Revision)
	}
	f.at = e.Revision
	f.applied.Store(e.Revision)
	head := e.Kind == controlplane.KindHead
	first := head && f.synced.IsZero()
	if head || !f.synced.IsZero() && now.Sub(f.synced) >= vouchWithin {
		f.synced = now
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
