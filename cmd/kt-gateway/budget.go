package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

func budgetCommands() []*command {
	return []*command{budgetListCommand(), budgetShowCommand(), budgetSetCommand(), topUpCommand()}
}

// counted is a budget and where it stands, as the control plane tells it. Amounts
// are decimals in the unit.
type counted struct {
	ID        string            `json:"id"`
	Unit      budget.Unit       `json:"unit"`
	Window    string            `json:"window"`
	Limit     string            `json:"limit"`
	Mode      string            `json:"mode"`
	AppliesTo *budget.AppliesTo `json:"applies_to"`

	ToppedUp     string     `json:"topped_up"`
	Settled      string     `json:"settled"`
	Held         string     `json:"held"`
	Leased       string     `json:"leased"`
	Left         string     `json:"left"`
	Overrun      string     `json:"overrun"`
	Unattributed string     `json:"unattributed"`
	Unpriced     int64      `json:"unpriced"`
	ReopensAt    *time.Time `json:"reopens_at"`
}

// budgetCommand is what all budget commands share.
func budgetCommand(name, args, short string, a *adminFlags, o *output, org *string) *command {
	c := newCommand("budget "+name, args, short)
	c.text(org, "org-id", "ID", "", "whose budget; by default org_default")
	a.add(c)
	o.add(c, "prints the id alone")
	return c
}

func budgetPath(id, action, org string) string {
	path := "/v1/budgets"
	if id != "" {
		path += "/" + url.PathEscape(id)
	}
	if action != "" {
		path += "/" + action
	}
	if org != "" {
		path += "?org_id=" + url.QueryEscape(org)
	}
	return path
}

// budgetArgs gives the positional arguments, the first of which is a budget's id.
func (c *command) budgetArgs(most int) ([]string, error) {
	if len(c.pos) == 0 || len(c.pos) > most {
		return nil, misused("it wants %s", c.args)
	}
	if token.WellFormed([]byte(c.pos[0]), []string{"kt_ak_", "kt_gk_"}) {
		return nil, misused("that is a token's string, which others can see on a command line, not a budget's id")
	}
	return c.pos, nil
}

func budgetListCommand() *command {
	var a adminFlags
	var o output
	var org, tokenID string
	c := budgetCommand("list", "", "lists budgets, and where each stands", &a, &o, &org)
	c.text(&tokenID, "token-id", "ID", "", "only those that a token's calls are charged to")
	c.run = func(ctx context.Context, p program) error {
		if err := o.check(); err != nil {
			return err
		}
		query := url.Values{}
		if org != "" {
			query.Set("org_id", org)
		}
		if tokenID != "" {
			query.Set("token_id", tokenID)
		}
		all, err := listAll(ctx, p, &a, "/v1/budgets", query)
		if err != nil {
			return err
		}
		list, err := decodeAll[counted](all)
		if err != nil {
			return err
		}
		var ids []string
		for i := range list {
			ids = append(ids, list[i].ID)
		}
		raw, err := json.Marshal(map[string]any{"data": all, "next_cursor": nil})
		if err != nil {
			return err
		}
		return o.print(p, raw, strings.Join(ids, "\n"), func() string { return budgetTable(list) })
	}
	return c
}

func decodeAll[T any](all []json.RawMessage) ([]T, error) {
	list := make([]T, len(all))
	for i, raw := range all {
		if err := json.Unmarshal(raw, &list[i]); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
	}
	return list, nil
}

func budgetShowCommand() *command {
	var a adminFlags
	var o output
	var org string
	c := budgetCommand("show", "BUDGET_ID", "shows a budget, and where it stands", &a, &o, &org)
	c.run = func(ctx context.Context, p program) error {
		args, err := c.budgetArgs(1)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		return a.budget(ctx, p, &o, apiRequest{method: http.MethodGet, path: budgetPath(args[0], "", org)})
	}
	return c
}

// budget makes a call whose answer is a budget, and prints it.
func (a *adminFlags) budget(ctx context.Context, p program, o *output, req apiRequest) error {
	var raw json.RawMessage
	var b counted
	req.out = &b
	if err := a.read(ctx, p, req, &raw); err != nil {
		return err
	}
	return o.print(p, raw, b.ID, b.String)
}

// setFlags are the flags of budget set.
type setFlags struct {
	unit, window, limit, mode string
	team                      string
	org, named                bool
}

func budgetSetCommand() *command {
	var a adminFlags
	var o output
	var f setFlags
	var org string
	c := budgetCommand("set", "BUDGET_ID [UNIT=LIMIT/WINDOW]", "makes a budget, or changes one", &a, &o, &org)
	c.long = "A new budget needs a unit, a limit and a window: usd=5.00/day says all three, as do --unit, --limit and --window. Of one\n" +
		"that exists what is not named stays; its unit and window can't be changed. A change is in effect within a second."
	c.text(&f.unit, "unit", "UNIT", "", "usd, tokens or requests")
	c.text(&f.limit, "limit", "AMOUNT", "", "the most that a window may cost, a decimal from 0 on")
	c.text(&f.window, "window", "WINDOW", "", "hour, day, week (from Monday), month or total; in UTC")
	c.text(&f.mode, "mode", "MODE", "", "enforce (a new budget's), or observe: counts and denies nothing")
	c.text(&f.team, "team", "ID", "", "also of every token of this team")
	c.toggle(&f.org, "org", "also of every token of the org")
	c.toggle(&f.named, "named-only", "of the tokens alone that name it")
	c.run = func(ctx context.Context, p program) error {
		args, err := c.budgetArgs(2)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		body, err := f.body(args[1:])
		if err != nil {
			return err
		}
		return a.budget(ctx, p, &o, apiRequest{method: http.MethodPut, path: budgetPath(args[0], "", org), in: body})
	}
	return c
}

func (f *setFlags) body(spec []string) (map[string]any, error) {
	if len(spec) > 0 {
		if f.unit != "" || f.limit != "" || f.window != "" {
			return nil, misused("%s and --unit, --limit or --window say the same thing; one is enough", spec[0])
		}
		var ok bool
		if f.unit, f.limit, f.window, ok = cutBudget(spec[0]); !ok {
			return nil, misused("%q is not like usd=5.00/day", spec[0])
		}
	}
	body := map[string]any{}
	for key, v := range map[string]string{"unit": f.unit, "limit": f.limit, "window": f.window, "mode": f.mode} {
		if v != "" {
			body[key] = v
		}
	}
	reaches := 0
	if f.team != "" {
		reaches++
		body["applies_to"] = map[string]any{"team_id": f.team}
	}
	if f.org {
		reaches++
		body["applies_to"] = map[string]any{"org": true}
	}
	if f.named {
		reaches++
		body["applies_to"] = nil
	}
	if reaches > 1 {
		return nil, misused("--team, --org and --named-only exclude each other")
	}
	return body, nil
}

// cutBudget reads UNIT=LIMIT/WINDOW; what the parts may be is the control plane's to say.
func cutBudget(s string) (unit, limit, window string, ok bool) {
	unit, rest, one := strings.Cut(s, "=")
	limit, window, two := strings.Cut(rest, "/")
	return unit, limit, window, one && two && unit != "" && limit != "" && window != ""
}

func topUpCommand() *command {
	var a adminFlags
	var o output
	var org, key string
	c := budgetCommand("top-up", "BUDGET_ID AMOUNT", "adds to what is left of a budget, in the window that is open alone", &a, &o, &org)
	c.long = "A top-up counts once a key, however often it is sent: name one with --key to be able to repeat it."
	c.text(&key, "key", "KEY", "", "under which it counts once; by default a new one")
	c.run = func(ctx context.Context, p program) error {
		args, err := c.budgetArgs(2)
		if err == nil && len(args) < 2 {
			err = misused("it wants %s", c.args)
		}
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		made := key == ""
		if made {
			key = "cli_" + rand.Text()
		}
		body := map[string]string{"amount": args[1], "key": key}
		err = a.budget(ctx, p, &o, apiRequest{method: http.MethodPost, path: budgetPath(args[0], "top-up", org), in: body})
		if unanswered := (unanswered{}); made && errors.As(err, &unanswered) {
			return fmt.Errorf("%w; it may have counted all the same: repeat it with --key %s, and it counts once", err, key)
		}
		return err
	}
	return c
}

// limitText is the limit, with what was topped up.
func (b *counted) limitText() string {
	if b.ToppedUp != "" && b.ToppedUp != "0" {
		return b.Limit + "+" + b.ToppedUp
	}
	return b.Limit
}

func (b *counted) reach() string {
	switch {
	case b.AppliesTo == nil:
		return "who names it"
	case b.AppliesTo.Org:
		return "the org"
	}
	return "team " + printable(b.AppliesTo.TeamID)
}

func budgetTable(list []counted) string {
	rows := []string{"ID\tUNIT\tWINDOW\tMODE\tAPPLIES TO\tLIMIT\tSETTLED\tHELD\tLEASED\tLEFT\tREOPENS"}
	for i := range list {
		b := &list[i]
		rows = append(rows, cells(b.ID, string(b.Unit), b.Window, b.Mode, b.reach(), b.limitText(),
			b.Settled, b.Held, b.Leased, b.Left, moment(b.ReopensAt, "never")))
	}
	return columns(rows...)
}

// String shows one budget for people.
func (b *counted) String() string {
	rows := []string{
		cells("id", b.ID), cells("unit", string(b.Unit)), cells("window", b.Window), cells("mode", b.Mode), cells("applies to", b.reach()),
		cells("limit", b.limitText()), cells("settled", b.Settled), cells("held", b.Held), cells("leased", b.Leased), cells("left", b.Left),
	}
	if b.Overrun != "0" {
		rows = append(rows, cells("overrun", b.Overrun+", which is in settled"))
	}
	if b.Unattributed != "0" {
		rows = append(rows, cells("unattributed", b.Unattributed+" of settled: no request told of it"))
	}
	if b.Unpriced > 0 {
		rows = append(rows, cells("unpriced", fmt.Sprintf("%d requests, which count 0", b.Unpriced)))
	}
	return columns(append(rows, cells("reopens", moment(b.ReopensAt, "never")))...)
}
