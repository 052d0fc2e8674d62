package abac

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// random makes profiles and requests that meet: most of what a request names is
// taken from the profile, so that every check is reached, and every boundary hit.
type random struct{ *rand.Rand }

func newRandom(seed, stream uint64) random { return random{rand.New(rand.NewPCG(seed, stream))} }

// seeds are those of every run and one of this run alone, printed when it fails.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	fresh := rand.Uint64()
	t.Logf("seeds 1, 2 and %d", fresh)
	return []uint64{1, 2, fresh}
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

var (
	teams    = []string{"platform", "research", "p", "Platform"}
	gateways = []string{"gw_local", "gw_1", "gw_2"}
	names    = []string{
		"gpt-5.4-mini", "gpt-5.4-pro", "gpt-5.4", "GPT-5.4", "o3", "claude/opus", "org/team/model", "a*b", "!x",
		"modèle-é", "日本", `say "hi"`, `back\slash`, "a", "ab", "aab", "abab", "ba",
	}
	ids = []string{"openai", "azure-eu", "azure-us", "simulator", "ab", "a", "b"}
)

func (r random) chance(percent float64) bool { return r.Float64()*100 < percent }

func pick[T any](r random, list []T) T { return list[r.IntN(len(list))] }

// short is a string over few letters: patterns over them meet in many ways.
func (r random) short() string {
	b := make([]byte, r.IntN(7))
	for i := range b {
		b[i] = "ab/"[r.IntN(3)]
	}
	return string(b)
}

func (r random) pattern(words []string) string {
	var s string
	switch n := r.IntN(20); {
	case n < 8:
		s = pick(r, words)
	case n < 14: // cut a word open
		w := pick(r, words)
		i := r.IntN(len(w) + 1)
		j := i + r.IntN(len(w)+1-i)
		s = strings.ToValidUTF8(w[:i], "") + "*" + strings.ToValidUTF8(w[j:], "")
	case n < 16:
		s = "*"
	default:
		s = r.short()
		for range r.IntN(4) {
			s += "*" + r.short()
		}
	}
	if r.chance(25) {
		s = "!" + s
	}
	if r.chance(0.7) {
		s = pick(r, []string{"", "!", strings.Repeat("a", 129), strings.Repeat("é", 129), strings.Repeat("a*", 9), "a\nb", "a\x7f", "\ufffd"})
	}
	if strings.Trim(s, "!") == "" && r.chance(90) {
		s += "a*"
	}
	if r.chance(0.5) {
		s = pick(r, []string{"!", ""}) + pick(r, []string{strings.Repeat("*a", 8), strings.Repeat("a", 128), strings.Repeat("é", 128)})
	}
	return s
}

func (r random) filter(absent float64, words []string) []string {
	if r.chance(absent) {
		return nil
	}
	list := []string{}
	if r.chance(3) {
		return list
	}
	for range 1 + r.IntN(5) {
		list = append(list, r.pattern(words))
	}
	return list
}

// near is a time at one of the boundaries around t, or far from it.
func (r random) near(t time.Time) *time.Time {
	d := pick(r, []time.Duration{0, 1, -1, time.Minute, time.Minute + 1, time.Minute - 1, -time.Minute, time.Hour, -time.Hour, 2 * time.Hour, -24 * time.Hour})
	t = t.Add(d)
	return &t
}

func (r random) profile() Profile {
	p := Profile{
		ID: "tok_1", Name: "n", OrgID: "org_default", Status: Active, Revision: 7, Hint: "kt_live_…abcd", CreatedAt: noon,
		Purpose: pick(r, []Purpose{General, General, General, Integration, Integration}),
	}
	if r.chance(4) {
		p.Purpose = pick(r, []Purpose{GatewayRuntime, GatewayRuntime, GatewayRuntime, "", "General", "admin"})
	}
	p.PrincipalType = p.Purpose.PrincipalType()
	if r.chance(1) {
		p.PrincipalType = pick(r, []PrincipalType{PrincipalAPIToken, PrincipalGatewayRuntime, "", "user"})
	}
	if r.chance(4) {
		p.Status = pick(r, []Status{Quarantined, Revoked, Quarantined, Revoked, "", "Active", "deleted"})
	}
	if r.chance(2) {
		p.OrgID = pick(r, []string{"", "org_2", "Org_default"})
	}
	if r.chance(0.3) {
		p.ID = ""
	}
	if r.chance(20) {
		p.NotBefore = r.near(noon.Add(-30 * time.Minute))
		if r.chance(40) {
			p.NotBefore = r.near(noon)
		}
	}
	if r.chance(20) {
		p.ExpiresAt = r.near(noon.Add(30 * time.Minute))
		if r.chance(40) {
			p.ExpiresAt = r.near(noon)
		}
	}
	p.Bindings = r.bindings(p.Purpose)
	return p
}

func (r random) bindings(purpose Purpose) Bindings {
	var b Bindings
	if r.chance(40) || purpose == GatewayRuntime && r.chance(90) {
		b.GatewayID = new(pick(r, gateways))
	}
	if r.chance(50) {
		b.TeamID = new(pick(r, teams))
	}
	if r.chance(1) {
		b.GatewayID = new("")
	}
	if r.chance(1) {
		b.TeamID = new("")
	}
	absent := 40.0
	if purpose == Integration {
		absent = 5
	}
	b.Models = r.filter(absent, names)
	b.Providers = r.filter(absent, ids)
	if r.chance(1) {
		b.Budgets = pick(r, [][]BudgetBinding{{}, {{ID: "b_day"}}, {{ID: "b", Limit: "5.00", Unit: "usd", Window: "day"}}})
	}
	if r.chance(1) {
		b.RateLimits = pick(r, []*RateLimits{{}, {RequestsPerMinute: 600}, {TokensPerMinute: -1}})
	}
	return b
}

// meeting is a name that the filter is about: one of its patterns with something
// for each star.
func (r random) meeting(filter, words []string) string {
	if len(filter) == 0 || r.chance(20) {
		return pick(r, words)
	}
	s := strings.TrimPrefix(pick(r, filter), "!")
	for strings.Contains(s, "*") {
		s = strings.Replace(s, "*", r.short(), 1)
	}
	if r.chance(10) {
		s += "a"
	}
	return s
}

func (r random) request(p *Profile) Request {
	b := &p.Bindings
	q := Request{Now: noon, Action: Execute, OrgID: "org_default", GatewayID: "gw_local"}
	if b.GatewayID != nil && r.chance(85) {
		q.GatewayID = *b.GatewayID
	}
	if r.chance(15) {
		q.Action = pick(r, []Action{0, List, List, Self, Self, Self + 1, 255})
	}
	if r.chance(1) {
		q.OrgID = pick(r, []string{"", "org_2"})
	}
	if b.TeamID != nil && r.chance(60) {
		q.Team = *b.TeamID
	}
	if r.chance(5) {
		q.Team = pick(r, teams)
	}
	switch {
	case r.chance(2) && b.TeamID != nil:
		q.DeletedTeams = NewTeamSet(pick(r, teams), *b.TeamID)
	case r.chance(8):
		q.DeletedTeams = NewTeamSet(pick(r, teams))
	}
	if r.chance(30) {
		q.Now = *r.near(noon)
	}
	q.Model = r.meeting(b.Models, names)
	n := 1 + r.IntN(4)
	switch {
	case r.chance(8):
		n = 0
	case r.chance(0.5):
		n = MaxTargets - 1 + r.IntN(3)
	}
	for range n {
		t := Target{ID: r.meeting(b.Providers, ids)}
		if r.chance(40) {
			t.Model = r.meeting(b.Models, names)
		}
		if r.chance(30) {
			t.Teams = append(t.Teams, pick(r, teams))
			if b.TeamID != nil && r.chance(60) {
				t.Teams = append(t.Teams, *b.TeamID)
			}
		}
		q.Targets = append(q.Targets, t)
	}
	return q
}

// damages are edits of a profile's JSON that its bindings must not survive.
var damages = []func(map[string]any){
	func(b map[string]any) { b["endpoints"] = []string{"*"} },
	func(b map[string]any) { b["Models"] = []string{"*"} },
	func(b map[string]any) { b["unknown"] = nil },
	func(b map[string]any) { b["models"] = "*" },
	func(b map[string]any) { b["models"] = []any{"*", nil} },
	func(b map[string]any) { b["providers"] = []any{1} },
	func(b map[string]any) { b["providers"] = map[string]any{} },
	func(b map[string]any) { b["team_id"] = []string{"platform"} },
	func(b map[string]any) { b["gateway_id"] = 1 },
	func(b map[string]any) { b["budgets"] = map[string]any{"id": "b"} },
	func(b map[string]any) { b["rate_limits"] = map[string]any{"requests_per_minute": "600"} },
}

// wire sends a profile through its JSON, damaged or not, as it comes from a
// control plane.
func (r random) wire(p *Profile, damage bool) Profile {
	doc, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	if damage {
		var v map[string]any
		if err := json.Unmarshal(doc, &v); err != nil {
			panic(err)
		}
		pick(r, damages)(v["bindings"].(map[string]any))
		if doc, err = json.Marshal(v); err != nil {
			panic(err)
		}
	}
	var got Profile
	if err := json.Unmarshal(doc, &got); err != nil {
		panic(fmt.Sprintf("%v in %s", err, doc))
	}
	return got
}

func shuffled[T any](r random, list []T) []T {
	list = slices.Clone(list)
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}
