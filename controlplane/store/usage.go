package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// UsageFilter says what usage is asked for; a zero field does not narrow.
type UsageFilter struct {
	OrgID    string
	TokenID  string
	TeamID   string
	Model    string
	From, To time.Time // the first and the last day, UTC
	// By are those of UsageKeys by which rows are told apart; none: one sum.
	By    []string
	After *UsageRow // the row after which the page begins, of the same filter; nil: none
	Limit int       // at most so many, at least 1
}

// UsageKeys are what usage can be told apart by.
func UsageKeys() []string { return []string{"day", "team", "token", "model", "target"} }

// usageColumns are the columns of UsageKeys.
var usageColumns = map[string]string{"day": "day", "team": "team_id", "token": "token_id", "model": "model", "target": "target"}

// UsageRow is a sum of settlements. What it is not told apart by is "". A sum that
// is more than can be counted is the most that can be.
type UsageRow struct {
	Day                            string // "2026-11-24", UTC
	TeamID, TokenID, Model, Target string

	Requests                       int64
	Input, CachedInput, CacheWrite int64 // tokens, disjoint
	Output, Reasoning              int64
	AudioInput, AudioOutput        int64
	Cost                           int64 // nano-USD
	Unpriced                       int64 // of Requests: a part had no price, and counts 0
	Estimated                      int64 // of Requests: the provider told no usage
}

// usageAmounts are the columns of a row's sums, in the order of its pointers.
var usageAmounts = []string{
	"requests", "input", "cached_input", "cache_write", "output", "reasoning",
	"audio_input", "audio_output", "cost", "unpriced", "estimated",
}

func (r *UsageRow) pointers() []*int64 {
	return []*int64{
		&r.Requests, &r.Input, &r.CachedInput, &r.CacheWrite, &r.Output, &r.Reasoning,
		&r.AudioInput, &r.AudioOutput, &r.Cost, &r.Unpriced, &r.Estimated,
	}
}

func (r *UsageRow) amounts() []any {
	list := make([]any, 0, len(usageAmounts))
	for _, p := range r.pointers() {
		list = append(list, *p)
	}
	return list
}

func (r *UsageRow) add(more *UsageRow) {
	to, from := r.pointers(), more.pointers()
	for i := range to {
		*to[i] = plus(*to[i], *from[i])
	}
}

// key returns the field of one of UsageKeys.
func (r *UsageRow) key(name string) *string {
	switch name {
	case "day":
		return &r.Day
	case "team":
		return &r.TeamID
	case "token":
		return &r.TokenID
	case "model":
		return &r.Model
	}
	return &r.Target
}

// sums is one settlement as a row.
func sums(n *budget.Settlement) UsageRow {
	r := UsageRow{
		Requests: n.Requests, Input: n.Input, CachedInput: n.CachedInput, CacheWrite: n.CacheWrite, Output: n.Output,
		Reasoning: n.Reasoning, AudioInput: n.AudioInput, AudioOutput: n.AudioOutput, Cost: n.Cost,
	}
	if n.Unpriced {
		r.Unpriced = n.Requests
	}
	if n.Estimated {
		r.Estimated = n.Requests
	}
	return r
}

// usageWidth is how many columns a row of usage has: what it is told apart by, and sums.
var usageWidth = 6 + len(usageAmounts)

func insertUsage(numbered bool, rows int) string {
	return `INSERT INTO usage (org_id, day, token_id, team_id, model, target, ` + strings.Join(usageAmounts, ", ") +
		`) VALUES ` + values(numbered, rows, usageWidth) + ` ON CONFLICT (org_id, day, token_id, team_id, model, target) DO UPDATE SET ` +
		added("usage", usageAmounts...)
}

// addUsage adds the sums of a batch to those kept.
func (b *batch) addUsage(ctx context.Context) error {
	rows := make([]*UsageRow, 0, len(b.usage))
	for _, r := range b.usage {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(x, y *UsageRow) int {
		return cmp.Or(cmp.Compare(x.Day, y.Day), cmp.Compare(x.TokenID, y.TokenID), cmp.Compare(x.TeamID, y.TeamID),
			cmp.Compare(x.Model, y.Model), cmp.Compare(x.Target, y.Target))
	})
	for part := range slices.Chunk(rows, rowsAtOnce) {
		args := make([]any, 0, usageWidth*len(part))
		for _, r := range part {
			args = append(args, b.org, r.Day, r.TokenID, r.TeamID, r.Model, r.Target)
			args = append(args, r.amounts()...)
		}
		if _, err := b.exec(ctx, insertUsage(b.turns, len(part)), args...); err != nil {
			return fmt.Errorf("add up usage: %w", err)
		}
	}
	return nil
}

// Usage sums what settlements told, in the order of By's values.
func (s *Store) Usage(ctx context.Context, f UsageFilter) (list []UsageRow, err error) {
	q, args, err := f.statement()
	if err != nil {
		return nil, err
	}
	rows, err := s.read.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("sum usage: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	list = []UsageRow{}
	for rows.Next() {
		var r UsageRow
		halves := make([]int64, 2*len(usageAmounts))
		to := make([]any, 0, len(f.By)+len(halves))
		for _, by := range f.By {
			to = append(to, r.key(by))
		}
		for i := range halves {
			to = append(to, &halves[i])
		}
		if err := rows.Scan(to...); err != nil {
			return nil, fmt.Errorf("sum usage: %w", err)
		}
		for i, p := range r.pointers() {
			*p = join(halves[2*i], halves[2*i+1])
		}
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("sum usage: %w", err)
	}
	return list, nil
}

// half splits amounts for summing: a sum of them may be more than can be counted,
// which is an error in one database and another type in the other.
const half = 1 << 32

func join(high, low int64) int64 {
	high, low = plus(high, low/half), low%half
	if high > (maxAmount-low)/half {
		return maxAmount
	}
	return high*half + low
}

func (f *UsageFilter) statement() (string, []any, error) {
	by := make([]string, len(f.By))
	for i, name := range f.By {
		if by[i] = usageColumns[name]; by[i] == "" || slices.Contains(f.By[:i], name) {
			return "", nil, fmt.Errorf("sum usage: by %q", name)
		}
	}
	var args []any
	where := []string{}
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	for _, c := range []struct{ condition, value string }{
		{"org_id = ", f.OrgID}, {"token_id = ", f.TokenID}, {"team_id = ", f.TeamID}, {"model = ", f.Model}, {"day >= ", day(f.From)}, {"day <= ", day(f.To)},
	} {
		if c.value != "" {
			where = append(where, c.condition+arg(c.value))
		}
	}
	if f.After != nil && len(by) > 0 {
		last := make([]string, len(by))
		for i, name := range f.By {
			last[i] = arg(*f.After.key(name))
		}
		where = append(where, "("+strings.Join(by, ", ")+") > ("+strings.Join(last, ", ")+")")
	}
	q := `SELECT ` + strings.Join(append(slices.Clone(by), halves(usageAmounts)...), ", ") + ` FROM usage`
	if len(where) > 0 {
		q += ` WHERE ` + strings.Join(where, " AND ")
	}
	if len(by) == 0 {
		q += ` HAVING COUNT(*) > 0`
	} else {
		q += ` GROUP BY ` + strings.Join(by, ", ") + ` ORDER BY ` + strings.Join(by, ", ")
	}
	return q + ` LIMIT ` + arg(max(1, f.Limit)), args, nil
}

func halves(columns []string) []string {
	list := make([]string, 0, 2*len(columns))
	for _, c := range columns {
		list = append(list, fmt.Sprintf("COALESCE(SUM(%[1]s / %[2]d), 0)", c, half), fmt.Sprintf("COALESCE(SUM(%[1]s %% %[2]d), 0)", c, half))
	}
	return list
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}
