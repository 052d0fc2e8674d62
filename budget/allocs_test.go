//go:build !race

package budget_test

import (
	"context"
	"testing"

	"github.com/keeptrusts/gateway/budget"
)

func TestReserveAndSettleAllocateNothing(t *testing.T) {
	l, s, worst := three(t)
	defer shut(t, l)
	ctx := context.Background()
	var h budget.Hold
	n := testing.AllocsPerRun(20_000, func() {
		if err := l.Reserve(ctx, s, worst, &h); err != nil {
			t.Fatal(err)
		}
		h.Settle(budget.Amounts{USD: 9_000, Tokens: 600, Requests: 1})
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWhatIsLeftIsAppendedWithoutAllocating(t *testing.T) {
	l, s, _ := three(t)
	defer shut(t, l)
	b := make([]byte, 0, 64)
	n := testing.AllocsPerRun(1000, func() { b = l.AppendRemaining(b[:0], s) })
	if n != 0 || len(b) == 0 {
		t.Errorf("%v allocations for %q", n, b)
	}
}
