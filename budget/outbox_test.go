package budget_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keeptrusts/gateway/budget"
)

func TestSettlementsAreToldUntilTheyAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told [][]budget.Settlement
		down := true
		s := &scripted{settle: func(list []budget.Settlement) error {
			told = append(told, list)
			if down {
				return errors.New("down")
			}
			return nil
		}}
		l := open(t, budget.Options{Authority: s})
		at := time.Now()
		for i := range 10 {
			l.Note(&budget.Settlement{ID: fmt.Sprint("plain", i), At: at, TokenID: "tok", Model: "m", Target: "a", Requests: 1, Input: 5, Cost: 2}, nil)
		}
		l.Note(&budget.Settlement{ID: "one", At: at, TokenID: "tok", Model: "m", Target: "b", Requests: 1}, nil)
		l.Note(&budget.Settlement{ID: "charged", At: at, TokenID: "tok", Model: "m", Target: "a", Requests: 1, Budgets: []budget.Charge{{Budget: "day", Amount: 2}}}, nil)
		l.Note(&budget.Settlement{ID: "charged again", At: at, TokenID: "tok", Model: "m", Target: "a", Requests: 1, Budgets: []budget.Charge{{Budget: "day", Amount: 2}}}, nil)
		time.Sleep(1100 * time.Millisecond)
		s.mu.Lock()
		if len(told) != 1 {
			t.Fatalf("told %d times within a second", len(told))
		}
		s.mu.Unlock()
		l.Note(&budget.Settlement{ID: "later", At: at, TokenID: "other", Model: "m", Requests: 1}, nil)
		time.Sleep(time.Second)
		s.mu.Lock()
		down = false
		s.mu.Unlock()
		time.Sleep(4 * time.Second)
		s.mu.Lock()
		defer shut(t, l)
		defer s.mu.Unlock()
		for i := range told[1 : len(told)-1] {
			if fmt.Sprint(told[i]) != fmt.Sprint(told[0]) {
				t.Errorf("told again as %+v, at first %+v", told[i], told[0])
			}
		}
		ids := map[string]budget.Settlement{}
		for _, one := range s.kept {
			if strings.HasPrefix(one.ID, "sum_") {
				ids["sum"] = one
			} else {
				ids[one.ID] = one
			}
		}
		if len(s.kept) != 5 || ids["sum"].Requests != 10 || ids["sum"].Input != 50 || ids["sum"].Cost != 20 {
			t.Errorf("kept %+v", s.kept)
		}
		for _, id := range []string{"one", "charged", "charged again", "later"} {
			if ids[id].Requests != 1 {
				t.Errorf("%s: %+v", id, ids[id])
			}
		}
	})
}

func TestTheOutboxIsBoundedAndEmptiedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		s := &scripted{settle: func([]budget.Settlement) error {
			if down {
				return errors.New("down")
			}
			return nil
		}}
		registry := prometheus.NewRegistry()
		l := open(t, budget.Options{Authority: s, Registerer: registry})
		charge := []budget.Charge{{Budget: "day", Amount: 2}}
		for i := range 50_010 {
			l.Note(&budget.Settlement{ID: fmt.Sprint(i), Requests: 1, Budgets: charge}, nil)
		}
		if got := scrape(t, registry); got["settlements_pending"] != 50_000 || got["settlements_dropped_total"] != 10 {
			t.Errorf("%v pending, %v dropped", got["settlements_pending"], got["settlements_dropped_total"])
		}
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.mu.Lock()
		down = false
		s.mu.Unlock()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
		if len(s.kept) != 50_000 {
			t.Errorf("%d kept", len(s.kept))
		}
	})
}

// scrape reads every sample, by name without the prefix and by label values.
func scrape(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		name, ok := strings.CutPrefix(f.GetName(), "keeptrusts_gateway_")
		if !ok {
			t.Errorf("a metric named %s", f.GetName())
		}
		for _, m := range f.GetMetric() {
			key := name
			for _, label := range m.GetLabel() {
				key += " " + label.GetValue()
			}
			got[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

func TestEveryMetricIsProduced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answer: says(budget.LeaseInfo{Phase: 1, Gone: true, Limit: 9e9, Left: 5e9, Settled: 4e9})}
		registry := prometheus.NewRegistry()
		l := open(t, budget.Options{Authority: s, Registerer: registry}, budget.Record{ID: "day", Unit: budget.USD, Window: budget.Day, Limit: 9e9})
		b := set(t, l, "day")
		var h budget.Hold
		_, _ = reserve(l, b, usd(6e9), &h) // spent
		s.mu.Lock()
		s.answer = says(budget.LeaseInfo{Phase: 1, Gone: true, Limit: 9e9, Left: 1e9, Settled: 1e9})
		s.mu.Unlock()
		time.Sleep(time.Second)
		_, _ = reserve(l, b, usd(2e9), &h) // held
		s.mu.Lock()
		s.answer = says(budget.LeaseInfo{Phase: 1, Granted: 3e9, Limit: 9e9, Left: 1e9, Settled: 1e9})
		s.mu.Unlock()
		time.Sleep(time.Second)
		if _, err := reserve(l, b, usd(3e9), &h); err != nil {
			t.Fatal(err)
		}
		held := scrape(t, registry)
		h.Settle(usd(45e8))
		s.mu.Lock()
		s.answer = func(context.Context, *budget.Call) (*budget.Answer, error) { return nil, errors.New("down") }
		s.mu.Unlock()
		time.Sleep(4 * time.Second)
		s.mu.Lock()
		s.answer = func(context.Context, *budget.Call) (*budget.Answer, error) { return nil, budget.ErrClosed }
		s.mu.Unlock()
		time.Sleep(4 * time.Second)
		after := scrape(t, registry)
		for name, want := range map[string]float64{
			"budget_left day": 1, "budget_held day": 3, "budget_holds": 1,
			"budget_denied_total day budget_exceeded": 1, "budget_denied_total day budget_held": 1,
			"journal_lost_total": 0, "settlements_pending": 0, "settlements_dropped_total": 0,
		} {
			if got, ok := held[name]; !ok || got != want {
				t.Errorf("%s: %v, %v", name, got, ok)
			}
		}
		if after["budget_overrun_total day"] != 1.5 || after["budget_holds"] != 0 || after["budget_held day"] != 0 {
			t.Errorf("%v", after)
		}
		for _, result := range []string{"answered", "missed", "refused"} {
			if after["lease_calls_total "+result] == 0 {
				t.Errorf("no call was %s", result)
			}
		}
		l.Kill()
	})
}

func TestNothingIsAddedToASumThatIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{settle: func([]budget.Settlement) error { return nil }}
		l := open(t, budget.Options{Authority: s})
		defer shut(t, l)
		var to budget.Sum
		want := int64(0)
		for round := range 4 {
			for i := range 6 {
				model := "m"
				if i == 3 {
					model = "another"
				}
				l.Note(&budget.Settlement{ID: fmt.Sprint(round, i), At: time.Now(), TokenID: "tok", Model: model, Requests: 1}, &to)
				want++
			}
			time.Sleep(3 * time.Second)
			s.mu.Lock()
			got, another := int64(0), int64(0)
			for _, k := range s.kept {
				got += k.Requests
				if k.Model == "another" {
					another += k.Requests
				}
			}
			s.mu.Unlock()
			if got != want || another != int64(round+1) {
				t.Errorf("after round %d: %d told, %d of another model; want %d", round, got, another, want)
			}
		}
	})
}

func TestASumOfOneHasAnID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{settle: func([]budget.Settlement) error { return nil }}
		l := open(t, budget.Options{Authority: s})
		const tokens = 600
		for i := range tokens {
			l.Note(&budget.Settlement{At: time.Now(), TokenID: fmt.Sprint(i), Requests: 1}, nil)
		}
		time.Sleep(3500 * time.Millisecond)
		ids := map[string]bool{}
		s.mu.Lock()
		for _, k := range s.kept {
			ids[k.ID] = true
		}
		s.mu.Unlock()
		if len(ids) != tokens || ids[""] {
			t.Errorf("%d ids of %d settlements, told in turns", len(ids), tokens)
		}
		shut(t, l)
	})
}
