package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/record"
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

func TestSigningOffThroughOneReplicaEndsTheWatchAtAnother(t *testing.T) {
	t.Parallel()
	a, b := replicas(t, true)
	c, _ := b.gateway("gw", "i")
	s := watchFrom(t, c, FromHead)
	s.next(KindHead)
	far := *c
	far.base = a.url
	if err := far.Report(context.Background(), record.Report{Instance: "i", Build: "b", MaxStale: time.Hour, SignOff: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.end(); err == nil {
		t.Error("ended without an error")
	}
	if got := a.must(200, "GET", "/v1/gateways", nil).raw; strings.Contains(got, `"gw"`) {
		t.Errorf("it is known again: %s", got)
	}
	// One that lives watches on, however long it has not called.
	s = watchFrom(t, c, FromHead)
	s.next(KindHead)
	a.wait(2 * time.Hour)
	b.server.noteWatches(context.Background())
	a.mint("general", nil)
	s.next(KindUpsert)
}

func TestRevokingCountsTheInstancesOfEveryReplica(t *testing.T) {
	t.Parallel()
	withAndWithoutNotify(t, func(t *testing.T, a, b *plane) {
		a.follows(t, "g1", "a", 0)
		b.follows(t, "g1", "b", 0)
		b.follows(t, "g2", "a", 100*time.Millisecond)
		b.follows(t, "g3", "a", -1)
		for _, p := range []*plane{a, b} {
			id, _ := a.mint("general", nil)
			got := p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
			if got.body["confirmed"] != 3.0 || fmt.Sprint(got.body["unconfirmed"]) != "[g3]" {
				t.Errorf("confirmed %v, unconfirmed %v", got.body["confirmed"], got.body["unconfirmed"])
			}
		}
	})
}

func TestAnImportThroughOneReplicaIsKnownToAll(t *testing.T) {
	t.Parallel()
	withAndWithoutNotify(t, func(t *testing.T, a, b *plane) {
		there := b.follow(t, "gw")
		const n = 1200 // several transactions
		var lines strings.Builder
		for i := range n {
			lines.WriteString(importable(fmt.Sprint(i), "") + "\n")
		}
		a.imports(strings.NewReader(lines.String()))
		seen := map[string]bool{}
		for range n {
			seen[there.next(KindUpsert).TokenID] = true
		}
		if len(seen) != n {
			t.Errorf("%d of %d were told", len(seen), n)
		}
	})
}

func TestChangesThroughSeveralReplicasAtOnceAreOne(t *testing.T) {
	t.Parallel()
	a, b := replicas(t, false)
	planes := []*plane{a, b, a.another()}
	var mu sync.Mutex
	statuses := map[int]int{}
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			p := planes[i%len(planes)]
			got := p.admin("PUT", "/v1/budgets/b", fields{"unit": "requests", "window": "day", "limit": "10"})
			if topped := p.admin("POST", "/v1/budgets/b/top-up", fields{"amount": "5", "key": fmt.Sprint(i % 2)}); topped.status != 200 {
				t.Errorf("topped up: %d %s", topped.status, topped.raw)
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[got.status]++
		})
	}
	wg.Wait()
	if statuses[http.StatusCreated] != 1 || statuses[http.StatusOK] != 29 {
		t.Errorf("answered %v", statuses)
	}
	if got := a.must(200, "GET", "/v1/budgets/b", nil); got.text("left") != "20" {
		t.Errorf("left %s: %s", got.text("left"), got.raw)
	}
	// A limit, whoever asks where.
	granted := int64(0)
	for i := range 30 {
		wg.Go(func() {
			e := planes[i%len(planes)].server.Embedded(fmt.Sprint("gw_", i))
			got, err := e.Leases(context.Background(), &budget.Call{Session: fmt.Sprint("s", i), Seq: 1, Needs: needOf("b", 1)})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			granted += got.Leases[0].Granted
		})
	}
	wg.Wait()
	if granted != 20 {
		t.Errorf("granted %d of 20", granted)
	}
	// A name is bound once, and the log has each change once and in order.
	minted := make([]string, 30)
	for i := range minted {
		wg.Go(func() {
			minted[i], _ = planes[i%len(planes)].mint("general", fields{"budgets": []fields{{"id": "c", "limit": "1", "unit": "usd", "window": "day"}}})
		})
	}
	wg.Wait()
	slices.Sort(minted)
	if got := slices.Compact(minted); len(got) != 30 {
		t.Errorf("%d of 30 ids", len(got))
	}
	var revisions []int64
	for e := range watched(t, planes[1], 0) {
		revisions = append(revisions, e.Revision)
	}
	if !slices.IsSorted(revisions) || len(slices.Compact(slices.Clone(revisions))) != len(revisions) || len(revisions) != 32 {
		t.Errorf("told %v", revisions)
	}
}

// watched are the events from a revision up to the first head.
func watched(t *testing.T, p *plane, since int64) func(func(Event) bool) {
	ctx, stop := context.WithCancel(context.Background())
	events := make(chan Event, 10_000)
	go func() {
		defer close(events)
		_ = p.server.Embedded("gw_watched").Watch(ctx, since, func(e Event) { events <- e })
	}()
	t.Cleanup(stop)
	return func(yield func(Event) bool) {
		defer stop()
		for e := range events {
			if e.Kind == KindHead || !yield(e) {
				return
			}
		}
	}
}

func TestAMisplacedCredentialIsNotedOnceWhicheverReplicaHears(t *testing.T) {
	t.Parallel()
	a, b := replicas(t, false)
	_, secret := a.mint("gateway_runtime", fields{"gateway_id": "gw"})
	for range 2 {
		for _, p := range []*plane{a, b} {
			if err := p.server.Embedded("gw").Report(context.Background(), record.Report{Instance: "i", MaxStale: time.Hour,
				Misplaced: []record.Misplaced{{Digest: sha(secret), Client: "10.0.0.1", At: a.now()}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := a.must(200, "GET", "/v1/audit?event=credential.misplaced", nil); strings.Count(got.raw, `"credential.misplaced"`) != 1 {
		t.Errorf("noted: %s", got.raw)
	}
}
