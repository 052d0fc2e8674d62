package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/token"
)

// admin speaks to the control plane as an administrator, through the balancer.
type admin struct {
	url    string
	bearer string
	client *http.Client
}

func newAdmin(url, bearer string) *admin {
	return &admin{url: url, bearer: bearer, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: time.Minute}}
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
		return &refusedError{method + " " + path, res.StatusCode, b}
	}
	if take == nil {
		return nil
	}
	return json.Unmarshal(b, take)
}

// refusedError is an answer of the control plane that is no success.
type refusedError struct {
	what   string
	status int
	body   []byte
}

func (e *refusedError) Error() string { return fmt.Sprintf("%s: %d %s", e.what, e.status, e.body) }

// minted is a token, with the string that clients send.
type minted struct {
	ID    string
	Token string
}

func (m minted) digest() token.Digest { return token.Sum([]byte(m.Token)) }

// mint makes a token; more is put over what every token of the trial is.
func (a *admin) mint(ctx context.Context, more map[string]any) (m minted, err error) {
	body := map[string]any{"name": "fleet", "purpose": "general"}
	for k, v := range more {
		body[k] = v
	}
	err = a.ask(ctx, http.MethodPost, "/v1/tokens", body, &m)
	if err == nil && !strings.HasPrefix(m.Token, token.Prefix) {
		err = fmt.Errorf("a token that is none, of %d characters", len(m.Token))
	}
	return m, err
}

// mintAll makes n tokens, by import: their strings are made here.
func (a *admin) mintAll(ctx context.Context, n int) ([]minted, error) {
	all := make([]minted, n)
	var lines bytes.Buffer
	for i := range all {
		all[i].Token = token.Mint().Reveal()
		fmt.Fprintf(&lines, `{"name":"fleet-%d","purpose":"general","sha256":"%s"}`+"\n", i, all[i].digest())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/v1/tokens/import", &lines)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+a.bearer)
	req.Header.Set("Content-Type", "application/x-ndjson")
	res, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	made := 0
	for r := bufio.NewScanner(res.Body); r.Scan(); {
		var line struct {
			Line   int
			ID     string
			Result string
		}
		if err := json.Unmarshal(r.Bytes(), &line); err != nil || line.Result != "created" || line.Line < 1 || line.Line > n {
			return nil, fmt.Errorf("import: %d %.300s: %w", res.StatusCode, r.Bytes(), err)
		}
		all[line.Line-1].ID = line.ID
		made++
	}
	if made != n {
		return nil, fmt.Errorf("import: %d, %d of %d lines answered", res.StatusCode, made, n)
	}
	return all, nil
}

// stopped is the answer to a revocation.
type stopped struct {
	Confirmed   int
	Unconfirmed []string
}

func (a *admin) revoke(ctx context.Context, id string) (s stopped, err error) {
	err = a.ask(ctx, http.MethodPost, "/v1/tokens/"+id+"/revoke", nil, &s)
	return s, err
}
