package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

const (
	snapshotFile    = "snapshot"
	revocationsFile = "revocations"

	keepWithin = 55 * time.Second // a change is saved after that at the latest, and a little later where saving takes long
	keepPart   = 12               // of max_stale: how often is saved when the control plane last vouched
	keepLook   = time.Second      // how often is looked whether something is due
	keepRest   = 10               // times what the last saving took are left between two
)

// keeper saves in the data folder what a gateway needs to serve while its control plane
// is away, over a restart of its own: a sealed snapshot and, beside it, the revocations
// that came later.
type keeper struct {
	dir       string
	gatewayID string
	maxStale  time.Duration
	identity  *identity
	token     func() (token.Secret, error)
	cache     *tokencache.Cache
	teams     *teams
	budgets   *budgets
	applied   *atomic.Int64 // all changes up to here are in what the others hold
	log       *zap.Logger
	now       func() time.Time
	fsync     func(*os.File) error // of revocations; nil: the system's
	metrics   *keeperMetrics

	journal *tokencache.Journal
	changes atomic.Int64  // that are to be saved, counted
	dirty   chan struct{} // of one: the journal has something to sync
	due     chan struct{} // of one: save at once
	stop    chan struct{}
	done    chan struct{}

	mu     sync.Mutex
	saved  saving // the snapshot that there is; its secret is empty when there is none
	onDisk atomic.Pointer[savedStat]
}

// savedStat is what /metrics says of the snapshot that there is; nil: there is none.
type savedStat struct {
	vouched time.Time
	size    int64
}

// saving is what was saved, and when.
type saving struct {
	secret  token.Secret
	salt    tokencache.Salt
	changes int64
	vouched time.Time
	at      time.Time // when it was tried last
	took    time.Duration
}

func newKeeper(k *keeper, r prometheus.Registerer) *keeper {
	k.dirty, k.due = make(chan struct{}, 1), make(chan struct{}, 1)
	k.stop, k.done = make(chan struct{}), make(chan struct{})
	k.metrics = newKeeperMetrics(k, r)
	return k
}

func (k *keeper) path() string { return filepath.Join(k.dir, snapshotFile) }

// restore opens the revocations, and puts the snapshot that there is to use. The first
// error says why that could not be, nil with false that there is none; the second one
// that nothing can be kept.
func (k *keeper) restore() (restored bool, refused, failed error) {
	for _, name := range []string{snapshotFile, revocationsFile} { // what a kill left half written
		left, _ := filepath.Glob(filepath.Join(k.dir, "."+name+"-*"))
		for _, file := range left {
			_ = os.Remove(file)
		}
	}
	path := filepath.Join(k.dir, revocationsFile)
	journal, stops, found, err := tokencache.OpenJournal(path, k.fsync)
	switch {
	case err == nil && found:
		restored, refused = k.open(stops)
	case err == nil:
		refused = k.absent(errors.New("the file of revocations beside it is missing"))
	default:
		refused = err
	}
	if err == nil && found {
		k.journal = journal
		return restored, refused, nil
	}
	// Nothing may bring back a snapshot without the revocations that belong to it.
	if failed := k.invalidate(); failed != nil {
		return false, refused, failed
	}
	if journal != nil {
		_ = journal.Close()
	}
	k.journal, failed = tokencache.NewJournal(path, k.fsync)
	return false, refused, failed
}

// absent is why when there is a snapshot, else nil.
func (k *keeper) absent(why error) error {
	if _, err := os.Stat(k.path()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return why
}

// open puts the saved snapshot to use, with the revocations beside it.
func (k *keeper) open(stops []tokencache.Stopped) (restored bool, err error) {
	f, err := os.Open(k.path())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	secret, err := k.token()
	if err != nil {
		return false, fmt.Errorf("the runtime token: %w", err)
	}
	s, err := openSaved(f, savedSeal{secret, k.gatewayID})
	if err != nil {
		return false, err
	}
	switch age := k.now().Sub(s.vouched); {
	case age > k.maxStale:
		return false, fmt.Errorf("%w (%s)", errSavedStale, age.Round(time.Second))
	case age < -futureLeeway:
		return false, errSavedFuture
	}
	for _, stop := range stops {
		if !stop.Team && stop.ID == s.Identity.ID && stop.Revision > s.Identity.Revision {
			return false, errors.New("the runtime token was revoked after it was saved")
		}
	}
	if err := k.identity.resume(s.Identity, s.vouched); err != nil {
		return false, err
	}
	if err := k.take(s, stops); err != nil {
		k.cache.Forget()
		k.identity.forget()
		return false, err
	}
	k.saved = saving{secret: secret, salt: s.salt, vouched: s.vouched, changes: k.changes.Load()}
	k.show()
	return true, nil
}

const futureLeeway = 2 * time.Second

// take gives what was saved to the others: budgets and teams before the profiles that
// lean on them, and revocations before all.
func (k *keeper) take(s *saved, stops []tokencache.Stopped) error {
	for _, stop := range stops {
		if !stop.Team {
			k.cache.Revoke(stop.ID, stop.Revision)
		}
	}
	fill := k.cache.FillFrom(s.vouched)
	fill.Head(s.OrgID, s.Tokens)
	err := s.read(savedInto{
		token:  fill.Token,
		budget: func(r budget.Record) { k.budgets.upsert(r) },
		team:   func(t abac.Team) { k.teams.upsert(t) },
		profile: func(d token.Digest, p *abac.Profile) {
			fill.Profile(d, p)
		},
	})
	if err != nil {
		fill.Abandon()
		return err
	}
	for _, stop := range stops {
		if stop.Team && stop.Revision > s.Revision {
			k.teams.upsert(abac.Team{ID: stop.ID, Deleted: true, Revision: stop.Revision})
		}
	}
	fill.Done()
	return nil
}

// stopped notes a revocation; see tokencache.Options.
func (k *keeper) stopped(id string, revision int64) {
	k.note(tokencache.Stopped{ID: id, Revision: revision})
}

// deleted notes a team that was deleted.
func (k *keeper) deleted(t abac.Team) {
	k.note(tokencache.Stopped{Team: true, ID: t.ID, Revision: t.Revision})
}

func (k *keeper) note(s tokencache.Stopped) {
	if k.journal == nil { // it comes from there
		return
	}
	k.journal.Append(s)
	k.changed()
	select {
	case k.dirty <- struct{}{}:
	default:
	}
}

// changed notes that what is known is other than it was.
func (k *keeper) changed() { k.changes.Add(1) }

// saveSoon has what is known saved without a pause.
func (k *keeper) saveSoon() {
	k.changed()
	select {
	case k.due <- struct{}{}:
	default:
	}
}

// sync makes durable all revocations that have been noted.
func (k *keeper) sync() error {
	err := k.journal.Sync()
	if err != nil {
		k.metrics.unsynced.Inc()
		k.log.Error("revocations can't be made durable: they are in force, and not reported as applied", zap.Error(err))
	}
	return err
}

// invalidate takes the saved snapshot away, durably: one that lacks revocations that are
// not in the journal must never be used.
func (k *keeper) invalidate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.saved = saving{}
	k.onDisk.Store(nil)
	err := os.Remove(k.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = tokencache.SyncDir(k.dir)
	}
	if err != nil {
		return fmt.Errorf("remove the saved snapshot: %w", err)
	}
	return nil
}

// run saves what is due, until close.
func (k *keeper) run() {
	defer close(k.done)
	look := time.NewTicker(max(min(keepLook, k.maxStale/40), 10*time.Millisecond))
	defer look.Stop()
	for {
		at := false
		select {
		case <-k.stop:
			return
		case <-k.dirty:
			_ = k.sync()
			continue
		case <-k.due:
			at = true
		case <-look.C:
		}
		k.look(at)
	}
}

// close ends it, and saves what is not yet.
func (k *keeper) close() {
	close(k.stop)
	<-k.done
	k.mu.Lock()
	k.saved.at, k.saved.took = time.Time{}, 0
	k.mu.Unlock()
	k.look(true)
	_ = k.journal.Close()
}

// look saves what is due; now says that a change is.
func (k *keeper) look(now bool) {
	if k.identity.refused() {
		if err := k.invalidate(); err != nil { // it was for whom the control plane refuses
			k.log.Error("the saved snapshot can't be removed", zap.Error(err))
		}
		return
	}
	own, vouched := k.identity.own(), k.cache.Vouched()
	if own == nil || vouched.IsZero() {
		return
	}
	secret, err := k.token()
	if err != nil {
		return // a reload tells
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &k.saved
	changed := s.changes != k.changes.Load()
	rotated := !s.secret.Empty() && s.secret.Digest() != secret.Digest()
	if rotated {
		k.identity.renewed()
	}
	pause := k.now().Sub(s.at)
	every := min(keepWithin, k.maxStale/keepPart)
	switch {
	case pause < keepRest*s.took && !rotated:
	case rotated, changed && (now || s.secret.Empty() || pause >= every):
		k.save(own, secret, vouched)
	case !changed && !s.secret.Empty() && vouched.After(s.vouched) && (now || pause >= every):
		k.restamp(vouched)
	}
}

// save writes a new snapshot; mu is held. What the control plane vouched for is at least
// as new as its time and its revision say, which are taken before.
func (k *keeper) save(own *abac.Profile, secret token.Secret, vouched time.Time) {
	began := k.now()
	changes, revision := k.changes.Load(), k.applied.Load()
	salt, err := k.write(&savedHead{Revision: revision, Tokens: k.cache.IndexLen(), OrgID: own.OrgID, Identity: own}, secret, vouched)
	if errors.Is(err, tokencache.ErrNoIndex) {
		return
	}
	k.saved.at, k.saved.took = k.now(), k.now().Sub(began)
	if err != nil {
		k.saved.took = max(k.saved.took, time.Second) // not every time that is looked
		k.metrics.failed.Inc()
		k.log.Error("the snapshot can't be saved: a restart needs the control plane", zap.Error(err))
		return
	}
	k.metrics.saved.Inc()
	k.saved.secret, k.saved.salt, k.saved.changes, k.saved.vouched = secret, salt, changes, vouched
	k.show()
	if err := k.journal.Compact(revision); err != nil {
		k.log.Warn("the file of revocations can't be made smaller", zap.Error(err))
	}
}

func (k *keeper) write(head *savedHead, secret token.Secret, vouched time.Time) (salt tokencache.Salt, err error) {
	w, err := newSavedWriter(k.path(), savedSeal{secret, k.gatewayID})
	if err != nil {
		return salt, err
	}
	if err = w.json(frameHead, head); err == nil {
		first := true
		others := func() error { // between the index and the profiles
			for _, r := range k.budgets.list() {
				if err := w.json(frameBudget, r); err != nil {
					return err
				}
			}
			for _, t := range k.teams.gone() {
				if err := w.json(frameTeam, t); err != nil {
					return err
				}
			}
			return nil
		}
		err = k.cache.Each(w.token, func(d token.Digest, p *abac.Profile) error {
			if first {
				first = false
				if err := others(); err != nil {
					return err
				}
			}
			return w.profile(d, p)
		})
		if err == nil && first {
			err = others()
		}
	}
	if err != nil {
		w.abandon()
		return salt, err
	}
	return w.commit(vouched)
}

// restamp writes over when the control plane last vouched; mu is held.
func (k *keeper) restamp(vouched time.Time) {
	began := k.now()
	err := restamp(k.path(), savedSeal{k.saved.secret, k.gatewayID}, k.saved.salt, vouched)
	k.saved.at, k.saved.took = k.now(), k.now().Sub(began)
	if err != nil {
		k.metrics.failed.Inc()
		k.saved.changes = -1 // the next one is whole
		k.log.Error("the saved snapshot's time can't be written", zap.Error(err))
		return
	}
	k.metrics.stamped.Inc()
	k.saved.vouched = vouched
	k.show()
}

// show tells /metrics what is saved.
func (k *keeper) show() {
	n := &savedStat{vouched: k.saved.vouched}
	if i, err := os.Stat(k.path()); err == nil {
		n.size = i.Size()
	}
	k.onDisk.Store(n)
}

// keeperMetrics is what /metrics says of what is saved.
type keeperMetrics struct {
	saved, stamped, failed, unsynced prometheus.Counter
}

func newKeeperMetrics(k *keeper, r prometheus.Registerer) *keeperMetrics {
	const prefix = "keeptrusts_gateway_"
	writes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "saved_snapshot_writes_total",
		Help: "Writes of the snapshot in the data folder: whole, its time alone (stamp), failed.",
	}, []string{"result"})
	m := &keeperMetrics{
		saved: writes.WithLabelValues("whole"), stamped: writes.WithLabelValues("stamp"), failed: writes.WithLabelValues("failed"),
		unsynced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "revocations_sync_failures_total",
			Help: "How often revocations could not be made durable; while they are not, they are in force and not reported as applied.",
		}),
	}
	r.MustRegister(writes, m.unsynced, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: prefix + "saved_snapshot_timestamp_seconds",
		Help: "When the control plane vouched for the snapshot in the data folder, in Unix seconds; 0: there is none.",
	}, func() float64 {
		if n := k.onDisk.Load(); n != nil {
			return float64(n.vouched.UnixMilli()) / 1e3
		}
		return 0
	}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: prefix + "saved_snapshot_bytes",
		Help: "Size of the snapshot in the data folder; 0: there is none.",
	}, func() float64 {
		if n := k.onDisk.Load(); n != nil {
			return float64(n.size)
		}
		return 0
	}))
	return m
}

// restore puts what was saved to use, where the control plane is elsewhere. Its error
// ends a start: what answers is no control plane, and no snapshot says that there was one.
func (k *knowledge) restore(remote *remoteStanding) error {
	if remote == nil {
		return nil
	}
	restored, refused, failed := k.keeper.restore()
	if failed != nil {
		return fmt.Errorf("the data folder: %w", failed)
	}
	switch {
	case refused != nil:
		k.log.Error("the saved snapshot is not used: without the control plane this gateway is not ready", zap.String("path", k.keeper.path()), zap.Error(refused))
	case restored:
		k.log.Info("the saved snapshot is in use until the control plane answers", zap.String("path", k.keeper.path()),
			zap.Time("vouched", k.keeper.saved.vouched), zap.Int("tokens", k.cache.IndexLen()))
	}
	if remote.stranger != nil && !restored {
		return remote.stranger
	}
	if !remote.identity.settled() {
		k.cache.Lost(time.Now()) // it was asked just now: nobody needs to wait for it
	}
	if remote.stranger != nil {
		k.log.Error("the control plane does not answer", zap.Error(remote.stranger))
	}
	go k.keeper.run()
	k.keeping = true
	return nil
}
