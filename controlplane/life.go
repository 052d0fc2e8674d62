package controlplane

import (
	"context"
	"net/http"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane/store"
)

func (s *Server) rotateToken(c *call) (int, any, error) {
	if err := known(c.body, "", "grace", "expires_at"); err != nil {
		return 0, nil, err
	}
	grace, ok := time.Duration(0), true
	v, err := text(c.body, "grace")
	if err != nil {
		return 0, nil, err
	}
	if c.body["grace"] != nil {
		grace, ok = duration(v)
	}
	if !ok {
		return 0, nil, refuse("invalid_value", `grace must be a duration such as "0s" or "24h".`).at("grace")
	}
	expires, err := instant(c.body, "expires_at")
	if err != nil {
		return 0, nil, err
	}
	_, brought := c.body["expires_at"]

	ctx, now := c.r.Context(), s.now()
	var answer minted
	err = s.store.Update(ctx, now, func(tx *store.Tx) error {
		old, err := tx.Token(ctx, c.token)
		if err != nil {
			return err
		}
		before := old.Profile
		if before.Status == abac.Revoked {
			return errRevoked(&before)
		}
		next := before
		next.RotatedFrom = &before.ID
		if brought {
			next.ExpiresAt = expires
		}
		if problem := invalid(abac.Validate(&next)); problem != nil {
			return problem
		}
		if answer, err = s.mint(c, tx, next); err != nil {
			return err
		}
		if err := audit(ctx, tx, change{c.who.name(), eventCreated, nil, &answer.Profile}); err != nil {
			return err
		}
		if end := now.Add(grace); before.ExpiresAt == nil || before.ExpiresAt.After(end) {
			old.Profile.ExpiresAt = &end
		}
		if err := tx.Change(ctx, &old, eventRotated); err != nil {
			return err
		}
		return audit(ctx, tx, change{c.who.name(), eventRotated, &before, &old.Profile})
	})
	return http.StatusCreated, answer, err
}

// stopped is the answer to what stops a token: who has applied it, and which
// gateways may serve it until their max_stale.
type stopped struct {
	abac.Profile
	Confirmed   int      `json:"confirmed"`
	Unconfirmed []string `json:"unconfirmed"`
}

func (s *Server) revokeToken(c *call) (int, any, error) {
	return s.stop(c, eventRevoked, abac.Revoked)
}

func (s *Server) quarantineToken(c *call) (int, any, error) {
	return s.stop(c, eventQuarantined, abac.Quarantined)
}

func (s *Server) stop(c *call, event string, to abac.Status) (int, any, error) {
	p, err := s.setStatus(c, event, func(p *abac.Profile) (abac.Status, error) {
		if p.Status == abac.Revoked && to != abac.Revoked {
			return "", errRevoked(p)
		}
		return to, nil
	})
	if err != nil {
		return 0, nil, err
	}
	// After the commit: who asks from here on is told.
	unconfirmed, err := s.gatewaysHeard(c.r.Context(), p.OrgID)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, stopped{Profile: p, Unconfirmed: unconfirmed}, nil
}

func (s *Server) releaseToken(c *call) (int, any, error) {
	p, err := s.setStatus(c, eventReleased, func(p *abac.Profile) (abac.Status, error) {
		switch p.Status {
		case abac.Revoked:
			return "", errRevoked(p)
		case abac.Quarantined:
			return abac.Active, nil
		}
		return "", refuse("token_not_quarantined", "Token %s is %s; only a quarantined token can be released.", p.ID, p.Status)
	})
	return http.StatusOK, p, err
}

// setStatus changes a token's status to what next says. One that has it already is
// left as it is: no revision, no entry.
func (s *Server) setStatus(c *call, event string, next func(*abac.Profile) (abac.Status, error)) (abac.Profile, error) {
	if err := known(c.body, ""); err != nil {
		return abac.Profile{}, err
	}
	ctx := c.r.Context()
	var p abac.Profile
	err := s.store.Update(ctx, s.now(), func(tx *store.Tx) error {
		t, err := tx.Token(ctx, c.token)
		if err != nil {
			return err
		}
		before := t.Profile
		status, err := next(&before)
		if err != nil {
			return err
		}
		if p = before; status == before.Status {
			return nil
		}
		t.Profile.Status = status
		if err := tx.Change(ctx, &t, event); err != nil {
			return err
		}
		p = t.Profile
		return audit(ctx, tx, change{c.who.name(), event, &before, &p})
	})
	if err == nil {
		c.etag(&p)
	}
	return p, err
}

// gatewaysHeard names the gateways of an org that may still serve from what they know.
func (s *Server) gatewaysHeard(ctx context.Context, org string) ([]string, error) {
	list, err := s.store.Instances(ctx, org, s.now())
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, i := range list { // in the order of gateways
		if n := len(names); n == 0 || names[n-1] != i.GatewayID {
			names = append(names, i.GatewayID)
		}
	}
	return names, nil
}
