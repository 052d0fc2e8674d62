package proxy

import (
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

func TestWhatACallNamesBesideItsModelIsJudged(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	yaml := strings.Replace(plainConfig(u.url), "limits:", `  - {name: other, context: 500, targets: [{id: main}], price: {input: 1, output: 1}}
limits:`, 1)
	m := funded(t, yaml,
		budget.Record{ID: "u", Unit: budget.USD, Limit: 1_000_000_000},
		budget.Record{ID: "r", Unit: budget.Requests, Limit: 1000})
	with := func(more string) string { return strings.Replace(plainBody, `{`, `{`+more+`,`, 1) }
	sent := 0
	for _, tt := range []struct {
		budget, body string
		status       int
		code, param  string
	}{
		{"r", with(`"models":["other"]`), 200, "", ""},
		{"r", with(`"models":["nowhere"]`), 404, codeModelNotFound, "models"},
		{"r", with(`"models":["mapped"]`), 400, codeUnsupportedField, "models"},
		{"u", with(`"models":["other"]`), 403, codePriceUnknown, "models"},
		{"r", with(`"tools":[{"type":"image_generation","model":"nowhere"}]`), 404, codeModelNotFound, "tools.model"},
		{"r", with(`"service_tier":"default"`), 200, "", ""},
		{"r", with(`"service_tier":"priority"`), 400, codeUnsupportedField, "service_tier"},
		{"r", with(`"previous_response_id":"resp_1"`), 400, codeUnsupportedField, "previous_response_id"},
		{"r", with(`"provider":{"order":["x"]}`), 200, "", ""}, // OpenAI reads none
	} {
		r := m.do(call(m.spender(tt.budget), tt.body))
		p := r.problem()
		if r.status != tt.status || p.Code != tt.code || p.Param != tt.param {
			t.Errorf("%s: %d %+v", tt.body, r.status, p)
		}
		if tt.status == 200 {
			sent++
		}
	}
	if n := len(u.seen()); n != sent {
		t.Errorf("%d calls reached the provider, want %d", n, sent)
	}
	m.atRest()
}

func TestAModelBesideIsCheckedLikeTheModel(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	yaml := strings.Replace(plainConfig(u.url), "limits:", `  - {name: other, targets: [{id: main}]}
limits:`, 1)
	g := start(t, yaml)
	key := g.mint(func(p *abac.Profile) { p.Bindings.Models = []string{"chat"} })
	r := g.do(call(key, strings.Replace(plainBody, `{`, `{"models":["other"],`, 1)))
	if p := r.problem(); r.status != 403 || p.Code != "model_not_allowed" || p.Param != "models" {
		t.Errorf("%d %+v", r.status, p)
	}
	if n := len(u.seen()); n != 0 {
		t.Errorf("%d calls reached the provider", n)
	}
}
