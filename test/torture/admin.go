package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/test/rig"
)

// admin speaks to a control plane as its administrator.
type admin struct {
	url      string
	bearer   string
	client   *http.Client
	patience time.Duration // with a control plane that is away
}

func newAdmin(url, bearer string) *admin {
	return &admin{url: url, bearer: bearer, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: 20 * time.Second}}
}

// errAway is a control plane that does not answer, or has no database.
var errAway = errors.New("the control plane is away")

// insist does it again where nobody answers, as long as there is patience for it.
func (a *admin) insist(ctx context.Context, do func() error) error {
	for deadline := time.Now().Add(a.patience); ; rig.Pause(ctx, 20*time.Millisecond) {
		err := do()
		if !errors.Is(err, errAway) || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

// ask sends give as JSON, if there is any, and reads the answer into take.
func (a *admin) ask(ctx context.Context, method, path string, give, take any) error {
	return a.insist(ctx, func() error { return a.once(ctx, method, path, give, take) })
}

func (a *admin) once(ctx context.Context, method, path string, give, take any) error {
	var body io.Reader
	if give != nil {
		b, err := json.Marshal(give)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.bearer)
	req.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errAway, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("%w: %w", errAway, err)
	}
	if res.StatusCode == http.StatusServiceUnavailable {
		return fmt.Errorf("%w: %s %s: %s", errAway, method, path, b)
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	if take == nil {
		return nil
	}
	return json.Unmarshal(b, take)
}

// limits is a budget as it is asked for; the amount is a decimal in the unit.
type limits struct {
	id, unit, window, limit string
	team                    string // it applies to
	org                     bool   // it applies to all
}

func (a *admin) put(ctx context.Context, l limits) error {
	body := map[string]any{"unit": l.unit, "window": l.window, "limit": l.limit}
	switch {
	case l.org:
		body["applies_to"] = map[string]any{"org": true}
	case l.team != "":
		body["applies_to"] = map[string]any{"team_id": l.team}
	}
	return a.ask(ctx, http.MethodPut, "/v1/budgets/"+l.id, body, nil)
}

// standing is a budget as the control plane shows it, in units.
type standing struct {
	limit, settled, held, leased, left int64
}

func (s standing) String() string {
	return fmt.Sprintf("limit %d, settled %d, held %d, leased %d, left %d", s.limit, s.settled, s.held, s.leased, s.left)
}

type shown struct {
	ID                                 string
	Unit                               budget.Unit
	Limit, Settled, Held, Leased, Left string
}

func (w *shown) read() (s standing, err error) {
	for _, f := range []struct {
		to   *int64
		text string
	}{{&s.limit, w.Limit}, {&s.settled, w.Settled}, {&s.held, w.Held}, {&s.leased, w.Leased}, {&s.left, w.Left}} {
		if *f.to, err = w.Unit.Parse(f.text); err != nil {
			return s, fmt.Errorf("budget %s: %q: %w", w.ID, f.text, err)
		}
	}
	return s, nil
}

func (a *admin) budget(ctx context.Context, id string) (standing, error) {
	var w shown
	if err := a.ask(ctx, http.MethodGet, "/v1/budgets/"+id, nil, &w); err != nil {
		return standing{}, err
	}
	return w.read()
}

// budgets reads all of them, by id.
func (a *admin) budgets(ctx context.Context) (map[string]standing, error) {
	all := map[string]standing{}
	for cursor := ""; ; {
		var page struct {
			Data []shown
			Next *string `json:"next_cursor"`
		}
		if err := a.ask(ctx, http.MethodGet, "/v1/budgets?limit=100"+cursor, nil, &page); err != nil {
			return nil, err
		}
		for _, w := range page.Data {
			s, err := w.read()
			if err != nil {
				return nil, err
			}
			all[w.ID] = s
		}
		if page.Next == nil || *page.Next == "" {
			return all, nil
		}
		cursor = "&cursor=" + url.QueryEscape(*page.Next)
	}
}

// token is a minted one.
type token struct {
	ID    string
	Token string

	minted time.Time
}

// minting is a token as it is asked for.
type minting struct {
	budgets []string
	team    string
	lasts   time.Duration // 0: without an end
	gateway string        // it identifies that gateway, and calls nothing
}

func (a *admin) mint(ctx context.Context, m minting) (token, error) {
	bindings := map[string]any{}
	var named []map[string]string
	for _, id := range m.budgets {
		named = append(named, map[string]string{"id": id})
	}
	if named != nil {
		bindings["budgets"] = named
	}
	if m.team != "" {
		bindings["team_id"] = m.team
	}
	body := map[string]any{"name": "torture", "purpose": "general", "bindings": bindings}
	if m.gateway != "" {
		bindings["gateway_id"] = m.gateway
		body["purpose"] = "gateway_runtime"
	}
	var t token
	err := a.insist(ctx, func() error {
		if m.lasts > 0 { // from each attempt on
			body["expires_at"] = time.Now().Add(m.lasts).UTC().Format(time.RFC3339Nano)
		}
		return a.once(ctx, http.MethodPost, "/v1/tokens", body, &t)
	})
	t.minted = time.Now()
	if err == nil && !strings.HasPrefix(t.Token, "kt_live_") {
		err = fmt.Errorf("a token that is none, of %d characters", len(t.Token))
	}
	return t, err
}

func (a *admin) revoke(ctx context.Context, id string) error {
	return a.ask(ctx, http.MethodPost, "/v1/tokens/"+id+"/revoke", nil, nil)
}

// used is the sum of what settlements told, over everything.
type used struct{ requests, cost int64 }

// usage waits at most d until so many calls have been told of.
func (f *fleet) usage(ctx context.Context, d time.Duration, calls int64) (u used, err error) {
	for deadline := time.Now().Add(d); ; rig.Pause(ctx, 200*time.Millisecond) {
		var page struct {
			Data []struct {
				Requests int64
				Cost     string
			}
		}
		if err := f.admin.ask(ctx, http.MethodGet, "/v1/usage?group_by=none", nil, &page); err != nil {
			return u, err
		}
		u = used{}
		for _, row := range page.Data {
			cost, err := budget.USD.Parse(row.Cost)
			if err != nil {
				return u, err
			}
			u.requests, u.cost = u.requests+row.Requests, u.cost+cost
		}
		if u.requests >= calls || time.Now().After(deadline) || ctx.Err() != nil {
			return u, nil
		}
	}
}
