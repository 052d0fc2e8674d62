package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// The events of the audit log.
const (
	eventCreated     = "token.created"
	eventImported    = "token.imported"
	eventUpdated     = "token.updated"
	eventRotated     = "token.rotated"
	eventRevoked     = "token.revoked"
	eventQuarantined = "token.quarantined"
	eventReleased    = "token.released"
	eventMisplaced   = "credential.misplaced"

	eventBudgetCreated  = "budget.created"
	eventBudgetChanged  = "budget.changed"
	eventBudgetToppedUp = "budget.topped_up"

	eventTeamCreated  = "team.created"
	eventTeamChanged  = "team.changed"
	eventTeamDeleted  = "team.deleted"
	eventTeamRestored = "team.restored"

	eventGatewayCreated = "gateway.created"
	eventGatewayUpdated = "gateway.updated"
	eventGatewayDeleted = "gateway.deleted"
)

var events = []string{
	eventCreated, eventImported, eventUpdated, eventRotated, eventRevoked, eventQuarantined, eventReleased, eventMisplaced,
	eventBudgetCreated, eventBudgetChanged, eventBudgetToppedUp,
	eventTeamCreated, eventTeamChanged, eventTeamDeleted, eventTeamRestored,
	eventGatewayCreated, eventGatewayUpdated, eventGatewayDeleted,
}

// minted is the one answer that holds a token's string.
type minted struct {
	abac.Profile
	Token string `json:"token"`
}

func (s *Server) createToken(c *call) (int, any, error) {
	p, err := newProfile(c.body)
	if err != nil {
		return 0, nil, err
	}
	var answer minted
	err = s.change(c.r.Context(), &p.OrgID, func(tx *store.Tx) ([]budget.Recall, error) {
		recalls, err := s.bound(c, tx, &p)
		if err != nil {
			return nil, err
		}
		if answer, err = s.mint(c, tx, p); err != nil {
			return nil, err
		}
		return recalls, audit(c.r.Context(), tx, change{c.who.name(), eventCreated, nil, &answer.Profile})
	})
	return http.StatusCreated, answer, err
}

// mint inserts a token with the given profile and a new id and string.
func (s *Server) mint(c *call, tx *store.Tx, p abac.Profile) (minted, error) {
	now := s.now()
	secret := token.Mint()
	p.ID, p.Status, p.Hint = s.store.NewID(now), abac.Active, secret.Hint()
	p.CreatedAt, p.LastUsedAt = now, nil
	t := store.Token{Profile: p, Digest: secret.Digest()}
	err := tx.Insert(c.r.Context(), &t)
	return minted{t.Profile, secret.Reveal()}, err
}

// newProfile reads a create body.
func newProfile(o object) (abac.Profile, error) {
	var p abac.Profile
	if err := known(o, "", "name", "purpose", "principal_type", "org_id", "bindings", "not_before", "expires_at"); err != nil {
		return p, err
	}
	var err error
	if p.Name, err = required(o, "name"); err != nil {
		return p, err
	}
	purpose, err := required(o, "purpose")
	if err != nil {
		return p, err
	}
	principal, err := text(o, "principal_type")
	if err != nil {
		return p, err
	}
	p.Purpose, p.PrincipalType = abac.Purpose(purpose), abac.PrincipalType(principal)
	if o["principal_type"] == nil {
		p.PrincipalType = p.Purpose.PrincipalType()
	}
	if p.OrgID, err = text(o, "org_id"); err != nil {
		return p, err
	}
	if o["org_id"] == nil {
		p.OrgID = OrgDefault
	} else if p.OrgID == "" {
		return p, refuse("invalid_value", "org_id must not be empty; leave it out for %s.", OrgDefault).at("org_id")
	}
	if p.NotBefore, err = instant(o, "not_before"); err != nil {
		return p, err
	}
	if p.ExpiresAt, err = instant(o, "expires_at"); err != nil {
		return p, err
	}
	if p.Bindings, err = bindings(o["bindings"]); err != nil {
		return p, err
	}
	return p, validate(&p)
}

// bindings reads the value of that key; values that it does not understand are kept
// for validate to name.
func bindings(v any) (abac.Bindings, error) {
	var b abac.Bindings
	if v == nil {
		return b, nil
	}
	o, ok := v.(object)
	if !ok {
		return b, refuse("invalid_value", "bindings must be an object.").at("bindings")
	}
	if err := knownBindings(o); err != nil {
		return b, err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		panic("BUG: what was read does not encode: " + err.Error())
	}
	if err := json.Unmarshal(raw, &b); err != nil {
		return b, refuse("invalid_value", "bindings can't be read.").at("bindings")
	}
	return b, nil
}

// knownBindings refuses unknown keys of a body's bindings as those beside them are:
// kept for validate, they could not be told from what a later version has stored.
func knownBindings(o object) error {
	if err := known(o, "bindings", "gateway_id", "team_id", "providers", "models", "budgets", "rate_limits"); err != nil {
		return err
	}
	if limits, ok := o["rate_limits"].(object); ok {
		if err := known(limits, "bindings.rate_limits", "requests_per_minute", "tokens_per_minute", "max_parallel_requests"); err != nil {
			return err
		}
	}
	list, _ := o["budgets"].([]any) // a wrong type is validate's to name
	for i, v := range list {
		if b, ok := v.(object); ok {
			if err := known(b, fmt.Sprintf("bindings.budgets[%d]", i), "id", "limit", "unit", "window", "mode"); err != nil {
				return err
			}
		}
	}
	return nil
}

func validate(p *abac.Profile) error {
	b := &p.Bindings
	if p.Purpose == abac.GatewayRuntime && b.GatewayID == nil && len(b.Invalid) == 0 {
		return refuse("invalid_value", "A token with purpose gateway_runtime identifies one gateway: bindings.gateway_id is required. For an app's, script's or IDE's calls mint one with purpose general.").at("bindings.gateway_id")
	}
	if problem := invalid(abac.Validate(p)); problem != nil {
		return problem
	}
	return nil
}

// shown is a profile, and where its string was met last that should never be there.
type shown struct {
	abac.Profile
	Misplaced *misplacement `json:"misplaced,omitempty"`
}

func (s *Server) showToken(c *call) (int, any, error) {
	t, err := s.store.Token(c.r.Context(), c.token)
	if err != nil {
		return 0, nil, err
	}
	answer := shown{Profile: t.Profile}
	if answer.Misplaced, err = s.misplacedLast(c.r.Context(), &t.Profile); err != nil {
		return 0, nil, err
	}
	c.etag(&t.Profile)
	return http.StatusOK, answer, nil
}

func (c *call) etag(p *abac.Profile) {
	c.w.Header().Set("ETag", `"`+strconv.FormatInt(p.Revision, 10)+`"`)
}

// page is a list's answer.
type page struct {
	Data       any     `json:"data"`
	NextCursor *string `json:"next_cursor"`
}

func (s *Server) listTokens(c *call) (int, any, error) {
	q, err := query(c, "purpose", "team_id", "org_id", "status", "type", "unused_for", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	f := store.Filter{OrgID: q.get("org_id"), TeamID: q.get("team_id"), After: q.get("cursor"), Limit: q.limit + 1}
	if f.Purpose, err = purposeFilter(q.get("purpose"), q.get("type")); err != nil {
		return 0, nil, err
	}
	switch f.Status = abac.Status(q.get("status")); f.Status {
	case "", abac.Active, abac.Quarantined, abac.Revoked:
	default:
		return 0, nil, refuse("invalid_value", "status is one of active, quarantined, revoked.").at("status")
	}
	if v := q.get("unused_for"); v != "" {
		d, ok := duration(v)
		if !ok {
			return 0, nil, refuse("invalid_value", `unused_for must be a duration such as "30d" or "12h".`).at("unused_for")
		}
		f.UnusedSince = s.now().Add(-d)
	}
	if f.After != "" && (len(f.After) != store.IDLen || !strings.HasPrefix(f.After, store.IDPrefix)) {
		return 0, nil, errCursor
	}
	list, err := s.store.Tokens(c.r.Context(), f)
	if err != nil {
		return 0, nil, err
	}
	data, next := cut(list, q.limit, func(t store.Token) string { return t.Profile.ID })
	profiles := make([]abac.Profile, len(data))
	for i := range data {
		profiles[i] = data[i].Profile
	}
	return http.StatusOK, page{profiles, next}, nil
}

// purposeFilter joins the purpose and its legacy label, which narrow the same thing.
func purposeFilter(purpose, label string) (abac.Purpose, error) {
	p := abac.Purpose(purpose)
	if p != "" && p.PrincipalType() == "" {
		return "", refuse("invalid_value", "purpose is one of general, gateway_runtime, integration.").at("purpose")
	}
	var of abac.Purpose
	switch label {
	case "":
		return p, nil
	case "access":
		of = abac.General
	case "gateway":
		of = abac.GatewayRuntime
	default:
		return "", refuse("invalid_value", "type is access (purpose general) or gateway (purpose gateway_runtime).").at("type")
	}
	if p != "" && p != of {
		return "", refuse("invalid_value", "type and purpose contradict each other; purpose alone is enough.").at("type")
	}
	return of, nil
}

// cut takes limit of a list that was asked for one more, and the cursor of the next page.
func cut[T any](list []T, limit int, cursor func(T) string) ([]T, *string) {
	if len(list) <= limit {
		return list, nil
	}
	next := cursor(list[limit-1])
	return list[:limit], &next
}

const (
	defaultLimit = 100
	maxLimit     = 1000
)

var errCursor = refuse("invalid_value", "cursor must be the next_cursor of the page before.").at("cursor")

// params are the parameters of a query, each once and not empty.
type params struct {
	values url.Values
	limit  int
}

func (q params) get(name string) string { return q.values.Get(name) }

func query(c *call, names ...string) (params, error) {
	q := params{limit: defaultLimit}
	var err error
	if q.values, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return q, refuse("invalid_request", "The query can't be read.")
	}
	given := make([]string, 0, len(q.values))
	for name := range q.values {
		given = append(given, name)
	}
	slices.Sort(given)
	for _, name := range given {
		switch v := q.values[name]; {
		case !slices.Contains(names, name):
			return q, refuse("unknown_parameter", "Unknown parameter; allowed: %s.", allowed(names)).at(join("", name))
		case len(v) > 1:
			return q, refuse("ambiguous_key", "The parameter stands twice.").at(name)
		case v[0] == "":
			return q, refuse("invalid_value", "%s must not be empty; leave it out.", name).at(name)
		}
	}
	if v := q.get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxLimit {
			return q, refuse("invalid_value", "limit must be a number from 1 to %d.", maxLimit).at("limit")
		}
		q.limit = n
	}
	return q, nil
}

const maxDuration = 10 * 365 * 24 * time.Hour

// duration reads what time.ParseDuration reads, and whole days as "30d": 0 to ten years.
func duration(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		d := time.Duration(n) * 24 * time.Hour
		return d, err == nil && d <= maxDuration
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0 && d <= maxDuration
}

// change is one entry of the audit log about a token.
type change struct {
	actor, event  string
	before, after *abac.Profile
}

func audit(ctx context.Context, tx *store.Tx, ch change) error {
	return tx.Audit(ctx, store.Entry{
		Actor: ch.actor, Event: ch.event, Subject: ch.after.ID, Before: encode(ch.before), After: encode(ch.after),
	})
}

func encode(p *abac.Profile) json.RawMessage {
	if p == nil {
		return nil
	}
	b, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a profile does not encode: " + err.Error())
	}
	return b
}
