//go:build !race

package proxy

import (
	"bytes"
	"context"
	"math"
	"testing"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

// generous is a control plane that grants whatever is wanted and keeps nothing: its
// allocations are not the gateway's.
type generous struct{ granted map[string]int64 }

func (g *generous) Settle(context.Context, []budget.Settlement) error { return nil }

func (g *generous) Leases(_ context.Context, c *budget.Call) (*budget.Answer, error) {
	a := &budget.Answer{Seq: c.Seq}
	for _, l := range c.Leases {
		g.granted[l.Budget] += l.Want
	}
	for _, needs := range c.Needs {
		for _, n := range needs {
			g.granted[n.Budget] += n.Amount
		}
	}
	for id, granted := range g.granted {
		a.Leases = append(a.Leases, budget.LeaseInfo{Budget: id, Window: "total.0", Granted: granted, Limit: 1 << 50, Left: 1 << 49, StartsInMS: -1000, EndsInMS: math.MaxInt64 / 2})
	}
	for _, closing := range c.Close {
		a.Closed = append(a.Closed, closing.Session)
	}
	return a, nil
}

// A call that spends from budgets allocates no more than one that spends nothing,
// but for one reservation at most.
func TestBudgetsAndRateLimitsCostNoAllocation(t *testing.T) {
	u := answering(t, whole(200, completion))
	m := fundedBy(t, priced(plainConfig(u.url)), func(budget.Authority, *Options) budget.Authority { return &generous{make(map[string]int64)} },
		budget.Record{ID: "u", Unit: budget.USD, Limit: 1 << 50},
		budget.Record{ID: "t", Unit: budget.Tokens, Limit: 1 << 50},
		budget.Record{ID: "r", Unit: budget.Requests, Limit: 1 << 50})
	spending := m.mint(func(p *abac.Profile) {
		p.Bindings.Budgets = []abac.BudgetBinding{{ID: "u"}, {ID: "t"}, {ID: "r"}}
		p.Bindings.RateLimits = &abac.RateLimits{RequestsPerMinute: 100_000_000, TokensPerMinute: 1 << 39, MaxParallelRequests: 10}
	})
	const body = `{"model":"chat","max_tokens":50,"messages":[{"role":"user","content":"hello there"}]}`
	w := m.dial()
	answer, end := make([]byte, 64<<10), []byte(completion[len(completion)-20:])
	of := func(key string) float64 {
		raw := []byte(call(key, body))
		once := func() {
			_, _ = w.Write(raw)
			for n := 0; !bytes.HasSuffix(answer[:n], end); {
				k, err := w.Read(answer[n:])
				if err != nil {
					t.Fatalf("%v after %q", err, answer[:n])
				}
				n += k
			}
		}
		for range 3000 { // until its leases are as large as its rate wants
			once()
		}
		return testing.AllocsPerRun(4000, once)
	}
	without, with := of(m.mint(nil)), of(spending)
	t.Logf("%v allocations a call without budgets, %v with three and rate limits; provider and log included", without, with)
	if !bytes.Contains(answer, []byte("X-Ratelimit-Remaining-Tokens")) || !bytes.Contains(answer, []byte("X-Keeptrusts-Budget-Remaining")) {
		t.Errorf("the answer does not tell what is left: %.600q", answer)
	}
	if with > without+1 {
		t.Errorf("%v allocations more", with-without)
	}
}

// Refusals come by the thousand a second, from whoever likes: each leaves little behind.
func TestARefusedCredentialCostsFewAllocations(t *testing.T) {
	m := start(t, plainConfig("http://127.0.0.1:9/v1"))
	for _, tc := range []struct {
		name, key string
		most      float64
	}{
		{"not of a token's form", "kt_live_x", 2},
		{"nobody's", token.Mint().Reveal(), 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := m.dial()
			raw, answer := []byte("GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+tc.key+"\r\n\r\n"), make([]byte, 64<<10)
			once := func() {
				_, _ = w.Write(raw)
				for n := 0; !bytes.HasSuffix(answer[:n], []byte("}}")); {
					k, err := w.Read(answer[n:])
					if err != nil {
						t.Fatalf("%v after %q", err, answer[:n])
					}
					n += k
				}
			}
			once()
			if got := testing.AllocsPerRun(2000, once); got > tc.most {
				t.Errorf("%v allocations, at most %v; %.200q", got, tc.most, answer)
			}
		})
	}
}
