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
	t, err := s.confirm(c.r.Context(), p.OrgID, p.Revision)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, stopped{Profile: p, Confirmed: t.confirmed, Unconfirmed: t.unconfirmed}, nil
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

const (
	confirmWithin = 800 * time.Millisecond // the answer is there within a second
	confirmPoll   = 50 * time.Millisecond  // reports may go to another process
)

// confirm waits for the instances of an org that watch to have applied a revision.
// Those that do not watch are not waited for: they may serve from what they know
// until their max_stale.
func (s *Server) confirm(ctx context.Context, org string, revision int64) (tally, error) {
	late := time.NewTimer(confirmWithin)
	defer late.Stop()
	poll := time.NewTicker(confirmPoll)
	defer poll.Stop()
	var concerned map[string]bool // nil: all
	for over := false; ; {
		report := s.hub.nextReport() // before the look, or one between the two is missed
		list, err := s.store.Instances(ctx, org, s.now())
		if err != nil {
			return tally{}, err
		}
		t := count(list, concerned, revision, s.now())
		if !t.waiting || over {
			return t, nil
		}
		concerned = t.concerned
		select {
		case <-report:
		case <-poll.C:
		case <-late.C:
			over = true
		case <-ctx.Done():
			return tally{}, ctx.Err()
		}
	}
}

// tally is how far a revision has come.
type tally struct {
	confirmed   int      // instances
	unconfirmed []string // gateways of which an instance has not applied it
	waiting     bool     // one of those watches, so that it will soon
	concerned   map[string]bool
}

// count looks at the instances concerned, nil for all: one that came later has asked
// for all that it knows since.
func count(list []store.Instance, concerned map[string]bool, revision int64, now time.Time) tally {
	t := tally{unconfirmed: []string{}, concerned: map[string]bool{}}
	for _, i := range list { // in the order of gateways
		if concerned != nil && !concerned[place(i)] {
			continue
		}
		t.concerned[place(i)] = true
		if i.Revision >= revision {
			t.confirmed++
			continue
		}
		t.waiting = t.waiting || i.Watching(now)
		if n := len(t.unconfirmed); n == 0 || t.unconfirmed[n-1] != i.GatewayID {
			t.unconfirmed = append(t.unconfirmed, i.GatewayID)
		}
	}
	return t
}
