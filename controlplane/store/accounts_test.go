package store

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

func (b *bank) settle(list ...budget.Settlement) {
	b.Helper()
	if err := b.s.Settle(b.Context(), "org", "gw", list); err != nil {
		b.Fatal(err)
	}
}

func spent(id string, amount int64, budgets ...string) budget.Settlement {
	n := budget.Settlement{ID: id, At: noon, TokenID: "tok_1", TeamID: "red", Model: "m", Target: "t", Requests: 1, Input: amount, Cost: 10 * amount}
	for _, b := range budgets {
		n.Budgets = append(n.Budgets, budget.Charge{Budget: b, Amount: amount})
	}
	return n
}

func (b *bank) usage(f UsageFilter) string {
	b.Helper()
	f.OrgID = "org"
	f.Limit = max(f.Limit, 1) + 99*(1-min(f.Limit, 1))
	list, err := b.s.Usage(b.Context(), f)
	if err != nil {
		b.Fatal(err)
	}
	var lines []string
	for _, r := range list {
		var keys []string
		for _, by := range f.By {
			keys = append(keys, *r.key(by))
		}
		lines = append(lines, fmt.Sprintf("%s %d %d %d", strings.Join(keys, " "), r.Requests, r.Input, r.Cost))
	}
	return strings.Join(lines, "; ")
}

var accounts = []scenario{
	onBank("a budget comes back as it was put in, and is found by what it applies to", func(b *bank) {
		b.budget("c", 1)
		b.budget("a", 2, func(n *Budget) { n.Unit, n.Window, n.AppliesTo.TeamID = budget.USD, budget.Total, "red" })
		b.budget("b", 3, func(n *Budget) { n.Mode, n.AppliesTo.Org = budget.Observe, true })
		b.budget("a", 9, func(n *Budget) { n.OrgID = "other"; n.AppliesTo.Org = true })
		n, err := b.s.Budget(b.Context(), "org", "a")
		want := Budget{"org", budget.Record{ID: "a", Unit: budget.USD, Window: budget.Total, Limit: 2, Mode: budget.Enforce,
			AppliesTo: budget.AppliesTo{TeamID: "red"}, Revision: 2}, noon}
		if err != nil || n != want {
			b.Errorf("got %+v %v, want %+v", n, err, want)
		}
		for _, tt := range []struct {
			ids        []string
			team, want string
		}{
			{nil, "", "b"}, {nil, "red", "a b"}, {nil, "blue", "b"}, {[]string{"c", "none", "b", "c"}, "red", "a b c"}, {[]string{"c"}, "", "b c"},
		} {
			list, err := b.s.BudgetsOf(b.Context(), "org", tt.ids, tt.team)
			var got []string
			for _, r := range list {
				got = append(got, r.ID)
			}
			if err != nil || strings.Join(got, " ") != tt.want || list == nil {
				b.Errorf("%v of team %q: %v %v, want %s", tt.ids, tt.team, got, err, tt.want)
			}
		}
		pages := func(org string, at func(*Budget) string) string {
			var got []string
			for after := ""; ; {
				list, err := b.s.Budgets(b.Context(), org, after, 1)
				if err != nil || len(list) > 1 {
					b.Fatal(list, err)
				}
				if len(list) == 0 {
					return strings.Join(got, " ")
				}
				got = append(got, list[0].OrgID+"/"+list[0].ID)
				after = at(&list[0])
			}
		}
		if got := pages("org", func(n *Budget) string { return n.ID }); got != "org/a org/b org/c" {
			b.Errorf("of an org: %s", got)
		}
		if got := pages("", (*Budget).Place); got != "org/a other/a org/b org/c" {
			b.Errorf("of all: %s", got)
		}
	}),
	onBank("a settlement counts once, and charges no counter", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 50, "b")
		b.settle(spent("r1", 5, "b"), spent("r1", 7, "b"), spent("r2", 3, "b", "none"))
		b.settle(spent("r2", 3, "b"), spent("r3", 1))
		b.settle()
		if got := b.usage(UsageFilter{}); got != " 3 9 90" {
			b.Errorf("usage %q", got)
		}
		b.stands("b", "0 0 50 50")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Spent: 20})
		all, err := b.s.Standing(b.Context(), "org", "b")
		if err != nil || all["b"].Unattributed != 12 {
			b.Errorf("20 are settled and 8 told of: %+v %v", all["b"], err)
		}
	}),
	onBank("an observed budget counts what settlements name it with", func(b *bank) {
		b.budget("b", 10, observe, func(n *Budget) { n.Unit = budget.USD })
		free := spent("r2", 0, "b")
		free.Unpriced, free.Requests = true, 2
		b.settle(spent("r1", 8, "b"), free, spent("r3", 9, "b"))
		b.stands("b", "17 0 0 0")
		all, err := b.s.Standing(b.Context(), "org", "b")
		if err != nil || all["b"].Unpriced != 2 || all["b"].Unattributed != 0 {
			b.Errorf("%+v %v", all["b"], err)
		}
		b.wait(24 * time.Hour)
		b.stands("b", "0 0 0 10")
		late := spent("r4", 2, "b")
		late.At = noon.Add(25 * time.Hour) // of a clock that is fast
		b.settle(late, spent("r5", 3, "b"))
		b.stands("b", "2 0 0 8")
	}),
	onBank("what was observed counts once the budget is enforced", func(b *bank) {
		b.budget("b", 10, observe)
		b.settle(spent("r1", 7, "b"))
		b.budget("b", 10)
		b.stands("b", "7 0 0 3")
		b.sound()
		b.is(b.need("s", 4, "b"), "b", "0 3 1 gone")
		b.is(b.need("s", 3, "b"), "b", "3 0 1 gone")
		b.tell("s", budget.Lease{Budget: "b", Window: today, Spent: 3})
		b.settle(spent("r2", 3, "b"))
		b.budget("b", 10, observe)
		b.stands("b", "10 0 0 0")
		b.settle(spent("r3", 5, "b"))
		b.budget("b", 20)
		b.stands("b", "15 0 0 5")
		b.sound()
	}),
	onBank("usage is summed by whatever is asked, day by day, and paged", func(b *bank) {
		var list []budget.Settlement
		for i := range 750 {
			n := spent(fmt.Sprint(i), 1)
			n.At = noon.AddDate(0, 0, -i%3)
			n.TokenID, n.Model, n.Target = fmt.Sprintf("tok_%d", i%2), fmt.Sprintf("m%d", i%5), "t"
			if i%2 == 0 {
				n.TeamID = ""
			}
			n.Estimated, n.Unpriced = i%10 == 0, i%5 == 0
			list = append(list, n)
		}
		b.settle(list...)
		for _, tt := range []struct {
			f    UsageFilter
			want string
		}{
			{UsageFilter{}, " 750 750 7500"},
			{UsageFilter{By: []string{"day"}}, "2026-11-22 250 250 2500; 2026-11-23 250 250 2500; 2026-11-24 250 250 2500"},
			{UsageFilter{By: []string{"day"}, From: noon.AddDate(0, 0, -1), To: noon.AddDate(0, 0, -1)}, "2026-11-23 250 250 2500"},
			{UsageFilter{By: []string{"team"}}, " 375 375 3750; red 375 375 3750"},
			{UsageFilter{By: []string{"token", "team"}, TeamID: "red"}, "tok_1 red 375 375 3750"},
			{UsageFilter{By: []string{"model"}, TokenID: "tok_1", Model: "m3"}, "m3 75 75 750"},
			{UsageFilter{By: []string{"target"}}, "t 750 750 7500"},
			{UsageFilter{By: []string{"day", "model"}, Limit: 2, After: &UsageRow{Day: "2026-11-22", Model: "m3"}}, "2026-11-22 m4 50 50 500; 2026-11-23 m0 50 50 500"},
			{UsageFilter{TokenID: "tok_9"}, ""},
		} {
			if got := b.usage(tt.f); got != tt.want {
				b.Errorf("%+v: got %q, want %q", tt.f, got, tt.want)
			}
		}
		all, err := b.s.Usage(b.Context(), UsageFilter{OrgID: "org", Limit: 1})
		if err != nil || all[0].Estimated != 75 || all[0].Unpriced != 150 {
			b.Errorf("%+v %v", all, err)
		}
		for _, by := range [][]string{{"org_id"}, {"day", "day"}} {
			if _, err := b.s.Usage(b.Context(), UsageFilter{By: by, Limit: 1}); err == nil {
				b.Errorf("by %v", by)
			}
		}
		if !slices.Contains(UsageKeys(), "target") || len(UsageKeys()) != len(usageColumns) {
			b.Error("keys and columns differ")
		}
	}),
	onBank("sums stop at what can be counted", func(b *bank) {
		b.budget("b", 10, observe)
		for i := range 6 {
			n := spent(fmt.Sprint(i), math.MaxInt64/2, "b", "b")
			n.Cost, n.Model = math.MaxInt64, fmt.Sprint(i%2)
			b.settle(n)
		}
		want := fmt.Sprintf(" 6 %[1]d %[1]d", int64(math.MaxInt64))
		if got := b.usage(UsageFilter{}); got != want {
			b.Errorf("got %s, want %s", got, want)
		}
		b.stands("b", fmt.Sprintf("%d 0 0 0", int64(math.MaxInt64)))
	}),
	onBank("a name that no database takes is kept without what it can't take", func(b *bank) {
		n := spent("r1", 1)
		n.Model, n.TeamID = "m\x00\xff!", "\x00"
		b.settle(n)
		b.settle(n)
		if got := b.usage(UsageFilter{By: []string{"team", "model"}}); got != " m! 1 1 10" {
			b.Errorf("got %q", got)
		}
	}),
	onBank("single settlements go after 35 days, and their sums stay", func(b *bank) {
		b.settle(spent("r1", 1), spent("r2", 1), spent("r3", 1))
		b.wait(35*24*time.Hour + time.Second)
		late := spent("r4", 1)
		late.At = b.at
		b.settle(late)
		var n int
		if err := b.s.read.QueryRow(`SELECT COUNT(*) FROM settlements`).Scan(&n); err != nil || n != 2 {
			b.Errorf("%d are kept, %v", n, err)
		}
		if got := b.usage(UsageFilter{}); got != " 4 4 40" {
			b.Errorf("usage %q", got)
		}
	}),
}
