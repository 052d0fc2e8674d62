package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
)

// createFlags are the flags of token create.
type createFlags struct {
	name, purpose, kind, team string
	gatewayID                 string
	models, providers         []string
	budgets                   []string
	limits                    abac.RateLimits
	expiresIn, notBefore      string
}

// createBody is the body of POST /v1/tokens.
type createBody struct {
	Name      string         `json:"name"`
	Purpose   string         `json:"purpose"`
	Bindings  *abac.Bindings `json:"bindings,omitempty"`
	NotBefore *time.Time     `json:"not_before,omitempty"`
	ExpiresAt *time.Time     `json:"expires_at,omitempty"`
}

func createCommand() *command {
	var a adminFlags
	var o output
	var f createFlags
	c := tokenCommand("create", "", "mints a token and prints its string, once", &a, &o, "prints the token's string alone")
	c.text(&f.name, "name", "NAME", "", "what people call it")
	c.text(&f.purpose, "purpose", "PURPOSE", "", "general (apps and people), integration (machines, explicit bindings) or gateway_runtime (a gateway's identity)")
	c.text(&f.kind, "type", "TYPE", "", "access or gateway: older names of general and gateway_runtime")
	c.text(&f.team, "team", "TEAM", "", "binds it to a team")
	c.list(&f.models, "model", "PATTERN", "grants a model, as gpt-5.4-*; a leading ! excludes")
	c.list(&f.providers, "provider", "PATTERN", "grants a target by its id; a leading ! excludes")
	c.text(&f.gatewayID, "gateway-id", "ID", "", "binds it to a gateway; a gateway_runtime token needs one")
	c.list(&f.budgets, "budget", "BUDGET", "as usd=5.00/day, or ID:usd=5.00/day to share one by its id, or the ID of one that exists")
	c.number(&f.limits.RequestsPerMinute, "rpm", "requests a minute")
	c.number(&f.limits.TokensPerMinute, "tpm", "tokens a minute")
	c.number(&f.limits.MaxParallelRequests, "max-parallel", "requests at a time")
	c.text(&f.expiresIn, "expires-in", "DURATION", "", "how long it lives, as 90d or 12h; by default it does not expire")
	c.text(&f.notBefore, "not-before", "TIME", "", "when it begins, as 2026-11-01T00:00:00Z")
	c.run = func(ctx context.Context, p program) error {
		body, err := f.body(c)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		var raw json.RawMessage
		var res minted
		if err := a.read(ctx, p, apiRequest{http.MethodPost, "/v1/tokens", body, &res}, &raw); err != nil {
			return err
		}
		return o.print(p, raw, res.Token, func() string { return mintedCard(&res) + f.newBudgets(&res.Profile) })
	}
	return c
}

// newBudgets says which budgets got an id that nobody chose.
func (f *createFlags) newBudgets(p *abac.Profile) string {
	var b strings.Builder
	for i, s := range f.budgets {
		if strings.Contains(s, "=") && !strings.Contains(s, ":") && i < len(p.Bindings.Budgets) {
			id := p.Bindings.Budgets[i].ID
			fmt.Fprintf(&b, "\nBudget %s is this token's own; another shares it with --budget %s.\n", id, id)
		}
	}
	return b.String()
}

func (f *createFlags) body(c *command) (*createBody, error) {
	purpose, err := f.resolvePurpose()
	if err != nil {
		return nil, err
	}
	if f.name == "" {
		return nil, misused("--name is missing: what people should call this token")
	}
	if purpose != abac.GatewayRuntime && slices.Contains(c.envSet, "gateway-id") {
		f.gatewayID = "" // KEEPTRUSTS_GATEWAY_ID says which gateway runs here, not whom a client's token may call
	} else if purpose == abac.GatewayRuntime && f.gatewayID == "" {
		return nil, misused("a gateway's token needs --gateway-id, the gateway that it identifies; for app traffic use --purpose general")
	}
	body := &createBody{Name: f.name, Purpose: string(purpose)}
	bindings := abac.Bindings{Models: f.models, Providers: f.providers}
	if f.team != "" || c.given("team") {
		bindings.TeamID = &f.team
	}
	if f.gatewayID != "" || c.given("gateway-id") && !slices.Contains(c.envSet, "gateway-id") {
		bindings.GatewayID = &f.gatewayID
	}
	for _, s := range f.budgets {
		b, err := parseBudget(s, f.name)
		if err != nil {
			return nil, err
		}
		bindings.Budgets = append(bindings.Budgets, b)
	}
	if f.limits != (abac.RateLimits{}) {
		bindings.RateLimits = &f.limits
	}
	body.Bindings = &bindings
	if f.expiresIn != "" {
		expires, err := parseExpiry(f.expiresIn)
		if err != nil {
			return nil, err
		}
		body.ExpiresAt = &expires
	}
	if f.notBefore != "" {
		from, err := time.Parse(time.RFC3339, f.notBefore)
		if err != nil {
			return nil, misused("--not-before: %q is not a time like 2026-11-01T00:00:00Z", f.notBefore)
		}
		body.NotBefore = &from
	}
	return body, nil
}

// resolvePurpose takes the purpose from --purpose or --type. Access and gateway
// are what general and gateway_runtime used to be called.
func (f *createFlags) resolvePurpose() (abac.Purpose, error) {
	alias := map[string]abac.Purpose{
		"access": abac.General, "gateway": abac.GatewayRuntime,
		"general": abac.General, "gateway_runtime": abac.GatewayRuntime, "integration": abac.Integration,
	}
	var purpose abac.Purpose
	if f.kind != "" {
		if f.kind != "access" && f.kind != "gateway" {
			return "", misused("--type: %q is not access or gateway", f.kind)
		}
		purpose = alias[f.kind]
	}
	if f.purpose == "" {
		if purpose == "" {
			return "", misused("--purpose is missing: general, integration or gateway_runtime")
		}
		return purpose, nil
	}
	named, ok := alias[strings.ReplaceAll(f.purpose, "-", "_")]
	if !ok {
		return "", misused("--purpose: %q is not general, integration or gateway_runtime", f.purpose)
	}
	if purpose != "" && purpose != named {
		return "", misused("--type %s and --purpose %s contradict each other", f.kind, f.purpose)
	}
	return named, nil
}

// parseBudget reads [ID:]UNIT=LIMIT/WINDOW, or the ID of a budget that exists.
// Without an ID one is made, so that no two tokens share a budget by accident.
func parseBudget(s, name string) (abac.BudgetBinding, error) {
	if !strings.ContainsAny(s, ":=") {
		return abac.BudgetBinding{ID: s}, nil
	}
	id, spec := "", s
	at := strings.LastIndexByte(s, ':') // an id may hold one
	if at >= 0 {
		id, spec = s[:at], s[at+1:]
	}
	unit, limit, window, ok := cutBudget(spec)
	if !ok || at == 0 {
		return abac.BudgetBinding{}, misused("--budget: %q is not like usd=5.00/day, ID:usd=5.00/day or ID", s)
	}
	if id == "" {
		var random [3]byte
		_, _ = rand.Read(random[:])
		id = "b_" + slug(name) + "_" + window + "_" + hex.EncodeToString(random[:])
	}
	return abac.BudgetBinding{ID: id, Limit: limit, Unit: unit, Window: window}, nil
}

// slug makes a name fit for an id.
func slug(name string) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, name)
	if len(s) > 32 {
		s = s[:32]
	}
	return strings.Trim(s, "-")
}

// parseExpiry gives the moment that lies a duration from now.
func parseExpiry(s string) (time.Time, error) {
	span, err := parseSpan("--expires-in", s)
	if err != nil {
		return time.Time{}, err
	}
	if span <= 0 {
		return time.Time{}, misused("--expires-in: %q is not in the future", s)
	}
	return time.Now().Add(span).UTC().Truncate(time.Second), nil
}

// parseSpan reads a Go duration, or days as in 90d and weeks as in 2w.
func parseSpan(flag, s string) (time.Duration, error) {
	unit := time.Duration(0)
	switch {
	case strings.HasSuffix(s, "d"):
		unit = 24 * time.Hour
	case strings.HasSuffix(s, "w"):
		unit = 7 * 24 * time.Hour
	}
	if unit > 0 {
		n, err := strconv.ParseInt(s[:len(s)-1], 10, 64)
		if err == nil && n >= 0 && n <= int64(100*365*24*time.Hour/unit) {
			return time.Duration(n) * unit, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	return 0, misused("%s: %q is not a duration like 90d, 12h or 30m", flag, s)
}
