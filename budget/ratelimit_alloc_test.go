//go:build !race

package budget

import (
	"testing"
	"time"
)

func TestARateLimitDoesNotAllocate(t *testing.T) {
	ls := NewLimiters()
	r := Rates{RequestsPerMinute: 1e9, TokensPerMinute: 1e9, MaxParallel: 10}
	l := ls.Of("t", r)
	now := midday
	if n := testing.AllocsPerRun(200, func() {
		now = now.Add(time.Millisecond)
		s, ok := ls.Of("t", r).Take(now, 100)
		if !ok {
			t.Error("refused")
		}
		l.Undo(s)
		l.Take(now, 100)
		l.Done(now, 10)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
