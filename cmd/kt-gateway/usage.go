package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/keeptrusts/gateway/budget"
)

// used is a row of usage, as the control plane tells it.
type used struct {
	TokenID *string `json:"token_id"`
	TeamID  *string `json:"team_id"`
	Model   *string `json:"model"`
	Target  *string `json:"target"`
	Day     *string `json:"day"`

	Requests  int64  `json:"requests"`
	Input     int64  `json:"input_tokens"`
	Cached    int64  `json:"cached_input_tokens"`
	Write     int64  `json:"cache_write_tokens"`
	Output    int64  `json:"output_tokens"`
	Reasoning int64  `json:"reasoning_tokens"`
	AudioIn   int64  `json:"audio_input_tokens"`
	AudioOut  int64  `json:"audio_output_tokens"`
	Total     int64  `json:"total_tokens"`
	Cost      string `json:"cost"`
	Unpriced  int64  `json:"unpriced"`
	Estimated int64  `json:"estimated"`
}

func usageCommand() *command {
	var a adminFlags
	var o output
	c := newCommand("usage", "", "sums what calls used and cost, by token, team, model and day")
	c.long = "Days are UTC. The last seconds may be missing: gateways tell of their calls within 3 s, of very many tokens in turns."
	filters := filterFlags(c, []filter{
		{"token-id", "ID", "token_id", "only of this token"},
		{"team", "ID", "team_id", "only of this team"},
		{"model", "NAME", "model", "only of this entry of the configuration"},
		{"from", "DAY", "from", "from this day on, as 2026-11-24"},
		{"to", "DAY", "to", "to the end of this day"},
		{"by", "LIST", "group_by", "what rows are told apart by: some of token,team,model,target,day, or none; by default token,team,model,day"},
		{"org-id", "ID", "org_id", "whose; by default org_default"},
	})
	a.add(c)
	o.add(c, "prints the sum in USD alone")
	c.run = func(ctx context.Context, p program) error {
		if err := o.check(); err != nil {
			return err
		}
		all, err := listAll(ctx, p, &a, "/v1/usage", filters())
		if err != nil {
			return err
		}
		rows, err := decodeAll[used](all)
		if err != nil {
			return err
		}
		sum, err := sumOf(rows)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(map[string]any{"data": all, "next_cursor": nil})
		if err != nil {
			return err
		}
		return o.print(p, raw, sum.Cost, func() string { return usageTable(rows, sum) })
	}
	return c
}

func sumOf(rows []used) (used, error) {
	var sum used
	var cost int64
	for i := range rows {
		r := &rows[i]
		n, err := budget.USD.Parse(r.Cost)
		if err != nil {
			return sum, fmt.Errorf("read the answer: cost: %w", err)
		}
		cost += n
		sum.Requests += r.Requests
		sum.Input += r.Input
		sum.Cached += r.Cached
		sum.Write += r.Write
		sum.Output += r.Output
		sum.Reasoning += r.Reasoning
		sum.AudioIn += r.AudioIn
		sum.AudioOut += r.AudioOut
		sum.Total += r.Total
		sum.Unpriced += r.Unpriced
		sum.Estimated += r.Estimated
	}
	sum.Cost = budget.USD.Format(cost)
	return sum, nil
}

// usageTable leaves out the columns that are empty in every row, and ends with the sum.
func usageTable(rows []used, sum used) string {
	shown := slices.Clone(rows)
	if len(rows) != 1 {
		shown = append(shown, sum)
	}
	table := make([][]string, len(shown)+1)
	column := func(name string, always bool, cell func(*used) string) {
		list := make([]string, len(shown))
		for i := range shown {
			list[i] = cell(&shown[i])
			always = always || list[i] != "" && list[i] != "0"
		}
		if !always {
			return
		}
		table[0] = append(table[0], name)
		for i, text := range list {
			table[i+1] = append(table[i+1], text)
		}
	}
	text := func(of func(*used) *string) func(*used) string {
		return func(u *used) string {
			if s := of(u); s != nil {
				return printable(*s)
			}
			return ""
		}
	}
	count := func(of func(*used) int64) func(*used) string {
		return func(u *used) string { return fmt.Sprint(of(u)) }
	}
	column("DAY", false, text(func(u *used) *string { return u.Day }))
	column("TOKEN", false, text(func(u *used) *string { return u.TokenID }))
	column("TEAM", false, text(func(u *used) *string { return u.TeamID }))
	column("MODEL", false, text(func(u *used) *string { return u.Model }))
	column("TARGET", false, text(func(u *used) *string { return u.Target }))
	column("REQUESTS", true, count(func(u *used) int64 { return u.Requests }))
	column("INPUT", true, count(func(u *used) int64 { return u.Input }))
	column("CACHED", false, count(func(u *used) int64 { return u.Cached }))
	column("WRITE", false, count(func(u *used) int64 { return u.Write }))
	column("OUTPUT", true, count(func(u *used) int64 { return u.Output }))
	column("REASONING", false, count(func(u *used) int64 { return u.Reasoning }))
	column("AUDIO IN", false, count(func(u *used) int64 { return u.AudioIn }))
	column("AUDIO OUT", false, count(func(u *used) int64 { return u.AudioOut }))
	column("USD", true, func(u *used) string { return u.Cost })
	column("UNPRICED", false, count(func(u *used) int64 { return u.Unpriced }))
	column("ESTIMATED", false, count(func(u *used) int64 { return u.Estimated }))
	if len(rows) != 1 && table[0][0] != "REQUESTS" {
		table[len(shown)][0] = "total"
	}
	lines := make([]string, len(table))
	for i := range table {
		lines[i] = cells(table[i]...)
	}
	return columns(lines...) + notes(sum)
}

// notes says what the sum leaves out.
func notes(sum used) string {
	var b strings.Builder
	if sum.Unpriced > 0 {
		fmt.Fprintf(&b, "\nUnpriced: %d requests used something without a price, which counts 0; `kt-gateway price` says what.\n", sum.Unpriced)
	}
	if sum.Estimated > 0 {
		fmt.Fprintf(&b, "\nEstimated: of %d requests the provider told no usage.\n", sum.Estimated)
	}
	return b.String()
}
