package controlplane

import (
	"fmt"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

// budgetOrg takes the org of a call that changes a budget: from the query or the body.
func budgetOrg(c *call) (string, error) {
	q, err := query(c, "org_id")
	if err != nil {
		return "", err
	}
	inBody, err := text(c.body, "org_id")
	switch inQuery := q.get("org_id"); {
	case err != nil:
		return "", err
	case c.body["org_id"] != nil && !abac.ValidID(inBody), inQuery != "" && !abac.ValidID(inQuery):
		return "", refuse("invalid_value", "org_id %s.", wantID).at("org_id")
	case inBody != "" && inQuery != "" && inBody != inQuery:
		return "", refuse("invalid_value", "org_id in the query and in the body contradict each other; once is enough.").at("org_id")
	case inBody != "":
		return inBody, nil
	default:
		return orgOr(inQuery), nil
	}
}

var wantID = fmt.Sprintf("must have 1 to %d characters out of A-Z a-z 0-9 . _ : -", abac.MaxIDLen)

// readBudget takes the fields of a body into r. What is absent stays as it is; a new
// budget needs unit, window and limit.
func readBudget(r *budget.Record, o object, fresh bool) error {
	unit, err := text(o, "unit")
	if err == nil && fresh {
		unit, err = required(o, "unit")
	}
	if err != nil {
		return err
	}
	window, err := text(o, "window")
	if err == nil && fresh {
		window, err = required(o, "window")
	}
	if err != nil {
		return err
	}
	switch u := budget.Unit(unit); {
	case o["unit"] == nil:
	case u != budget.USD && u != budget.Tokens && u != budget.Requests:
		return refuse("invalid_value", "unit is one of usd, tokens, requests.").at("unit")
	case !fresh && u != r.Unit:
		return conflict("Budget %s counts in %s, which can't be changed: make another budget.", r.ID, r.Unit).at("unit")
	default:
		r.Unit = u
	}
	switch w := budget.Window(window); {
	case o["window"] == nil:
	case !w.Valid():
		return refuse("invalid_value", "window is one of hour, day, week, month, total.").at("window")
	case !fresh && w != r.Window:
		return conflict("Budget %s has the window %s, which can't be changed: make another budget.", r.ID, r.Window).at("window")
	default:
		r.Window = w
	}
	if fresh || o["limit"] != nil {
		if r.Limit, err = amount(o, "limit", r.Unit); err != nil {
			return err
		}
	}
	return readReach(r, o)
}

// readReach takes whom a budget reaches, and whether it denies them.
func readReach(r *budget.Record, o object) error {
	mode, err := text(o, "mode")
	if err != nil {
		return err
	}
	switch m := budget.Mode(mode); {
	case o["mode"] == nil:
	case m != budget.Enforce && m != budget.Observe:
		return refuse("invalid_value", "mode is one of enforce, observe.").at("mode")
	default:
		r.Mode = m
	}
	v, given := o["applies_to"]
	if !given {
		return nil
	}
	r.AppliesTo = budget.AppliesTo{}
	if v == nil {
		return nil
	}
	to, ok := v.(object)
	if !ok {
		return refuse("invalid_value", `applies_to must be {"team_id":"…"}, {"org":true} or null.`).at("applies_to")
	}
	if err := known(to, "applies_to", "team_id", "org"); err != nil {
		return err
	}
	team, isText := to["team_id"].(string)
	org, isBool := to["org"].(bool)
	switch {
	case to["team_id"] != nil && (!isText || !abac.ValidID(team)):
		return refuse("invalid_value", "team_id %s.", wantID).at("applies_to.team_id")
	case to["org"] != nil && (!isBool || !org):
		return refuse("invalid_value", "org must be true; leave it out otherwise.").at("applies_to.org")
	case org && team != "", !org && team == "":
		return refuse("invalid_value", `applies_to must be {"team_id":"…"}, {"org":true} or null.`).at("applies_to")
	}
	r.AppliesTo = budget.AppliesTo{TeamID: team, Org: org}
	return nil
}

// amount reads a required amount in the unit, a decimal in a string.
func amount(o object, key string, unit budget.Unit) (int64, error) {
	v, ok := o[key].(string)
	if o[key] != nil && !ok {
		return 0, refuse("invalid_value", `%s must be a decimal in a string, such as "5.00".`, key).at(key)
	}
	if v == "" {
		return 0, refuse("missing_required_parameter", "%s is required.", key).at(key)
	}
	n, err := unit.Parse(v)
	if err != nil {
		return 0, refuse("invalid_value", "%s: %s.", key, err).at(key)
	}
	return n, nil
}

func conflict(format string, args ...any) *problem { return refuse("budget_conflict", format, args...) }
