package main

import (
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/proxy"
)

func TestABudgetIsSpentWhenNothingOfItCanBeSpent(t *testing.T) {
	for _, tt := range []struct {
		name string
		give counted
		want string
	}{
		{"something is left", counted{Left: "0.000000001", Leased: "0", Held: "0"}, ""},
		{"it is with gateways, and idle", counted{Left: "0", Leased: "1", Held: "0"}, ""},
		{"more is left than a limit can be", counted{Left: "1800000010.5", Leased: "0", Held: "0"}, ""},
		{"less than nothing is left", counted{Left: "-1", Leased: "0", Held: "0"}, "budget_exceeded"},
		{"calls hold the rest", counted{Left: "0", Leased: "0", Held: "1"}, "budget_held"},
		{"all is settled", counted{Left: "0", Leased: "0", Held: "0"}, "budget_exceeded"},
		{"more than all is", counted{Left: "0", Leased: "0", Held: "0", Overrun: "1"}, "budget_exceeded"},
		{"an amount that can't be read", counted{Left: "much", Leased: "", Held: "0"}, "budget_exceeded"},
		{"observed", counted{Left: "0", Leased: "0", Held: "0", Mode: "observe"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.give.Unit = budget.USD
			if tt.give.Mode == "" {
				tt.give.Mode = "enforce"
			}
			got, _ := tt.give.spendable()
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			status := verdict{Allowed: true}
			status.deny(got, "")
			line := "| `" + got + "` | " + map[int]string{403: "403", 429: "429"}[status.Status] + " |"
			if got != "" && !strings.Contains(proxy.ErrorsMarkdown(), line) {
				t.Errorf("the table of refusals has no line %s", line)
			}
		})
	}
}
