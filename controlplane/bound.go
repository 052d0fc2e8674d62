package controlplane

import (
	"errors"
	"strconv"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// bound makes the budgets that a token's bindings bring, and refuses those that do
// not exist or differ from the one that stands.
func (s *Server) bound(c *call, tx *store.Tx, p *abac.Profile) ([]budget.Recall, error) {
	var all []budget.Recall
	for i := range p.Bindings.Budgets {
		b := &p.Bindings.Budgets[i]
		at := "bindings.budgets[" + strconv.Itoa(i) + "]"
		stands, err := tx.Budget(c.r.Context(), p.OrgID, b.ID)
		switch {
		case errors.Is(err, store.ErrNotFound) && b.Limit == "":
			return nil, refuse("unknown_budget", "There is no budget %s in this org; a binding with limit, unit and window makes it.", b.ID).at(at + ".id")
		case errors.Is(err, store.ErrNotFound):
			recalls, err := s.addBudget(c, tx, store.Budget{OrgID: p.OrgID, Record: brought(b)})
			if err != nil {
				return nil, err
			}
			all = append(all, recalls...)
		case err != nil:
			return nil, err
		default:
			if key := differs(b, &stands.Record); key != "" {
				return nil, conflict("Budget %s stands as %s %s a %s, mode %s: leave out all but its id to name it, or give another id.",
					b.ID, stands.Unit.Format(stands.Limit), stands.Unit, stands.Window, stands.Mode).at(at + "." + key)
			}
		}
	}
	return all, nil
}

// brought is the budget that a valid binding with a limit makes.
func brought(b *abac.BudgetBinding) budget.Record {
	r := budget.Record{ID: b.ID, Unit: budget.Unit(b.Unit), Window: budget.Window(b.Window), Mode: budget.Mode(b.Mode)}
	if r.Mode == "" {
		r.Mode = budget.Enforce
	}
	var err error
	if r.Limit, err = r.Unit.Parse(b.Limit); err != nil {
		panic("BUG: a limit that was validated does not parse: " + err.Error())
	}
	return r
}

// differs names the first key in which a binding contradicts the budget that stands.
func differs(b *abac.BudgetBinding, stands *budget.Record) string {
	want := *stands
	if b.Limit != "" {
		want = brought(b)
	}
	switch {
	case b.Unit != "" && budget.Unit(b.Unit) != stands.Unit:
		return "unit"
	case b.Window != "" && budget.Window(b.Window) != stands.Window:
		return "window"
	case want.Limit != stands.Limit:
		return "limit"
	case want.Mode != stands.Mode, b.Mode != "" && budget.Mode(b.Mode) != stands.Mode:
		return "mode"
	}
	return ""
}
