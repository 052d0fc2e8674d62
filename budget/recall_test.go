package budget_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

func TestARecallIsHeardWheneverItComes(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(l *budget.Ledger, window string) // the answer that makes the lease
		after  func(l *budget.Ledger, window string)
		phase  int64 // of the answers
	}{
		{name: "of a lease not known yet",
			before: func(l *budget.Ledger, w string) { l.Recall(budget.Recall{Budget: "day", Window: w, Phase: 1}) }},
		{name: "overtaken by an older answer", phase: 2,
			before: func(l *budget.Ledger, w string) { l.Recall(budget.Recall{Budget: "day", Window: w, Phase: 3}) }},
		{name: "overtaken by an older recall",
			after: func(l *budget.Ledger, w string) {
				l.Recall(budget.Recall{Budget: "day", Window: w, Phase: 1})
				l.Recall(budget.Recall{Budget: "day", Window: w, Phase: 0})
			}},
		{name: "in an answer", phase: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{phase: test.phase}
				var l *budget.Ledger
				s.answer = func(_ context.Context, c *budget.Call) (*budget.Answer, error) {
					a := s.grant(c)
					if test.before != nil && c.Seq == 1 {
						test.before(l, "w.0")
					}
					if c.Seq == 1 {
						a.Leases[0].Granted += 500 // of a call whose answer was lost
					}
					return a, nil
				}
				l = open(t, budget.Options{Authority: s}, day)
				var h budget.Hold
				if _, err := reserve(l, set(t, l, "day"), usd(10), &h); err != nil {
					t.Fatal(err)
				}
				if test.after != nil {
					test.after(l, "w.0")
				}
				time.Sleep(50 * time.Millisecond)
				got := l.States()[0]
				if got.Idle != 0 || got.Held != 10 || got.Phase%2 == 0 {
					t.Errorf("%+v", got)
				}
				// Each later settle gives back within 20 ms, and what is held stays.
				h.Settle(usd(4))
				time.Sleep(15 * time.Millisecond)
				if got := l.States()[0]; got.Idle != 6 {
					t.Errorf("after 15 ms: %+v", got)
				}
				time.Sleep(10 * time.Millisecond)
				if got := l.States()[0]; got.Idle != 0 || got.Spent != 4 {
					t.Errorf("after 25 ms: %+v", got)
				}
				l.Kill()
			})
		})
	}
}

func TestARecallInFlightGoesRightAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{}
		slow := false
		var l *budget.Ledger
		s.answer = func(_ context.Context, c *budget.Call) (*budget.Answer, error) {
			s.mu.Lock()
			wait := slow
			s.mu.Unlock()
			if wait {
				time.Sleep(100 * time.Millisecond)
			}
			return s.grant(c), nil
		}
		l = open(t, budget.Options{Authority: s}, day)
		var h budget.Hold
		if _, err := reserve(l, set(t, l, "day"), usd(10), &h); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		s.mu.Lock()
		slow = true
		s.mu.Unlock()
		h.Settle(usd(10))
		var other budget.Hold
		go func() { _, _ = reserve(l, set(t, l, "day"), usd(1<<30), &other) }() // one is on its way
		time.Sleep(50 * time.Millisecond)
		l.Recall(budget.Recall{Budget: "day", Window: "w.0", Phase: 1})
		time.Sleep(65 * time.Millisecond)
		if got := l.States()[0]; got.Idle != 0 || got.Phase != 1 {
			t.Errorf("%+v", got)
		}
		time.Sleep(time.Second)
		l.Kill()
	})
}

func TestAMarkRunsAStepAheadAndNoMore(t *testing.T) {
	l := open(t, budget.Options{Authority: &scripted{}}, day)
	defer shut(t, l)
	b := set(t, l, "day")
	peak := int64(0)
	for i := range 2000 {
		var h budget.Hold
		if _, err := reserve(l, b, usd(int64(50+i%50)), &h); err != nil {
			t.Fatal(err)
		}
		s := l.States()[0]
		peak = max(peak, s.Spent+s.Held+s.Step)
		if s.Mark > peak || s.Mark < s.Spent+s.Held {
			t.Fatalf("%+v, at most %d", s, peak)
		}
		h.Settle(usd(int64(i % 50)))
		s = l.States()[0]
		peak = max(peak, s.Spent+s.Held+s.Step)
	}
}

// What is left is shown to callers: where it changed it is asked for, though nobody is in
// need.
func TestWhatIsLeftIsAskedForWhereItChanged(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(l *budget.Ledger)
		asks   int
	}{
		{"a top-up tells the phase that is known", func(l *budget.Ledger) { l.Recall(budget.Recall{Budget: "day", Window: "w.0"}) }, 1},
		{"another limit", func(l *budget.Ledger) {
			r := day
			r.Limit, r.Revision = 2000, 99
			l.Upsert(r)
		}, 1},
		{"the same limit", func(l *budget.Ledger) {
			r := day
			r.Revision = 99
			l.Upsert(r)
		}, 0},
		{"a window that is not known", func(l *budget.Ledger) { l.Recall(budget.Recall{Budget: "day", Window: "w.9"}) }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{}
				l := open(t, budget.Options{Authority: s}, day)
				var h budget.Hold
				if _, err := reserve(l, set(t, l, "day"), usd(10), &h); err != nil {
					t.Fatal(err)
				}
				time.Sleep(4 * time.Second) // between two heartbeats
				before := s.made()
				test.change(l)
				time.Sleep(time.Second)
				if got := s.made() - before; got != test.asks {
					t.Errorf("%d calls, want %d", got, test.asks)
				}
				l.Kill()
			})
		})
	}
}
