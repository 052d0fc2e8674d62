package controlplane

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// identified is what is known of a string that was found somewhere: its blast radius.
type identified struct {
	Profile  abac.Profile   `json:"profile"`
	Reach    reach          `json:"reach"`
	Budgets  []budgetAnswer `json:"budgets"` // of each that it names, or that applies to it
	LastUsed *lastUsed      `json:"last_used"`
	Team     *abac.Team     `json:"team"`    // that it is bound to; deleted, it denies; null: none, or one without a record
	Command  *string        `json:"command"` // that stops it; null: it is revoked
}

// reach lists patterns: ["*"] where nothing restricts, [] where nothing is reached.
type reach struct {
	Gateways  []string `json:"gateways"`
	Teams     []string `json:"teams"`
	Providers []string `json:"providers"`
	Models    []string `json:"models"`
}

type lastUsed struct {
	At        time.Time `json:"at"`
	GatewayID string    `json:"gateway_id"`
}

func (s *Server) identifyToken(c *call) (int, any, error) {
	d, err := digest(c.body)
	if err != nil {
		return 0, nil, err
	}
	t, _, err := s.store.ByDigest(c.r.Context(), d)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil, errNoDigest
	}
	if err != nil {
		return 0, nil, err
	}
	answer := identified{Profile: t.Profile, Reach: reachOf(&t.Profile)}
	if answer.Budgets, err = s.budgetsOf(c.r.Context(), &t.Profile); err != nil {
		return 0, nil, err
	}
	if t.Profile.LastUsedAt != nil {
		answer.LastUsed = &lastUsed{*t.Profile.LastUsedAt, t.LastUsedGateway}
	}
	if answer.Team, err = s.teamOf(c.r.Context(), &t.Profile); err != nil {
		return 0, nil, err
	}
	if t.Profile.Status != abac.Revoked {
		command := "kt-gateway token revoke " + t.Profile.ID
		answer.Command = &command
	}
	return http.StatusOK, answer, nil
}

// budgetsOf says where the budgets stand that a token's calls are charged to.
func (s *Server) budgetsOf(ctx context.Context, p *abac.Profile) ([]budgetAnswer, error) {
	if p.Purpose == abac.GatewayRuntime {
		return []budgetAnswer{}, nil // it makes no calls
	}
	ids := make([]string, len(p.Bindings.Budgets))
	for i := range ids {
		ids[i] = p.Bindings.Budgets[i].ID
	}
	team := ""
	if p.Bindings.TeamID != nil {
		team = *p.Bindings.TeamID
	}
	list, err := s.store.BudgetsOf(ctx, p.OrgID, ids, team)
	if err != nil {
		return nil, err
	}
	return s.standings(ctx, p.OrgID, list)
}

var errNoDigest = refuse("token_not_found", "No token has this digest.").at("sha256")

// digest reads a body whose one key is sha256.
func digest(o object) (token.Digest, error) {
	if err := known(o, "", "sha256"); err != nil {
		return token.Digest{}, err
	}
	v, err := required(o, "sha256")
	if err != nil {
		return token.Digest{}, err
	}
	d, err := token.ParseDigest(v)
	if err != nil {
		return d, refuse("invalid_value", "sha256 must be 64 hexadecimal digits: the SHA-256 of the whole string, without a line's end.").at("sha256")
	}
	return d, nil
}

// reachOf says what the bindings leave, whatever the token's status.
func reachOf(p *abac.Profile) reach {
	b := &p.Bindings
	r := reach{Gateways: restricted(b.GatewayID), Teams: restricted(b.TeamID)}
	switch p.Purpose {
	case abac.GatewayRuntime:
		r.Teams, r.Providers, r.Models = []string{}, []string{}, []string{}
	case abac.General:
		r.Providers, r.Models = granted(b.Providers, "*"), granted(b.Models, "*")
	default:
		r.Providers, r.Models = granted(b.Providers), granted(b.Models)
	}
	return r
}

func restricted(to *string) []string {
	if to == nil {
		return []string{"*"}
	}
	return []string{*to}
}

func granted(filter []string, absent ...string) []string {
	switch {
	case filter != nil:
		return filter
	case absent != nil:
		return absent
	}
	return []string{}
}
