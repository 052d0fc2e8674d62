package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/keeptrusts/gateway/abac"
)

// columns aligns rows of tab-separated cells.
func columns(rows ...string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, row)
	}
	_ = w.Flush()
	return b.String()
}

// cells makes a row; an empty cell shows as a dash.
func cells(values ...string) string {
	for i, v := range values {
		if v == "" {
			values[i] = "-"
		}
	}
	return strings.Join(values, "\t")
}

func profileTable(profiles []abac.Profile) string {
	rows := []string{"ID\tNAME\tPURPOSE\tSTATUS\tTEAM\tGATEWAY\tMODELS\tPROVIDERS\tEXPIRES\tLAST USED"}
	for i := range profiles {
		p := &profiles[i]
		rows = append(rows, cells(p.ID, printable(p.Name), string(p.Purpose), string(p.Status), deref(p.Bindings.TeamID), deref(p.Bindings.GatewayID),
			grants(p.Purpose, p.Bindings.Models), grants(p.Purpose, p.Bindings.Providers), moment(p.ExpiresAt, "never"), moment(p.LastUsedAt, "never")))
	}
	return columns(rows...)
}

func profileRows(p *abac.Profile) []string {
	rows := []string{
		cells("id", p.ID), cells("name", printable(p.Name)), cells("purpose", string(p.Purpose)), cells("status", string(p.Status)), cells("org", p.OrgID),
		cells("hint", p.Hint), cells("models", grants(p.Purpose, p.Bindings.Models)), cells("providers", grants(p.Purpose, p.Bindings.Providers)),
		cells("team", deref(p.Bindings.TeamID)), cells("gateway", deref(p.Bindings.GatewayID)),
	}
	for _, b := range p.Bindings.Budgets {
		rows = append(rows, cells("budget", strings.TrimSpace(b.ID+" "+b.Limit+" "+b.Unit+" "+b.Window)))
	}
	if r := p.Bindings.RateLimits; r != nil {
		rows = append(rows, cells("limits", fmt.Sprintf("%d requests/min, %d tokens/min, %d in parallel (0: none)",
			r.RequestsPerMinute, r.TokensPerMinute, r.MaxParallelRequests)))
	}
	if p.NotBefore != nil {
		rows = append(rows, cells("begins", moment(p.NotBefore, "")))
	}
	if p.RotatedFrom != nil {
		rows = append(rows, cells("rotated from", *p.RotatedFrom))
	}
	return append(rows, cells("expires", moment(p.ExpiresAt, "never")), cells("created", moment(&p.CreatedAt, "")),
		cells("last used", moment(p.LastUsedAt, "never")), cells("revision", fmt.Sprint(p.Revision)))
}

func mintedCard(m *minted) string {
	return columns(append([]string{cells("token", m.Token)}, profileRows(&m.Profile)...)...) +
		"\nThis is the only time the token is shown: keep it now. What is stored is its SHA-256.\n"
}

// grants says what a filter lets through, absence included.
func grants(p abac.Purpose, patterns []string) string {
	switch {
	case p == abac.GatewayRuntime:
		return ""
	case patterns == nil && p == abac.General:
		return "all"
	case len(patterns) == 0:
		return "none"
	}
	return printable(strings.Join(patterns, ","))
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return printable(*s)
}

func moment(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.UTC().Format(time.RFC3339)
}

// printable keeps a name from moving the terminal's cursor or a table's columns.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func indent(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return string(raw) + "\n"
	}
	return b.String() + "\n"
}
