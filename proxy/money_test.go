package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// treasury is a control plane on SQLite and the gateway's ledger with it.
type treasury struct {
	*gateway
	store  *store.Store
	ledger *budget.Ledger
}

// funded runs a gateway with budgets, which the tokens of the test name.
func funded(t *testing.T, yaml string, records ...budget.Record) *treasury {
	t.Helper()
	return fundedBy(t, yaml, func(a budget.Authority, _ *Options) budget.Authority { return a }, records...)
}

// fundedBy is funded with something between ledger and control plane.
func fundedBy(t *testing.T, yaml string, between func(budget.Authority, *Options) budget.Authority, records ...budget.Record) *treasury {
	t.Helper()
	ctx := context.Background()
	db, err := store.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	plane, err := controlplane.New(controlplane.Options{Store: db})
	if err != nil {
		t.Fatal(err)
	}
	m := &treasury{store: db}
	t.Cleanup(func() { // after the gateway's own: what was open has settled
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := m.ledger.Close(ctx); err != nil {
			t.Errorf("close the ledger: %v", err)
		}
		_ = db.Close()
	})
	m.gateway = start(t, yaml, func(o *Options) {
		m.ledger, err = budget.Open(budget.Options{Authority: between(plane.Embedded(testGateway), o), Dir: filepath.Join(t.TempDir(), "journal"), Registerer: o.Registerer})
		if err != nil {
			t.Fatal(err)
		}
		o.Ledger = m.ledger
	})
	m.put(records...)
	return m
}

// put makes or changes budgets.
func (m *treasury) put(records ...budget.Record) {
	m.t.Helper()
	for _, r := range records {
		if r.Mode == "" {
			r.Mode = budget.Enforce
		}
		if r.Window == "" {
			r.Window = budget.Total
		}
		b := store.Budget{OrgID: controlplane.OrgDefault, Record: r}
		err := m.store.Update(context.Background(), time.Now(), func(tx *store.Tx) error {
			_, _, err := tx.PutBudget(context.Background(), &b)
			return err
		})
		if err != nil {
			m.t.Fatal(err)
		}
		m.ledger.Upsert(b.Record)
	}
}

// spender mints a token that names budgets.
func (m *treasury) spender(ids ...string) string {
	return m.mint(func(p *abac.Profile) {
		for _, id := range ids {
			p.Bindings.Budgets = append(p.Bindings.Budgets, abac.BudgetBinding{ID: id})
		}
	})
}

// left is what whoami says of a budget, in its unit.
func (m *treasury) left(key, id string) int64 {
	m.t.Helper()
	var who struct {
		BudgetsLeft []struct {
			ID        string
			Unit      budget.Unit
			Left      string
			ReopensAt *string `json:"reopens_at"`
		} `json:"budgets_left"`
	}
	r := m.do(get("/v1/whoami", key))
	if err := json.Unmarshal([]byte(r.body), &who); err != nil || r.status != 200 {
		m.t.Fatalf("whoami: %d %v %q", r.status, err, r.body)
	}
	for _, b := range who.BudgetsLeft {
		if b.ID == id {
			n, err := b.Unit.Parse(b.Left)
			if err != nil {
				m.t.Fatalf("whoami: %v in %q", err, r.body)
			}
			return n
		}
	}
	m.t.Fatalf("whoami does not tell of %s: %q", id, r.body)
	return 0
}

// atRest waits until nothing is held.
func (m *treasury) atRest() {
	m.t.Helper()
	eventually(m.t, "nothing is held", func() bool {
		return m.metric("keeptrusts_gateway_budget_holds") == 0 && m.metric("keeptrusts_gateway_open_requests") == 0 && m.s.streams.Load() == 0
	})
}

// usage closes the ledger's outbox by waiting: the settlements that the control
// plane keeps for a token.
func (m *treasury) usage(requests int64) store.UsageRow {
	m.t.Helper()
	var row store.UsageRow
	eventually(m.t, fmt.Sprintf("%d requests are in the usage", requests), func() bool {
		rows, err := m.store.Usage(context.Background(), store.UsageFilter{OrgID: controlplane.OrgDefault, Limit: 10})
		if err != nil {
			m.t.Fatal(err)
		}
		if len(rows) == 1 {
			row = rows[0]
		}
		return row.Requests >= requests
	})
	return row
}

// crowd makes n calls at once and counts their statuses.
func (g *gateway) crowd(n int, raw string) (byCode map[string]int) {
	byCode = make(map[string]int)
	var mu sync.Mutex
	var wait sync.WaitGroup
	for range n {
		wait.Go(func() {
			r := g.do(raw)
			code := "ok"
			if r.status != 200 {
				code = r.problem().Code
			} else if r.err != nil {
				code = "cut"
			}
			mu.Lock()
			defer mu.Unlock()
			byCode[code]++
		})
	}
	wait.Wait()
	return byCode
}

// perRequest is a price of a cent a request.
func perRequest(url string) string {
	return strings.Replace(plainConfig(url), "price: {input: 1, cached_input: 0.5, output: 2}", "price: {request: 0.01}", 1)
}

func TestTwoHundredAtOnceGetExactlyWhatABudgetBears(t *testing.T) {
	t.Parallel()
	url, sim := simulated(t)
	for _, tt := range []struct {
		name   string
		record budget.Record
		body   string
		yaml   string
	}{
		{"ten requests", budget.Record{ID: "b", Unit: budget.Requests, Limit: 10}, plainBody, plainConfig(url)},
		{"ten requests, streamed", budget.Record{ID: "b", Unit: budget.Requests, Limit: 10}, streamBody, plainConfig(url)},
		{"ten cents", budget.Record{ID: "b", Unit: budget.USD, Limit: 100_000_000}, plainBody, perRequest(url)},
		{"ten cents, streamed", budget.Record{ID: "b", Unit: budget.USD, Limit: 100_000_000, Window: budget.Month}, streamBody, perRequest(url)},
		{"ten cents, prices of 0", budget.Record{ID: "b", Unit: budget.USD, Limit: 100_000_000}, streamBody, strings.Replace(perRequest(url), "request: 0.01", "input: 0, output: 0, request: 0.01", 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(sim.Requests())
			m := funded(t, tt.yaml, tt.record)
			key := m.spender("b")
			codes := m.crowd(200, call(key, tt.body))
			if codes["ok"] != 10 || codes["ok"]+codes[codeBudgetExceeded]+codes[codeBudgetHeld] != 200 {
				t.Errorf("%v, want 10 ok and the rest denied by the budget", codes)
			}
			if n := len(sim.Requests()) - before; n != 10 {
				t.Errorf("%d reached the provider, want 10", n)
			}
			m.atRest()
			if n := m.left(key, "b"); n != 0 {
				t.Errorf("%d left, want 0", n)
			}
			r := m.do(call(key, tt.body))
			p := r.problem()
			if r.status != 429 || p.Code != codeBudgetExceeded || p.Type != kindQuota || r.header.Get("X-Should-Retry") != "false" || (r.header.Get("Retry-After") != "") != (tt.record.Window == budget.Month) {
				t.Errorf("one more: %d %v %+v", r.status, r.header, p)
			}
			if row := m.usage(10); row.Requests != 10 || tt.record.Unit == budget.USD && row.Cost != tt.record.Limit {
				t.Errorf("the usage is %+v", row)
			}
		})
	}
}
