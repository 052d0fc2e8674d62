package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestABudgetIsMadeAndChanged(t *testing.T) {
	const day = `{"unit":"usd","window":"day","limit":"5.00"}`
	for _, tt := range []struct {
		name  string
		first string // the body that makes it; "": there is none yet
		body  string
		want  string // status and, of the answer, what the record says; or the refusal
	}{
		{"made", "", day, "201 usd day 5 enforce null"},
		{"made with all", "", `{"unit":"tokens","window":"month","limit":"100000","mode":"observe","applies_to":{"team_id":"red"}}`, `201 tokens month 100000 observe {"team_id":"red"}`},
		{"of the org", "", `{"unit":"requests","window":"total","limit":"0","applies_to":{"org":true}}`, `201 requests total 0 enforce {"org":true}`},
		{"of nobody else", "", `{"unit":"usd","window":"week","limit":"0.000000001","applies_to":null}`, `201 usd week 0.000000001 enforce null`},
		{"with its own id", "", `{"id":"b","unit":"usd","window":"hour","limit":"1"}`, `201 usd hour 1 enforce null`},
		{"the same again", day, day, "200 usd day 5 enforce null"},
		{"another limit", day, `{"unit":"usd","window":"day","limit":"7.5"}`, "200 usd day 7.5 enforce null"},
		{"only the limit", day, `{"limit":"7.5"}`, "200 usd day 7.5 enforce null"},
		{"only the mode", day, `{"mode":"observe"}`, "200 usd day 5 observe null"},
		{"only whom it reaches", day, `{"applies_to":{"org":true}}`, `200 usd day 5 enforce {"org":true}`},
		{"what is not named stays", `{"unit":"usd","window":"day","limit":"5","mode":"observe","applies_to":{"team_id":"red"}}`, `{"limit":"6"}`, `200 usd day 6 observe {"team_id":"red"}`},
		{"null reaches nobody else", `{"unit":"usd","window":"day","limit":"5","applies_to":{"team_id":"red"}}`, `{"applies_to":null}`, "200 usd day 5 enforce null"},
		{"nothing changes", day, `{}`, "200 usd day 5 enforce null"},
		{"another unit", day, `{"unit":"tokens","window":"day","limit":"5"}`, "409 budget_conflict unit"},
		{"another window", day, `{"window":"month"}`, "409 budget_conflict window"},
		{"an unknown unit of one that stands", day, `{"unit":"eur"}`, "400 invalid_value unit"},
		{"no unit", "", `{"window":"day","limit":"5"}`, "400 missing_required_parameter unit"},
		{"no window", "", `{"unit":"usd","limit":"5"}`, "400 missing_required_parameter window"},
		{"no limit", "", `{"unit":"usd","window":"day"}`, "400 missing_required_parameter limit"},
		{"an empty body", "", `{}`, "400 missing_required_parameter unit"},
		{"no body", "", ``, "400 invalid_json "},
		{"an unknown unit", "", `{"unit":"eur","window":"day","limit":"5"}`, "400 invalid_value unit"},
		{"an unknown window", "", `{"unit":"usd","window":"year","limit":"5"}`, "400 invalid_value window"},
		{"an unknown mode", "", `{"unit":"usd","window":"day","limit":"5","mode":"warn"}`, "400 invalid_value mode"},
		{"an empty mode", "", `{"unit":"usd","window":"day","limit":"5","mode":""}`, "400 invalid_value mode"},
		{"a limit as a number", "", `{"unit":"usd","window":"day","limit":5}`, "400 invalid_value limit"},
		{"a limit below zero", "", `{"unit":"usd","window":"day","limit":"-1"}`, "400 invalid_value limit"},
		{"a limit with an exponent", "", `{"unit":"usd","window":"day","limit":"1e3"}`, "400 invalid_value limit"},
		{"finer than counted", "", `{"unit":"usd","window":"day","limit":"0.0000000001"}`, "400 invalid_value limit"},
		{"more than can be counted", "", `{"unit":"usd","window":"day","limit":"1000000000"}`, "400 invalid_value limit"},
		{"half a token", "", `{"unit":"tokens","window":"day","limit":"0.5"}`, "400 invalid_value limit"},
		{"reach of a wrong type", "", `{"unit":"usd","window":"day","limit":"5","applies_to":"org"}`, "400 invalid_value applies_to"},
		{"an empty reach", "", `{"unit":"usd","window":"day","limit":"5","applies_to":{}}`, "400 invalid_value applies_to"},
		{"two reaches", "", `{"unit":"usd","window":"day","limit":"5","applies_to":{"org":true,"team_id":"red"}}`, "400 invalid_value applies_to"},
		{"an org that is false", "", `{"unit":"usd","window":"day","limit":"5","applies_to":{"org":false}}`, "400 invalid_value applies_to.org"},
		{"an empty team", "", `{"unit":"usd","window":"day","limit":"5","applies_to":{"team_id":""}}`, "400 invalid_value applies_to.team_id"},
		{"an unknown reach", "", `{"unit":"usd","window":"day","limit":"5","applies_to":{"team":"red"}}`, "400 unknown_parameter applies_to.team"},
		{"an unknown key", "", `{"unit":"usd","window":"day","limit":"5","settled":"0"}`, "400 unknown_parameter settled"},
		{"another id than the path's", "", `{"id":"c","unit":"usd","window":"day","limit":"5"}`, "400 immutable_field id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t)
			if tt.first != "" {
				p.must(201, "PUT", "/v1/budgets/b", tt.first)
			}
			a := p.admin("PUT", "/v1/budgets/b", tt.body)
			got := fmt.Sprintf("%d %s %s", a.status, a.code(), a.param())
			if a.status < 300 {
				reach, err := json.Marshal(a.body["applies_to"])
				if err != nil {
					t.Fatal(err)
				}
				got = fmt.Sprintf("%d %s %s %s %s %s", a.status, a.text("unit"), a.text("window"), a.text("limit"), a.text("mode"), reach)
			}
			if got != tt.want {
				t.Fatalf("got %s, want %s: %s", got, tt.want, a.raw)
			}
			if a.status >= 400 && tt.first == "" {
				if a := p.admin("GET", "/v1/budgets/b", nil); a.status != 404 || a.code() != "budget_not_found" {
					t.Fatalf("a refused body left a budget: %s", a.raw)
				}
			}
		})
	}
}

func TestABudgetIsAnsweredWhole(t *testing.T) {
	p := newPlane(t)
	for _, tt := range []struct {
		window, reopens string
	}{
		{"hour", "2026-11-24T13:00:00Z"}, {"day", "2026-11-25T00:00:00Z"}, {"week", "2026-11-30T00:00:00Z"}, {"month", "2026-12-01T00:00:00Z"}, {"total", ""},
	} {
		a := p.must(201, "PUT", "/v1/budgets/b_"+tt.window, fields{"unit": "usd", "window": tt.window, "limit": "5.00"})
		want := map[string]any{
			"id": "b_" + tt.window, "org_id": "org_default", "unit": "usd", "window": tt.window, "limit": "5", "mode": "enforce", "applies_to": nil,
			"topped_up": "0", "settled": "0", "held": "0", "leased": "0", "left": "5", "overrun": "0", "unattributed": "0", "unpriced": 0.0,
			"reopens_at": any(tt.reopens), "revision": a.body["revision"], "created_at": "2026-11-24T12:00:00Z",
		}
		if tt.reopens == "" {
			want["reopens_at"] = nil
		}
		if !reflect.DeepEqual(a.body, want) {
			t.Errorf("made: %v\nwant %v", a.body, want)
		}
		if got := p.must(200, "GET", "/v1/budgets/b_"+tt.window, nil); !reflect.DeepEqual(got.body, a.body) {
			t.Errorf("shown: %v\nwant %v", got.body, a.body)
		}
		id, _ := p.mint("general", fields{"budgets": []fields{{"id": "b_" + tt.window}}})
		if got := p.must(200, "GET", "/v1/budgets?token_id="+id, nil).body["data"]; !reflect.DeepEqual(got, []any{a.body}) {
			t.Errorf("as a token's: %v\nwant %v", got, a.body)
		}
	}
	var got []string
	for cursor := ""; ; {
		a := p.must(200, "GET", "/v1/budgets?limit=2"+cursor, nil)
		for _, v := range a.body["data"].([]any) {
			got = append(got, v.(map[string]any)["id"].(string))
		}
		if a.body["next_cursor"] == nil {
			break
		}
		cursor = "&cursor=" + a.text("next_cursor")
	}
	if want := "b_day b_hour b_month b_total b_week"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	for query, param := range map[string]string{"limit=0": "limit", "cursor=a%20b": "cursor", "team=x": "team"} {
		if a := p.admin("GET", "/v1/budgets?"+query, nil); a.status != 400 || a.param() != param {
			t.Errorf("?%s: %d at %q: %s", query, a.status, a.param(), a.raw)
		}
	}
	for _, path := range []string{"/v1/budgets/a$b", "/v1/budgets/kt_live_00000000000000000000000000000000000000000001jIOm5", "/v1/budgets/" + strings.Repeat("b", 129)} {
		if a := p.admin("PUT", path, fields{"unit": "usd", "window": "day", "limit": "1"}); a.status != 400 || a.param() != "id" {
			t.Errorf("%s: %d at %q: %s", path, a.status, a.param(), a.raw)
		}
	}
}

func TestOneIDIsOneBudgetInEachOrg(t *testing.T) {
	p := newPlane(t)
	body := fields{"unit": "usd", "window": "day", "limit": "1"}
	p.must(201, "PUT", "/v1/budgets/b", body)
	if a := p.must(201, "PUT", "/v1/budgets/b?org_id=org_b", fields{"unit": "tokens", "window": "month", "limit": "7"}); a.text("org_id") != "org_b" {
		t.Errorf("got %s", a.raw)
	}
	p.must(200, "PUT", "/v1/budgets/b", fields{"org_id": "org_b", "limit": "8"})
	if a := p.must(200, "GET", "/v1/budgets/b", nil); a.text("limit") != "1" {
		t.Errorf("got %s", a.raw)
	}
	if a := p.must(200, "GET", "/v1/budgets/b?org_id=org_b", nil); a.text("limit") != "8" {
		t.Errorf("got %s", a.raw)
	}
	if a := p.must(200, "GET", "/v1/budgets?org_id=org_b", nil); len(a.body["data"].([]any)) != 1 {
		t.Errorf("got %s", a.raw)
	}
	p.must(200, "POST", "/v1/budgets/b/top-up", fields{"org_id": "org_b", "amount": "2", "key": "k"})
	if a := p.must(200, "GET", "/v1/budgets/b", nil); a.text("left") != "1" {
		t.Errorf("got %s", a.raw)
	}
	// A token's budgets are those of its org.
	if a := p.admin("POST", "/v1/tokens", fields{"name": "n", "purpose": "general", "org_id": "org_c", "bindings": fields{"budgets": []fields{{"id": "b"}}}}); a.code() != "unknown_budget" {
		t.Errorf("got %s", a.raw)
	}
	for _, tt := range []struct {
		path string
		body fields
	}{
		{"/v1/budgets/b?org_id=org_b", fields{"org_id": "org_c", "limit": "1"}},
		{"/v1/budgets/b?org_id=a%20b", fields{"limit": "1"}},
		{"/v1/budgets/b", fields{"org_id": "", "limit": "1"}},
		{"/v1/budgets/b", fields{"org_id": 5, "limit": "1"}},
	} {
		if a := p.admin("PUT", tt.path, tt.body); a.status != 400 || a.param() != "org_id" {
			t.Errorf("%s %v: %d at %q: %s", tt.path, tt.body, a.status, a.param(), a.raw)
		}
	}
}

func TestBudgetsOfATokenThatIsNotThere(t *testing.T) {
	p := newPlane(t)
	id, _ := p.mint("general", nil)
	for _, query := range []string{"token_id=tok_none", "token_id=" + id + "&org_id=org_b"} {
		if a := p.admin("GET", "/v1/budgets?"+query, nil); a.status != 404 || a.code() != "token_not_found" {
			t.Errorf("?%s: %d %s", query, a.status, a.raw)
		}
	}
}

func TestATopUpCountsOnceAKey(t *testing.T) {
	p := newPlane(t)
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "day", "limit": "5"})
	for _, tt := range []struct {
		amount, key string
		left, plus  string
	}{
		{"2.50", "first", "7.5", "2.5"},
		{"2.50", "first", "7.5", "2.5"},
		{"2.50", "second", "10", "5"},
		{"0.000000001", "third", "10.000000001", "5.000000001"},
		{"2.50", "first", "10.000000001", "5.000000001"},
	} {
		a := p.must(200, "POST", "/v1/budgets/b/top-up", fields{"amount": tt.amount, "key": tt.key})
		if a.text("left") != tt.left || a.text("topped_up") != tt.plus || a.text("limit") != "5" {
			t.Errorf("%s under %s: %s", tt.amount, tt.key, a.raw)
		}
	}
	for _, tt := range []struct{ path, body, want string }{
		{"b", `{"key":"k"}`, "400 missing_required_parameter amount"},
		{"b", `{"amount":"1"}`, "400 missing_required_parameter key"},
		{"b", `{"amount":"0","key":"k"}`, "400 invalid_value amount"},
		{"b", `{"amount":"-1","key":"k"}`, "400 invalid_value amount"},
		{"b", `{"amount":1,"key":"k"}`, "400 invalid_value amount"},
		{"b", `{"amount":"2","key":"first"}`, "409 budget_conflict key"},
		{"b", `{"amount":"1","key":"ü"}`, "400 invalid_value key"},
		{"b", `{"amount":"1","key":"` + strings.Repeat("k", 129) + `"}`, "400 invalid_value key"},
		{"b", `{"amount":"1","key":"k","unit":"usd"}`, "400 unknown_parameter unit"},
		{"b", ``, "400 invalid_json "},
		{"none", `{"amount":"1","key":"k"}`, "404 budget_not_found "},
	} {
		a := p.admin("POST", "/v1/budgets/"+tt.path+"/top-up", tt.body)
		if got := fmt.Sprintf("%d %s %s", a.status, a.code(), a.param()); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.body, got, tt.want)
		}
	}
	if a := p.must(200, "GET", "/v1/budgets/b", nil); a.text("left") != "10.000000001" {
		t.Errorf("a refused top-up counted: %s", a.raw)
	}
}

func TestATopUpBeyondWhatCanBeCountedIsRefused(t *testing.T) {
	p := newPlane(t)
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "total", "limit": "999999999"})
	var a answer
	for i := range 20 {
		before := p.must(200, "GET", "/v1/budgets/b", nil).raw
		a = p.admin("POST", "/v1/budgets/b/top-up", fields{"amount": "999999999", "key": fmt.Sprint(i)})
		if a.status == 400 {
			if after := p.must(200, "GET", "/v1/budgets/b", nil).raw; a.param() != "amount" || after != before {
				t.Errorf("got %s; then %s", a.raw, after)
			}
			return
		}
	}
	t.Errorf("20 were taken: %s", a.raw)
}

func TestGatewaysHearAtOnceOfABudgetThatChanges(t *testing.T) {
	p := newPlane(t)
	c, _ := p.gateway("gw", "i")
	s := watchFrom(t, c, FromHead)
	s.next(KindHead)
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "day", "limit": "5"})
	s.next(KindUpsert)
	p.must(200, "POST", "/v1/budgets/b/top-up", fields{"amount": "1", "key": "k"})
	if e := s.next(KindRecall); e.Recall.Budget != "b" || e.Recall.Window != "2026-11-24.0" {
		t.Errorf("topped up: %+v", e.Recall)
	}
	p.must(200, "PUT", "/v1/budgets/b", fields{"limit": "7"})
	heard := map[string]bool{}
	for len(heard) < 2 {
		select {
		case e := <-s.events:
			if e.Kind != KindHead {
				heard[e.Kind] = true
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("heard only %v", heard)
		}
	}
	if !heard[KindUpsert] || !heard[KindRecall] {
		t.Errorf("heard %v", heard)
	}
}

func TestTokensThatBringOneBudgetAtOnceShareIt(t *testing.T) {
	p := newPlane(t)
	const n = 16
	statuses := make(chan int, n)
	for range n {
		go func() {
			body := `{"name":"n","purpose":"general","bindings":{"budgets":[{"id":"b","limit":"5","unit":"usd","window":"day"}]}}`
			req, err := http.NewRequest("POST", p.url+"/v1/tokens", strings.NewReader(body))
			if err != nil {
				panic(err)
			}
			req.Header.Set("Authorization", "Bearer "+adminToken)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				statuses <- 0
				return
			}
			_ = res.Body.Close()
			statuses <- res.StatusCode
		}()
	}
	for range n {
		if got := <-statuses; got != 201 {
			t.Errorf("status %d", got)
		}
	}
	if a := p.must(200, "GET", "/v1/audit?event=budget.created", nil); len(a.body["data"].([]any)) != 1 {
		t.Errorf("got %s", a.raw)
	}
}

func TestBudgetsAreAudited(t *testing.T) {
	p := newPlane(t)
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "day", "limit": "5"})
	p.must(200, "PUT", "/v1/budgets/b", fields{"limit": "6", "applies_to": fields{"team_id": "red"}})
	p.must(200, "PUT", "/v1/budgets/b", fields{"limit": "6.00"})
	p.must(200, "POST", "/v1/budgets/b/top-up", fields{"amount": "2", "key": "k"})
	p.must(200, "POST", "/v1/budgets/b/top-up", fields{"amount": "2", "key": "k"})
	p.mint("general", fields{"budgets": []fields{{"id": "c", "limit": "1", "unit": "usd", "window": "day"}}})
	p.mint("general", fields{"budgets": []fields{{"id": "c", "limit": "1", "unit": "usd", "window": "day"}}})
	var got []string
	for _, v := range p.must(200, "GET", "/v1/audit", nil).body["data"].([]any) {
		e := v.(map[string]any)
		if !strings.HasPrefix(e["event"].(string), "budget.") {
			continue
		}
		limit := func(side string) any {
			m, _ := e[side].(map[string]any)
			return m["limit"]
		}
		after := e["after"].(map[string]any)
		if e["actor"] != "administrator" || after["id"] != e["subject"] || after["org_id"] != "org_default" {
			t.Errorf("entry %v", e)
		}
		got = append(got, fmt.Sprintf("%s %s %v→%v %v", e["event"], e["subject"], limit("before"), limit("after"), after["top_up"]))
	}
	want := []string{
		"budget.created c <nil>→1 <nil>",
		"budget.topped_up b 6→6 map[amount:2 key:k]",
		"budget.changed b 5→6 <nil>",
		"budget.created b <nil>→5 <nil>",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if a := p.must(200, "GET", "/v1/audit?event=budget.topped_up&subject=b", nil); len(a.body["data"].([]any)) != 1 {
		t.Errorf("got %s", a.raw)
	}
}
