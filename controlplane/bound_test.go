package controlplane

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestABindingNamesABudgetOrMakesIt(t *testing.T) {
	const (
		brings   = `[{"id":"b","limit":"5.00","unit":"usd","window":"day"}]`
		observes = `[{"id":"b","limit":"5.00","unit":"usd","window":"day","mode":"observe"}]`
	)
	for _, tt := range []struct {
		name    string
		stands  string // the body of the PUT that made b; "": none
		budgets string
		want    string // status, refusal and param; and what stands afterwards
	}{
		{"a budget that is there is named", `{"unit":"tokens","window":"month","limit":"9"}`, `[{"id":"b"}]`, "201   tokens month 9 enforce"},
		{"one that is not there", "", `[{"id":"b"}]`, "400 unknown_budget bindings.budgets[0].id none"},
		{"one that is not there, with a unit", "", `[{"id":"b","unit":"usd","window":"day"}]`, "400 unknown_budget bindings.budgets[0].id none"},
		{"the second is not there: the first is not made", "", `[{"id":"b","limit":"5","unit":"usd","window":"day"},{"id":"c"}]`, "400 unknown_budget bindings.budgets[1].id none"},
		{"one that is brought is made", "", brings, "201   usd day 5 enforce"},
		{"also to observe", "", observes, "201   usd day 5 observe"},
		{"the same stands", `{"unit":"usd","window":"day","limit":"5"}`, brings, "201   usd day 5 enforce"},
		{"the same but for its reach stands", `{"unit":"usd","window":"day","limit":"5","applies_to":{"org":true}}`, brings, "201   usd day 5 enforce"},
		{"another limit stands", `{"unit":"usd","window":"day","limit":"6"}`, brings, "409 budget_conflict bindings.budgets[0].limit usd day 6 enforce"},
		{"another unit stands", `{"unit":"tokens","window":"day","limit":"5"}`, brings, "409 budget_conflict bindings.budgets[0].unit tokens day 5 enforce"},
		{"another window stands", `{"unit":"usd","window":"week","limit":"5"}`, brings, "409 budget_conflict bindings.budgets[0].window usd week 5 enforce"},
		{"another mode stands", `{"unit":"usd","window":"day","limit":"5"}`, observes, "409 budget_conflict bindings.budgets[0].mode usd day 5 enforce"},
		{"a mode left out is enforce", `{"unit":"usd","window":"day","limit":"5","mode":"observe"}`, brings, "409 budget_conflict bindings.budgets[0].mode usd day 5 observe"},
		{"a name may say the unit", `{"unit":"usd","window":"day","limit":"5","mode":"observe"}`, `[{"id":"b","unit":"usd"}]`, "201   usd day 5 observe"},
		{"but no other", `{"unit":"usd","window":"day","limit":"5"}`, `[{"id":"b","unit":"tokens"}]`, "409 budget_conflict bindings.budgets[0].unit usd day 5 enforce"},
		{"nor another mode", `{"unit":"usd","window":"day","limit":"5"}`, `[{"id":"b","mode":"observe"}]`, "409 budget_conflict bindings.budgets[0].mode usd day 5 enforce"},
		{"a limit without a unit", "", `[{"id":"b","limit":"5"}]`, "400 invalid_value bindings.budgets[0].unit none"},
		{"a limit that is none", "", `[{"id":"b","limit":"much","unit":"usd","window":"day"}]`, "400 invalid_value bindings.budgets[0].limit none"},
	} {
		for _, how := range []string{"create", "patch"} {
			t.Run(how+": "+tt.name, func(t *testing.T) {
				p := newPlane(t)
				if tt.stands != "" {
					p.must(201, "PUT", "/v1/budgets/b", tt.stands)
				}
				bindings := fields{"budgets": json.RawMessage(tt.budgets)}
				var a answer
				if how == "create" {
					a = p.admin("POST", "/v1/tokens", fields{"name": "n", "purpose": "general", "bindings": bindings})
				} else {
					id, _ := p.mint("general", nil)
					a = p.admin("PATCH", "/v1/tokens/"+id, fields{"bindings": bindings})
					if a.status == 200 {
						a.status = 201
					}
				}
				stands := "none"
				if b := p.admin("GET", "/v1/budgets/b", nil); b.status == 200 {
					stands = fmt.Sprintf("%s %s %s %s", b.text("unit"), b.text("window"), b.text("limit"), b.text("mode"))
				}
				if got := fmt.Sprintf("%d %s %s %s", a.status, a.code(), a.param(), stands); got != tt.want {
					t.Fatalf("got  %s\nwant %s: %s", got, tt.want, a.raw)
				}
				if a.status != 201 {
					return
				}
				// The profile keeps what was sent.
				var sent any
				if err := json.Unmarshal([]byte(tt.budgets), &sent); err != nil {
					t.Fatal(err)
				}
				if kept := a.body["bindings"].(map[string]any)["budgets"]; !reflect.DeepEqual(kept, sent) {
					t.Errorf("kept %v, sent %v", kept, sent)
				}
			})
		}
	}
}

func TestATokenKeepsItsBudgets(t *testing.T) {
	p := newPlane(t)
	id, _ := p.mint("general", fields{"budgets": []fields{{"id": "b", "limit": "5", "unit": "usd", "window": "day"}}})
	p.must(200, "PUT", "/v1/budgets/b", fields{"limit": "9"})
	// Changed since it was bound: only who names it again is asked.
	p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": "new", "bindings": fields{"team_id": "red"}})
	a := p.must(201, "POST", "/v1/tokens/"+id+"/rotate", nil)
	budgets := a.body["bindings"].(map[string]any)["budgets"].([]any)
	if len(budgets) != 1 || budgets[0].(map[string]any)["id"] != "b" {
		t.Errorf("rotated: %s", a.raw)
	}
	if a := p.must(200, "GET", "/v1/budgets", nil); len(a.body["data"].([]any)) != 1 {
		t.Errorf("a rotation made a budget: %s", a.raw)
	}
	if a := p.admin("PATCH", "/v1/tokens/"+id, fields{"bindings": fields{"budgets": budgets}}); a.code() != "budget_conflict" {
		t.Errorf("got %s", a.raw)
	}
	a = p.must(200, "PATCH", "/v1/tokens/"+id, fields{"bindings": fields{"budgets": nil}})
	if got := a.body["bindings"].(map[string]any); !reflect.DeepEqual(got, map[string]any{"team_id": "red"}) {
		t.Errorf("got %v", got)
	}
}

func TestIdentifyTellsWhereItsBudgetsStand(t *testing.T) {
	p := newPlane(t)
	for id, to := range map[string]any{"b_org": fields{"org": true}, "b_red": fields{"team_id": "red"}, "b_blue": fields{"team_id": "blue"}} {
		p.must(201, "PUT", "/v1/budgets/"+id, fields{"unit": "usd", "window": "day", "limit": "3", "applies_to": to})
	}
	for _, tt := range []struct {
		name, purpose string
		bindings      fields
		want          string
	}{
		{"what applies to the org reaches every token", "general", nil, "b_org"},
		{"and what applies to its team, and what it names", "general", fields{"team_id": "red", "budgets": []fields{{"id": "b_own", "limit": "2", "unit": "usd", "window": "day"}}}, "b_org b_own b_red"},
		{"once where it is named too", "integration", fields{"budgets": []fields{{"id": "b_org"}}}, "b_org"},
		{"a gateway spends nothing", "gateway_runtime", fields{"gateway_id": "gw"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, secret := p.mint(tt.purpose, tt.bindings)
			a := p.must(200, "POST", "/v1/tokens/identify", fields{"sha256": sha(secret)})
			if list := p.must(200, "GET", "/v1/budgets?token_id="+id, nil); !reflect.DeepEqual(list.body["data"], a.body["budgets"]) {
				t.Errorf("listed %s, identified %s", list.raw, a.raw)
			}
			var got []string
			for _, v := range a.body["budgets"].([]any) {
				b := v.(map[string]any)
				got = append(got, b["id"].(string))
				if b["left"] != b["limit"] || b["reopens_at"] != "2026-11-25T00:00:00Z" {
					t.Errorf("got %v", b)
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}
