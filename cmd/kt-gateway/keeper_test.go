package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// keeping is a gateway's knowledge and what saves it, before a control plane that the
// test plays.
type keeping struct {
	*follower
	secret atomic.Pointer[string]
	broken atomic.Pointer[error] // what an fsync of revocations ends with; nil: it is done
	writes func() (whole, stamps int)
	events chan controlplane.Event // for the watch; closed: it is cut
}

func (k *keeping) saved(t *testing.T) *saved {
	t.Helper()
	f, err := os.Open(k.keeper.path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	s, err := openSaved(f, savedSeal{token.NewSecret(*k.secret.Load()), "gw_here"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keepingWith(t *testing.T, w *watched, maxStale time.Duration, run func(*testing.T, *keeping)) {
	synctest.Test(t, func(t *testing.T) {
		w.profile = runtimeProfile(nil)
		k := &keeping{events: make(chan controlplane.Event)}
		if w.play == nil {
			w.play = heads(k.events)
		}
		id := testIdentity(&w.scriptedPlane)
		if err := id.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		ledger, err := budget.Open(budget.Options{Authority: w, Dir: filepath.Join(dir, leasesFolder)})
		if err != nil {
			t.Fatal(err)
		}
		r := prometheus.NewRegistry()
		first := "the first"
		k.secret.Store(&first)
		known, applied := &teams{}, new(atomic.Int64)
		keep := newKeeper(&keeper{
			dir: dir, gatewayID: "gw_here", maxStale: maxStale, identity: id, teams: known, budgets: &budgets{ledger: ledger}, applied: applied,
			token: func() (token.Secret, error) { return token.NewSecret(*k.secret.Load()), nil }, log: zap.NewNop(), now: time.Now,
			fsync: func(f *os.File) error {
				if err := k.broken.Load(); err != nil {
					return *err
				}
				return f.Sync()
			},
		}, r)
		known.told = keep.deleted
		keep.cache, err = tokencache.New(tokencache.Options{
			Profiles: 10, FreshFor: time.Second, MaxStale: maxStale, Loader: loader{w, keep.budgets, known, keep.changed}, Stopped: keep.stopped,
		})
		if err != nil {
			t.Fatal(err)
		}
		half := filepath.Join(dir, ".snapshot-1234")
		if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, refused, failed := keep.restore(); refused != nil || failed != nil {
			t.Fatal(refused, failed)
		}
		if _, err := os.Stat(half); err == nil {
			t.Error("what a kill left half written stays")
		}
		k.follower = newFollower(&follower{
			from: w, cache: keep.cache, ledger: ledger, budgets: keep.budgets, teams: known, keeper: keep, applied: applied, profiles: 10,
			changed: func(*abac.Profile) {}, log: zap.NewNop(), self: record.Report{Instance: "i"},
		}, r)
		k.writes = func() (int, int) {
			all, err := r.Gather()
			if err != nil {
				t.Fatal(err)
			}
			n := map[string]int{}
			for _, f := range all {
				if f.GetName() == "keeptrusts_gateway_saved_snapshot_writes_total" {
					for _, m := range f.GetMetric() {
						n[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
					}
				}
			}
			return n["whole"], n["stamp"]
		}
		go keep.run()
		go k.follower.run()
		run(t, k)
		k.follower.close()
		keep.close()
		keep.cache.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = ledger.Close(ctx)
	})
}

// heads tells a head every second, and what the test sends.
func heads(events chan controlplane.Event) func(ctx context.Context, n int, since int64, each func(controlplane.Event)) error {
	return func(ctx context.Context, _ int, since int64, each func(controlplane.Event)) error {
		select {
		case <-events: // closed: none is sent between two watches
			return errors.New("connection refused")
		default:
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		at := since
		each(head(at))
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case e, ok := <-events:
				if !ok {
					return errors.New("cut")
				}
				at = e.Revision
				each(e)
			case <-tick.C:
				each(head(at))
			}
		}
	}
}

func TestWhatIsSavedIsAsYoungAsPromised(t *testing.T) {
	for _, maxStale := range []time.Duration{30 * time.Second, 10 * time.Minute, 2 * time.Hour} {
		w := &watched{}
		keepingWith(t, w, maxStale, func(t *testing.T, k *keeping) {
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if whole, _ := k.writes(); whole != 1 {
				t.Errorf("max_stale %v: %d snapshots two seconds after the start", maxStale, whole)
			}
			// In sync, with nothing to save: its time alone is written, often enough.
			for range 50 {
				time.Sleep(maxStale / 50)
				synctest.Wait()
				if age := time.Since(k.saved(t).vouched); age > maxStale/10+time.Second {
					t.Fatalf("max_stale %v: vouched for %v ago", maxStale, age)
				}
			}
			if whole, stamps := k.writes(); whole != 1 || stamps < 10 {
				t.Errorf("max_stale %v: %d snapshots, %d times", maxStale, whole, stamps)
			}
			// A change is saved within a minute, and until then no later time than before it.
			k.events <- controlplane.Event{Kind: controlplane.KindUpsert, Revision: 50, Digest: token.Digest{5}, TokenID: "tok_5",
				Profile: &abac.Profile{ID: "tok_5", Revision: 50, Status: abac.Active, Purpose: abac.General}}
			changed := time.Now()
			for k.saved(t).Revision < 50 {
				if at := k.saved(t).vouched; at.After(changed.Add(time.Second)) {
					t.Fatalf("max_stale %v: a snapshot without the change is vouched for %v after it", maxStale, at.Sub(changed))
				}
				if time.Since(changed) > time.Minute {
					t.Fatalf("max_stale %v: not saved within a minute", maxStale)
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}
			// Cut off, the time stands.
			close(k.events)
			time.Sleep(5 * time.Second)
			at := k.saved(t).vouched
			time.Sleep(2 * time.Minute)
			if got := k.saved(t).vouched; got.After(at) && time.Since(got) < 2*time.Minute {
				t.Errorf("max_stale %v: vouched for without a control plane", maxStale)
			}
		})
	}
}

func TestAnotherRuntimeTokenSealsAnewAtOnce(t *testing.T) {
	w := &watched{}
	keepingWith(t, w, 10*time.Minute, func(t *testing.T, k *keeping) {
		time.Sleep(5 * time.Second)
		next := "the second"
		k.secret.Store(&next)
		time.Sleep(keepLook + time.Millisecond)
		synctest.Wait()
		k.saved(t)
		if k.identity().settled() {
			t.Error("the new token is not to be verified")
		}
	})
}

func (k *keeping) identity() *identity { return k.keeper.identity }

// No report tells of a revocation that a crash would undo.
func TestARevocationThatIsNotDurableIsNotReported(t *testing.T) {
	w := &watched{}
	keepingWith(t, w, 10*time.Minute, func(t *testing.T, k *keeping) {
		time.Sleep(2 * time.Second)
		broken := errors.New("input/output error")
		k.broken.Store(&broken)
		k.events <- controlplane.Event{Kind: controlplane.KindRevoke, Revision: 50, Digest: token.Digest{5}, TokenID: "tok_5"}
		time.Sleep(time.Second)
		synctest.Wait()
		if last := w.told()[len(w.told())-1]; last.Revision >= 50 {
			t.Errorf("reported at %d", last.Revision)
		}
		if k.applied.Load() < 50 {
			t.Error("it is not in force")
		}
		k.broken.Store(nil)
		if err := k.Report(t.Context(), record.Report{}); err != nil {
			t.Fatal(err)
		}
		if last := w.told()[len(w.told())-1]; last.Revision != 50 {
			t.Errorf("reported at %d once it is durable", last.Revision)
		}
		_, stops, _, err := tokencache.OpenJournal(filepath.Join(k.keeper.dir, revocationsFile), nil)
		if err != nil || len(stops) != 1 || stops[0] != (tokencache.Stopped{ID: "tok_5", Revision: 50}) {
			t.Errorf("%v, %v", stops, err)
		}
	})
}

func TestRevocationsLeaveTheirFileOnceTheSnapshotHasThem(t *testing.T) {
	w := &watched{}
	keepingWith(t, w, 10*time.Minute, func(t *testing.T, k *keeping) {
		time.Sleep(2 * time.Second)
		k.events <- controlplane.Event{Kind: controlplane.KindRevoke, Revision: 50, Digest: token.Digest{5}, TokenID: "tok_5"}
		k.events <- controlplane.Event{Kind: controlplane.KindUpsert, Revision: 51, Team: &abac.Team{ID: "red", Deleted: true, Revision: 51}}
		synctest.Wait()
		if n := k.keeper.journal.Len(); n != 2 {
			t.Errorf("%d records", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := k.keeper.journal.Len(); n != 0 || k.saved(t).Revision != 51 {
			t.Errorf("%d records, the snapshot at %d", n, k.saved(t).Revision)
		}
	})
}

// Between a new snapshot of the control plane and the next one that is saved, a crash
// must find none that lacks what the new one was the first to tell.
func TestASnapshotFromBeforeAGapIsTakenAwayBeforeTheNewOneIsReported(t *testing.T) {
	w := &watched{}
	var kept atomic.Pointer[keeping]
	w.snapshot = func(n int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) {
		return controlplane.SnapshotHead{Revision: int64(10 + n), OrgID: "org_1"}, nil, nil
	}
	w.play = func(ctx context.Context, n int, since int64, each func(controlplane.Event)) error {
		if n == 1 {
			k := kept.Load()
			if _, err := os.Stat(k.keeper.path()); err == nil && k.saved(t).Revision != 11 {
				t.Error("the old one is there when the new one's revision is told")
			}
		}
		each(head(since))
		if n == 0 {
			time.Sleep(3 * time.Second)
			return controlplane.ErrTooOld
		}
		<-ctx.Done()
		return ctx.Err()
	}
	keepingWith(t, w, 10*time.Minute, func(t *testing.T, k *keeping) {
		kept.Store(k)
		time.Sleep(time.Minute)
		synctest.Wait()
		if k.saved(t).Revision != 11 {
			t.Errorf("saved at %d", k.saved(t).Revision)
		}
	})
}
