package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

// ledgers are a control plane as gateways see it over HTTP and in process.
func ledgers(t *testing.T, p *plane) map[string]budget.Authority {
	t.Helper()
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw_far"})
	return map[string]budget.Authority{
		"over HTTP": client(t, ClientOptions{URL: p.url}, runtime), "in process": p.server.Embedded("gw_near"),
	}
}

func (p *plane) budget(id, unit, limit string, more ...fields) {
	p.t.Helper()
	body := fields{"unit": unit, "window": "day", "limit": limit}
	for _, m := range more {
		for k, v := range m {
			body[k] = v
		}
	}
	if a := p.admin("PUT", "/v1/budgets/"+id, body); a.status > 201 {
		p.t.Fatalf("budget %s: %d %s", id, a.status, a.raw)
	}
}

func needOf(id string, amount int64) [][]budget.Need {
	return [][]budget.Need{{{Budget: id, Window: budget.WindowCurrent, Amount: amount}}}
}

func TestALedgerIsServedAlikeOverHTTPAndInProcess(t *testing.T) {
	ctx := context.Background()
	p := newPlane(t)
	for name, a := range ledgers(t, p) {
		t.Run(name, func(t *testing.T) {
			id := "b_" + name[:2]
			p.budget(id, "tokens", "900000000000000001")
			session := "ls_" + name[:2]
			got, err := a.Leases(ctx, &budget.Call{Session: session, Seq: 1, Needs: needOf(id, 9007199254740993)})
			if err != nil || got.Seq != 1 || len(got.Leases) != 1 {
				t.Fatalf("%+v %v", got, err)
			}
			want := budget.LeaseInfo{Budget: id, Window: "2026-11-24.0", Granted: 9007199254740993, Limit: 900000000000000001,
				Left: 900000000000000001 - 9007199254740993, StartsInMS: -43_200_000, EndsInMS: 43_200_000}
			if got.Leases[0] != want {
				t.Errorf("got %+v\nwant %+v", got.Leases[0], want)
			}
			got, err = a.Leases(ctx, &budget.Call{Session: session, Seq: 2, Leases: []budget.Lease{
				{Budget: id, Window: "2026-11-24.0", Granted: 9007199254740993, Spent: 9007199254740992, Held: 1},
			}})
			if err != nil || got.Leases[0].Spent != 9007199254740992 || got.Leases[0].Settled != 9007199254740992 {
				t.Errorf("%+v %v", got, err)
			}
			if err := a.Settle(ctx, []budget.Settlement{{ID: "r_" + session, At: p.now(), TokenID: "tok_1", Model: "m", Requests: 1,
				Input: 9007199254740993, Budgets: []budget.Charge{{Budget: id, Window: "2026-11-24.0", Amount: 9007199254740992}}}}); err != nil {
				t.Error(err)
			}
			shown := p.must(200, "GET", "/v1/budgets/"+id, nil)
			if shown.text("settled") != "9007199254740992" || shown.text("held") != "1" || shown.text("unattributed") != "0" {
				t.Errorf("shown: %s", shown.raw)
			}
			got, err = a.Leases(ctx, &budget.Call{Session: session + "2", Seq: 1, Close: []budget.Closing{{Session: session, Lost: true}}})
			if err != nil || len(got.Closed) != 1 {
				t.Errorf("%+v %v", got, err)
			}
			if _, err := a.Leases(ctx, &budget.Call{Session: session, Seq: 3}); !errors.Is(err, budget.ErrClosed) {
				t.Errorf("a closed session: %v", err)
			}
		})
	}
	// Neither may close the other's.
	all := ledgers(t, p)
	far, near := all["over HTTP"], all["in process"]
	if _, err := near.Leases(ctx, &budget.Call{Session: "ls_mine", Seq: 1}); err != nil {
		t.Fatal(err)
	}
	got, err := far.Leases(ctx, &budget.Call{Session: "ls_other", Seq: 1, Close: []budget.Closing{{Session: "ls_mine", Lost: true}}})
	if err != nil || len(got.Closed) != 0 {
		t.Errorf("another gateway's session: %+v %v", got, err)
	}
	if _, err := far.Leases(ctx, &budget.Call{Session: "ls_mine", Seq: 2}); !errors.Is(err, budget.ErrClosed) {
		t.Errorf("another gateway's session: %v", err)
	}
}

func TestAClosedSessionIsAConflict(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	p.call(runtime, "POST", "/v1/runtime/leases", fields{"session": "a", "seq": 1, "close": []fields{{"session": "b"}}})
	a := p.call(runtime, "POST", "/v1/runtime/leases", fields{"session": "b", "seq": 1})
	if a.status != 409 || a.code() != "session_closed" || a.param() != "session" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	checkShape(t, a)
}

func TestResolveTellsTheBudgetsOfAToken(t *testing.T) {
	ctx := context.Background()
	p := newPlane(t)
	p.budget("b_org", "usd", "100", fields{"applies_to": fields{"org": true}})
	p.budget("b_red", "requests", "5", fields{"applies_to": fields{"team_id": "red"}, "mode": "observe"})
	p.budget("b_own", "tokens", "7")
	p.budget("b_none", "tokens", "7")
	_, own := p.mint("general", fields{"team_id": "red", "budgets": []fields{{"id": "b_own"}}})
	_, bare := p.mint("general", nil)
	_, bound := p.mint("general", fields{"gateway_id": "gw_else", "team_id": "red"})
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	for _, tt := range []struct{ name, secret, want string }{
		{"one with all kinds", own, "b_org b_own b_red"}, {"one with none", bare, "b_org"},
		{"one of another gateway", bound, ""}, {"a runtime token", runtime, ""},
	} {
		for how, r := range map[string]interface {
			Resolve(context.Context, token.Digest) (Resolved, error)
		}{"over HTTP": client(t, ClientOptions{URL: p.url}, runtime), "in process": p.server.Embedded("gw")} {
			got, err := r.Resolve(ctx, token.Sum([]byte(tt.secret)))
			if err != nil || got.Profile == nil || got.Head == 0 {
				t.Fatalf("%s %s: %+v %v", tt.name, how, got, err)
			}
			var ids []string
			for _, b := range got.Budgets {
				ids = append(ids, b.ID)
			}
			if strings.Join(ids, " ") != tt.want {
				t.Errorf("%s %s: got %v, want %s", tt.name, how, ids, tt.want)
			}
			if tt.secret == own && (got.Budgets[2].Mode != budget.Observe || got.Budgets[2].AppliesTo.TeamID != "red" || got.Budgets[0].Limit != 100e9 || got.Budgets[0].Revision != 1) {
				t.Errorf("%s: %+v", how, got.Budgets)
			}
		}
	}
	a := p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha(bound)})
	if !strings.Contains(a.raw, `"budgets":[]`) {
		t.Errorf("no list: %s", a.raw)
	}
}

func TestLeaseCallsAreReadStrictly(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	lease := func(l string) string { return `{"session":"s","seq":1,"leases":[` + l + `]}` }
	need := func(n string) string { return `{"session":"s","seq":1,"needs":[` + n + `]}` }
	ends := func(c string) string { return `{"session":"s","seq":1,"close":[` + c + `]}` }
	long := strings.Repeat("x", 129)
	for _, tt := range []struct{ body, code, param string }{
		{`{"seq":1}`, "invalid_value", "session"},
		{`{"session":"","seq":1}`, "invalid_value", "session"},
		{`{"session":"a b","seq":1}`, "invalid_value", "session"},
		{`{"session":"` + long + `","seq":1}`, "invalid_value", "session"},
		{`{"session":"s"}`, "invalid_value", "seq"},
		{`{"session":"s","seq":0}`, "invalid_value", "seq"},
		{`{"session":"s","seq":1.0}`, "invalid_value", "seq"},
		{`{"session":"s","seq":1e3}`, "invalid_value", "seq"},
		{`{"session":"s","seq":"1"}`, "invalid_value", "seq"},
		{`{"session":"s","seq":null}`, "invalid_value", "seq"},
		{`{"session":"s","seq":9223372036854775808}`, "invalid_value", "seq"},
		{`{"session":"s","seq":1,"more":1}`, "unknown_parameter", "more"},
		{`{"session":"s","seq":1,"Leases":[]}`, "ambiguous_key", "Leases"},
		{`{"session":"s","seq":1,"leases":{}}`, "invalid_value", "leases"},
		{lease(`1`), "invalid_value", "leases"},
		{lease(`{"window":"w"}`), "invalid_value", "leases[0].budget"},
		{lease(`{"budget":"b"}`), "invalid_value", "leases[0].window"},
		{lease(`{"budget":"b","window":"w","granted":-1}`), "invalid_value", "leases[0].granted"},
		{lease(`{"budget":"b","window":"w","want":1.5}`), "invalid_value", "leases[0].want"},
		{lease(`{"budget":"b","window":"w","limit":1}`), "unknown_parameter", "leases[0].limit"},
		{lease(`{"budget":"b","window":"w"},{"budget":"b","window":"w","want":3}`), "invalid_value", "leases[1].window"},
		{lease(`{"budget":"b","window":"next","want":1,"spent":1}`), "invalid_value", "leases[0].window"},
		{lease(`{"budget":"b","window":"current","phase":1}`), "invalid_value", "leases[0].window"},
		{need(`{}`), "invalid_value", "needs[0]"},
		{need(`[]`), "invalid_value", "needs[0]"},
		{need(`[1]`), "invalid_value", "needs[0]"},
		{need(`[{"budget":"b","window":"current","amount":1}],[{"budget":"b","window":"current","amount":-1}]`), "invalid_value", "needs[1][0].amount"},
		{need(`[{"budget":"b","window":"next","amount":1}]`), "invalid_value", "needs[0][0].window"},
		{need(`[{"budget":"b","window":"w","amount":1,"want":1}]`), "unknown_parameter", "needs[0][0].want"},
		{need(`[{"budget":"b","window":"w","amount":1},{"budget":"b","window":"w","amount":1}]`), "invalid_value", "needs[0][1].window"},
		{ends(`{"leases":[]}`), "invalid_value", "close[0].session"},
		{ends(`{"session":7}`), "invalid_value", "close[0].session"},
		{ends(`{"session":"s","lost":"yes"}`), "invalid_value", "close[0].lost"},
		{ends(`{"session":"s","leases":[{"budget":"b","window":"w","mark":-1}]}`), "invalid_value", "close[0].leases[0].mark"},
		{ends(`{"session":"s","leases":[{"budget":"b","window":"w","spent":1}]}`), "unknown_parameter", "close[0].leases[0].spent"},
	} {
		a := p.call(runtime, "POST", "/v1/runtime/leases", tt.body)
		if a.status != 400 || a.code() != tt.code || a.param() != tt.param {
			t.Errorf("%s: got %d %s %s, want %s %s", tt.body, a.status, a.code(), a.param(), tt.code, tt.param)
		}
	}
	for _, body := range []string{
		`{"session":"s","seq":1}`, `{"session":"s","seq":9223372036854775807,"leases":[],"needs":[],"close":[]}`,
		lease(`{"budget":"b","window":"w","granted":9223372036854775807,"want":0}`), need(`[{"budget":"b","window":"w","amount":0}]`),
		lease(`{"budget":"b","window":"next","granted":0,"want":5},{"budget":"b","window":"w"}`), ends(`{"session":"x","leases":[],"lost":false}`), ends(`{"session":"a b","leases":null}`),
	} {
		if a := p.call(runtime, "POST", "/v1/runtime/leases", body); a.status != 200 {
			t.Errorf("%s: %d %s", body, a.status, a.raw)
		}
	}
}

func TestSettlementsAreReadStrictly(t *testing.T) {
	p := newPlane(t)
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	good := `"id":"r","at":"2026-11-24T12:00:00Z","token_id":"tok_1","model":"m","target":"t","requests":1`
	with := func(more string) string { return `{"settlements":[{` + good + more + `}]}` }
	for _, tt := range []struct{ body, code, param string }{
		{`{"list":[]}`, "unknown_parameter", "list"},
		{`{"settlements":1}`, "invalid_value", "settlements"},
		{`{"settlements":[{"id":"r"}]}`, "invalid_value", "settlements[0].at"},
		{`{"settlements":[{"at":"2026-11-24T12:00:00Z"}]}`, "invalid_value", "settlements[0].id"},
		{`{"settlements":[{"id":"r","at":"1969-11-24T12:00:00Z"}]}`, "invalid_value", "settlements[0].at"},
		{`{"settlements":[{"id":"r","at":"2026-11-24T12:00:00Z"}]}`, "invalid_value", "settlements[0].token_id"},
		{with(`,"input":-1`), "invalid_value", "settlements[0].input"},
		{with(`,"cost":0.5`), "invalid_value", "settlements[0].cost"},
		{with(`,"unpriced":1`), "invalid_value", "settlements[0].unpriced"},
		{with(`,"team_id":7`), "invalid_value", "settlements[0].team_id"},
		{with(`,"tokens":7`), "unknown_parameter", "settlements[0].tokens"},
		{with(`,"budgets":[{"budget":"b","amount":-1}]`), "invalid_value", "settlements[0].budgets[0].amount"},
	} {
		a := p.call(runtime, "POST", "/v1/runtime/settlements", tt.body)
		if a.status != 400 || a.code() != tt.code || a.param() != tt.param {
			t.Errorf("%s: got %d %s %s, want %s %s", tt.body, a.status, a.code(), a.param(), tt.code, tt.param)
		}
	}
	for _, body := range []string{
		`{}`, `{"settlements":[]}`, with(``), with(`,"input":9223372036854775807,"estimated":true,"budgets":[{"budget":"b","amount":1}]`),
	} {
		if a := p.call(runtime, "POST", "/v1/runtime/settlements", body); a.status != 200 || a.raw != "{}\n" {
			t.Errorf("%s: %d %s", body, a.status, a.raw)
		}
	}
}

// FuzzReadCall: a call that is read says, written again, the same.
func FuzzReadCall(f *testing.F) {
	f.Add(`{"session":"ls_5f","seq":418,"leases":[{"budget":"b","window":"2026-11-24.0","granted":9000000,"returned":0,"spent":1,"held":2,"overrun":3,"phase":6,"want":5}],"needs":[[{"budget":"b","window":"current","amount":30000}]],"close":[{"session":"ls_old","leases":[{"budget":"b","window":"w","mark":5,"overrun":0}],"lost":false}]}`)
	f.Add(`{"session":"s","seq":9223372036854775807,"leases":[{"budget":"b","window":"next","want":1}]}`)
	f.Add(`{"session":"s","seq":1e3}`)
	f.Fuzz(func(t *testing.T, body string) {
		o, p := readObject([]byte(body), nil)
		if p != nil {
			return
		}
		c, err := readCall(o)
		if err != nil {
			return
		}
		raw, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		o, p = readObject(raw, nil)
		if p != nil {
			t.Fatalf("%s: %v", raw, p)
		}
		again, err := readCall(o)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if second, _ := json.Marshal(again); string(second) != string(raw) {
			t.Fatalf("%s became %s", raw, second)
		}
	})
}

func TestAnUnmetNeedIsCalledBackFromTheOthers(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := newPlane(t)
	p.budget("b", "requests", "10")
	holder, asker := p.server.Embedded("gw_1"), p.server.Embedded("gw_2")
	came := make(chan budget.Recall, 9)
	watching := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		first := true
		_ = holder.Watch(ctx, -1, func(e Event) {
			if first {
				first = false
				close(watching)
			}
			if e.Recall != nil {
				came <- *e.Recall
			}
		})
	}()
	<-watching
	if _, err := holder.Leases(ctx, &budget.Call{Session: "h", Seq: 1, Needs: needOf("b", 10)}); err != nil {
		t.Fatal(err)
	}
	for seq := range int64(2) {
		if _, err := asker.Leases(ctx, &budget.Call{Session: "a", Seq: seq + 1, Needs: needOf("b", 1)}); err != nil {
			t.Fatal(err)
		}
		if got := <-came; got != (budget.Recall{Budget: "b", Window: "2026-11-24.0", Phase: 1}) {
			t.Errorf("recalled %+v", got)
		}
		p.wait(100 * time.Millisecond)
	}
	cancel()
	<-done
}

// BenchmarkLease is a call in the steady state: ten leases moved, two are topped up.
func BenchmarkLease(b *testing.B) {
	p := newPlane(b)
	var call budget.Call
	call.Session = "s"
	for i := range 10 {
		id := fmt.Sprintf("b%d", i)
		p.budget(id, "usd", "1000000")
		call.Leases = append(call.Leases, budget.Lease{Budget: id, Window: budget.WindowCurrent, Want: 1})
	}
	e := p.server.Embedded("gw")
	ctx := context.Background()
	step := func() {
		call.Seq++
		answer, err := e.Leases(ctx, &call)
		if err != nil {
			b.Fatal(err)
		}
		for i := range answer.Leases {
			l := &call.Leases[i]
			l.Window, l.Granted, l.Spent, l.Want = answer.Leases[i].Window, answer.Leases[i].Granted, l.Spent+1, 0
			if i < 2 {
				l.Want = 10
			}
		}
	}
	step()
	for b.Loop() {
		step()
	}
}

// BenchmarkSettle is a batch of 500 settlements of one budget each.
func BenchmarkSettle(b *testing.B) {
	p := newPlane(b)
	p.budget("b", "usd", "1000000")
	e := p.server.Embedded("gw")
	n := 0
	for b.Loop() {
		list := make([]budget.Settlement, 500)
		for i := range list {
			n++
			list[i] = budget.Settlement{ID: fmt.Sprint(n), At: p.now(), TokenID: fmt.Sprint(i % 50), Model: "m", Target: "t", Requests: 1, Input: 10,
				Cost: 5, Budgets: []budget.Charge{{Budget: "b", Window: "2026-11-24.0", Amount: 5}}}
		}
		if err := e.Settle(context.Background(), list); err != nil {
			b.Fatal(err)
		}
	}
}
