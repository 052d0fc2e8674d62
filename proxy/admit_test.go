package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/record"
)

// gate is a control plane that does not answer while it is closed. once: it closes
// when it has granted something.
type gate struct {
	budget.Authority
	closed *atomic.Bool
	once   bool
}

func (g *gate) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	for g.closed.Load() {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	a, err := g.Authority.Leases(ctx, c)
	if g.once && len(c.Needs) > 0 && err == nil && ctx.Err() == nil { // calls come one by one
		g.closed.Store(true)
		g.once = false
	}
	return a, err
}

func TestTheOutputLimitIsWhatTheBudgetBears(t *testing.T) {
	t.Parallel()
	const bare = `{"model":"chat","messages":[]}`
	for _, tt := range []struct {
		name   string
		body   string
		entry  string // of the model
		target string
		spare  int64 // tokens of output that the budget bears
		limit  int64 // that is written; 0: none
		field  string
		code   string
	}{
		{name: "the config's", body: bare, spare: 10_000, limit: 4096, field: "max_completion_tokens"},
		{name: "the config's, under the target's name", body: bare, target: "output_limit: max_tokens, ", spare: 10_000, limit: 4096, field: "max_tokens"},
		{name: "what the budget bears of it", body: bare, spare: 1000, limit: 1000, field: "max_completion_tokens"},
		{name: "the model's own needs none", body: bare, entry: "max_output: 5000, ", spare: 5000},
		{name: "what the budget bears of the model's", body: bare, entry: "max_output: 5000, ", spare: 4999, limit: 4999, field: "max_completion_tokens"},
		{name: "a share a choice", body: `{"model":"chat","n":4,"messages":[]}`, spare: 1002, limit: 250, field: "max_completion_tokens"},
		{name: "the least", body: bare, spare: 16, limit: 16, field: "max_completion_tokens"},
		{name: "less than the least", body: bare, spare: 15, code: codeBudgetExceeded},
		{name: "a model that says less", body: bare, entry: "max_output: 10, ", spare: 10},
		{name: "the request's own", body: `{"model":"chat","max_tokens":100,"messages":[]}`, spare: 100},
		{name: "the request's own is never lowered", body: `{"model":"chat","max_tokens":100,"messages":[]}`, spare: 99, code: codeBudgetExceeded},
		{name: "the request's own, a choice", body: `{"model":"chat","max_completion_tokens":100,"n":3,"messages":[]}`, spare: 299, code: codeBudgetExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := answering(t, whole(200, completion))
			yaml := plainConfig(u.url)
			yaml = strings.Replace(yaml, "{name: chat, ", "{name: chat, "+tt.entry, 1)
			yaml = strings.Replace(yaml, "{id: main, base_url", "{id: main, "+tt.target+"base_url", 1)
			yaml = strings.Replace(yaml, "{input: 1, cached_input: 0.5, output: 2}", "{input: 0.002, output: 0.003}", 1)
			input := inputBound(t, tt.body)
			m := funded(t, yaml,
				budget.Record{ID: "t", Unit: budget.Tokens, Limit: input + tt.spare},
				budget.Record{ID: "u", Unit: budget.USD, Limit: 2*input + 3*tt.spare + 2})
			for i, id := range []string{"t", "u"} { // each alone
				r := m.do(call(m.spender(id), tt.body))
				if r.problem().Code != tt.code {
					t.Fatalf("%s: %d %s", id, r.status, r.body)
				}
				if tt.code != "" {
					continue
				}
				if got := r.header.Get("X-Keeptrusts-Output-Limit"); got != strconv.FormatInt(tt.limit, 10) && (got != "" || tt.limit != 0) {
					t.Errorf("%s: the header says %q, want %d", id, got, tt.limit)
				}
				_, _, sent := parts(u.seen()[i])
				var got map[string]any
				if err := json.Unmarshal([]byte(sent), &got); err != nil {
					t.Fatal(err)
				}
				if tt.limit == 0 && sent != tt.body {
					t.Errorf("%s: sent %s", id, sent)
				}
				if tt.limit != 0 && got[tt.field] != float64(tt.limit) {
					t.Errorf("%s: sent %s, want %s of %d", id, sent, tt.field, tt.limit)
				}
				m.atRest()
			}
		})
	}
}

func TestWithoutABudgetOfMoneyOrTokensNoLimitIsWritten(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	m := funded(t, plainConfig(u.url),
		budget.Record{ID: "r", Unit: budget.Requests, Limit: 10},
		budget.Record{ID: "o", Unit: budget.USD, Limit: 0, Mode: budget.Observe},
		budget.Record{ID: "ot", Unit: budget.Tokens, Limit: 0, Mode: budget.Observe})
	key := m.spender("r", "o", "ot")
	for _, body := range []string{
		plainBody,
		strings.Replace(plainBody, `"chat"`, `"mapped"`, 1),                                              // no price
		`{"model":"chat","messages":[{"role":"user","content":[{"type":"video_url","video_url":"v"}]}]}`, // no context
	} {
		r := m.do(call(key, body))
		if r.status != 200 || r.header.Get("X-Keeptrusts-Output-Limit") != "" || r.header.Get("X-Keeptrusts-Budget-Remaining") == "" {
			t.Errorf("%d %v %s", r.status, r.header, r.body)
		}
	}
	if _, _, sent := parts(u.seen()[0]); sent != plainBody {
		t.Errorf("sent %s", sent)
	}
	if row := m.usage(3); row.Input != 15 || row.Unpriced != 1 {
		t.Errorf("the usage is %+v", row)
	}
}

func TestACostWithoutABoundIsDeniedUnderAnEnforcedBudget(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	yaml := strings.Replace(plainConfig(u.url), "limits:", `  - {name: bounded, context: 500, targets: [{id: main}], price: {input: 1, output: 1}}
  - {name: half, targets: [{id: main}], price: {input: 1}}
  - {name: free, targets: [{id: main}], price: {input: 0, output: 0}}
limits:`, 1)
	m := funded(t, yaml,
		budget.Record{ID: "u", Unit: budget.USD, Limit: 1_000_000_000},
		budget.Record{ID: "t", Unit: budget.Tokens, Limit: 1_000_000},
		budget.Record{ID: "small", Unit: budget.Tokens, Limit: 500 + 15})
	plain := func(model string) string { return strings.Replace(plainBody, `"chat"`, `"`+model+`"`, 1) }
	far := func(model string) string {
		return `{"model":"` + model + `","max_tokens":16,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}]}]}`
	}
	for _, tt := range []struct {
		budget, body, code, says string
	}{
		{"u", plain("mapped"), codePriceUnknown, "models[mapped].price"},
		{"u", plain("half"), codePriceUnknown, "models[half].price.output"},
		{"u", plain("free"), "", ""},
		{"u", `{"model":"chat","modalities":["text","audio"],"audio":{"voice":"v","format":"wav"},"messages":[]}`, codePriceUnknown, "models[chat].price.audio_output"},
		{"t", plain("mapped"), "", ""},
		{"u", far("chat"), codeContextUnknown, "models[chat].context"},
		{"t", far("chat"), codeContextUnknown, "models[chat].context"},
		{"t", far("bounded"), "", ""},
		{"small", far("bounded"), codeBudgetExceeded, ""},
		{"small", `{"model":"bounded","max_tokens":15,"messages":[{"role":"user","content":[{"type":"video_url","video_url":"v"}]}]}`, "", ""},
		{"small", `{"model":"bounded","max_tokens":16,"messages":[{"role":"user","content":[{"type":"video_url","video_url":"v"}]}]}`, codeBudgetExceeded, ""},
	} {
		r := m.do(call(m.spender(tt.budget), tt.body))
		p := r.problem()
		if p.Code != tt.code || !strings.Contains(p.Message, tt.says) {
			t.Errorf("%s %s: %d %+v", tt.budget, tt.body, r.status, p)
		}
		if tt.code == codePriceUnknown || tt.code == codeContextUnknown {
			if r.status != 403 || p.Type != kindPermission || !strings.Contains(p.Message, "tok_") {
				t.Errorf("%d %+v", r.status, p)
			}
			if l := m.line(r.header.Get("X-Request-Id")); l["reason"] != tt.code {
				t.Errorf("the reason is %v", l["reason"])
			}
		}
	}
	for code, want := range map[string]float64{codePriceUnknown: 3, codeContextUnknown: 2, codeBudgetExceeded: 2, "allowed": 4} {
		if n := m.metric("keeptrusts_gateway_decisions_total", "reason="+code); n != want {
			t.Errorf("decisions_total{reason=%s} is %v, want %v", code, n, want)
		}
	}
}

func TestABudgetThatNobodyKnowsDeniesUntilItIsKnown(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	m := funded(t, plainConfig(u.url), budget.Record{ID: "known", Unit: budget.Requests, Limit: 10})
	key := m.spender("known", "late")
	r := m.do(call(key, plainBody))
	if p := r.problem(); r.status != 403 || p.Code != "profile_invalid" || !strings.Contains(p.Message, `"late"`) {
		t.Errorf("%d %+v", r.status, p)
	}
	if n := m.left(key, "known"); n != 10 {
		t.Errorf("whoami: %d left", n)
	}
	m.put(budget.Record{ID: "late", Unit: budget.Requests, Limit: 1})
	if r := m.do(call(key, plainBody)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if n := m.metric("keeptrusts_gateway_decisions_total", "reason=profile_invalid"); n != 1 {
		t.Errorf("%v decisions", n)
	}
	// One that reaches the token without being named.
	team := "blue"
	teamed := m.mint(func(p *abac.Profile) { p.Bindings.TeamID = &team })
	if r := m.do(call(teamed, plainBody)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	m.put(budget.Record{ID: "team", Unit: budget.Requests, Limit: 0, AppliesTo: budget.AppliesTo{TeamID: team}})
	if r := m.do(call(teamed, plainBody)); r.problem().Code != codeBudgetExceeded {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestADenialSaysWhichBudgetWhatIsLeftAndWhenItReopens(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	m := funded(t, perRequest(u.url),
		budget.Record{ID: "b_day", Unit: budget.USD, Limit: 15_000_000, Window: budget.Day},
		budget.Record{ID: "b_all", Unit: budget.Requests, Limit: 5})
	key := m.spender("b_day", "b_all")
	r := m.do(call(key, plainBody))
	if got := r.header.Get("X-Keeptrusts-Budget-Remaining"); r.status != 200 || got != "b_day=0.005" {
		t.Errorf("%d, remaining %q", r.status, got)
	}
	m.atRest()
	r = m.do(call(key, plainBody))
	p := r.problem()
	after, err := strconv.Atoi(r.header.Get("Retry-After"))
	_, end := budget.Day.At(time.Now())
	if err != nil || time.Duration(after)*time.Second-time.Until(end) > 2*time.Second || time.Until(end)-time.Duration(after)*time.Second > 2*time.Second {
		t.Errorf("Retry-After %q, the day ends in %v", r.header.Get("Retry-After"), time.Until(end))
	}
	for _, want := range []string{"b_day", "tok_", "0.015 usd", "window day", "0.005 usd left", "0.01 usd", "reopens at " + end.Format("2006-01-02T"), "administrator"} {
		if !strings.Contains(p.Message, want) {
			t.Errorf("the message does not say %q: %s", want, p.Message)
		}
	}
	if r.status != 429 || p.Code != codeBudgetExceeded || p.Type != "insufficient_quota" || r.header.Get("X-Should-Retry") != "false" || r.header.Get("X-Keeptrusts-Target") != "" {
		t.Errorf("%d %v %+v", r.status, r.header, p)
	}
	var who struct {
		BudgetsLeft []map[string]any `json:"budgets_left"`
	}
	if err := json.Unmarshal([]byte(m.do(get("/v1/whoami", key)).body), &who); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{
		{"id": "b_all", "unit": "requests", "window": "total", "left": "4", "reopens_at": nil},
		{"id": "b_day", "unit": "usd", "window": "day", "left": "0.005", "reopens_at": end.Format(time.RFC3339)},
	}
	if len(who.BudgetsLeft) == 2 && who.BudgetsLeft[0]["id"] == "b_day" {
		want[0], want[1] = want[1], want[0]
	}
	if fmt.Sprint(who.BudgetsLeft) != fmt.Sprint(want) {
		t.Errorf("budgets_left %v, want %v", who.BudgetsLeft, want)
	}
}

func TestHeldMoneyIsToldAsHeld(t *testing.T) {
	t.Parallel()
	url, _ := simulated(t)
	m := funded(t, plainConfig(url), budget.Record{ID: "b", Unit: budget.Requests, Limit: 1})
	key := m.spender("b")
	slow := strings.Replace(plainBody, "}]}", `}],"simulator":{"delay_ms":2500}}`, 1)
	first := make(chan reply, 1)
	go func() { first <- m.do(call(key, slow)) }()
	eventually(t, "the first is under way", func() bool { return m.metric("keeptrusts_gateway_budget_holds") == 1 })
	if n := m.metric("keeptrusts_gateway_open_requests"); n != 1 {
		t.Errorf("open_requests is %v", n)
	}
	began := time.Now()
	r := m.do(call(key, plainBody))
	if p := r.problem(); r.status != 429 || p.Code != codeBudgetHeld || p.Type != kindRate || r.header.Get("Retry-After") != "1" || r.header.Get("X-Should-Retry") != "" {
		t.Errorf("%d %v %+v", r.status, r.header, p)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("told after %v", d)
	}
	if r := receive(t, "the answer", first); r.status != 200 {
		t.Errorf("the first: %d", r.status)
	}
	m.atRest()
}

func TestRateLimitsAreTakenAndTold(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	m := funded(t, plainConfig(u.url), budget.Record{ID: "b", Unit: budget.Requests, Limit: 100}, budget.Record{ID: "none", Unit: budget.Requests, Limit: 0}, budget.Record{ID: "one", Unit: budget.Requests, Limit: 1})
	limited := func(l abac.RateLimits, ids ...string) string {
		return m.mint(func(p *abac.Profile) {
			p.Bindings.RateLimits = &l
			for _, id := range ids {
				p.Bindings.Budgets = append(p.Bindings.Budgets, abac.BudgetBinding{ID: id})
			}
		})
	}
	key := limited(abac.RateLimits{RequestsPerMinute: 20, TokensPerMinute: 100_000}, "b")
	for i := range 2 { // a burst is a tenth of a minute's worth
		r := m.do(call(key, plainBody))
		h := r.header
		if r.status != 200 || h.Get("X-Ratelimit-Limit-Requests") != "20" || h.Get("X-Ratelimit-Remaining-Requests") != strconv.Itoa(1-i) || h.Get("X-Ratelimit-Limit-Tokens") != "100000" {
			t.Errorf("%d %v", r.status, h)
		}
		for _, name := range []string{"X-Ratelimit-Reset-Requests", "X-Ratelimit-Reset-Tokens"} {
			if d, err := time.ParseDuration(h.Get(name)); err != nil || d <= 0 || d > 7*time.Second {
				t.Errorf("%s: %q", name, h.Get(name))
			}
		}
	}
	r := m.do(call(key, plainBody))
	after, _ := strconv.Atoi(r.header.Get("Retry-After"))
	if p := r.problem(); r.status != 429 || p.Code != codeRateLimited || p.Type != kindRate || after < 1 || after > 3 || r.header.Get("X-Ratelimit-Remaining-Requests") != "0" || !strings.Contains(p.Message, "20 requests a minute") {
		t.Errorf("%d %v %+v", r.status, r.header, p)
	}
	if n := m.metric("keeptrusts_gateway_decisions_total", "reason=rate_limited"); n != 1 {
		t.Errorf("decisions_total{reason=rate_limited} is %v", n)
	}
	m.atRest()
	if n := m.left(key, "b"); n != 98 {
		t.Errorf("%d left of the budget, want 98", n)
	}

	// Only admitted calls count.
	spent := limited(abac.RateLimits{RequestsPerMinute: 10}, "none")
	for range 5 {
		if r := m.do(call(spent, plainBody)); r.problem().Code != codeBudgetExceeded {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	// Both fail: what the ledger knows at once is told.
	both := limited(abac.RateLimits{RequestsPerMinute: 10}, "one")
	if r := m.do(call(both, plainBody)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	m.atRest()
	if r := m.do(call(m.spender("one"), plainBody)); r.problem().Code != codeBudgetExceeded {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := m.do(call(both, plainBody)); r.problem().Code != codeBudgetExceeded {
		t.Errorf("%d %s", r.status, r.body)
	}

	parallel := limited(abac.RateLimits{MaxParallelRequests: 3})
	codes := m.crowd(50, call(parallel, plainBody))
	if codes["ok"] < 3 || codes["ok"]+codes[codeRateLimited] != 50 {
		t.Errorf("%v", codes)
	}
	for range 10 {
		if r := m.do(call(parallel, plainBody)); r.status != 200 {
			t.Errorf("one by one: %d %s", r.status, r.body)
		}
	}
}

// A large call makes the next ones wait; it is never impossible.
func TestTheOutputOfACallIsTakenAtItsEnd(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, strings.Replace(completion, `"completion_tokens":1,"total_tokens":6`, `"completion_tokens":5000`, 1)))
	m := funded(t, plainConfig(u.url))
	key := m.mint(func(p *abac.Profile) { p.Bindings.RateLimits = &abac.RateLimits{TokensPerMinute: 1000} })
	if r := m.do(call(key, plainBody)); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	r := m.do(call(key, plainBody))
	after, _ := strconv.Atoi(r.header.Get("Retry-After"))
	if r.problem().Code != codeRateLimited || after < 200 || r.header.Get("X-Ratelimit-Remaining-Tokens") != "0" {
		t.Errorf("%d %v", r.status, r.header)
	}
}

func TestWhoeverLeavesWhileItWaitsForABudgetIsNotCharged(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	u := answering(t, whole(200, completion))
	m := fundedBy(t, plainConfig(u.url), func(a budget.Authority, _ *Options) budget.Authority {
		return &gate{Authority: a, closed: &closed}
	}, budget.Record{ID: "b", Unit: budget.Requests, Limit: 50})
	key := m.spender("b")
	closed.Store(true)
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			w := m.dial()
			w.send(call(key, plainBody))
			time.Sleep(time.Duration(i*40) * time.Millisecond)
			if i%2 == 0 {
				_ = w.SetLinger(0)
			}
			_ = w.Close()
		})
	}
	time.Sleep(400 * time.Millisecond) // some left before, some after there is an answer
	closed.Store(false)
	wait.Wait()
	m.atRest()
	eventually(t, "all are gone", func() bool { return m.s.open.Load() == 0 })
	reached := int64(len(u.seen()))
	if n := m.left(key, "b"); n != 50-reached {
		t.Errorf("%d left of 50, and %d calls reached the provider", n, reached)
	}
	if reached == 0 || reached > 12 {
		t.Errorf("%d of 20 reached the provider", reached)
	}
}

func TestAWaitForABudgetDoesNotHoldUpADrain(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	u := answering(t, whole(200, completion))
	m := fundedBy(t, limited(u.url, "lame_duck: 0s, drain: 200ms"), func(a budget.Authority, _ *Options) budget.Authority {
		return &gate{Authority: a, closed: &closed}
	}, budget.Record{ID: "b", Unit: budget.Requests, Limit: 50})
	key := m.spender("b")
	closed.Store(true)
	got := make(chan reply, 1)
	go func() { got <- m.do(call(key, plainBody)) }()
	eventually(t, "the call waits", func() bool { return m.s.streams.Load() == 1 })
	began := time.Now()
	if err := m.s.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 600*time.Millisecond {
		t.Errorf("drained in %v", d)
	}
	if r := receive(t, "the answer", got); r.status != 503 || r.problem().Code != codeDraining {
		t.Errorf("%d %s", r.status, r.body)
	}
	closed.Store(false)
}

func TestWithoutAControlPlaneALeaseServesUntilItIsUsedUp(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	u := answering(t, whole(200, completion))
	m := fundedBy(t, plainConfig(u.url), func(a budget.Authority, _ *Options) budget.Authority {
		return &gate{Authority: a, closed: &closed}
	}, budget.Record{ID: "b", Unit: budget.Requests, Limit: 1000})
	key := m.spender("b")
	if r := m.do(call(key, plainBody)); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	closed.Store(true)
	var r reply
	for range 1000 {
		if r = m.do(call(key, plainBody)); r.status != 200 {
			break
		}
	}
	if r.status != 503 || r.problem().Code != codeUnavailable || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	closed.Store(false)
	m.atRest()
}

// refusing is a sink that refuses while on is set.
type refusingSink struct{ on atomic.Bool }

func (s *refusingSink) Write(*record.Record) error {
	if s.on.Load() {
		return errors.New("disk full")
	}
	return nil
}

func (s *refusingSink) Close() error { return nil }

func TestNothingThatWasTakenLeaksWhereACallIsRefused(t *testing.T) {
	t.Parallel()
	url, _ := simulated(t)
	var sink refusingSink
	yaml := limited(url, "lame_duck: 0s, drain: 5s, streams: 5") + "records: {path: \"-\", mode: " + config.RecordsRequired + "}\n"
	m := fundedBy(t, yaml, func(a budget.Authority, o *Options) budget.Authority {
		o.Records = &sink
		return a
	}, budget.Record{ID: "b", Unit: budget.Requests, Limit: 100})
	key := m.mint(func(p *abac.Profile) {
		p.Bindings.Budgets = []abac.BudgetBinding{{ID: "b"}}
		p.Bindings.RateLimits = &abac.RateLimits{RequestsPerMinute: 600, MaxParallelRequests: 50}
	})
	slow := strings.Replace(plainBody, "}]}", `}],"simulator":{"delay_ms":300}}`, 1)
	sink.on.Store(true)
	for range 30 {
		if r := m.do(call(key, plainBody)); r.problem().Code != codeOverloaded {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	sink.on.Store(false)
	codes := m.crowd(30, call(key, slow)) // more than limits.streams
	m.atRest()
	if n := m.left(key, "b"); n != int64(100-codes["ok"]) || codes["ok"] < 5 || codes[codeOverloaded] == 0 {
		t.Errorf("%d left of 100 after %v", n, codes)
	}
	r := m.do(call(key, plainBody))
	if n, _ := strconv.Atoi(r.header.Get("X-Ratelimit-Remaining-Requests")); n < 60-1-codes["ok"] {
		t.Errorf("%d requests left of the rate after %v", n, codes)
	}
}

func TestAFaultOfOursIsChargedAndFreesItsHold(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	var sink panicking
	m := fundedBy(t, priced(plainConfig(u.url)), func(a budget.Authority, o *Options) budget.Authority {
		o.Records = &sink
		return a
	}, budget.Record{ID: "r", Unit: budget.Requests, Limit: 100}, budget.Record{ID: "t", Unit: budget.Tokens, Limit: 100_000})
	key := m.spender("r", "t")
	body := strings.Replace(streamBody, `"stream"`, `"max_tokens":50,"stream"`, 1)
	for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		faulty := &faultyConn{head: sseHead + chunk(event(1))}
		up := m.s.runtime.Load().upstreams["main"]
		up.mu.Lock()
		up.idle = append(up.idle, &upstreamConn{Conn: faulty, buf: make([]byte, upstreamBuffer), idle: time.Now().Add(time.Minute)})
		up.mu.Unlock()
		m.do(strings.Replace(call(key, body), "HTTP/1.1", version, 1))
	}
	m.atRest()
	input := inputBound(t, body)
	if r, n := m.left(key, "r"), 100_000-m.left(key, "t"); r != 98 || n <= 2*input || n > 2*(input+50) {
		t.Errorf("%d requests left, %d tokens charged, the input is %d", r, n, input)
	}
	// The books' own fault: the answer stands, and so does the charge.
	sink.on.Store(true)
	before := m.left(key, "t")
	if r := m.do(call(key, plainBody)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	sink.on.Store(false)
	m.atRest()
	if n := before - m.left(key, "t"); n != 6 {
		t.Errorf("%d tokens charged, want 6", n)
	}
}

// A call is reserved at the dearest of the targets that are left, and settled at
// the one that answered.
func TestACallIsReservedAtTheDearestTargetAndSettledAtItsOwn(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	yaml := strings.Replace(plainConfig(u.url), "limits:", `  - {name: two, targets: [{id: main}, {id: main2, weight: 0, price: {input: 4, output: 8}}, {id: main3, weight: 0}], price: {input: 1, output: 2}}
limits:`, 1)
	yaml = strings.Replace(yaml, "models:", `    - {id: main2, base_url: "`+u.url+`/v1"}
    - {id: main3, base_url: "`+u.url+`/v1"}
models:`, 1)
	body := `{"model":"two","max_tokens":100,"messages":[]}`
	dear := 4000*inputBound(t, body) + 8000*100
	m := funded(t, yaml, budget.Record{ID: "less", Unit: budget.USD, Limit: dear - 1}, budget.Record{ID: "enough", Unit: budget.USD, Limit: dear})
	if r := m.do(call(m.spender("less"), body)); r.problem().Code != codeBudgetExceeded || !strings.Contains(r.problem().Message, budget.USD.Format(dear)) {
		t.Errorf("%d %s", r.status, r.body)
	}
	key := m.spender("enough")
	if r := m.do(call(key, body)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	m.atRest()
	if n := dear - m.left(key, "enough"); n != 5*1000+1*2000 {
		t.Errorf("charged %d", n)
	}
	// A token that may use the cheap one only is not held to the dear one's price.
	cheap := m.mint(func(p *abac.Profile) {
		p.Bindings.Budgets = []abac.BudgetBinding{{ID: "less"}}
		p.Bindings.Providers = []string{"main"}
	})
	if r := m.do(call(cheap, body)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}
