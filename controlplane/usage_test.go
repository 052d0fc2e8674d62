package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// spend settles one request: model, hour of 24 November, input tokens and nano-USD.
func (p *plane) spend(org, tokenID, team, model string, at time.Time, input, cost int64) {
	p.t.Helper()
	p.settled++
	err := p.store.Settle(context.Background(), org, "gw_local", []budget.Settlement{{
		ID: fmt.Sprintf("req_%d", p.settled), At: at, TokenID: tokenID, TeamID: team, Model: model, Target: "openai", Requests: 1,
		Input: input, CachedInput: 1, CacheWrite: 2, Output: 3, Reasoning: 4, AudioInput: 5, AudioOutput: 6, Cost: cost,
		Unpriced: cost == 0, Estimated: input == 0,
	}})
	if err != nil {
		p.t.Fatal(err)
	}
}

func TestUsageIsToldByTokenTeamModelAndDay(t *testing.T) {
	p := newPlane(t)
	one, two := time.Date(2026, 11, 23, 23, 59, 59, 0, time.UTC), time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	p.spend("org_default", "tok_a", "red", "cheap", one, 100, 1_000_000)
	p.spend("org_default", "tok_a", "red", "cheap", two, 10, 2_000_000)
	p.spend("org_default", "tok_a", "red", "dear", two, 1, 1_500_000_000)
	p.spend("org_default", "tok_b", "", "cheap", two, 0, 0)
	p.spend("org_b", "tok_c", "red", "cheap", two, 7, 1)
	for _, tt := range []struct {
		query string
		want  string // of each row what it is told apart by, input tokens, cost
	}{
		{"", "tok_a red cheap 2026-11-23 100 0.001, tok_a red cheap 2026-11-24 10 0.002, tok_a red dear 2026-11-24 1 1.5, tok_b  cheap 2026-11-24 0 0"},
		{"group_by=token,team,model,day", "tok_a red cheap 2026-11-23 100 0.001, tok_a red cheap 2026-11-24 10 0.002, tok_a red dear 2026-11-24 1 1.5, tok_b  cheap 2026-11-24 0 0"},
		{"group_by=token_id", "tok_a 111 1.503, tok_b 0 0"},
		{"group_by=team", " 0 0, red 111 1.503"},
		{"group_by=model,day&limit=1", "cheap 2026-11-23 100 0.001, cheap 2026-11-24 10 0.002, dear 2026-11-24 1 1.5"},
		{"group_by=day&token_id=tok_a", "2026-11-23 100 0.001, 2026-11-24 11 1.502"},
		{"group_by=none", "111 1.503"},
		{"group_by=none&team_id=red", "111 1.503"},
		{"group_by=none&team_id=blue", ""},
		{"group_by=none&model=dear", "1 1.5"},
		{"group_by=target", "openai 111 1.503"},
		{"group_by=day&from=2026-11-24", "2026-11-24 11 1.502"},
		{"group_by=day&to=2026-11-23", "2026-11-23 100 0.001"},
		{"group_by=day&from=2026-11-23&to=2026-11-24", "2026-11-23 100 0.001, 2026-11-24 11 1.502"},
		{"group_by=day&from=2026-11-24T05:00:00Z&to=2026-11-24T23:00:00-05:00", "2026-11-24 11 1.502"},
		{"group_by=token&org_id=org_b", "tok_c 7 0.000000001"},
		{"org_id=org_c", ""},
	} {
		var got []string
		for cursor := ""; ; {
			a := p.must(200, "GET", "/v1/usage?"+tt.query+cursor, nil)
			for _, v := range a.body["data"].([]any) {
				row := v.(map[string]any)
				var words []string
				for _, key := range []string{"token_id", "team_id", "model", "target", "day"} {
					if s, ok := row[key].(string); ok {
						words = append(words, s)
					}
				}
				got = append(got, strings.Join(append(words, fmt.Sprint(row["input_tokens"]), row["cost"].(string)), " "))
			}
			if a.body["next_cursor"] == nil {
				break
			}
			cursor = "&cursor=" + a.text("next_cursor")
		}
		if strings.Join(got, ", ") != tt.want {
			t.Errorf("?%s:\ngot  %s\nwant %s", tt.query, strings.Join(got, ", "), tt.want)
		}
	}
	a := p.must(200, "GET", "/v1/usage?group_by=none", nil)
	want := map[string]any{
		"requests": 4.0, "input_tokens": 111.0, "cached_input_tokens": 4.0, "cache_write_tokens": 8.0, "output_tokens": 12.0, "reasoning_tokens": 16.0,
		"audio_input_tokens": 20.0, "audio_output_tokens": 24.0, "total_tokens": 195.0, "cost": "1.503", "unpriced": 1.0, "estimated": 1.0,
	}
	if got := a.body["data"].([]any)[0]; !reflect.DeepEqual(got, any(want)) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	for query, param := range map[string]string{
		"group_by=hour": "group_by", "group_by=token,,day": "group_by", "from=yesterday": "from", "to=2026-13-01": "to",
		"from=2026-11-24&to=2026-11-23": "to", "cursor=x": "cursor", "cursor=WzFd": "cursor", "team=red": "team", "limit=0": "limit",
	} {
		if a := p.admin("GET", "/v1/usage?"+query, nil); a.status != 400 || a.param() != param {
			t.Errorf("?%s: got %d at %q: %s", query, a.status, a.param(), a.raw)
		}
	}
}

func TestAnIntegrationSeesItsOwnUsageAlone(t *testing.T) {
	p := newPlane(t)
	own, secret := p.mint("integration", fields{"team_id": "red"})
	p.spend("org_default", own, "red", "cheap", p.now(), 5, 1000)
	p.spend("org_default", "tok_other", "red", "cheap", p.now(), 50, 1000)
	p.spend("org_b", own, "red", "cheap", p.now(), 500, 1000)
	for _, tt := range []struct{ query, want string }{
		{"", `[{"model":"cheap","day":"2026-11-24","input":5}]`},
		{"?group_by=none", `[{"input":5}]`},
		{"?group_by=token", `[{"input":5,"token":"` + own + `"}]`},
		{"?model=dear", `[]`},
	} {
		a := p.call(secret, "GET", "/v1/whoami/usage"+tt.query, nil)
		got := []map[string]any{}
		for _, v := range a.body["data"].([]any) {
			row := map[string]any{}
			for to, key := range map[string]string{"model": "model", "day": "day", "token": "token_id", "input": "input_tokens"} {
				if cell, ok := v.(map[string]any)[key]; ok {
					row[to] = cell
				}
			}
			got = append(got, row)
		}
		var want []map[string]any
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if a.status != 200 || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %d %v, want %s", tt.query, a.status, got, tt.want)
		}
	}
	for _, query := range []string{"token_id=tok_other", "team_id=red", "org_id=org_b"} {
		if a := p.call(secret, "GET", "/v1/whoami/usage?"+query, nil); a.status != 400 || a.code() != "unknown_parameter" {
			t.Errorf("?%s: %d %s", query, a.status, a.raw)
		}
	}
}
