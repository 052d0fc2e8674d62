package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

func contextEnded() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx, cancel
}

func over(w budget.Window) func(*Budget) { return func(b *Budget) { b.Window = w } }

func observe(b *Budget) { b.Mode = budget.Observe }

func phases(list []budget.Recall) string { return outcome{recalls: list}.recalled() }

var limits = []scenario{
	onBank("a raised limit is there at once, ends a shortage, and is told", func(b *bank) {
		b.budget("b", 10)
		b.need("s", 10, "b")
		b.is(b.need("s", 5, "b"), "b", "10 0 1")
		if got := phases(b.budget("b", 20)); got != "b/2" {
			b.Errorf("recalls %q", got)
		}
		b.is(b.need("s", 6, "b"), "b", "16 4 2")
		if got := phases(b.budget("b", 30)); got != "b/2" {
			b.Errorf("told without a new phase: %q", got)
		}
		b.stands("b", "0 0 16 14")
	}),
	onBank("a limit lowered below what is taken calls idle money back, and spends no more", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 50, "b")
		if got := phases(b.budget("b", 30)); got != "b/1" {
			b.Errorf("recalls %q", got)
		}
		b.is(b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 50, Returned: 15, Spent: 30, Phase: 1}), "b", "50 0 1 gone")
		b.is(b.need("s", 1, "b"), "b", "50 0 1 gone")
		b.is(b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 50, Returned: 20, Spent: 30, Phase: 1}), "b", "50 0 1 gone")
		b.stands("b", "30 0 0 0")
	}),
	onBank("a limit of nothing stays short", func(b *bank) {
		b.budget("b", 9)
		b.need("s", 5, "b")
		b.budget("b", 0)
		for range 3 {
			b.is(b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 5}), "b", "5 0 1")
		}
		b.is(b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 5, Returned: 5, Phase: 1}), "b", "5 0 1 gone")
	}),
	onBank("a limit lowered above what is taken is only told", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 50, "b")
		if got := phases(b.budget("b", 60)); got != "b/0" {
			b.Errorf("recalls %q", got)
		}
		b.is(b.need("s", 10, "b"), "b", "60 0 0")
	}),
	onBank("the same budget again is no change", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 50, "b")
		if got := phases(b.budget("b", 100)); got != "" {
			b.Errorf("recalls %q", got)
		}
		if head, err := b.s.Head(b.Context()); head != 1 || err != nil {
			b.Errorf("head %d %v", head, err)
		}
		n := Budget{OrgID: "org", Record: budget.Record{ID: "b", Unit: budget.Requests, Window: budget.Hour, Limit: 1, Mode: budget.Enforce}}
		if _, err := b.put(&n); !errors.Is(err, ErrConflict) {
			b.Errorf("another window: %v", err)
		}
		if n.Window, n.Unit = budget.Day, budget.Tokens; true {
			if _, err := b.put(&n); !errors.Is(err, ErrConflict) {
				b.Errorf("another unit: %v", err)
			}
		}
	}),
	onBank("a top-up counts once, in the open window alone", func(b *bank) {
		b.budget("b", 10)
		for i, want := range []string{"b/0", ""} {
			again, recalls, err := b.topUp("b", 5, "k")
			if err != nil || again != (i == 1) || phases(recalls) != want {
				b.Errorf("%d: %v %v %v", i, again, recalls, err)
			}
		}
		if _, _, err := b.topUp("b", 6, "k"); !errors.Is(err, ErrConflict) {
			b.Errorf("another amount: %v", err)
		}
		if _, _, err := b.topUp("none", 6, "k"); !errors.Is(err, ErrNotFound) {
			b.Errorf("no budget: %v", err)
		}
		if _, _, err := b.topUp("b", 0, "k0"); err == nil {
			b.Error("nothing was topped up")
		}
		b.stands("b", "0 0 0 15")
		b.is(b.need("s", 15, "b"), "b", "15 0 0")
		b.budget("b", 20) // by 10 more, and the top-up stays
		b.stands("b", "0 0 15 10")
		b.wait(12 * time.Hour)
		b.stands("b", "0 0 0 20")
		if again, _, err := b.topUp("b", 5, "k"); !again || err != nil {
			b.Errorf("the same key in the next window: %v %v", again, err)
		}
	}),
	onBank("a top-up ends a shortage", func(b *bank) {
		b.budget("b", 10)
		b.need("s", 11, "b")
		if _, recalls, err := b.topUp("b", 1, "k"); err != nil || phases(recalls) != "b/2" {
			b.Errorf("%v %v", recalls, err)
		}
		b.is(b.need("s", 11, "b"), "b", "11 0 2")
	}),
	onBank("the next window can be leased in the last second of this one", func(b *bank) {
		b.budget("b", 100)
		b.wait(12*time.Hour - time.Second - time.Microsecond)
		if o := b.want("s", "b", "next", 10); len(o.Leases) != 0 {
			b.Errorf("too early: %+v", o.Leases)
		}
		b.wait(time.Microsecond)
		o := b.want("s", "b", "next", 10)
		b.is(o, "b", "10 90 0")
		if l := o.of("b"); l.Window != "2026-11-25.0" || l.StartsInMS != 1000 || l.EndsInMS != 86_401_000 {
			b.Errorf("%+v", l)
		}
		if got := b.budget("b", 60); len(got) != 1 || got[0].Window != "2026-11-25.0" {
			b.Errorf("the next one takes the new limit: %+v", got)
		}
		b.is(b.need("s", 7, "b"), "b", "7 53 0") // of this window
		b.wait(time.Second)
		o = b.need("s", 50, "b")
		b.is(o, "b", "60 0 0")
		if l := o.of("b"); l.Window != "2026-11-25.0" || l.StartsInMS != 0 || l.EndsInMS != 86_400_000 {
			b.Errorf("%+v", l)
		}
	}),
	onBank("in a window that has ended only needs are met", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 10, "b")
		b.wait(24 * time.Hour)
		b.is(b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 10, Want: 10}), "b", "10 90 0")
		o := b.call("s", budget.Call{Needs: [][]budget.Need{{{Budget: "b", Window: today, Amount: 5}}}})
		b.is(o, "b", "15 85 0")
		if o.of("b").EndsInMS != -43_200_000 {
			b.Errorf("it ends in %d ms", o.of("b").EndsInMS)
		}
		o = b.call("s", budget.Call{Needs: [][]budget.Need{{{Budget: "b", Window: "2026-11-23.0", Amount: 5}}}})
		if o.of("b").Window != today {
			b.Errorf("a window of the past was opened: %+v", o.Leases)
		}
	}),
	onBank("windows are those of the store's clock, in UTC", func(b *bank) {
		for _, tt := range []struct {
			w      budget.Window
			name   string
			starts int64
			ends   int64
		}{
			{budget.Hour, "2026-11-24T12.0", 0, 3_600_000}, {budget.Day, today, -43_200_000, 43_200_000},
			{budget.Week, "2026-11-23.0", -129_600_000, 475_200_000}, {budget.Month, "2026-11-01.0", -2_030_400_000, 561_600_000},
			{budget.Total, "total.0", 0, math.MaxInt64 / 2},
		} {
			b.budget(string(tt.w), 10, over(tt.w))
			l := b.want("s", string(tt.w), "current", 4).of(string(tt.w))
			if l.Window != tt.name || l.StartsInMS != tt.starts || l.EndsInMS != tt.ends || l.Granted != 4 {
				b.Errorf("%s: %+v", tt.w, l)
			}
			b.stands(string(tt.w), "0 0 4 6")
			if o := b.want("s", string(tt.w), "next", 4); tt.w != budget.Total && len(o.Leases) != 1 { // the untold one alone
				b.Errorf("%s: the next window is open: %+v", tt.w, o.Leases)
			}
			b.tell("s", budget.Lease{Budget: string(tt.w), Window: tt.name, Granted: 100})
		}
		all, err := b.s.Standing(b.Context(), "org", "hour", "total", "none")
		if err != nil || len(all) != 2 || !all["hour"].ReopensAt.Equal(noon.Add(time.Hour)) || all["total"].ReopensAt != nil {
			b.Errorf("%+v %v", all, err)
		}
	}),
	onBank("what starts is told late and what ends early, by less than a millisecond", func(b *bank) {
		b.budget("b", 10)
		b.wait(1500*time.Microsecond + 12*time.Hour - time.Second)
		l := b.want("s", "b", "next", 1).of("b")
		if l.StartsInMS != 999 || l.EndsInMS != 86_400_998 {
			b.Errorf("%+v", l)
		}
	}),
	onBank("ended windows and closed sessions stay a day, then go; a charge stays in an open window", func(b *bank) {
		b.budget("day", 100)
		b.budget("month", 100, over(budget.Month))
		for i := range 2 {
			s := fmt.Sprintf("s%d", i)
			b.need(s, 30, "day", "month")
			l := budget.ClosedLease{Budget: "month", Window: "2026-11-01.0", Mark: 20, Overrun: 2}
			b.call("heir", budget.Call{Close: []budget.Closing{{Session: s, Leases: []budget.ClosedLease{mark("day", 10, 0), l}}}})
		}
		b.stands("month", "44 0 0 56")
		rows := func() string {
			var n [3]int
			for i, q := range []string{"counters", "leases", "sessions"} {
				if err := b.s.read.QueryRow(`SELECT COUNT(*) FROM ` + q).Scan(&n[i]); err != nil {
					b.Fatal(err)
				}
			}
			return fmt.Sprint(n)
		}
		b.wait(24 * time.Hour)
		b.tell("heir")
		if got := rows(); got != "[2 4 3]" {
			b.Errorf("after a day: %s", got)
		}
		b.wait(time.Minute)
		b.tell("heir")
		if got := rows(); got != "[2 2 1]" { // the day's window ended 12 hours ago
			b.Errorf("after a day and a minute: %s", got)
		}
		b.wait(12 * time.Hour)
		b.tell("heir")
		if got := rows(); got != "[1 1 1]" {
			b.Errorf("after a day and a half: %s", got)
		}
		b.stands("month", "44 0 0 56")
		b.sound()
		o := b.tell("heir", budget.Lease{Budget: "day", Window: today, Granted: 30, Returned: 3, Spent: 27, Overrun: 1, Phase: 4})
		if l := o.of("day"); len(o.Leases) != 1 || l.Granted != 30 || l.Returned != 3 || l.Spent != 27 || l.EndsInMS >= 0 {
			b.Errorf("a lease of a forgotten window must be let go: %+v", o.Leases)
		}
	}),
}
