package abac

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
)

// cedarBase holds whatever does not depend on a profile's lists. Cedar denies
// unless a policy permits, and any forbid wins: so does the design.
const cedarBase = `
permit (principal, action in [Action::"execute", Action::"list", Action::"self"], resource)
when { (principal.purpose == "general" || principal.purpose == "integration") && principal.principal_type == "api_token" };

forbid (principal, action, resource) unless { principal.status == "active" };
forbid (principal, action, resource) when { principal.id == "" || principal.org == "" };
forbid (principal, action, resource) when { principal.damaged || principal.empty || principal.bad_rate || principal.bad_pattern };
forbid (principal, action, resource) when { principal has not_before && context.now + 60000000000 < principal.not_before };
forbid (principal, action, resource) unless { !(principal has expires_at) || context.now < principal.expires_at };
forbid (principal, action, resource) unless { principal.org == context.org };
forbid (principal, action, resource) when { principal has gateway && (principal.gateway == "" || principal.gateway != context.gateway) };
forbid (principal, action, resource) when { principal has team && principal.team == "" };
forbid (principal, action, resource) when { context.team != "" && !(principal has team && principal.team == context.team) };
forbid (principal, action, resource) when { principal has team && context.deleted.contains(principal.team) };

forbid (principal, action == Action::"execute", resource) unless { context.targets >= 1 && context.targets <= 64 };
forbid (principal, action == Action::"execute", resource)
when { resource has teams && !(principal has team && resource.teams.contains(principal.team)) };
`

var (
	cedarPattern  = regexp.MustCompile(`^!?([^*]*\*){0,8}[^*]*$`)
	cedarLength   = regexp.MustCompile(`^(?s:!.{1,128}|[^!].{0,127})$`)
	cedarAlphabet = regexp.MustCompile(`^[^\p{Cc}\x{FFFD}]*$`)
)

// cedarToken is a profile in Cedar: its policies, and the principal that they read.
type cedarToken struct {
	policies *cedar.PolicySet
	text     string // of the policies that depend on the profile
	uid      cedar.EntityUID
	entities cedar.EntityMap
}

func newCedarToken(base *cedar.PolicySet, p *Profile, damaged bool) (*cedarToken, error) {
	b := &p.Bindings
	attributes := cedar.RecordMap{
		"id":             cedar.String(p.ID),
		"org":            cedar.String(p.OrgID),
		"purpose":        cedar.String(p.Purpose),
		"principal_type": cedar.String(p.PrincipalType),
		"status":         cedar.String(p.Status),
		"damaged":        cedar.Boolean(damaged),
		"empty":          cedar.Boolean(b.Budgets != nil && len(b.Budgets) == 0 || b.RateLimits != nil && *b.RateLimits == RateLimits{}),
		"bad_rate":       cedar.Boolean(b.RateLimits != nil && min(b.RateLimits.RequestsPerMinute, b.RateLimits.TokensPerMinute, b.RateLimits.MaxParallelRequests) < 0),
		"bad_pattern":    cedar.False,
	}
	if p.NotBefore != nil {
		attributes["not_before"] = cedar.Long(p.NotBefore.UnixNano())
	}
	if p.ExpiresAt != nil {
		attributes["expires_at"] = cedar.Long(p.ExpiresAt.UnixNano())
	}
	if b.GatewayID != nil {
		attributes["gateway"] = cedar.String(*b.GatewayID)
	}
	if b.TeamID != nil {
		attributes["team"] = cedar.String(*b.TeamID)
	}
	for _, s := range append(append([]string{}, b.Models...), b.Providers...) {
		if !cedarPattern.MatchString(s) || !cedarLength.MatchString(s) || !cedarAlphabet.MatchString(s) {
			attributes["bad_pattern"] = cedar.True
		}
	}

	c := &cedarToken{policies: cedar.NewPolicySet(), uid: cedar.NewEntityUID("Token", "t")}
	c.text = cedarFilter("context.model", b.Models, p.Purpose) + cedarFilter("resource.id", b.Providers, p.Purpose)
	if likes := cedarLikes("resource.upstream", b.Models, true); likes != "" {
		c.text += fmt.Sprintf("forbid (principal, action == Action::\"execute\", resource) when { resource has upstream && (%s) };\n", likes)
	}
	own, err := cedar.NewPolicySetFromBytes("profile", []byte(c.text))
	if err != nil {
		return nil, fmt.Errorf("%w in\n%s", err, c.text)
	}
	for id, policy := range base.All() {
		c.policies.Add("base_"+id, policy)
	}
	for id, policy := range own.All() {
		c.policies.Add(id, policy)
	}
	c.entities = cedar.EntityMap{c.uid: {UID: c.uid, Attributes: cedar.NewRecord(attributes)}}
	return c, nil
}

// cedarFilter forbids what a filter does not grant or excludes.
func cedarFilter(of string, list []string, purpose Purpose) string {
	if list == nil && purpose == General {
		return ""
	}
	const head = "forbid (principal, action == Action::\"execute\", resource) "
	grants, excludes := cedarLikes(of, list, false), cedarLikes(of, list, true)
	if grants == "" {
		grants = "false"
	}
	// Without a target there is no resource.id; that case is forbidden already.
	guard := "context.targets >= 1 && "
	text := head + "when { " + guard + "!(" + grants + ") };\n"
	if excludes != "" {
		text += head + "when { " + guard + "(" + excludes + ") };\n"
	}
	return text
}

func cedarLikes(of string, list []string, exclude bool) string {
	var likes []string
	for _, s := range list {
		if strings.HasPrefix(s, "!") == exclude && cedarAlphabet.MatchString(s) {
			s = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(strings.TrimPrefix(s, "!"))
			likes = append(likes, of+` like "`+s+`"`)
		}
	}
	return strings.Join(likes, " || ")
}

var cedarActions = map[Action]cedar.EntityUID{
	Execute: cedar.NewEntityUID("Action", "execute"),
	List:    cedar.NewEntityUID("Action", "list"),
	Self:    cedar.NewEntityUID("Action", "self"),
}

// decide asks once for each target, and once where there is none to name.
func (c *cedarToken) decide(r *Request) (allowed bool, targets uint64, err error) {
	action, known := cedarActions[r.Action]
	if !known {
		action = cedar.NewEntityUID("Action", "other")
	}
	request := cedar.Request{
		Principal: c.uid, Action: action, Resource: cedar.NewEntityUID("Target", "r"),
		Context: cedar.NewRecord(cedar.RecordMap{
			"now": cedar.Long(r.Now.UnixNano()), "org": cedar.String(r.OrgID), "gateway": cedar.String(r.GatewayID),
			"team": cedar.String(r.Team), "model": cedar.String(r.Model), "targets": cedar.Long(len(r.Targets)),
			"deleted": cedarSet(specDeleted(r)),
		}),
	}
	ask := func(attributes cedar.RecordMap) bool {
		c.entities[request.Resource] = cedar.Entity{UID: request.Resource, Attributes: cedar.NewRecord(attributes)}
		verdict, diagnostic := cedar.Authorize(c.policies, c.entities, request)
		if len(diagnostic.Errors) > 0 {
			err = fmt.Errorf("cedar: %s", diagnostic.Errors[0])
		}
		return verdict == cedar.Allow
	}
	if r.Action != Execute || len(r.Targets) == 0 {
		return ask(nil), 0, err
	}
	for i, t := range r.Targets {
		attributes := cedar.RecordMap{"id": cedar.String(t.ID)}
		if t.Model != "" {
			attributes["upstream"] = cedar.String(t.Model)
		}
		if len(t.Teams) > 0 {
			attributes["teams"] = cedarSet(t.Teams)
		}
		if ask(attributes) {
			allowed = true
			targets |= 1 << i
		}
	}
	return allowed, targets, err
}

func cedarSet(list []string) cedar.Set {
	values := make([]cedar.Value, len(list))
	for i, s := range list {
		values[i] = cedar.String(s)
	}
	return cedar.NewSet(values...)
}

func cedarBasePolicies(tb testing.TB) *cedar.PolicySet {
	tb.Helper()
	base, err := cedar.NewPolicySetFromBytes("base", []byte(cedarBase))
	if err != nil {
		tb.Fatal(err)
	}
	return base
}
