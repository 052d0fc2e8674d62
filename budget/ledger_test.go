package budget_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keeptrusts/gateway/budget"
)

var day = budget.Record{ID: "day", Unit: budget.USD, Window: budget.Day, Limit: 1000}

func usd(n int64) budget.Amounts { return budget.Amounts{USD: n} }

// reserve reserves and says how long it took.
func reserve(l *budget.Ledger, s *budget.Set, worst budget.Amounts, h *budget.Hold) (time.Duration, error) {
	begun := time.Now()
	err := l.Reserve(context.Background(), s, worst, h)
	return time.Since(begun), err
}

// says answers every call with one state of the budget "day".
func says(info budget.LeaseInfo) func(context.Context, *budget.Call) (*budget.Answer, error) {
	info.Budget, info.Window = "day", "w.0"
	if info.EndsInMS == 0 {
		info.EndsInMS = 3_600_000
	}
	return func(_ context.Context, c *budget.Call) (*budget.Answer, error) {
		a := &budget.Answer{Seq: c.Seq, Leases: []budget.LeaseInfo{info}}
		for _, one := range c.Close {
			a.Closed = append(a.Closed, one.Session)
		}
		return a, nil
	}
}

func TestANeedEndsInOneOfFourWays(t *testing.T) {
	silent := func(ctx context.Context, _ *budget.Call) (*budget.Answer, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	refused := func(context.Context, *budget.Call) (*budget.Answer, error) { return nil, errors.New("refused") }
	for _, test := range []struct {
		name   string
		answer func(context.Context, *budget.Call) (*budget.Answer, error)
		away   bool
		err    error
		held   bool // where it is denied
		after  time.Duration
		calls  int // at most
	}{
		{name: "granted", after: 5 * time.Millisecond, calls: 3},
		{name: "gone and spent", answer: says(budget.LeaseInfo{Phase: 1, Gone: true, Limit: 1000, Left: 5, Settled: 995}), err: &budget.Denied{}, calls: 2},
		{name: "gone and held", answer: says(budget.LeaseInfo{Phase: 1, Gone: true, Limit: 1000, Left: 5, Settled: 900}), err: &budget.Denied{}, held: true, calls: 2},
		{name: "not gone", answer: says(budget.LeaseInfo{Phase: 1, Limit: 1000, Left: 5, Settled: 995}), err: &budget.Denied{}, held: true, after: 750 * time.Millisecond, calls: 33},
		{name: "gone, but it would be borne", answer: says(budget.LeaseInfo{Phase: 1, Gone: true, Limit: 1000, Left: 50}), err: &budget.Denied{}, held: true, after: 750 * time.Millisecond, calls: 33},
		{name: "not answered", answer: silent, err: budget.ErrUnavailable, after: time.Second, calls: 3},
		{name: "answered with an error", answer: refused, err: budget.ErrUnavailable, after: time.Second, calls: 4},
		{name: "known to be away", answer: refused, away: true, err: budget.ErrUnavailable, calls: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{answer: test.answer}
				l := open(t, budget.Options{Authority: s, Away: func() bool { return test.away }}, day)
				defer l.Kill()
				var h budget.Hold
				after, err := reserve(l, set(t, l, "day"), usd(20), &h)
				var d *budget.Denied
				switch {
				case errors.As(err, &d):
					if _, want := test.err.(*budget.Denied); !want || d.Held != test.held || d.Need != 20 || d.Record.ID != "day" || d.ReopensIn <= 0 {
						t.Errorf("%+v", d)
					}
				case !errors.Is(err, test.err):
					t.Errorf("%v", err)
				}
				if h.Open() != (err == nil) || after < test.after-5*time.Millisecond || after > test.after+5*time.Millisecond || s.made() > test.calls {
					t.Errorf("open %v after %v and %d calls", h.Open(), after, s.made())
				}
			})
		})
	}
}

func TestADenialIsKeptForHalfASecondOrUntilThereIsNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answer: says(budget.LeaseInfo{Phase: 1, Gone: true, Limit: 1000, Left: 15, Settled: 985})}
		l := open(t, budget.Options{Authority: s}, day)
		defer l.Kill()
		b := set(t, l, "day")
		asked := func(amount int64) int {
			before := s.made()
			var h budget.Hold
			if _, err := reserve(l, b, usd(amount), &h); err == nil {
				t.Errorf("%d granted", amount)
			}
			return s.made() - before
		}
		for i, step := range []struct {
			before func()
			amount int64
			calls  int
		}{
			{amount: 20, calls: 1},
			{amount: 20, calls: 0},
			{amount: 500, calls: 0}, // larger
			{amount: 16, calls: 1},  // smaller
			{before: func() { time.Sleep(505 * time.Millisecond) }, amount: 20, calls: 1},
			{before: func() { l.Recall(budget.Recall{Budget: "day", Window: "w.0", Phase: 1}) }, amount: 20, calls: 1},
			{before: func() { r := day; r.Revision, r.Limit, r.Mode = 2, 1001, budget.Enforce; l.Upsert(r) }, amount: 20, calls: 1},
		} {
			if step.before != nil {
				step.before()
			}
			if n := asked(step.amount); n < step.calls || step.calls == 0 && n > 0 {
				t.Errorf("step %d: %d calls, want %d", i, n, step.calls)
			}
		}
		if d := l.Spent(b, usd(20)); d == nil || d.Left != 15 || d.Held {
			t.Errorf("%+v", d)
		}
		if d := l.Spent(b, usd(3)); d != nil {
			t.Errorf("%+v", d)
		}
	})
}

func TestANeedBeyondTheLimitDoesNotLeaveTheBudgetShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.put(day)
		l := p.start("gw_1", t.TempDir())
		defer p.end(l)
		b := set(t, l, "day")
		var h, large budget.Hold
		if _, err := reserve(l, b, usd(10), &h); err != nil {
			t.Fatal(err)
		}
		var d *budget.Denied
		if took, err := reserve(l, b, usd(1001), &large); !errors.As(err, &d) || d.Held || took > 0 {
			t.Errorf("%v after %v", err, took)
		}
		if p := l.States()[0].Phase; p%2 != 0 {
			t.Errorf("phase %d", p)
		}
		h.Settle(usd(10))
	})
}

func TestAClosedSessionAdmitsNothingMoreAndItsHoldsSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{}
		dir := t.TempDir()
		l := open(t, budget.Options{Authority: s, Dir: dir}, day)
		b := set(t, l, "day")
		old := l.Session()
		var h, next budget.Hold
		if _, err := reserve(l, b, usd(20), &h); err != nil {
			t.Fatal(err)
		}
		var closings []budget.Closing
		s.mu.Lock()
		s.leases = nil
		s.answer = func(_ context.Context, c *budget.Call) (*budget.Answer, error) {
			s.mu.Lock()
			closings = append(closings, c.Close...)
			s.mu.Unlock()
			if c.Session == old {
				return nil, budget.ErrClosed
			}
			return s.grant(c), nil
		}
		s.mu.Unlock()
		time.Sleep(4 * time.Second) // a report or a heartbeat meets it
		if l.Session() == old {
			t.Fatal("the session goes on")
		}
		if err := h.Extend(context.Background(), usd(1)); !errors.Is(err, budget.ErrUnavailable) {
			t.Errorf("extended on a closed session: %v", err)
		}
		if _, err := reserve(l, b, usd(20), &next); err != nil || next.Parts()[0].Session == old {
			t.Errorf("%v on %+v", err, next.Parts())
		}
		h.Settle(usd(33))
		time.Sleep(3 * time.Second)
		s.mu.Lock()
		if len(closings) != 1 || closings[0].Session != old || closings[0].Lost || closings[0].Leases[0].Mark+closings[0].Leases[0].Overrun != 33 {
			t.Errorf("%+v", closings)
		}
		s.mu.Unlock()
		if _, err := os.Stat(filepath.Join(dir, old+".journal")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old journal: %v", err)
		}
		next.Settle(usd(1))
		shut(t, l)
	})
}

func TestLeasesServeUntilTheyAreTooStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{}
		l := open(t, budget.Options{Authority: s, MaxStale: 30 * time.Second}, day)
		defer l.Kill()
		b := set(t, l, "day")
		served := func() error {
			var h budget.Hold
			_, err := reserve(l, b, usd(10), &h)
			h.Settle(budget.Amounts{})
			return err
		}
		if err := served(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // for what it wishes
		s.mu.Lock()
		s.answer = func(context.Context, *budget.Call) (*budget.Answer, error) { return nil, errors.New("down") }
		s.mu.Unlock()
		time.Sleep(20 * time.Second)
		if err := served(); err != nil {
			t.Errorf("after 20 s: %v", err)
		}
		time.Sleep(11 * time.Second)
		if err := served(); !errors.Is(err, budget.ErrUnavailable) {
			t.Errorf("after 31 s: %v", err)
		}
	})
}

func TestACanceledRequestHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answer: says(budget.LeaseInfo{Limit: 1000, Left: 5})}
		l := open(t, budget.Options{Authority: s}, day)
		defer l.Kill()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		var h budget.Hold
		if err := l.Reserve(ctx, set(t, l, "day"), usd(20), &h); !errors.Is(err, context.DeadlineExceeded) || h.Open() || l.Waiting() != 0 {
			t.Errorf("%v, open %v, %d wait", err, h.Open(), l.Waiting())
		}
	})
}

func TestAHoldSettlesOnceAndIsReadyAgain(t *testing.T) {
	l := open(t, budget.Options{Authority: &scripted{}}, day,
		budget.Record{ID: "seen", Unit: budget.Tokens, Window: budget.Day, Limit: 1, Mode: budget.Observe})
	defer shut(t, l)
	b := set(t, l, "day", "seen")
	var h budget.Hold
	for range 3 {
		if _, err := reserve(l, b, budget.Amounts{USD: 20, Tokens: 9}, &h); err != nil {
			t.Fatal(err)
		}
		if err := h.Extend(context.Background(), usd(5)); err != nil || h.Amounts().USD != 25 {
			t.Fatalf("%v, %+v", err, h.Amounts())
		}
		used := budget.Amounts{USD: 7, Tokens: 9}
		h.Settle(used)
		h.Settle(usd(1 << 40))
		want := []budget.Charge{{Budget: "day", Window: "w.0", Amount: 7}, {Budget: "seen", Amount: 9}}
		if got := h.Charges(nil, used); h.Open() || !slices.Equal(got, want) {
			t.Errorf("open %v, %+v", h.Open(), got)
		}
	}
	if s := l.States(); len(s) != 1 || s[0].Held != 0 || s[0].Spent != 21 || s[0].Overrun != 0 {
		t.Errorf("%+v", s)
	}
	var empty budget.Hold
	if err := l.Reserve(context.Background(), nil, usd(5), &empty); err != nil || !empty.Open() || empty.Amounts() != usd(5) {
		t.Errorf("without a budget: %v, %+v", err, empty.Amounts())
	}
	if err := empty.Extend(context.Background(), usd(2)); err != nil || empty.Amounts() != usd(7) {
		t.Errorf("without a budget: %v, %+v", err, empty.Amounts())
	}
	empty.Settle(usd(9))
	new(budget.Hold).Settle(usd(1))
}

func TestASettleMayMeetAnExtension(t *testing.T) {
	l := open(t, budget.Options{Authority: &scripted{}}, day)
	defer shut(t, l)
	b := set(t, l, "day")
	for i := range 300 {
		var h budget.Hold
		if _, err := reserve(l, b, usd(10), &h); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		// Each extension is larger than all that is idle, so that some wait.
		wg.Go(func() { _ = h.Extend(context.Background(), usd(int64(1000*(i+1)))) })
		wg.Go(func() { h.Settle(usd(3)) })
		wg.Wait()
		if h.Open() {
			t.Fatal("open")
		}
	}
	if s := l.States(); s[0].Held != 0 || s[0].Waiting != 0 || s[0].Spent != 900 {
		t.Errorf("%+v", s)
	}
}

func TestUsedAboveTheHoldComesOutOfWhatIsFreeAndThenOverruns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.put(day)
		l := p.start("gw_1", t.TempDir())
		b := set(t, l, "day")
		var h budget.Hold
		if _, err := reserve(l, b, usd(100), &h); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		free := l.States()[0].Free
		h.Settle(usd(5000))
		if s := l.States()[0]; free <= 0 || s.Spent != 100+free || s.Overrun != 4900-free || s.Free != 0 {
			t.Errorf("free %d: %+v", free, s)
		}
		p.end(l)
		if got := p.standing("day"); got.Settled != 5000 || got.Overrun != 4900-free || got.Left != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestObservedBudgetsAndThoseOfAmountZeroAskNobody(t *testing.T) {
	s := &scripted{}
	l := open(t, budget.Options{Authority: s}, day,
		budget.Record{ID: "seen", Unit: budget.USD, Window: budget.Day, Limit: 1, Mode: budget.Observe})
	b := set(t, l, "seen")
	var h, free budget.Hold
	if _, err := reserve(l, b, usd(1<<40), &h); err != nil || b.Empty() || b.Enforces(budget.USD) {
		t.Error(err)
	}
	if _, err := reserve(l, set(t, l, "day"), budget.Amounts{Tokens: 5}, &free); err != nil {
		t.Error(err)
	}
	h.Settle(usd(5))
	free.Settle(budget.Amounts{})
	shut(t, l)
	if s.made() != 0 {
		t.Errorf("%d calls", s.made())
	}
}

func TestASetIsOfThoseNamedAndThoseThatApply(t *testing.T) {
	l := open(t, budget.Options{Authority: &scripted{}}, day,
		budget.Record{ID: "team", Unit: budget.USD, Window: budget.Day, Limit: 1, AppliesTo: budget.AppliesTo{TeamID: "red"}},
		budget.Record{ID: "org", Unit: budget.Tokens, Window: budget.Day, Limit: 1, AppliesTo: budget.AppliesTo{Org: true}},
		budget.Record{ID: "strange", Unit: "euro", Window: budget.Day, Limit: 1})
	defer shut(t, l)
	for _, test := range []struct {
		ids  []string
		team string
		want string
	}{
		{nil, "", "org"}, {nil, "red", "org team"}, {[]string{"day"}, "blue", "day org"}, {[]string{"team", "day", "team"}, "red", "team day org"},
	} {
		b, err := l.Set(test.ids, test.team)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range l.Standings(b) {
			got = append(got, s.ID)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%v of %q: %v", test.ids, test.team, got)
		}
	}
	var unknown *budget.UnknownError
	if _, err := l.Set([]string{"day", "absent"}, ""); !errors.As(err, &unknown) || unknown.ID != "absent" {
		t.Error(err)
	}
	l.Recall(budget.Recall{Budget: "absent", Window: "w.0", Phase: 1})
	if _, err := l.Set([]string{"absent"}, ""); !errors.As(err, &unknown) {
		t.Errorf("known by its recall: %v", err)
	}
	var h budget.Hold
	var d *budget.Denied
	if _, err := reserve(l, set(t, l, "strange"), budget.Amounts{}, &h); !errors.As(err, &d) || d.Record.ID != "strange" {
		t.Errorf("a record of no known unit: %v", err)
	}
}

func TestTheGenerationMovesWhenASetMayBeOutOfDate(t *testing.T) {
	l := open(t, budget.Options{Authority: &scripted{}}, day)
	defer shut(t, l)
	b := set(t, l, "day")
	r := day
	for i, step := range []struct {
		change func()
		moves  bool
	}{
		{func() { r.Revision, r.Limit, r.Mode = 2, 7, budget.Enforce }, false},
		{func() { r.Revision, r.Mode = 3, budget.Observe }, true},
		{func() { r.Revision, r.Mode = 2, budget.Enforce }, false}, // an older revision
		{func() { r.Revision, r.AppliesTo.Org = 4, true }, true},
		{func() { r.ID, r.Revision = "other", 1 }, true},
	} {
		before := l.Generation()
		step.change()
		l.Upsert(r)
		if moved := l.Generation() != before; moved != step.moves {
			t.Errorf("step %d: moved %v", i, moved)
		}
	}
	if got := l.Standings(b)[0]; got.Limit != 7 || !b.Enforces(budget.USD) {
		t.Errorf("%+v", got)
	}
}

func TestTheNextWindowIsLeasedInTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.put(budget.Record{ID: "hour", Unit: budget.USD, Window: budget.Hour, Limit: 1000})
		time.Sleep(time.Hour - 3*time.Second)
		l := p.start("gw_1", t.TempDir())
		b := set(t, l, "hour")
		var straddles, next budget.Hold
		if _, err := reserve(l, b, usd(10), &straddles); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Second + time.Millisecond)
		if took, err := reserve(l, b, usd(10), &next); err != nil || took > 0 {
			t.Errorf("%v after %v", err, took)
		}
		straddles.Settle(usd(4))
		next.Settle(usd(9))
		if a, b := straddles.Charges(nil, usd(4))[0], next.Charges(nil, usd(9))[0]; a.Window == b.Window {
			t.Errorf("%+v, %+v", a, b)
		}
		time.Sleep(3 * time.Second)
		for _, s := range l.States() {
			if s.Window == "2000-01-01T00.0" && (s.Idle != 0 || s.Spent != 4) {
				t.Errorf("the window that ended: %+v", s)
			}
		}
		p.end(l)
		if got := p.standing("hour"); got.Settled != 9 || got.Leased != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestTheHeaderIsThereBeforeTheFirstCallAndAnUnansweredEndIsReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "journals")
		s := &scripted{}
		s.answer = func(_ context.Context, c *budget.Call) (*budget.Answer, error) {
			if _, err := budget.ReadJournal(dir, c.Session); err != nil {
				t.Errorf("at a call: %v", err)
			}
			return s.grant(c), nil
		}
		l := open(t, budget.Options{Authority: s, Dir: dir}, day)
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		var h budget.Hold
		if _, err := reserve(l, set(t, l, "day"), usd(10), &h); err != nil {
			t.Fatal(err)
		}
		h.Settle(usd(3))
		s.mu.Lock()
		s.answer = func(context.Context, *budget.Call) (*budget.Answer, error) { return nil, errors.New("down") }
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.Close(ctx); err == nil {
			t.Error("closed without an answer")
		}
		if _, err := reserve(l, set(t, l, "day"), usd(10), &h); !errors.Is(err, budget.ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
		s.mu.Lock()
		s.answer, s.calls = nil, nil
		s.mu.Unlock()
		registry := prometheus.NewRegistry()
		again := open(t, budget.Options{Authority: s, Dir: dir, Registerer: registry}, day)
		time.Sleep(time.Second)
		s.mu.Lock()
		got := s.calls[0].Close
		s.mu.Unlock()
		if len(got) != 1 || got[0].Session != l.Session() || got[0].Lost || got[0].Leases[0].Mark < 10 {
			t.Errorf("%+v", got)
		}
		shut(t, again)
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	})
}

func TestATimeoutDoublesAtEachMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var took []time.Duration
		s := &scripted{answer: func(ctx context.Context, _ *budget.Call) (*budget.Answer, error) {
			begun := time.Now()
			<-ctx.Done()
			took = append(took, time.Since(begun))
			return nil, ctx.Err()
		}}
		l := open(t, budget.Options{Authority: s}, day)
		var h budget.Hold
		_, _ = reserve(l, set(t, l, "day"), usd(10), &h)
		time.Sleep(30 * time.Second)
		l.Kill()
		for i, want := range []time.Duration{250, 500, 1000, 2000, 4000, 4000} {
			if want *= time.Millisecond; took[i] < want || took[i] > want*5/4 {
				t.Errorf("call %d: %v", i, took[i])
			}
		}
	})
}

func TestWhatIsLeftIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t)
		p.put(budget.Record{ID: "wide", Unit: budget.USD, Window: budget.Total, Limit: 5_000_000_000})
		p.put(budget.Record{ID: "tight", Unit: budget.USD, Window: budget.Day, Limit: 2_000_000_000})
		p.put(budget.Record{ID: "seen", Unit: budget.Tokens, Window: budget.Day, Limit: 1, Mode: budget.Observe})
		l := p.start("gw_1", t.TempDir())
		b := set(t, l, "wide", "tight", "seen")
		if got := string(l.AppendRemaining(nil, b)); got != "wide=5" {
			t.Errorf("before anything is known: %q", got)
		}
		var h budget.Hold
		if _, err := reserve(l, b, usd(500_000_000), &h); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := string(l.AppendRemaining([]byte("x: "), b)); got != "x: tight=1.5" {
			t.Errorf("%q", got)
		}
		if got := l.Headroom(b); got.USD != 1_500_000_000 || got.Tokens < 1<<62 || got.Requests < 1<<62 {
			t.Errorf("%+v", got)
		}
		tomorrow := time.Now().Truncate(24 * time.Hour).Add(24 * time.Hour)
		for i, want := range []budget.Standing{
			{ID: "wide", Unit: budget.USD, Window: budget.Total, Limit: 5_000_000_000, Left: 4_500_000_000},
			{ID: "tight", Unit: budget.USD, Window: budget.Day, Limit: 2_000_000_000, Left: 1_500_000_000, ReopensAt: tomorrow},
			{ID: "seen", Unit: budget.Tokens, Window: budget.Day, Limit: 1, Left: 1, ReopensAt: tomorrow},
		} {
			got := l.Standings(b)[i]
			if d := got.ReopensAt.Sub(want.ReopensAt); got.ReopensAt.IsZero() != want.ReopensAt.IsZero() || d > time.Second || d < -time.Second {
				t.Errorf("%s reopens at %v", got.ID, got.ReopensAt)
			}
			got.ReopensAt, want.ReopensAt = time.Time{}, time.Time{}
			if got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
		h.Settle(usd(1))
		p.end(l)
	})
}

// A profile that could not be loaded makes the control plane known to be away, until
// another is asked for; the watch may bring them all meanwhile. So the ledger finds out
// by itself whether it is, once a second, and nobody waits for that.
func TestWhoIsSaidToBeAwayIsBelievedToAnswerOnceItDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		var answers atomic.Bool
		granted := int64(0)
		s := &scripted{}
		s.answer = func(_ context.Context, c *budget.Call) (*budget.Answer, error) {
			if !answers.Load() {
				return nil, down
			}
			a := &budget.Answer{Seq: c.Seq}
			for _, n := range c.Needs {
				granted += n[0].Amount
			}
			if granted > 0 {
				a.Leases = append(a.Leases, budget.LeaseInfo{Budget: "day", Window: "w.0", Granted: granted, Limit: 1000, EndsInMS: 3_600_000})
			}
			return a, nil
		}
		var away atomic.Bool
		l := open(t, budget.Options{Authority: s, Away: away.Load}, day)
		defer l.Kill()
		b := set(t, l, "day")
		ask := func() (time.Duration, error) {
			var h budget.Hold
			return reserve(l, b, usd(20), &h)
		}
		away.Store(true)
		before := s.made()
		for range 100 { // 10 s
			if after, err := ask(); !errors.Is(err, budget.ErrUnavailable) || after != 0 {
				t.Fatalf("%v after %v", err, after)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := s.made() - before; n < 9 || n > 12 {
			t.Errorf("asked %d times in 10 s", n)
		}
		answers.Store(true)
		time.Sleep(time.Second)
		ask()
		time.Sleep(time.Second)
		if _, err := ask(); err != nil {
			t.Errorf("it answers, and still: %v", err)
		}
		before = s.made()
		time.Sleep(10 * time.Second)
		if n := s.made() - before; n > 6 {
			t.Errorf("asked %d times in 10 s, and nobody wants to know", n)
		}
		// And when it is gone again, the first who needs it finds out.
		answers.Store(false)
		if _, err := ask(); !errors.Is(err, budget.ErrUnavailable) {
			t.Errorf("gone, and %v", err)
		}
		if after, err := ask(); !errors.Is(err, budget.ErrUnavailable) || after != 0 {
			t.Errorf("%v after %v", err, after)
		}
		// What is said anew counts anew, whatever was answered before.
		answers.Store(true)
		away.Store(false)
		time.Sleep(2 * time.Second)
		if _, err := ask(); err != nil {
			t.Errorf("back, and %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		away.Store(true)
		if after, err := ask(); !errors.Is(err, budget.ErrUnavailable) || after != 0 {
			t.Errorf("said to be away: %v after %v", err, after)
		}
	})
}
