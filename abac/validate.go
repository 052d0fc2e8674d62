package abac

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// How much a profile may hold when it is minted or changed.
const (
	MaxNameLen  = 128  // characters
	MaxIDLen    = 128  // characters
	MaxPatterns = 1000 // in a filter
	MaxBudgets  = 32

	maxRate = 1_000_000_000_000 // of each rate limit
)

// Problem is one thing that is wrong with a profile.
type Problem struct {
	Path    string // as in the JSON: "bindings.models[2]"
	Message string // what is wrong, what is allowed; no value from the profile
}

// Error gives "path: message".
func (p Problem) Error() string { return p.Path + ": " + p.Message }

// PrincipalType returns the one principal type that goes with the purpose, ""
// for a purpose that does not exist.
func (p Purpose) PrincipalType() PrincipalType {
	switch p {
	case General, Integration:
		return PrincipalAPIToken
	case GatewayRuntime:
		return PrincipalGatewayRuntime
	}
	return ""
}

// Validate returns everything for which a profile is refused when it is minted or
// changed; nil when nothing is. ID, OrgID and Status are judged only where they
// are set, so that it can be asked before they are given. A binding that this
// version does not enforce is not a problem here, while Compile denies it.
func Validate(p *Profile) []Problem {
	var list []Problem
	add := func(path, message string) { list = append(list, Problem{path, message}) }

	if p.ID != "" && !ValidID(p.ID) {
		add("id", wantID)
	}
	if p.OrgID != "" && !ValidID(p.OrgID) {
		add("org_id", wantID)
	}
	if message := nameProblem(p.Name); message != "" {
		add("name", message)
	}
	if err := purposeProblem(p.Purpose, p.PrincipalType); err != nil {
		list = append(list, *err)
	}
	switch p.Status {
	case "", Active, Quarantined, Revoked:
	default:
		add("status", "unknown; allowed: active, quarantined, revoked")
	}
	if p.NotBefore != nil && p.ExpiresAt != nil && !p.ExpiresAt.After(*p.NotBefore) {
		add("expires_at", "must be after not_before")
	}
	list = append(list, timeProblems(p)...)

	b := &p.Bindings
	for _, s := range b.Invalid {
		path, message, _ := strings.Cut(s, ": ")
		add(path, message)
	}
	list = append(list, restrictionProblems(p)...)
	if b.GatewayID != nil && *b.GatewayID != "" && !ValidID(*b.GatewayID) {
		add("bindings.gateway_id", wantID)
	}
	if b.TeamID != nil && *b.TeamID != "" && !ValidID(*b.TeamID) {
		add("bindings.team_id", wantID)
	}
	list = append(list, filterProblems("bindings.providers", b.Providers)...)
	list = append(list, filterProblems("bindings.models", b.Models)...)
	for _, problem := range budgetProblems(b.Budgets) {
		if !slices.Contains(list, problem) { // reading it may have found the same
			list = append(list, problem)
		}
	}
	return list
}

const wantID = "must have 1 to 128 characters out of A-Z a-z 0-9 . _ : -"

// ValidID says whether s may be the id of an org, a team, a gateway or a budget.
func ValidID(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
		case c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return s != "" && len(s) <= MaxIDLen
}

func nameProblem(s string) string {
	switch {
	case strings.TrimSpace(s) == "":
		return "required: 1 to 128 characters, not all of them spaces"
	case utf8.RuneCountInString(s) > MaxNameLen:
		return "too long: at most 128 characters"
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return "must be UTF-8 without control characters"
	}
	return ""
}

func purposeProblem(purpose Purpose, principal PrincipalType) *Problem {
	want := purpose.PrincipalType()
	if want == "" {
		return &Problem{"purpose", "unknown; allowed: general, gateway_runtime, integration"}
	}
	if principal != want {
		return &Problem{"principal_type", fmt.Sprintf("must be %s with purpose %s", want, purpose)}
	}
	return nil
}

// timeProblems keeps to what RFC 3339 can write: encoding/json fails on others,
// and with it every answer that would hold the profile.
func timeProblems(p *Profile) []Problem {
	var list []Problem
	check := func(path string, t *time.Time) {
		if t == nil {
			return
		}
		if y := t.UTC().Year(); y < 1 || y > 9999 {
			list = append(list, Problem{path, "must be a year from 1 to 9999"})
		}
	}
	check("not_before", p.NotBefore)
	check("expires_at", p.ExpiresAt)
	return list
}

// restrictionProblems finds the restrictions that are there and restrict to
// nothing, and what they must bring to mean something.
func restrictionProblems(p *Profile) []Problem {
	var list []Problem
	add := func(path, message string) { list = append(list, Problem{path, message}) }
	b := &p.Bindings
	switch {
	case b.GatewayID == nil && p.Purpose == GatewayRuntime:
		add("bindings.gateway_id", "required with purpose gateway_runtime")
	case b.GatewayID != nil && *b.GatewayID == "":
		add("bindings.gateway_id", "must not be empty; leave it out for no restriction")
	}
	if b.TeamID != nil && *b.TeamID == "" {
		add("bindings.team_id", "must not be empty; leave it out for no restriction")
	}
	if b.Budgets != nil && len(b.Budgets) == 0 {
		add("bindings.budgets", "must not be empty; leave it out for no restriction")
	}
	if r := b.RateLimits; r != nil {
		if *r == (RateLimits{}) {
			add("bindings.rate_limits", "must not be empty; leave it out for no restriction")
		}
		check := func(key string, n int64) {
			if n < 0 || n > maxRate {
				add("bindings.rate_limits."+key, "must be a whole number from 1 to "+strconv.FormatInt(maxRate, 10))
			}
		}
		check("requests_per_minute", r.RequestsPerMinute)
		check("tokens_per_minute", r.TokensPerMinute)
		check("max_parallel_requests", r.MaxParallelRequests)
	}
	return list
}

func patternProblems(path string, list []string) []Problem {
	var found []Problem
	for i, s := range list {
		if _, err := ParsePattern(s); err != nil {
			found = append(found, Problem{fmt.Sprintf("%s[%d]", path, i), err.Error()})
		}
	}
	return found
}

func filterProblems(path string, list []string) []Problem {
	if len(list) > MaxPatterns {
		return []Problem{{path, fmt.Sprintf("too long: at most %d patterns", MaxPatterns)}}
	}
	found := patternProblems(path, list)
	if len(found) > 0 || len(list) == 0 {
		return found
	}
	for _, s := range list {
		if !strings.HasPrefix(s, "!") {
			return nil
		}
	}
	return []Problem{{path, `only excludes, so it grants nothing; add "*" to grant everything else`}}
}

func budgetProblems(list []BudgetBinding) []Problem {
	if len(list) > MaxBudgets {
		return []Problem{{"bindings.budgets", fmt.Sprintf("too long: at most %d budgets", MaxBudgets)}}
	}
	var found []Problem
	seen := make(map[string]bool, len(list))
	for i := range list {
		b := &list[i]
		add := func(key, message string) {
			found = append(found, Problem{fmt.Sprintf("bindings.budgets[%d].%s", i, key), message})
		}
		switch {
		case !ValidID(b.ID):
			add("id", wantID)
		case seen[b.ID]:
			add("id", "named twice; one id is one budget")
		}
		seen[b.ID] = true

		switch b.Unit {
		case "usd", "tokens", "requests":
		case "":
			if b.Limit != "" {
				add("unit", "required beside limit; allowed: usd, tokens, requests")
			}
		default:
			add("unit", "unknown; allowed: usd, tokens, requests")
		}
		switch b.Window {
		case "hour", "day", "week", "month", "total":
		case "":
			if b.Limit != "" {
				add("window", "required beside limit; allowed: hour, day, week, month, total")
			}
		default:
			add("window", "unknown; allowed: hour, day, week, month, total")
		}
		switch b.Mode {
		case "", "enforce", "observe":
		default:
			add("mode", "unknown; allowed: enforce, observe")
		}
		if message := limitProblem(b.Limit, b.Unit); message != "" {
			add("limit", message)
		}
	}
	return found
}

// limitProblem holds a limit to what is counted with: whole nano-USD, tokens and
// requests, each in 64 bits with room to add.
func limitProblem(limit, unit string) string {
	if limit == "" {
		return ""
	}
	whole, fraction, point := strings.Cut(limit, ".")
	if !digits(whole) || point && !digits(fraction) {
		return `must be a decimal from 0 on, such as "5.00"`
	}
	if unit != "usd" {
		if point || len(strings.TrimLeft(whole, "0")) > 18 {
			return "must be a whole number with at most 18 digits"
		}
		return ""
	}
	if len(strings.TrimLeft(whole, "0")) > 9 || len(fraction) > 9 {
		return "must have at most 9 digits before the point and 9 after it"
	}
	return ""
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
