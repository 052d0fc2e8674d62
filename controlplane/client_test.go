package controlplane

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

func client(t *testing.T, o ClientOptions, secret string) *Client {
	t.Helper()
	o.Token = func() (token.Secret, error) { return token.NewSecret(secret), nil }
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheClientDoesWhatTheServerServes(t *testing.T) {
	p := newPlane(t)
	ctx := context.Background()
	id, secret := p.mint("general", fields{"models": []string{"a"}})
	runtimeID, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	c := client(t, ClientOptions{URL: p.url + "/v1/", Instance: "i1", Build: "v1", MaxStale: 3 * time.Minute}, runtime)

	got, err := c.Resolve(ctx, token.Sum([]byte(secret)))
	if err != nil || got.Profile.ID != id || len(got.Profile.Bindings.Models) != 1 {
		t.Errorf("load: %+v %v", got, err)
	}
	if _, err := c.Resolve(ctx, token.Sum([]byte("x"))); !errors.Is(err, token.ErrUnknown) {
		t.Errorf("load of an unknown: %v", err)
	}
	if me, err := c.Whoami(ctx); err != nil || me.ID != runtimeID {
		t.Errorf("whoami: %+v %v", me, err)
	}
	list, err := p.store.Instances(ctx, OrgDefault, p.now())
	if err != nil || len(list) != 1 || list[0].ID != "i1" || list[0].Build != "v1" || list[0].MaxStale != 3*time.Minute {
		t.Errorf("heard as %+v %v", list, err)
	}
	r := record.Report{Instance: "i1", Build: "v1", MaxStale: 3 * time.Minute, SignOff: true}
	for range reportBatch*2 + 1 {
		r.LastUsed = append(r.LastUsed, record.Use{TokenID: "tok_01ARZ3NDEKTSV4RRFFQ69G5FAV", At: p.now()})
	}
	r.LastUsed = append(r.LastUsed, record.Use{TokenID: id, At: p.now()})
	if err := c.Report(ctx, r); err != nil {
		t.Errorf("report: %v", err)
	}
	if got, err := p.store.Token(ctx, id); err != nil || got.Profile.LastUsedAt == nil {
		t.Errorf("the last entry of a long report is lost: %+v %v", got, err)
	}
	if list, err := p.store.Instances(ctx, OrgDefault, p.now()); err != nil || len(list) != 0 {
		t.Errorf("after signing off: %+v %v", list, err)
	}

	var api *APIError
	err = c.Call(ctx, "GET", "/v1/tokens", nil, nil)
	if !errors.As(err, &api) || api.Status != 403 || api.Code != "purpose_not_allowed" {
		t.Errorf("a refusal: %v", err)
	}
	a := client(t, ClientOptions{URL: p.url}, adminToken)
	err = a.Call(ctx, "POST", "/v1/tokens", fields{"name": "n", "purpose": "x"}, nil)
	if !errors.As(err, &api) || api.Status != 400 || api.Param != "purpose" || api.Message == "" {
		t.Errorf("a refusal: %v", err)
	}
	var out page
	if err := a.Call(ctx, "GET", "/v1/tokens?limit=1", nil, &out); err != nil || out.NextCursor == nil {
		t.Errorf("a list: %+v %v", out, err)
	}
}

func TestTheClientTrustsNoStranger(t *testing.T) {
	secret := token.Mint().Reveal()
	var reached atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer elsewhere.Close()
	huge := strings.NewReader(strings.Repeat("x", maxAnswer+2))
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		want   string
	}{
		{"a web page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "does not answer like a control plane"},
		{"a 404 of another server", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 404) }, "does not answer like a control plane"},
		{"JSON without a profile", answerJSON(200, `{}`), "without a profile"},
		{"JSON of another form", answerJSON(200, `{"profile":5}`), "another form"},
		{"an error of another form", answerJSON(404, `{"message":"no"}`), "without an error's shape"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "status 307"},
		{"an endless answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.Copy(w, huge)
		}, "larger than"},
		{"an error that repeats the token", answerJSON(401, `{"error":{"message":"bad `+secret+`","code":"invalid_api_key"}}`), "invalid_api_key"},
		{"a 404 that is not about the token", answerJSON(404, `{"error":{"message":"m","code":"unknown_endpoint"}}`), "unknown_endpoint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(tt.answer))
			defer web.Close()
			c := client(t, ClientOptions{URL: web.URL}, secret)
			_, err := c.Resolve(context.Background(), token.Digest{})
			if err == nil || errors.Is(err, token.ErrUnknown) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
				t.Errorf("the error holds the token: %v", err)
			}
		})
	}
	if reached.Load() {
		t.Error("the credential went where the redirect said")
	}
}

func answerJSON(status int, body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestTheClientEndsWithItsContext(t *testing.T) {
	release := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer web.Close()
	defer close(release)
	c := client(t, ClientOptions{URL: web.URL}, "s")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Resolve(ctx, token.Digest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	broken := errors.New("the file is gone")
	c, err := NewClient(ClientOptions{URL: web.URL, Token: func() (token.Secret, error) { return token.Secret{}, broken }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(context.Background(), token.Digest{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestTheClientKeepsItsConnection(t *testing.T) {
	var connections atomic.Int64
	web := httptest.NewUnstartedServer(http.HandlerFunc(answerJSON(404, `{"error":{"message":"m","code":"token_not_found"}}`)))
	web.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	web.Start()
	defer web.Close()
	c := client(t, ClientOptions{URL: web.URL}, "s")
	for range 5 {
		if _, err := c.Resolve(context.Background(), token.Digest{}); !errors.Is(err, token.ErrUnknown) {
			t.Fatal(err)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 5 calls", n)
	}
}

func TestURLs(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://127.0.0.1:41004": true, "http://localhost:41004": true, "http://[::1]:1": true, "https://api.example": true,
		"http://api.example": false, "http://10.0.0.1": false, "": false, "api.example": false, "ftp://h": false,
		"https://user:pass@h": false, "https://h?x=1": false, "https://h#x": false,
	} {
		for _, insecure := range []bool{false, true} {
			want := ok || insecure && (url == "http://api.example" || url == "http://10.0.0.1")
			_, err := NewClient(ClientOptions{URL: url, Insecure: insecure, Token: func() (token.Secret, error) { return token.Secret{}, nil }})
			if (err == nil) != want {
				t.Errorf("%q insecure %v: %v", url, insecure, err)
			}
			if err != nil && strings.Contains(err.Error(), "pass@") {
				t.Errorf("the error holds a password: %v", err)
			}
		}
	}
}

func TestTheClientTrustsItsBundle(t *testing.T) {
	web := httptest.NewUnstartedServer(http.HandlerFunc(answerJSON(404, `{"error":{"message":"m","code":"token_not_found"}}`)))
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // it notes the handshake that must fail
	web.StartTLS()
	defer web.Close()
	dir := t.TempDir()
	good, empty := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(good, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, ClientOptions{URL: web.URL, CA: good}, "s").Resolve(context.Background(), token.Digest{}); !errors.Is(err, token.ErrUnknown) {
		t.Errorf("with the bundle: %v", err)
	}
	if _, err := client(t, ClientOptions{URL: web.URL}, "s").Resolve(context.Background(), token.Digest{}); err == nil || errors.Is(err, token.ErrUnknown) {
		t.Errorf("without it: %v", err)
	}
	for _, ca := range []string{empty, filepath.Join(dir, "none")} {
		if _, err := NewClient(ClientOptions{URL: web.URL, CA: ca, Token: func() (token.Secret, error) { return token.Secret{}, nil }}); err == nil {
			t.Errorf("%s was taken", ca)
		}
	}
}
