package controlplane

import (
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

func FuzzBudget(f *testing.F) {
	for _, s := range []string{
		`{"unit":"usd","window":"day","limit":"5.00"}`, `{"limit":"7.5"}`, `{"mode":"observe"}`, `{"applies_to":{"org":true}}`, `{}`,
		`{"applies_to":{"team_id":"red"},"limit":"0"}`, `{"applies_to":null,"unit":null}`, `{"unit":"tokens","window":"total","limit":"10"}`,
		`{"limit":"0.0000000001"}`, `{"applies_to":{"team_id":"red","org":true}}`, `{"limit":5}`, `{"window":"year"}`,
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, body string, fresh bool) {
		o, problem := readObject([]byte(body), nil)
		if problem != nil {
			return
		}
		before := budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Limit: 5, Mode: budget.Observe, AppliesTo: budget.AppliesTo{TeamID: "red"}}
		if fresh {
			before = budget.Record{ID: "b", Mode: budget.Enforce}
		}
		got := before
		if err := readBudget(&got, o, fresh); err != nil {
			return
		}
		raw, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var again budget.Record
		if err := json.Unmarshal(raw, &again); err != nil || again != got {
			t.Fatalf("%s made %s, which reads as %+v: %v", body, raw, again, err)
		}
		if !fresh && (got.Unit != before.Unit || got.Window != before.Window) {
			t.Fatalf("%s changed what is fixed: %s", body, raw)
		}
		if a := got.AppliesTo; a.Org && a.TeamID != "" {
			t.Fatalf("%s reaches twice: %s", body, raw)
		}
		for key, same := range map[string]bool{"limit": got.Limit == before.Limit, "mode": got.Mode == before.Mode, "applies_to": got.AppliesTo == before.AppliesTo} {
			if _, named := o[key]; !named && !same {
				t.Fatalf("%s changed %s, which it does not name", body, key)
			}
		}
		twice := got
		if err := readBudget(&twice, o, false); err != nil || twice != got {
			t.Fatalf("%s twice is not what it is once: %v", body, err)
		}
	})
}

func FuzzUsageQuery(f *testing.F) {
	for _, s := range []string{"", "token", "team_id,day", "none", "2026-11-24", "2026-11-24T23:59:59-05:00", cursorOf(store.UsageRow{TokenID: "t", Day: "2026-11-24"}), "WzFd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if by, err := groups(s); err == nil && len(by) > len(dimensions) {
			t.Fatalf("%q groups by %q", s, by)
		}
		if at, err := day(params{values: url.Values{"from": {s}}}, "from"); err == nil && !at.Equal(at.UTC().Truncate(24*time.Hour)) {
			t.Fatalf("%q is %s", s, at)
		}
		if row, err := afterRow(s); err == nil {
			if again, err := afterRow(cursorOf(*row)); err != nil || *again != *row {
				t.Fatalf("%q is %+v, written %+v: %v", s, row, again, err)
			}
		}
	})
}
