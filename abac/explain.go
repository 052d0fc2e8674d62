package abac

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Check is one check of a decision, for people. A check that comes after the one
// that denied is evaluated all the same where it can be, so that one look shows
// everything that stands in the way.
type Check struct {
	Name      string // profile, purpose, gateway_id, team_id, models, entry, teams, excluded, providers, budgets, rate_limits
	Detail    string // what was compared with what; of any length, from the profile, the config and the request
	OK        bool   // false when not evaluated
	Evaluated bool   // false: it could not be, or does not apply; Detail says why
}

// Explain decides as Decide does and shows every check, in order, always the same
// ones. It allocates: it is for the command line and the log, not for every
// request. A nil policy or request denies, without checks.
func Explain(p *Policy, r *Request) ([]Check, Decision) {
	if p == nil || r == nil {
		return nil, Decision{}
	}
	checks := []Check{
		{Name: "profile", Detail: p.profileDetail(r), OK: p.profileReason(r) == Allowed, Evaluated: true},
		{Name: "purpose", Detail: p.purposeDetail(r), OK: p.purposeReason(r) == Allowed, Evaluated: true},
		{Name: "gateway_id", Detail: p.gatewayDetail(r), OK: p.gatewayReason(r) == Allowed, Evaluated: true},
		{Name: "team_id", Detail: p.teamDetail(r), OK: p.teamReason(r) == Allowed, Evaluated: true},
	}
	checks = append(checks, p.explainModel(r)...)
	checks = append(checks, p.explainTargets(r)...)
	b := &p.profile.Bindings
	checks = append(checks,
		reserved("budgets", budgetsDetail(b.Budgets)),
		reserved("rate_limits", ratesDetail(b.RateLimits)))

	// Without a meaning for the whole profile none of its bindings has one.
	if p.problem != "" {
		for i := range checks[1:] {
			checks[i+1] = skipped(checks[i+1].Name, "the profile is not valid")
		}
	}
	return checks, Decide(p, r)
}

func skipped(name, why string) Check { return Check{Name: name, Detail: "not evaluated: " + why} }

// reserved is a check that a call meets when it reserves.
func reserved(name, bound string) Check {
	if bound != "" {
		return Check{Name: name, Detail: bound + ": counted when a call is admitted"}
	}
	return Check{Name: name, Detail: "none", OK: true, Evaluated: true}
}

func budgetsDetail(list []BudgetBinding) string {
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	return strings.Join(ids, ", ")
}

func ratesDetail(r *RateLimits) string {
	if r == nil {
		return ""
	}
	var list []string
	add := func(n int64, of string) {
		if n > 0 {
			list = append(list, fmt.Sprintf("%d %s", n, of))
		}
	}
	add(r.RequestsPerMinute, "requests a minute")
	add(r.TokensPerMinute, "tokens a minute")
	add(r.MaxParallelRequests, "in parallel")
	return strings.Join(list, ", ")
}

func (p *Policy) explainModel(r *Request) []Check {
	if r.Action != Execute {
		why := "only execute names a model"
		return []Check{skipped("models", why), skipped("entry", why)}
	}
	models := Check{
		Name:      "models",
		Detail:    filterDetail(&p.models, p.profile.Bindings.Models, p.profile.Purpose, r.Model),
		OK:        p.models.allows(r.Model),
		Evaluated: true,
	}
	entry := Check{Name: "entry", OK: true, Evaluated: true}
	switch n := len(r.Targets); {
	case n == 0:
		entry.OK = false
		entry.Detail = fmt.Sprintf("no entry of the config serves %s", quote(r.Model))
	case n > MaxTargets:
		entry.OK = false
		entry.Detail = fmt.Sprintf("%d targets; at most %d can be decided on", n, MaxTargets)
	default:
		entry.Detail = "targets: " + targetIDs(r, everyTarget(r))
	}
	return []Check{models, entry}
}

// explainTargets shows what each filter leaves. It begins with every target, also
// when the model is not granted.
func (p *Policy) explainTargets(r *Request) []Check {
	names := [...]string{"teams", "excluded", "providers"}
	checks := make([]Check, 0, len(names))
	why := ""
	switch {
	case r.Action != Execute || len(r.Targets) == 0:
		why = "there are no targets"
	case len(r.Targets) > MaxTargets:
		why = "there are too many targets"
	}
	if why != "" {
		for _, name := range names {
			checks = append(checks, skipped(name, why))
		}
		return checks
	}
	filters := [...]func(*Request, uint64) uint64{p.openToTeam, p.notExcluded, p.ofProviders}
	rules := [...]string{p.teamsRule(r), p.excludedRule(), p.providersRule()}
	left := everyTarget(r)
	for i, name := range names {
		if left == 0 {
			checks = append(checks, skipped(name, "no target is left"))
			continue
		}
		after := filters[i](r, left)
		detail := rules[i] + "; left: " + targetIDs(r, after)
		if out := left &^ after; out != 0 {
			detail += "; out: " + targetIDs(r, out)
		}
		checks = append(checks, Check{Name: name, Detail: detail, OK: after != 0, Evaluated: true})
		left = after
	}
	return checks
}

func (p *Policy) profileDetail(r *Request) string {
	if p.problem != "" {
		return p.problem
	}
	parts := []string{string(p.profile.Status)}
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	if t := p.profile.NotBefore; t != nil {
		if r.Now.Before(p.notBefore) {
			parts = append(parts, "not valid yet")
		}
		parts = append(parts, "not before "+at(*t))
	}
	if t := p.profile.ExpiresAt; t != nil {
		word := "expires "
		if !r.Now.Before(*t) {
			word = "expired "
		}
		parts = append(parts, word+at(*t))
	}
	if p.timed {
		parts = append(parts, "now "+at(r.Now))
	}
	if p.org == r.OrgID {
		parts = append(parts, "org "+p.org)
	} else {
		parts = append(parts, fmt.Sprintf("of org %s, unknown at a gateway of org %s", quote(p.org), quote(r.OrgID)))
	}
	return strings.Join(parts, "; ")
}

func (p *Policy) purposeDetail(r *Request) string {
	if p.purposeReason(r) == Allowed {
		return fmt.Sprintf("%s may %s", p.profile.Purpose, r.Action)
	}
	if p.profile.Purpose == GatewayRuntime {
		return "gateway_runtime identifies a gateway to the control plane; it may not use the data plane"
	}
	return r.Action.String() + " is allowed to nobody"
}

func (p *Policy) gatewayDetail(r *Request) string {
	if p.gateway == "" {
		return "any gateway"
	}
	return fmt.Sprintf("bound to %s; this gateway is %s", quote(p.gateway), quote(r.GatewayID))
}

func (p *Policy) teamDetail(r *Request) string {
	asserted := "none asserted"
	if r.Team != "" {
		asserted = quote(r.Team) + " asserted"
	}
	if p.team == "" {
		return "bound to no team; " + asserted
	}
	gone := ""
	if r.DeletedTeams.Has(p.team) {
		gone = ", which is deleted"
	}
	return fmt.Sprintf("bound to %s%s; %s", quote(p.team), gone, asserted)
}

func (p *Policy) teamsRule(r *Request) string {
	var closed []string
	for i := range r.Targets {
		if t := &r.Targets[i]; len(t.Teams) > 0 {
			closed = append(closed, fmt.Sprintf("%s is open to %s", t.ID, strings.Join(t.Teams, ", ")))
		}
	}
	if closed == nil {
		return "open to every team"
	}
	if p.team == "" {
		return "the token is of no team; " + strings.Join(closed, "; ")
	}
	return fmt.Sprintf("the token is of team %s; %s", p.team, strings.Join(closed, "; "))
}

func (p *Policy) excludedRule() string {
	if len(p.models.excludes) == 0 {
		return "no upstream name is excluded"
	}
	return "upstream names excluded: " + patternsText(p.profile.Bindings.Models, true)
}

func (p *Policy) providersRule() string {
	list := p.profile.Bindings.Providers
	if list == nil {
		return absentText(p.profile.Purpose)
	}
	return filterText(list)
}

// filterDetail says what a filter makes of a name, and by which of its patterns.
func filterDetail(f *filter, list []string, purpose Purpose, name string) string {
	verdict, by := "is not granted", ""
	switch {
	case f.all:
		verdict = "is granted"
	case matches(f.excludes, name):
		verdict, by = "is excluded", firstMatch(list, name, true)
	case matches(f.grants, name):
		verdict, by = "is granted", firstMatch(list, name, false)
	}
	if by != "" {
		by = " by " + by
	}
	text := absentText(purpose)
	if list != nil {
		text = filterText(list)
	}
	return fmt.Sprintf("%s %s%s; %s", quote(name), verdict, by, text)
}

func absentText(purpose Purpose) string {
	if purpose == General {
		return "not bound, so everything is granted"
	}
	return fmt.Sprintf("not bound, so nothing is granted to %s", purpose)
}

func filterText(list []string) string {
	granted, excluded := patternsText(list, false), patternsText(list, true)
	if excluded == "" {
		return "granted: " + orNothing(granted)
	}
	return fmt.Sprintf("granted: %s; excluded: %s", orNothing(granted), excluded)
}

func patternsText(list []string, exclude bool) string {
	var some []string
	for _, s := range list {
		if strings.HasPrefix(s, "!") == exclude {
			some = append(some, s)
		}
	}
	return strings.Join(some, ", ")
}

func firstMatch(list []string, name string, exclude bool) string {
	i := slices.IndexFunc(list, func(s string) bool {
		p, err := ParsePattern(s)
		return err == nil && p.exclude == exclude && p.match(name)
	})
	if i < 0 {
		return ""
	}
	return list[i]
}

func targetIDs(r *Request, set uint64) string {
	var ids []string
	for i := range r.Targets {
		if set&(1<<i) != 0 {
			ids = append(ids, r.Targets[i].ID)
		}
	}
	return orNothing(strings.Join(ids, ", "))
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// quote shows a string that may come from a request: escaped, and not at length.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}
