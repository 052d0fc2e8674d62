package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

// The headers in which a gateway's process names itself on calls without a report.
const (
	headerInstance = "X-Keeptrusts-Instance"
	headerBuild    = "X-Keeptrusts-Build"
	headerMaxStale = "X-Keeptrusts-Max-Stale" // a Go duration
)

// place of a runtime caller: nothing else of it may widen what it sees.
type runtimeID struct{ org, gateway string }

// Resolved is what a gateway may know of a token.
type Resolved struct {
	Profile *abac.Profile   `json:"profile"`
	Budgets []budget.Record `json:"budgets"` // that it names, or that apply to it
	Team    *abac.Team      `json:"team"`    // that it is bound to; null: none, or one without a record
	Head    int64           `json:"head"`    // the revision of the moment
}

// whoami hears no instance: one that asks who it is holds no token yet, and if its start
// fails it never signs off.
func (s *Server) whoami(c *call) (int, any, error) {
	if c.who.admin {
		return http.StatusOK, map[string]bool{"administrator": true}, nil
	}
	return http.StatusOK, c.who.token.Profile, nil
}

func (s *Server) resolveToken(c *call) (int, any, error) {
	d, err := digest(c.body)
	if err != nil {
		return 0, nil, err
	}
	i, err := s.instanceFrom(c)
	if err != nil {
		return 0, nil, err
	}
	// Before the look-up: a revocation that comes between the two then names this gateway.
	s.hear(c.r.Context(), i)
	answer, err := s.resolve(c.r.Context(), runtimeID{c.who.org(), c.who.gateway()}, d)
	if errors.Is(err, token.ErrUnknown) {
		return 0, nil, errNoDigest
	}
	return http.StatusOK, answer, err
}

// resolve finds the profile with this digest as the gateway may see it, whatever
// its status and times, or token.ErrUnknown.
func (s *Server) resolve(ctx context.Context, who runtimeID, d token.Digest) (Resolved, error) {
	t, head, err := s.store.ByDigest(ctx, d)
	if errors.Is(err, store.ErrNotFound) || err == nil && t.Profile.OrgID != who.org {
		s.metrics.resolved.WithLabelValues("unknown").Inc()
		return Resolved{}, token.ErrUnknown
	}
	if err != nil {
		s.metrics.resolved.WithLabelValues("failed").Inc()
		return Resolved{}, err
	}
	p := visible(&t.Profile, who.gateway)
	records, err := s.recordsOf(ctx, &p, who.gateway)
	if err != nil {
		s.metrics.resolved.WithLabelValues("failed").Inc()
		return Resolved{}, err
	}
	team, err := s.teamOf(ctx, &p)
	if err != nil {
		s.metrics.resolved.WithLabelValues("failed").Inc()
		return Resolved{}, err
	}
	s.metrics.resolved.WithLabelValues("found").Inc()
	return Resolved{Profile: &p, Budgets: records, Team: team, Head: head}, nil
}

// teamOf returns what is known of the team that a token is bound to; nil: nothing.
func (s *Server) teamOf(ctx context.Context, p *abac.Profile) (*abac.Team, error) {
	if p.Bindings.TeamID == nil {
		return nil, nil
	}
	t, err := s.store.Team(ctx, p.OrgID, *p.Bindings.TeamID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	told := t.Told()
	return &told, nil
}

// recordsOf returns the budgets that a token's calls at a gateway are charged to.
func (s *Server) recordsOf(ctx context.Context, p *abac.Profile, gateway string) ([]budget.Record, error) {
	if g := p.Bindings.GatewayID; p.Purpose == abac.GatewayRuntime || g != nil && *g != gateway {
		return []budget.Record{}, nil // it makes none there
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
	records := make([]budget.Record, len(list))
	for i := range list {
		records[i] = list[i].Record
	}
	return records, err
}

// reduced is what a gateway may know of a token that is bound to another one:
// enough to say whose it is, and too little to serve it.
func reduced(p *abac.Profile) abac.Profile {
	return abac.Profile{
		ID: p.ID, OrgID: p.OrgID, Purpose: p.Purpose, PrincipalType: p.PrincipalType, Status: abac.Active,
		Bindings: abac.Bindings{GatewayID: p.Bindings.GatewayID},
	}
}

func (s *Server) instanceFrom(c *call) (store.Instance, error) {
	h := c.r.Header
	i := store.Instance{OrgID: c.who.org(), GatewayID: c.who.gateway(), ID: h.Get(headerInstance), Build: h.Get(headerBuild)}
	if v := h.Get(headerMaxStale); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return i, refuse("invalid_header", "%s must be a duration such as 10m.", headerMaxStale).at(headerMaxStale)
		}
		i.MaxStale = d
	}
	if problem := checkInstance(&i); problem != nil {
		return i, refuse("invalid_header", "%s", problem.message).at(headerInstance)
	}
	if s.holdsToken(i.ID + " " + i.Build) {
		return i, refuse("invalid_header", "The header holds a token's string, which is stored nowhere.").at(headerInstance)
	}
	return i, nil
}

// checkInstance holds what a gateway says of itself to bounds.
func checkInstance(i *store.Instance) *problem {
	if i.MaxStale == 0 {
		i.MaxStale = defaultMaxStale
	}
	switch {
	case len(i.ID) > 64 || !plainASCII(i.ID):
		return refuse("invalid_value", "The instance must have at most 64 printable ASCII characters.").at("instance")
	case len(i.Build) > 128 || !plainASCII(i.Build):
		return refuse("invalid_value", "The build must have at most 128 printable ASCII characters.").at("build")
	case len(i.Folder) > 64 || !plainASCII(i.Folder):
		return refuse("invalid_value", "The folder must have at most 64 printable ASCII characters.").at("folder")
	case i.Revision < 0:
		return refuse("invalid_value", "The revision must be a whole number from 0 on.").at("revision")
	case i.MaxStale < 0 || i.MaxStale > maxMaxStale:
		return refuse("invalid_value", "max_stale must be positive and at most %s.", maxMaxStale).at("max_stale")
	}
	return nil
}

func plainASCII(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func (s *Server) takeReport(c *call) (int, any, error) {
	r, err := readReport(c.body)
	if err != nil {
		return 0, nil, err
	}
	if err := s.report(c.r.Context(), runtimeID{c.who.org(), c.who.gateway()}, r); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, struct{}{}, nil
}

func readReport(o object) (record.Report, error) {
	var r record.Report
	if err := known(o, "", "instance", "build", "max_stale", "sign_off", "revision", "folder", "last_used", "misplaced"); err != nil {
		return r, err
	}
	if err := knownInList(o, "last_used", "token_id", "at"); err != nil {
		return r, err
	}
	if err := knownInList(o, "misplaced", "sha256", "client", "at"); err != nil {
		return r, err
	}
	raw, err := json.Marshal(o)
	if err != nil {
		panic("BUG: what was read does not encode: " + err.Error())
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		var kind *json.UnmarshalTypeError
		field := ""
		if errors.As(err, &kind) {
			field = kind.Field
		}
		return r, refuse("invalid_value", "The report has a field of a wrong type.").at(field)
	}
	return r, nil
}

func knownInList(o object, key string, keys ...string) error {
	list, ok := o[key].([]any)
	if !ok {
		return nil // a wrong type is found where it is decoded
	}
	for i, v := range list {
		if inner, ok := v.(object); ok {
			if err := known(inner, key+"["+strconv.Itoa(i)+"]", keys...); err != nil {
				return err
			}
		}
	}
	return nil
}

// report takes what a gateway tells of itself.
func (s *Server) report(ctx context.Context, who runtimeID, r record.Report) error {
	i := store.Instance{
		OrgID: who.org, GatewayID: who.gateway, ID: r.Instance, Build: r.Build, MaxStale: r.MaxStale,
		Folder: r.Folder, Revision: r.Revision,
	}
	if problem := checkInstance(&i); problem != nil {
		return problem
	}
	now := s.now()
	stray, after, err := s.misplaced(ctx, who, r.Misplaced)
	if err != nil {
		return err
	}
	if r.SignOff {
		defer s.hub.dismiss(i)()
	}
	write := s.store.Update
	if after == nil && !r.SignOff && len(r.LastUsed) == 0 { // as a revocation brings them, from all at once
		write = s.store.Note
	}
	err = write(ctx, now, func(tx *store.Tx) error {
		if err := tx.Used(ctx, who.uses(r.LastUsed, now)...); err != nil {
			return err
		}
		if after != nil {
			e := store.Entry{Actor: "gateway:" + who.gateway, Event: eventMisplaced, Subject: stray, After: after}
			// Another replica may have noted it.
			noted, err := tx.Audited(ctx, e, now.Add(-misplacedEvery))
			if err == nil && !noted {
				err = tx.Audit(ctx, e)
			}
			if err != nil {
				return err
			}
		}
		if r.SignOff {
			return tx.Forget(ctx, who.org, who.gateway, r.Instance)
		}
		tx.Reported()
		return tx.Hear(ctx, i)
	})
	if err != nil {
		if after != nil {
			s.strays.undo(who)
		}
		return err
	}
	if r.SignOff {
		s.heard.forget(i)
	}
	s.hub.noteReport()
	return nil
}

// uses takes the latest use of each token.
func (who runtimeID) uses(reported []record.Use, now time.Time) []store.Use {
	uses := make([]store.Use, 0, len(reported))
	index := make(map[string]int, len(reported))
	for _, u := range reported {
		at := u.At
		if at.After(now) {
			at = now // a gateway's fast clock must not hide later uses
		}
		i, known := index[u.TokenID]
		if !known {
			index[u.TokenID] = len(uses)
			uses = append(uses, store.Use{TokenID: u.TokenID, OrgID: who.org, GatewayID: who.gateway, At: at})
		} else if at.After(uses[i].At) {
			uses[i].At = at
		}
	}
	return uses
}

// misplaced finds the first of the reported digests that is a runtime token of the
// gateway's org, at most once a minute a gateway: after is nil when there is
// nothing to note.
func (s *Server) misplaced(ctx context.Context, who runtimeID, list []record.Misplaced) (id string, after json.RawMessage, err error) {
	for _, m := range list {
		d, err := token.ParseDigest(m.Digest)
		if err != nil {
			continue
		}
		t, _, err := s.store.ByDigest(ctx, d)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return "", nil, err
		}
		if err != nil || t.Profile.OrgID != who.org || t.Profile.Purpose != abac.GatewayRuntime {
			continue
		}
		if !s.strays.take(who, s.now(), misplacedEvery) {
			return "", nil, nil
		}
		after, err := json.Marshal(map[string]any{
			"gateway_id": who.gateway, "client": address(m.Client), "at": m.At.UTC(), "token_gateway_id": t.Profile.Bindings.GatewayID,
		})
		if err != nil {
			return "", nil, nil // a time beyond RFC 3339: not worth refusing the report
		}
		return t.Profile.ID, after, nil
	}
	return "", nil, nil
}

// address keeps an IP address, with or without a port, and nothing else.
func address(s string) *string {
	if a, err := netip.ParseAddrPort(s); err == nil {
		s = a.Addr().String()
	}
	if a, err := netip.ParseAddr(s); err == nil {
		s = a.WithZone("").String()
		return &s
	}
	return nil
}
