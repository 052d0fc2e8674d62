package budget_test

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// scripted is an authority that grants whatever is asked, unless a test answers
// for it: for answers that the real one does not give.
type scripted struct {
	mu     sync.Mutex
	leases map[[2]string]budget.LeaseInfo
	answer func(ctx context.Context, c *budget.Call) (*budget.Answer, error) // nil: grant
	settle func(list []budget.Settlement) error                              // nil: keep
	calls  []budget.Call
	kept   []budget.Settlement
	phase  int64
}

func (s *scripted) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	s.mu.Lock()
	s.calls = append(s.calls, *c)
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		return answer(ctx, c)
	}
	return s.grant(c), nil
}

// grant answers as an authority without limits.
func (s *scripted) grant(c *budget.Call) *budget.Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &budget.Answer{Seq: c.Seq}
	if s.leases == nil {
		s.leases = map[[2]string]budget.LeaseInfo{}
	}
	named := map[[2]string]bool{}
	at := func(id, window string) [2]string {
		if window == budget.WindowCurrent {
			window = "w.0"
		}
		k := [2]string{id, window}
		if _, ok := s.leases[k]; !ok {
			s.leases[k] = budget.LeaseInfo{Budget: id, Window: window, Limit: math.MaxInt64 / 8, Left: math.MaxInt64 / 16, EndsInMS: math.MaxInt64 / 2}
		}
		named[k] = true
		return k
	}
	for _, f := range c.Leases {
		k := at(f.Budget, f.Window)
		i := s.leases[k]
		i.Granted, i.Returned, i.Spent, i.Overrun = i.Granted+f.Want, f.Returned, f.Spent, f.Overrun
		s.leases[k] = i
	}
	for _, n := range c.Needs {
		for _, one := range n {
			k := at(one.Budget, one.Window)
			i := s.leases[k]
			i.Granted += one.Amount
			s.leases[k] = i
		}
	}
	for k := range named {
		i := s.leases[k]
		i.Phase = s.phase
		a.Leases = append(a.Leases, i)
	}
	for _, old := range c.Close {
		a.Closed = append(a.Closed, old.Session)
	}
	return a
}

func (s *scripted) Settle(ctx context.Context, list []budget.Settlement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settle != nil {
		if err := s.settle(list); err != nil {
			return err
		}
	}
	s.kept = append(s.kept, list...)
	return nil
}

func (s *scripted) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func open(t testing.TB, o budget.Options, records ...budget.Record) *budget.Ledger {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	l, err := budget.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if records[i].Mode == "" {
			records[i].Mode = budget.Enforce
		}
		if records[i].Revision == 0 {
			records[i].Revision = 1
		}
	}
	l.Upsert(records...)
	return l
}

func shut(t testing.TB, l *budget.Ledger) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Error(err)
	}
}

// three is a set of three budgets with live leases, and a worst case they bear.
func three(t testing.TB) (*budget.Ledger, *budget.Set, budget.Amounts) {
	l := open(t, budget.Options{Authority: &scripted{}},
		budget.Record{ID: "own", Unit: budget.USD, Window: budget.Day, Limit: 1 << 50},
		budget.Record{ID: "team", Unit: budget.Tokens, Window: budget.Month, Limit: 1 << 50},
		budget.Record{ID: "org", Unit: budget.USD, Window: budget.Total, Limit: 1 << 50})
	s := set(t, l, "own", "team", "org")
	big := budget.Amounts{USD: 1 << 48, Tokens: 1 << 48, Requests: 1 << 48}
	var h budget.Hold
	if err := l.Reserve(context.Background(), s, big, &h); err != nil {
		t.Fatal(err)
	}
	h.Settle(budget.Amounts{})
	return l, s, budget.Amounts{USD: 30_000, Tokens: 2000, Requests: 1}
}

func BenchmarkReserveInThreeBudgets(b *testing.B) {
	l, s, worst := three(b)
	defer shut(b, l)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		var h budget.Hold
		ctx := context.Background()
		for p.Next() {
			if err := l.Reserve(ctx, s, worst, &h); err != nil {
				b.Error(err)
				return
			}
			h.Settle(budget.Amounts{USD: 9_000, Tokens: 600, Requests: 1})
		}
	})
}
