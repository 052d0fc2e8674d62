package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// admin speaks to a control plane as its administrator.
type admin struct {
	url    string
	bearer string
	client *http.Client
}

// ask sends give as JSON, if there is any, and reads the answer into take.
func (a *admin) ask(ctx context.Context, method, path string, give, take any) error {
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
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	if take == nil {
		return nil
	}
	return json.Unmarshal(b, take)
}

// token is a minted one.
type token struct {
	ID    string
	Token string
}

// minting is a token as it is asked for: its purpose, "general" where it is empty,
// and its bindings.
type minting struct {
	purpose  string
	bindings map[string]any
	more     map[string]any // not_before, expires_at
}

func (a *admin) mint(ctx context.Context, m minting) (token, error) {
	body := map[string]any{"name": "wire", "purpose": "general", "bindings": map[string]any{}}
	if m.purpose != "" {
		body["purpose"] = m.purpose
	}
	if m.bindings != nil {
		body["bindings"] = m.bindings
	}
	for k, v := range m.more {
		body[k] = v
	}
	var t token
	if err := a.ask(ctx, http.MethodPost, "/v1/tokens", body, &t); err != nil {
		return t, fmt.Errorf("mint: %w", err)
	}
	return t, nil
}

func (a *admin) revoke(ctx context.Context, id string) error {
	return a.ask(ctx, http.MethodPost, "/v1/tokens/"+id+"/revoke", nil, nil)
}

func newAdmin(url, bearer string, rt *http.Transport) *admin {
	return &admin{url: url, bearer: bearer, client: &http.Client{Transport: rt, Timeout: 20 * time.Second}}
}
