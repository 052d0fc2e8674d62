package proxy

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/keeptrusts/gateway/budget"
)

// shrinking is a control plane that has less left at each need than it had.
type shrinking struct {
	budget.Authority
	left, by *atomic.Int64
	held     int64 // by others; it is not settled
	asked    *atomic.Int64
}

func (s *shrinking) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	if len(c.Needs) == 0 {
		return s.Authority.Leases(ctx, c)
	}
	s.asked.Add(1)
	const limit = 100_000
	left := s.left.Add(-s.by.Load())
	return &budget.Answer{Seq: c.Seq, Leases: []budget.LeaseInfo{{
		Budget: "t", Window: "total.0", Phase: 1, Gone: true, Limit: limit, Left: left, Settled: limit - left - s.held, StartsInMS: -1, EndsInMS: 3_600_000,
	}}}, nil
}

// A call without a limit of its own is asked for again with what is left. It is denied
// for good only where that is too little.
func TestACallThatWhatIsLeftWouldBearIsHeldNotDeniedForGood(t *testing.T) {
	t.Parallel()
	const bare = `{"model":"chat","messages":[]}`
	input := inputBound(t, bare)
	for _, tt := range []struct {
		name     string
		left, by int64
		held     int64
		asked    int64
		code     string
	}{
		{"less at each time, and enough still", input + 3000, 100, 0, 3, codeBudgetHeld},
		{"too little at the second time", input + 40, 15, 0, 2, codeBudgetExceeded},
		{"too little from the start", input + 15, 1, 0, 1, codeBudgetExceeded},
		{"nothing, but others hold the least", 0, 0, input + 16, 1, codeBudgetHeld},
		{"nothing, and what others hold is too little", 0, 0, input + 15, 1, codeBudgetExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := answering(t, whole(200, completion))
			var left, by, asked atomic.Int64
			left.Store(tt.left)
			by.Store(tt.by)
			m := fundedBy(t, plainConfig(u.url), func(a budget.Authority, _ *Options) budget.Authority {
				return &shrinking{a, &left, &by, tt.held, &asked}
			}, budget.Record{ID: "t", Unit: budget.Tokens, Limit: 100_000})
			r := m.do(call(m.spender("t"), bare))
			if r.status != 429 || r.problem().Code != tt.code || asked.Load() != tt.asked {
				t.Errorf("%d %s after %d needs, want %s after %d", r.status, r.body, asked.Load(), tt.code, tt.asked)
			}
			m.atRest()
		})
	}
}
