package main

import (
	"context"
	"errors"
	"slices"
	"sync"
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

// watched is a control plane whose watches the test plays.
type watched struct {
	scriptedPlane
	play func(ctx context.Context, n int, since int64, each func(controlplane.Event)) error // the n-th watch

	mu      sync.Mutex
	watches int
	sinces  []int64
	began   []time.Time
	reports []record.Report
}

func (w *watched) Watch(ctx context.Context, since int64, each func(controlplane.Event)) error {
	w.mu.Lock()
	n := w.watches
	w.watches++
	w.sinces, w.began = append(w.sinces, since), append(w.began, time.Now())
	w.mu.Unlock()
	return w.play(ctx, n, since, each)
}

func (w *watched) Report(_ context.Context, r record.Report) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports = append(w.reports, r)
	return nil
}

func (w *watched) told() []record.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]record.Report(nil), w.reports...)
}

func followed(t *testing.T, w *watched, f func(*follower)) {
	synctest.Test(t, func(t *testing.T) {
		ledger, err := budget.Open(budget.Options{Authority: w, Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		cache, err := tokencache.New(tokencache.Options{Profiles: 10, FreshFor: 30 * time.Second, MaxStale: time.Hour, Loader: loader{w, &budgets{ledger: ledger}, &teams{}, func() {}}})
		if err != nil {
			t.Fatal(err)
		}
		fo := newFollower(&follower{
			from: w, cache: cache, ledger: ledger, budgets: &budgets{ledger: ledger}, applied: new(atomic.Int64), teams: &teams{}, profiles: 10, changed: func(*abac.Profile) {}, log: zap.NewNop(),
			self: record.Report{Instance: "i", Folder: "dir_1"},
		}, prometheus.NewRegistry())
		go fo.run()
		f(fo)
		fo.close()
		cache.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = ledger.Close(ctx)
	})
}

func head(r int64) controlplane.Event {
	return controlplane.Event{Kind: controlplane.KindHead, Revision: r}
}

func TestARevocationIsReportedAtOnce(t *testing.T) {
	w := &watched{}
	w.play = func(ctx context.Context, _ int, _ int64, each func(controlplane.Event)) error {
		each(head(5))
		time.Sleep(time.Second)
		each(controlplane.Event{Kind: controlplane.KindUpsert, Revision: 6, TokenID: "tok_app", Profile: &abac.Profile{ID: "tok_app", Revision: 6}})
		time.Sleep(time.Second)
		each(controlplane.Event{Kind: controlplane.KindRevoke, Revision: 7, TokenID: "tok_app"})
		<-ctx.Done()
		return ctx.Err()
	}
	followed(t, w, func(f *follower) {
		time.Sleep(1500 * time.Millisecond)
		if got := w.told(); len(got) != 1 || got[0].Revision != 5 || got[0].Folder != "dir_1" || got[0].Instance != "i" {
			t.Errorf("after the first head, and an upsert: %+v", got)
		}
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := w.told(); len(got) != 2 || got[1].Revision != 7 {
			t.Errorf("after a revocation: %+v", got)
		}
		// Every report tells it; the last one ends the watch before it goes out.
		if err := f.Report(context.Background(), record.Report{Instance: "i", SignOff: true}); err != nil {
			t.Error(err)
		}
		select {
		case <-f.done:
		default:
			t.Error("it watches on after it signed off")
		}
		if got := w.told(); len(got) != 3 || got[2].Revision != 7 || !got[2].SignOff {
			t.Errorf("signed off: %+v", got)
		}
	})
}

func TestAWatchThatBreaksGoesOnFromWhereItWas(t *testing.T) {
	w := &watched{}
	w.snapshot = func(n int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) {
		return controlplane.SnapshotHead{Revision: int64(4 + 14*n), OrgID: "org_1"}, nil, nil
	}
	w.play = func(ctx context.Context, n int, _ int64, each func(controlplane.Event)) error {
		switch n {
		case 0:
			each(head(5))
			each(controlplane.Event{Kind: controlplane.KindUpsert, Revision: 8, Budget: &budget.Record{ID: "b"}})
			return errors.New("cut")
		case 1:
			each(head(9))
			return controlplane.ErrTooOld
		}
		each(head(20))
		<-ctx.Done()
		return ctx.Err()
	}
	followed(t, w, func(f *follower) {
		time.Sleep(time.Second)
		synctest.Wait()
		if want := []int64{4, 8, 18}; !slices.Equal(w.sinces, want) || w.snapshots.Load() != 2 {
			t.Errorf("watched from %v, want %v, %d snapshots", w.sinces, want, w.snapshots.Load())
		}
		if f.cache.Away() {
			t.Error("away, though each watch was in sync")
		}
	})
}

func TestASnapshotReachesWhatItIsAbout(t *testing.T) {
	w := &watched{}
	d, gone := token.Sum([]byte("x")), token.Sum([]byte("y"))
	app := &abac.Profile{ID: "tok_app", OrgID: "org_1", Purpose: abac.General, PrincipalType: abac.PrincipalAPIToken, Status: abac.Active, Revision: 6}
	w.snapshot = func(n int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) {
		items := []controlplane.SnapshotItem{
			{Token: &controlplane.Known{Digest: d, ID: app.ID, Revision: 6, Status: abac.Active, Purpose: abac.General}},
			{Token: &controlplane.Known{Digest: gone, ID: "tok_gone", Revision: 7, Status: abac.Revoked, Purpose: abac.General}},
			{Budget: &budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce, Limit: 1, Revision: 5}},
			{Team: &abac.Team{ID: "red", Deleted: true, Revision: 3}},
			{Profile: &controlplane.Profiled{Digest: d, Profile: app}},
		}
		if n == 1 { // a team of the first is restored
			items[3].Team = &abac.Team{ID: "blue", Deleted: true, Revision: 15}
		}
		return controlplane.SnapshotHead{Revision: int64(10 + 10*n), OrgID: "org_1", Tokens: 2}, items, nil
	}
	w.play = func(ctx context.Context, n int, _ int64, each func(controlplane.Event)) error {
		each(head(11))
		if n == 0 {
			time.Sleep(time.Second)
			return controlplane.ErrTooOld
		}
		<-ctx.Done()
		return ctx.Err()
	}
	followed(t, w, func(f *follower) {
		synctest.Wait()
		if e, err := f.cache.Get(context.Background(), d); err != nil || e.Revision != 6 {
			t.Errorf("the profile: %v, %v", e, err)
		}
		if e, err := f.cache.Get(context.Background(), gone); err != nil || !f.cache.Revoked(e) {
			t.Errorf("what is revoked: %v, %v", e, err)
		}
		if _, err := f.cache.Get(context.Background(), token.Digest{}); !errors.Is(err, token.ErrUnknown) {
			t.Errorf("what is nobody's: %v", err)
		}
		if _, err := f.ledger.Set([]string{"b"}, ""); err != nil {
			t.Errorf("the budget is not known: %v", err)
		}
		if got := f.teams.Deleted(); !got.Has("red") || got.Has("blue") {
			t.Error("the deleted team is not known")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := f.teams.Deleted(); got.Has("red") || !got.Has("blue") {
			t.Error("a team that a snapshot does not list as deleted is still")
		}
		if w.loads != 0 {
			t.Errorf("%d loads", w.loads)
		}
	})
}

func TestASnapshotThatBreaksOffIsNone(t *testing.T) {
	w := &watched{}
	d := token.Sum([]byte("x"))
	w.snapshot = func(n int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) {
		items := []controlplane.SnapshotItem{{Token: &controlplane.Known{Digest: d, ID: "tok_app", Status: abac.Active, Purpose: abac.General}}}
		if n < 3 {
			return controlplane.SnapshotHead{Revision: 4, OrgID: "org_1", Tokens: 1}, items[:n%2], errors.New("cut")
		}
		return controlplane.SnapshotHead{Revision: 9, OrgID: "org_1", Tokens: 1}, items, nil
	}
	w.play = func(ctx context.Context, n int, since int64, each func(controlplane.Event)) error {
		each(head(since))
		<-ctx.Done()
		return ctx.Err()
	}
	followed(t, w, func(f *follower) {
		synctest.Wait()
		if f.cache.InSync() || f.applied.Load() != 0 || len(w.told()) != 0 {
			t.Error("in sync, or reported, without a whole snapshot")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !slices.Equal(w.sinces, []int64{9}) || f.applied.Load() != 9 || f.cache.Away() {
			t.Errorf("watched from %v, applied %d", w.sinces, f.applied.Load())
		}
	})
}

// A control plane whose log never reaches back to its own snapshot is not asked for
// snapshots in a loop.
func TestA410IsOneNewSnapshotAndNeverALoop(t *testing.T) {
	w := &watched{}
	w.play = func(ctx context.Context, n int, _ int64, each func(controlplane.Event)) error {
		return controlplane.ErrTooOld
	}
	followed(t, w, func(f *follower) {
		time.Sleep(400 * time.Millisecond)
		synctest.Wait()
		if n := w.snapshots.Load(); n != 2 {
			t.Errorf("%d snapshots at first", n)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := w.snapshots.Load(); n < 15 || n > 60 {
			t.Errorf("%d snapshots in ten minutes", n)
		}
	})
}

func TestAControlPlaneThatIsAwayIsTriedAtLeastEveryTwoSeconds(t *testing.T) {
	w := &watched{}
	w.play = func(ctx context.Context, n int, _ int64, each func(controlplane.Event)) error {
		if n == 0 {
			each(head(1))
		}
		return errors.New("connection refused")
	}
	followed(t, w, func(f *follower) {
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(w.began); n < 30 || n > 80 {
			t.Errorf("%d tries in a minute", n)
		}
		for i := 1; i < len(w.began); i++ {
			if d := w.began[i].Sub(w.began[i-1]); d > watchRetry {
				t.Errorf("try %d came after %v", i, d)
			}
		}
		if !f.cache.Away() || f.cache.InSync() {
			t.Error("not away")
		}
	})
}

func TestASilentWatchIsAnAbsence(t *testing.T) {
	w := &watched{}
	w.snapshot = func(int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) {
		return controlplane.SnapshotHead{Revision: 1, OrgID: "org_1", Tokens: 1}, []controlplane.SnapshotItem{
			{Token: &controlplane.Known{Digest: token.Digest{1}, ID: "tok_app", Status: abac.Active, Purpose: abac.General}},
		}, nil
	}
	w.play = func(ctx context.Context, n int, _ int64, each func(controlplane.Event)) error {
		if n == 0 {
			each(head(1))
			time.Sleep(time.Second)
			each(head(1))
			time.Sleep(3 * time.Second)
			return controlplane.ErrSilent
		}
		<-ctx.Done() // nothing answers
		return ctx.Err()
	}
	followed(t, w, func(f *follower) {
		time.Sleep(500 * time.Millisecond)
		// What was answered before the silence says nothing of it.
		if _, err := f.cache.Get(context.Background(), token.Digest{1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if !f.cache.Away() {
			t.Error("not away")
		}
	})
}

func TestEventsReachWhatTheyAreAbout(t *testing.T) {
	w := &watched{}
	app := &abac.Profile{ID: "tok_app", Purpose: abac.General, PrincipalType: abac.PrincipalAPIToken, Status: abac.Active, Revision: 6}
	d := token.Sum([]byte("x"))
	w.snapshot = func(int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) {
		return controlplane.SnapshotHead{Revision: 4, OrgID: "org_1", Tokens: 1}, []controlplane.SnapshotItem{
			{Token: &controlplane.Known{Digest: d, ID: app.ID, Status: abac.Active, Purpose: abac.General}},
		}, nil
	}
	w.play = func(ctx context.Context, _ int, _ int64, each func(controlplane.Event)) error {
		each(head(5))
		time.Sleep(time.Second)
		each(controlplane.Event{Kind: controlplane.KindUpsert, Revision: 6, TokenID: app.ID, Digest: d, Profile: app})
		each(controlplane.Event{Kind: controlplane.KindUpsert, Revision: 7, Budget: &budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce, Limit: 1, Revision: 7}})
		each(controlplane.Event{Kind: controlplane.KindRecall, Recall: &budget.Recall{Budget: "b", Window: "w", Phase: 1}})
		time.Sleep(time.Second)
		each(controlplane.Event{Kind: controlplane.KindRevoke, Revision: 8, TokenID: app.ID, Digest: d})
		<-ctx.Done()
		return ctx.Err()
	}
	followed(t, w, func(f *follower) {
		synctest.Wait()
		e, err := f.cache.Get(context.Background(), d) // revision 0, as scripted
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		if got, err := f.cache.Get(context.Background(), d); err != nil || got.Revision != 6 {
			t.Errorf("after the upsert: %+v, %v", got, err)
		}
		if _, err := f.ledger.Set([]string{"b"}, ""); err != nil {
			t.Errorf("the budget is not known: %v", err)
		}
		if f.cache.Revoked(e) {
			t.Error("revoked already")
		}
		time.Sleep(time.Second)
		if !f.cache.Revoked(e) || f.applied.Load() != 8 {
			t.Errorf("not revoked, applied %d", f.applied.Load())
		}
	})
}
