package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/controlplane"
)

// question is what explain is asked.
type question struct {
	tokenID, model, provider, team string
}

// verdict is what explain answers.
type verdict struct {
	TokenID string        `json:"token_id"`
	Purpose abac.Purpose  `json:"purpose"`
	Model   string        `json:"model"`
	Team    string        `json:"team"`
	Gateway string        `json:"gateway_id"`
	Allowed bool          `json:"allowed"`
	Status  int           `json:"status"`
	Code    string        `json:"code"`
	Detail  string        `json:"detail,omitempty"`
	Targets []string      `json:"targets"`
	Checks  []checkResult `json:"checks"`
	Budgets []counted     `json:"budgets"` // as they stand now

	rates abac.Check
}

type checkResult struct {
	Name   string `json:"name"`
	Result string `json:"result"` // ok, denied, not reached, at admission
	Detail string `json:"detail"`
}

func explainCommand() *command {
	var a adminFlags
	var o output
	var q question
	var path string
	c := newCommand("explain", "", "shows every check of a call that a token would make, and the verdict")
	c.long = "The profile and the budgets come from the control plane, models, targets and prices from the configuration file. It exits\n" +
		"with 0 when the call would be allowed and with 1 when it would be denied. What a call may cost at most is known to the\n" +
		"gateway that reads it: here a budget denies when nothing of it can be spent. KEEPTRUSTS_GATEWAY_ID wins over the file."
	c.text(&q.tokenID, "token-id", "ID", "", "whose call")
	c.text(&q.model, "model", "NAME", "", "the model that the call names")
	c.text(&q.provider, "provider", "ID", "", "asks about this target alone")
	c.text(&q.team, "team", "ID", "", "the team that the call asserts in X-Keeptrusts-Team")
	configFlag(c, &path)
	a.add(c)
	o.add(c, "prints nothing, the exit code alone")
	c.run = func(ctx context.Context, p program) error {
		if q.tokenID == "" || q.model == "" {
			return misused("--token-id and --model are needed")
		}
		if err := o.check(); err != nil {
			return err
		}
		cfg, err := loadConfig(p, path)
		if err != nil {
			return err
		}
		if id, _ := p.env("KEEPTRUSTS_GATEWAY_ID"); id != "" {
			if err := cfg.Override("gateway_id", id); err != nil {
				return fmt.Errorf("KEEPTRUSTS_GATEWAY_ID: %w", err)
			}
		}
		var profile abac.Profile
		if err := a.call(ctx, p, apiRequest{http.MethodGet, tokenPath(q.tokenID, ""), nil, &profile}); err != nil {
			return err
		}
		budgets, err := q.budgets(ctx, p, &a)
		if err != nil {
			return err
		}
		gone, err := deletedTeam(ctx, p, &a, &profile)
		if err != nil {
			return err
		}
		v, err := q.ask(cfg, &profile, gone)
		if err != nil {
			return err
		}
		v.reserve(cfg, &profile, budgets)
		raw, err := json.Marshal(v)
		if err == nil {
			err = o.print(p, raw, "", v.String)
		}
		if err == nil && !v.Allowed {
			err = errSaid
		}
		return err
	}
	return c
}

// loadConfig reads the configuration that a command needs beside its own work;
// its problems go to stderr.
func loadConfig(p program, path string) (*config.Config, error) {
	name, err := configPath(path)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(name)
	if err != nil {
		p.stdout = p.stderr
		return nil, printProblems(p, err)
	}
	return cfg, nil
}

// ask decides as a gateway with this configuration would.
func (q *question) ask(cfg *config.Config, profile *abac.Profile, gone *abac.TeamSet) (*verdict, error) {
	req := &abac.Request{
		Now: time.Now(), Action: abac.Execute,
		OrgID: controlplane.OrgDefault, GatewayID: cfg.GatewayID, Team: q.team, Model: q.model,
		DeletedTeams: gone,
	}
	if cfg.ControlPlane.URL != "" {
		req.OrgID = profile.OrgID // a gateway's org is its runtime token's, which is not at hand here
	}
	if entry := cfg.Find(q.model); entry != nil {
		req.Targets = entry.AbacTargets()
		if q.provider != "" {
			var err error
			if req.Targets, err = only(req.Targets, q.provider, entry.Name); err != nil {
				return nil, err
			}
		}
	}
	checks, decision := abac.Explain(abac.Compile(profile), req)
	v := &verdict{
		TokenID: profile.ID, Purpose: profile.Purpose, Model: q.model, Team: q.team, Gateway: cfg.GatewayID,
		Allowed: decision.Reason == abac.Allowed, Status: statusOf(decision.Reason), Code: decision.Reason.String(), Targets: []string{},
	}
	for i, t := range req.Targets {
		if v.Allowed && decision.Targets&(1<<i) != 0 {
			v.Targets = append(v.Targets, t.ID)
		}
	}
	for _, c := range checks {
		switch c.Name { // reserve says more of these
		case "rate_limits":
			v.rates = c
			continue
		case "budgets":
			continue
		}
		result := "ok"
		switch {
		case !c.Evaluated:
			result = "not reached"
		case !c.OK:
			result = "denied"
			if v.Detail == "" {
				v.Detail = c.Detail
			}
		}
		v.Checks = append(v.Checks, checkResult{Name: c.Name, Result: result, Detail: c.Detail})
	}
	return v, nil
}

func only(targets []abac.Target, id, entry string) ([]abac.Target, error) {
	var ids []string
	for _, t := range targets {
		if t.ID == id {
			return []abac.Target{t}, nil
		}
		ids = append(ids, t.ID)
	}
	return nil, fmt.Errorf("the entry %q has no target %q; it has %s", entry, id, strings.Join(ids, ", "))
}

// statusOf gives the HTTP status that a caller sees.
func statusOf(r abac.Reason) int {
	switch r {
	case abac.Allowed:
		return http.StatusOK
	case abac.TokenRevoked, abac.TokenNotYetValid, abac.TokenExpired, abac.TokenUnknown:
		return http.StatusUnauthorized
	case abac.ModelNotFound:
		return http.StatusNotFound
	}
	return http.StatusForbidden
}

func (v *verdict) String() string {
	rows := []string{"CHECK\tRESULT\tWHY"}
	for _, c := range v.Checks {
		rows = append(rows, cells(c.Name, c.Result, printable(c.Detail)))
	}
	s := fmt.Sprintf("%s (%s) asks gateway %s for model %s", v.TokenID, v.Purpose, v.Gateway, printable(v.Model))
	if v.Team != "" {
		s += " as team " + printable(v.Team)
	}
	s += "\n\n" + columns(rows...) + "\n"
	if v.Allowed {
		return s + "allowed: 200, at " + strings.Join(v.Targets, ", ") + "\n"
	}
	return s + fmt.Sprintf("denied: %d %s\n", v.Status, v.Code)
}
