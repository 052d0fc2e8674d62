// Package abac decides: a profile, a request, a decision. Pure: no clock, no
// I/O, no look-up; everything it needs is handed in.
//
// A Profile is what the wire says of a token. Compile makes a Policy of it once,
// and Decide asks the policy as often as there are requests, without allocating:
//
//	policy := abac.Compile(profile)
//	decision := abac.Decide(policy, &abac.Request{…})
//	if decision.Reason != abac.Allowed { … }
//
// The checks run in a fixed order, and the first that fails is the reason:
//
//  1. the profile is valid, active, inside its times, and of the gateway's org
//  2. its purpose may do the action
//  3. it is bound to this gateway or to none
//  4. the team that the request asserts, if any, is the one it is bound to, and
//     that one is not deleted
//  5. the model is granted and not excluded; then it must have an entry
//  6. of the entry's targets some are left: by their teams, by excluded upstream
//     names, by the providers that are granted
//
// Everything denies by default: a zero Decision, a nil or zero Policy, an unknown
// value of any enum, a binding that is not understood. Filters
// (models, providers) grant: absent, they grant everything to general and nothing
// to integration; empty, nothing to anybody; an exclusion always wins. Restrictions
// (gateway, team, budgets, rate limits) narrow; absent, they do not. Budgets and
// rate limits are check 7: not decided here but by what is left when a call wants
// to reserve.
//
// Explain gives the same verdict with every check, for people; Validate names
// everything for which a profile is refused when it is minted.
package abac

import "time"

// Purpose says what a token is for.
type Purpose string

// The purposes there are. Any other denies.
const (
	General        Purpose = "general"
	GatewayRuntime Purpose = "gateway_runtime"
	Integration    Purpose = "integration"
)

// PrincipalType says what kind of principal acts with a token.
type PrincipalType string

// The principal types there are, each valid only with its purposes.
const (
	PrincipalAPIToken       PrincipalType = "api_token"       // with general and integration
	PrincipalGatewayRuntime PrincipalType = "gateway_runtime" // with gateway_runtime
)

// Status is where a token stands in its life.
type Status string

// The statuses there are. Any other denies.
const (
	Active      Status = "active"
	Quarantined Status = "quarantined" // denied, kept for inquiry; lifted only by release
	Revoked     Status = "revoked"     // final
)

// Profile is what is known of a token: the wire's form, as DESIGN §4 writes it.
// Compile makes a Policy of it, which is what Decide takes.
type Profile struct {
	ID            string        `json:"id"`
	Name          string        `json:"name"`
	OrgID         string        `json:"org_id"`
	Purpose       Purpose       `json:"purpose"`
	PrincipalType PrincipalType `json:"principal_type"`
	Status        Status        `json:"status"`
	Revision      int64         `json:"revision"` // global revision of the last change
	NotBefore     *time.Time    `json:"not_before"`
	ExpiresAt     *time.Time    `json:"expires_at"`
	Bindings      Bindings      `json:"bindings"`
	Hint          string        `json:"hint"`
	CreatedAt     time.Time     `json:"created_at"`
	LastUsedAt    *time.Time    `json:"last_used_at"`
	RotatedFrom   *string       `json:"rotated_from"`
}

// Bindings is what a token may reach. Absent and empty differ: a nil slice or
// pointer is an absent key, an empty one stands for [] or "". Its UnmarshalJSON
// never fails on content: what it can't take is kept in Invalid, and denies.
type Bindings struct {
	GatewayID  *string         `json:"gateway_id,omitzero"`
	TeamID     *string         `json:"team_id,omitzero"`
	Providers  []string        `json:"providers,omitzero"`
	Models     []string        `json:"models,omitzero"`
	Budgets    []BudgetBinding `json:"budgets,omitzero"`
	RateLimits *RateLimits     `json:"rate_limits,omitzero"`

	// Invalid lists what was met and not understood (an unknown key, a wrong
	// type, a key that stands twice), each as "bindings.<path>: what is wrong". It
	// is written out so that it is met again, as an unknown key, by whoever reads:
	// a profile must not become wider by being copied.
	Invalid []string `json:"invalid,omitempty"`
}

// BudgetBinding names a budget; one with a Limit creates its record if absent.
type BudgetBinding struct {
	ID     string `json:"id"`
	Limit  string `json:"limit,omitempty"`  // decimal, in Unit
	Unit   string `json:"unit,omitempty"`   // usd, tokens, requests
	Window string `json:"window,omitempty"` // hour, day, week, month, total
	Mode   string `json:"mode,omitempty"`   // enforce (default), observe
}

// RateLimits are per token and gateway. Zero is absent.
type RateLimits struct {
	RequestsPerMinute   int64 `json:"requests_per_minute,omitempty"`
	TokensPerMinute     int64 `json:"tokens_per_minute,omitempty"`
	MaxParallelRequests int64 `json:"max_parallel_requests,omitempty"`
}

// Action is what a request wants to do on the data plane.
type Action uint8

// The actions. The zero value is none of them and denies.
const (
	_       Action = iota
	Execute        // a call that names a model: checks 1 to 7
	List           // GET /v1/models: checks 1 to 4
	Self           // GET /v1/whoami: checks 1 to 4
)

// Request is all that a decision depends on beside the profile.
type Request struct {
	Now       time.Time // the gateway's clock
	Action    Action
	OrgID     string // the gateway's org
	GatewayID string // the gateway's id
	Team      string // as asserted in X-Keeptrusts-Team; "" asserts none

	// DeletedTeams are those of the org that the gateway knows of.
	DeletedTeams *TeamSet `json:"-"`

	// Execute only.
	Model   string   // as the client names it
	Targets []Target // of the model's entry in the config, at most MaxTargets; nil: no entry
}

// Target is one way to serve a model, as the config orders them.
type Target struct {
	ID    string   // what the providers filter matches
	Model string   // the upstream's name of the model; an exclusion of it filters the target
	Teams []string // teams it is open to; empty: all
}

// MaxTargets is the most targets one model entry may have: Decision.Targets is a
// bit set.
const MaxTargets = 64

// Reason is why a request was denied; its String is the code of DESIGN §3 and §5.
type Reason uint8

// Decision is the outcome. The zero value denies (ProfileInvalid).
type Decision struct {
	Reason  Reason // Allowed, or the first check that failed
	Targets uint64 // bit i: Request.Targets[i] is left. Execute only.
}

// String names the action for people.
func (a Action) String() string {
	switch a {
	case Execute:
		return "execute"
	case List:
		return "list"
	case Self:
		return "self"
	}
	return "unknown action"
}
