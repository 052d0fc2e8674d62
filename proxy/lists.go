package proxy

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

// takes says whether the endpoint serves a method.
func (e *endpoint) takes(method string) bool {
	return method == e.method || method == "HEAD" && e.action == 0
}

// answerJSON ends a request that the gateway answers itself.
func (x *exchange) answerJSON(body []byte) error {
	x.ctx.SetContentType("application/json")
	x.ctx.Response.Header.SetCanonical(headRequestID, x.id[:])
	x.ctx.SetBody(body)
	x.close("")
	return nil
}

// modelObject is OpenAI's, https://platform.openai.com/docs/api-reference/models/object.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func newModelObject(id string) modelObject {
	return modelObject{ID: id, Object: "model", OwnedBy: "keeptrusts"}
}

// models lists the named entries that a call of this token would reach.
func (x *exchange) models() error {
	list := struct {
		Object string        `json:"object"`
		Data   []modelObject `json:"data"`
	}{Object: "list", Data: []modelObject{}}
	x.ask.Action = abac.Execute
	for i := range x.rt.cfg.Models {
		m := &x.rt.cfg.Models[i]
		if m.Pattern() {
			continue
		}
		if x.decide(m.Name).Reason == abac.Allowed {
			list.Data = append(list.Data, newModelObject(m.Name))
		}
	}
	x.ask.Action, x.serving = abac.List, nil
	return x.answerAny(list)
}

// model is 200 exactly where a call for the model would pass checks 1 to 6.
func (x *exchange) model() error {
	name, _ := modelOf(str(x.path[len(modelsPrefix):]))
	x.ask.Action = abac.Execute
	d := x.decide(name)
	x.reason = d.Reason
	if d.Reason != abac.Allowed {
		return x.denial(d)
	}
	return x.answerAny(newModelObject(name))
}

// budgetLeft is how one budget of a token stands, as last known here.
type budgetLeft struct {
	ID        string        `json:"id"`
	Unit      budget.Unit   `json:"unit"`
	Window    budget.Window `json:"window"`
	Left      string        `json:"left"`
	ReopensAt *time.Time    `json:"reopens_at"`
}

// whoami tells a caller its own profile, and what is left of its budgets.
func (x *exchange) whoami() error {
	left := []budgetLeft{}
	for _, s := range x.s.ledger.Standings(x.knownBudgets()) {
		b := budgetLeft{ID: s.ID, Unit: s.Unit, Window: s.Window, Left: s.Unit.Format(s.Left)}
		if !s.ReopensAt.IsZero() {
			at := reopens(s.ReopensAt)
			b.ReopensAt = &at
		}
		left = append(left, b)
	}
	return x.answerAny(struct {
		*abac.Profile
		BudgetsLeft []budgetLeft `json:"budgets_left"`
	}{x.policy.Profile(), left})
}

// reopens is the whole minute next to a time that came by a clock which may be off:
// windows end on the hour.
func reopens(t time.Time) time.Time { return t.UTC().Round(time.Minute) }

// knownBudgets is the set of the token's budgets but for those that it names and
// nobody knows.
func (x *exchange) knownBudgets() *budget.Set {
	b := &x.policy.Profile().Bindings
	var ids []string
	for i := range b.Budgets {
		ids = append(ids, b.Budgets[i].ID)
	}
	for {
		set, unknown := x.s.budgetsOf(ids, deref(b.TeamID))
		if unknown == "" {
			return set
		}
		ids = slices.DeleteFunc(ids, func(id string) bool { return id == unknown })
	}
}

func (x *exchange) answerAny(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.answerJSON(body)
}

// health says that the process answers.
func (x *exchange) health() error { return x.answerJSON([]byte("{\"status\":\"ok\"}\n")) }

// readyz says whether requests should come here, and no more: it needs no token.
func (x *exchange) readyz() error {
	if x.s.Readiness() == nil {
		return x.answerJSON([]byte("{\"status\":\"ready\"}\n"))
	}
	x.ctx.SetStatusCode(503)
	return x.answerJSON([]byte("{\"status\":\"unready\"}\n"))
}
