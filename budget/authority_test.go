package budget_test

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

const testOrg = "org_default"

// plane is the real authority on SQLite, and the watches that it tells of recalls.
type plane struct {
	t     testing.TB
	store *store.Store
	path  string

	mu      sync.Mutex
	ledgers map[*budget.Ledger]bool
	calls   int

	delay  time.Duration // one way
	single atomic.Int64  // what a call takes, where they queue; 0: they don't
	queued func(n int64)
	queue  atomic.Int64
	turn   chan struct{}
}

func newPlane(t testing.TB) *plane {
	p := &plane{t: t, path: filepath.Join(t.TempDir(), "plane.db"), ledgers: map[*budget.Ledger]bool{}, turn: make(chan struct{}, 1)}
	p.open()
	t.Cleanup(func() { p.store.Close() })
	return p
}

func (p *plane) open() {
	p.t.Helper()
	s, err := store.Open(context.Background(), "sqlite:"+p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	p.store = s
}

// put makes or changes a budget and tells every watch.
func (p *plane) put(r budget.Record) {
	p.t.Helper()
	if r.Mode == "" {
		r.Mode = budget.Enforce
	}
	b := store.Budget{OrgID: testOrg, Record: r}
	var recalls []budget.Recall
	err := p.store.Update(context.Background(), time.Now(), func(tx *store.Tx) (err error) {
		_, recalls, err = tx.PutBudget(context.Background(), &b)
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.ledgers {
		l.Upsert(b.Record)
	}
	p.push(recalls)
}

func (p *plane) push(recalls []budget.Recall) {
	for _, r := range recalls {
		for l := range p.ledgers {
			l.Recall(r)
		}
	}
}

func (p *plane) standing(id string) store.Standing {
	p.t.Helper()
	all, err := p.store.Standing(context.Background(), testOrg, id)
	if err != nil {
		p.t.Fatal(err)
	}
	return all[id]
}

// gateway is the authority as one gateway sees it.
type gateway struct {
	*plane
	id string
}

func (g gateway) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	if g.single.Load() > 0 {
		return g.inTurn(ctx, c)
	}
	time.Sleep(g.delay)
	defer time.Sleep(g.delay)
	return g.call(ctx, c)
}

// inTurn takes its time, one call after another, whether or not somebody still waits.
func (g gateway) inTurn(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	type result struct {
		answer *budget.Answer
		err    error
	}
	done := make(chan result, 1)
	g.queued(g.queue.Add(1))
	go func() {
		g.turn <- struct{}{}
		time.Sleep(time.Duration(g.single.Load()))
		answer, err := g.call(context.Background(), c)
		<-g.turn
		g.queue.Add(-1)
		done <- result{answer, err}
	}()
	select {
	case r := <-done:
		return r.answer, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g gateway) call(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	answer, recalls, err := g.store.Leases(ctx, testOrg, g.id, c)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls++
	g.push(recalls)
	return answer, err
}

func (g gateway) Settle(ctx context.Context, list []budget.Settlement) error {
	return g.store.Settle(ctx, testOrg, g.id, list)
}

// start opens a ledger of a gateway in a folder, with every budget known.
func (p *plane) start(id, dir string) *budget.Ledger {
	p.t.Helper()
	l, err := budget.Open(budget.Options{Authority: gateway{p, id}, Dir: dir, MaxStale: 10 * time.Minute})
	if err != nil {
		p.t.Fatal(err)
	}
	list, err := p.store.Budgets(context.Background(), testOrg, "", 1000)
	if err != nil {
		p.t.Fatal(err)
	}
	for i := range list {
		l.Upsert(list[i].Record)
	}
	p.mu.Lock()
	p.ledgers[l] = true
	p.mu.Unlock()
	return l
}

func (p *plane) end(l *budget.Ledger) {
	p.t.Helper()
	p.mu.Lock()
	delete(p.ledgers, l)
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		p.t.Error(err)
	}
}

func set(t testing.TB, l *budget.Ledger, ids ...string) *budget.Set {
	t.Helper()
	s, err := l.Set(ids, "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTenOfTwoHundredAtOnceAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.put(budget.Record{ID: "b", Unit: budget.Requests, Window: budget.Day, Limit: 10})
		l := p.start("gw_1", t.TempDir())
		s := set(t, l, "b")
		var wg sync.WaitGroup
		var mu sync.Mutex
		served, exceeded := 0, 0
		for range 200 {
			wg.Go(func() {
				var h budget.Hold
				err := l.Reserve(context.Background(), s, budget.Amounts{Requests: 1}, &h)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					served++
					h.Settle(budget.Amounts{Requests: 1})
				} else {
					exceeded++
				}
			})
		}
		wg.Wait()
		p.end(l)
		if got := p.standing("b"); served != 10 || exceeded != 190 || got.Settled != 10 || got.Left != 0 {
			t.Errorf("served %d, denied %d, %+v", served, exceeded, got)
		}
	})
}
