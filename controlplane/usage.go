package controlplane

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// usageRow is a sum of what calls used. What rows are not told apart by is absent.
// Parts are disjoint, in tokens.
type usageRow struct {
	TokenID *string `json:"token_id,omitempty"`
	TeamID  *string `json:"team_id,omitempty"` // "": of no team
	Model   *string `json:"model,omitempty"`
	Target  *string `json:"target,omitempty"`
	Day     *string `json:"day,omitempty"` // UTC, as 2026-11-24

	Requests    int64  `json:"requests"`
	Input       int64  `json:"input_tokens"`
	CachedInput int64  `json:"cached_input_tokens"`
	CacheWrite  int64  `json:"cache_write_tokens"`
	Output      int64  `json:"output_tokens"`
	Reasoning   int64  `json:"reasoning_tokens"`
	AudioInput  int64  `json:"audio_input_tokens"`
	AudioOutput int64  `json:"audio_output_tokens"`
	Total       int64  `json:"total_tokens"`
	Cost        string `json:"cost"`      // USD, a decimal
	Unpriced    int64  `json:"unpriced"`  // requests of which a part has no price and counts 0
	Estimated   int64  `json:"estimated"` // requests whose usage the provider did not tell
}

// dimension is what usage can be told apart by, under the name that group_by has for it.
type dimension struct {
	name  string
	field func(*usageRow) **string
	value func(*store.UsageRow) *string
}

var dimensions = []dimension{
	{"token", func(r *usageRow) **string { return &r.TokenID }, func(r *store.UsageRow) *string { return &r.TokenID }},
	{"team", func(r *usageRow) **string { return &r.TeamID }, func(r *store.UsageRow) *string { return &r.TeamID }},
	{"model", func(r *usageRow) **string { return &r.Model }, func(r *store.UsageRow) *string { return &r.Model }},
	{"target", func(r *usageRow) **string { return &r.Target }, func(r *store.UsageRow) *string { return &r.Target }},
	{"day", func(r *usageRow) **string { return &r.Day }, func(r *store.UsageRow) *string { return &r.Day }},
}

func (s *Server) listUsage(c *call) (int, any, error) {
	q, err := query(c, "org_id", "token_id", "team_id", "model", "from", "to", "group_by", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	f := store.UsageFilter{OrgID: orgOr(q.get("org_id")), TokenID: q.get("token_id"), TeamID: q.get("team_id"), Model: q.get("model")}
	return s.usage(c, q, f, "token,team,model,day")
}

// ownUsage is that of the caller's own token.
func (s *Server) ownUsage(c *call) (int, any, error) {
	q, err := query(c, "model", "from", "to", "group_by", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	f := store.UsageFilter{OrgID: c.who.org(), TokenID: c.who.token.Profile.ID, Model: q.get("model")}
	return s.usage(c, q, f, "model,day")
}

// usage answers a page of the rows that f leaves.
func (s *Server) usage(c *call, q params, f store.UsageFilter, by string) (int, any, error) {
	var err error
	if f.From, err = day(q, "from"); err != nil {
		return 0, nil, err
	}
	if f.To, err = day(q, "to"); err != nil {
		return 0, nil, err
	}
	if !f.From.IsZero() && !f.To.IsZero() && f.To.Before(f.From) {
		return 0, nil, refuse("invalid_value", "to must not be before from; both days are included.").at("to")
	}
	if v := q.get("group_by"); v != "" {
		by = v
	}
	if f.By, err = groups(by); err != nil {
		return 0, nil, err
	}
	if v := q.get("cursor"); v != "" {
		if f.After, err = afterRow(v); err != nil {
			return 0, nil, err
		}
	}
	f.Limit = q.limit + 1
	list, err := s.store.Usage(c.r.Context(), f)
	if err != nil {
		return 0, nil, err
	}
	list, next := cut(list, q.limit, cursorOf)
	data := make([]usageRow, len(list))
	for i := range list {
		data[i] = usageOf(&list[i], f.By)
	}
	return http.StatusOK, page{data, next}, nil
}

// day reads a day in UTC, or the day in which a time lies.
func day(q params, name string) (time.Time, error) {
	v := q.get(name)
	if v == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.DateOnly, v)
	if err != nil {
		t, err = time.Parse(time.RFC3339, v)
	}
	if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
		return time.Time{}, refuse("invalid_value", "%s must be a day in UTC, such as 2026-11-24.", name).at(name)
	}
	start, _ := budget.Day.At(t)
	return start, nil
}

// groups reads what rows are told apart by, "none" for one sum of all.
func groups(v string) ([]string, error) {
	by := []string{}
	if v == "none" {
		return by, nil
	}
	for _, name := range strings.Split(v, ",") {
		name = strings.TrimSuffix(strings.TrimSpace(name), "_id")
		i := slices.IndexFunc(dimensions, func(d dimension) bool { return d.name == name })
		if i < 0 {
			return nil, refuse("invalid_value", "group_by is none, or some of token, team, model, target and day, with commas between.").at("group_by")
		}
		if !slices.Contains(by, name) {
			by = append(by, name)
		}
	}
	return by, nil
}

func usageOf(u *store.UsageRow, by []string) usageRow {
	r := usageRow{
		Requests: u.Requests, Input: u.Input, CachedInput: u.CachedInput, CacheWrite: u.CacheWrite, Output: u.Output,
		Reasoning: u.Reasoning, AudioInput: u.AudioInput, AudioOutput: u.AudioOutput,
		Total: u.Input + u.CachedInput + u.CacheWrite + u.Output + u.Reasoning + u.AudioInput + u.AudioOutput,
		Cost:  budget.USD.Format(u.Cost), Unpriced: u.Unpriced, Estimated: u.Estimated,
	}
	for _, d := range dimensions {
		if slices.Contains(by, d.name) {
			*d.field(&r) = d.value(u)
		}
	}
	return r
}

// cursorOf names a row by all that tells it apart.
func cursorOf(r store.UsageRow) string {
	raw, err := json.Marshal([...]string{r.TokenID, r.TeamID, r.Model, r.Target, r.Day})
	if err != nil {
		panic("BUG: a cursor does not encode: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func afterRow(cursor string) (*store.UsageRow, error) {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	var at []string
	if err != nil || json.Unmarshal(raw, &at) != nil || len(at) != 5 {
		return nil, errCursor
	}
	return &store.UsageRow{TokenID: at[0], TeamID: at[1], Model: at[2], Target: at[3], Day: at[4]}, nil
}
