package controlplane

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// replicas are two control planes over one PostgreSQL.
func replicas(t testing.TB, quiet bool) (a, b *plane) {
	t.Helper()
	a = &plane{t: t, dsn: postgresURL(t), quiet: quiet, logs: &logBuffer{}, at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	a.open()
	return a, a.another()
}

// withAndWithoutNotify runs a test over two replicas twice.
func withAndWithoutNotify(t *testing.T, run func(t *testing.T, a, b *plane)) {
	for name, quiet := range map[string]bool{"notified": false, "by the poll": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := replicas(t, quiet)
			run(t, a, b)
		})
	}
}

// follow begins a watch in process, and returns when it is live.
func (p *plane) follow(t *testing.T, gateway string) *spy {
	t.Helper()
	e := p.server.Embedded(gateway)
	e.Introduce("i_"+gateway, "b", time.Hour)
	ctx, stop := context.WithCancel(context.Background())
	s := &spy{t: t, events: make(chan Event, 10_000), ended: make(chan error, 1), stop: stop}
	go func() { s.ended <- e.Watch(ctx, FromHead, func(e Event) { s.events <- e }) }()
	t.Cleanup(stop)
	s.next(KindHead)
	return s
}

// recalled waits for a recall of a phase, and passes over those of others.
func (s *spy) recalled(id string, phase int64) (after time.Duration) {
	s.t.Helper()
	began := time.Now()
	want := budget.Recall{Budget: id, Window: "2026-11-24.0", Phase: phase}
	late := time.After(5 * time.Second)
	for {
		select {
		case e := <-s.events:
			if e.Recall != nil && *e.Recall == want {
				return time.Since(began)
			}
		case err := <-s.ended:
			s.t.Fatalf("the watch ended: %v", err)
		case <-late:
			s.t.Fatalf("no recall %+v came", want)
		}
	}
}

func TestARecallReachesHoldersThroughEveryReplica(t *testing.T) {
	t.Parallel()
	withAndWithoutNotify(t, func(t *testing.T, a, b *plane) {
		ctx := context.Background()
		a.budget("b", "requests", "100")
		holder, asker := a.server.Embedded("gw_1"), b.server.Embedded("gw_2")
		if _, err := holder.Leases(ctx, &budget.Call{Session: "h", Seq: 1, Needs: needOf("b", 100)}); err != nil {
			t.Fatal(err)
		}
		there, here := a.follow(t, "gw_1"), b.follow(t, "gw_2")
		seq := int64(0)
		ask := func() {
			t.Helper()
			seq++
			if _, err := asker.Leases(ctx, &budget.Call{Session: "a", Seq: seq, Needs: needOf("b", 1)}); err != nil {
				t.Fatal(err)
			}
		}
		within := func(what string, took time.Duration) {
			t.Helper()
			if took > 400*time.Millisecond { // of the 500 that holders have
				t.Errorf("%s only after %v", what, took)
			}
		}
		// Again and again, while the need stays unmet and the holder has not acknowledged.
		for i := range 3 {
			ask()
			within(fmt.Sprint("recall ", i), there.recalled("b", 1))
			here.recalled("b", 1)
			a.wait(100 * time.Millisecond)
		}
		// Acknowledged: no more.
		if _, err := holder.Leases(ctx, &budget.Call{Session: "h", Seq: 2, Leases: []budget.Lease{
			{Budget: "b", Window: "2026-11-24.0", Granted: 100, Spent: 100, Phase: 1},
		}}); err != nil {
			t.Fatal(err)
		}
		a.wait(100 * time.Millisecond)
		ask()
		time.Sleep(600 * time.Millisecond)
		for len(there.events) > 0 {
			if e := <-there.events; e.Recall != nil {
				t.Errorf("acknowledged, and recalled again: %+v", *e.Recall)
			}
		}
		// Money that is there again, through any replica.
		b.must(200, "POST", "/v1/budgets/b/top-up", fields{"amount": "100", "key": "k"})
		within("topped up", there.recalled("b", 2))
		b.must(200, "PUT", "/v1/budgets/b", fields{"limit": "1000"})
		within("raised", there.recalled("b", 2))
		if _, err := holder.Leases(ctx, &budget.Call{Session: "h", Seq: 3, Needs: needOf("b", 300)}); err != nil {
			t.Fatal(err)
		}
		b.must(200, "PUT", "/v1/budgets/b", fields{"limit": "1"})
		within("lowered", there.recalled("b", 3))
	})
}

func TestAChangeReachesGatewaysOfEveryReplica(t *testing.T) {
	t.Parallel()
	withAndWithoutNotify(t, func(t *testing.T, a, b *plane) {
		there := b.follow(t, "gw")
		least := time.Hour
		for range 5 {
			began := time.Now()
			id, _ := a.mint("general", nil)
			if e := there.next(KindUpsert); e.TokenID != id {
				t.Errorf("minted: %+v", e)
			}
			least = min(least, time.Since(began))
		}
		if least > 300*time.Millisecond {
			t.Errorf("at best after %v", least)
		}
	})
}
