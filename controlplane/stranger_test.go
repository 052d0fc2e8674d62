package controlplane

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestADataPlanesRefusalIsNotTakenForAControlPlanes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		status  int
		code    string
		head    int
		id      string // x-request-id of the answer to HEAD /
		unmasks bool
	}{
		{"a runtime token is of the wrong purpose", 403, "purpose_not_allowed", 200, "req_0123456789", true},
		{"a token that it does not know", 401, "invalid_api_key", 200, "req_0123456789", true},
		{"a control plane's purpose", 403, "purpose_not_allowed", 401, "req_0123456789", false},
		{"a web site beside a control plane", 401, "invalid_api_key", 200, "", false},
		{"an error of its own", 500, "internal_error", 200, "req_0123456789", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead && r.URL.Path == "/" {
					if r.Header.Get("Authorization") != "" {
						t.Error("the credential was sent a second time")
					}
					w.Header().Set("X-Request-Id", tt.id)
					w.WriteHeader(tt.head)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, `{"error":{"message":"No.","code":"`+tt.code+`"}}`)
			}))
			defer web.Close()
			_, err := client(t, ClientOptions{URL: web.URL}, "s").Whoami(context.Background())
			var other *StrangerError
			var api *APIError
			if tt.unmasks != (errors.As(err, &other) && other.DataPlane) || tt.unmasks == errors.As(err, &api) {
				t.Errorf("told as %v", err)
			}
		})
	}
	for answer, what := range map[string]func(error) bool{
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}": func(err error) bool {
			var other *StrangerError
			return errors.As(err, &other) && other.Status == 200
		},
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{\"administrator\":true}": func(err error) bool { return errors.Is(err, ErrAdministrator) },
		"SSH-2.0-x\r\n": func(err error) bool {
			var other *StrangerError
			return errors.As(err, &other) && other.NoHTTP
		},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, answer)
				_ = c.Close()
			}
		}()
		if _, err := client(t, ClientOptions{URL: "http://" + ln.Addr().String()}, "s").Whoami(context.Background()); !what(err) {
			t.Errorf("%q: %v", answer, err)
		}
		_ = ln.Close()
	}
	p := newPlane(t)
	_, general := p.mint("general", nil)
	_, err := client(t, ClientOptions{URL: p.url}, general).Whoami(context.Background())
	var api *APIError
	if !errors.As(err, &api) || api.Code != "purpose_not_allowed" {
		t.Errorf("a control plane is asked by a token of another purpose: %v", err)
	}
}
