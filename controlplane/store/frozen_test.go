package store

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// A replica that stands still amid a transaction, or is cut off, holds what all others
// wait for: the database ends it.
func TestAFrozenReplicaHoldsUpTheOthersForSecondsOnly(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	dsn := postgresURL(t)
	for what, want := range map[string]string{"idle_in_transaction_session_timeout": "5s", "statement_timeout": "30s"} {
		var is string
		if err := openPG(t, dsn).write.QueryRowContext(ctx, `SHOW `+what).Scan(&is); err != nil || is != want {
			t.Errorf("%s: %q, %v, want %s", what, is, err, want)
		}
	}
	frozen, other := openPG(t, dsn+"&idle_in_transaction_session_timeout=300ms"), openPG(t, dsn)
	b := newBank(t, other)
	b.budget("b", 10)
	stands, wakes, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	var runs atomic.Int32
	go func() {
		ended <- frozen.beside(ctx, func(ctx context.Context, tx *Tx) error {
			if runs.Add(1) == 1 {
				close(stands)
				<-wakes
			}
			_, err := tx.exec(ctx, hearNew, "org", "s_frozen", "gw", 1, 1)
			return err
		})
	}()
	<-stands
	if a, _, err := other.Leases(ctx, "org", "gw", &budget.Call{Session: "s", Seq: 1, Needs: [][]budget.Need{needOf(4, "b")}}); err != nil || len(a.Leases) != 1 || a.Leases[0].Granted != 4 {
		t.Errorf("the other: %+v, %v", a, err)
	}
	close(wakes)
	if err := <-ended; err != nil || runs.Load() != 2 {
		t.Errorf("awake: %v after %d runs, want it done again", err, runs.Load())
	}
}

// A snapshot lasts as long as its reader takes, between two statements too.
func TestASlowReaderKeepsItsSnapshot(t *testing.T) {
	ctx := context.Background()
	s := openPG(t, postgresURL(t)+"&idle_in_transaction_session_timeout=50ms")
	n := sample(s, "n")
	if err := s.Update(ctx, noon, func(tx *Tx) error { return tx.Insert(ctx, &n) }); err != nil {
		t.Fatal(err)
	}
	told := 0
	err := s.Snapshot(ctx, SnapshotOf{OrgID: n.Profile.OrgID, Profiles: 10, Now: noon}, &SnapshotTold{
		Begin:   func(int64, int) error { time.Sleep(200 * time.Millisecond); return nil },
		Token:   func(*Known) error { time.Sleep(200 * time.Millisecond); return nil },
		Budget:  func(*budget.Record) error { return nil },
		Team:    func(*Team) error { return nil },
		Profile: func(*Token) error { told++; return nil },
	})
	if err != nil || told != 1 {
		t.Errorf("%d profiles, %v", told, err)
	}
}
