package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/token"
)

const defaultAPI = "http://127.0.0.1:41004"

// adminFlags are how an admin command finds the control plane and its token.
type adminFlags struct {
	url, data, ca string
	insecure      bool
}

func (a *adminFlags) add(c *command) {
	c.text(&a.url, "api-url", "URL", defaultAPI, "the control plane; by default "+defaultAPI)
	c.text(&a.data, "data", "DIR", ".", "the folder whose "+adminTokenFile+" is used when KEEPTRUSTS_ADMIN_TOKEN is not set")
	c.text(&a.ca, "ca", "FILE", "", "a bundle of certificates to trust for https")
	c.toggle(&a.insecure, "insecure", "allows http:// beyond loopback")
}

// client speaks to the control plane as an administrator.
func (a *adminFlags) client(p program) (*controlplane.Client, error) {
	admin, err := adminTokenFromEnv(p.env)
	if err != nil {
		return nil, err
	}
	if admin.Empty() {
		admin, err = readAdminToken(filepath.Join(a.data, adminTokenFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no admin token: set KEEPTRUSTS_ADMIN_TOKEN, or name with --data the folder that holds %s", adminTokenFile)
		}
		if err != nil {
			return nil, err
		}
	}
	c, err := controlplane.NewClient(controlplane.ClientOptions{
		URL:      a.url,
		Token:    func() (token.Secret, error) { return admin, nil },
		CA:       a.ca,
		Insecure: a.insecure,
		Build:    build(),
	})
	if err != nil {
		return nil, fmt.Errorf("the control plane at %s: %w", a.url, err)
	}
	return c, nil
}

// call makes one admin call; its error is one sentence that says what to do.
func (a *adminFlags) call(ctx context.Context, p program, req apiRequest) error {
	c, err := a.client(p)
	if err != nil {
		return err
	}
	return a.explain(c.Call(ctx, req.method, req.path, req.in, req.out))
}

// apiRequest is one call of the control plane's API.
type apiRequest struct {
	method, path string
	in, out      any
}

// unanswered is the error of a call that may have had its effect all the same.
type unanswered struct{ error }

func (e unanswered) Unwrap() error { return e.error }

func (a *adminFlags) explain(err error) error {
	if err == nil {
		return nil
	}
	var api *controlplane.APIError
	if !errors.As(err, &api) {
		return unanswered{fmt.Errorf("no answer from the control plane at %s: %w", a.url, plain(err))}
	}
	if api.Status == http.StatusUnauthorized {
		return fmt.Errorf("the control plane at %s refuses this admin token: use the one it was started with (KEEPTRUSTS_ADMIN_TOKEN, or the %s of its data folder)", a.url, adminTokenFile)
	}
	return fmt.Errorf("%s (%s)", strings.TrimSuffix(api.Message, "."), api.Code)
}
