package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// StrangerError says that what answers is no control plane, or stands before one.
type StrangerError struct {
	Status    int  // of the answer, where its form is what was met; else 0
	DataPlane bool // it is that of a gateway
	NoHTTP    bool // it speaks another protocol
	what      string
}

func (e *StrangerError) Error() string {
	return fmt.Sprintf("this URL does not answer like a control plane (%s): check it", e.what)
}

func errStranger(what string) error { return &StrangerError{what: what} }

// unmask makes a StrangerError of a data plane's refusal, which is worded as a control
// plane's is: there a gateway's own token is of the wrong purpose, or unknown.
func (c *Client) unmask(ctx context.Context, refusal error) error {
	var api *APIError
	if strings.Contains(refusal.Error(), "malformed HTTP") { // net/http has no other sign of it
		return &StrangerError{NoHTTP: true, what: "it does not speak HTTP"}
	}
	if !errors.As(refusal, &api) || api.Status != http.StatusUnauthorized && api.Status != http.StatusForbidden {
		return refusal
	}
	// A data plane answers this to probes; a control plane wants a credential first.
	req, err := c.request(ctx, http.MethodHead, "/", nil)
	if err != nil {
		return refusal
	}
	res, err := c.do(req)
	if err != nil {
		return refusal
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("X-Request-Id"), "req_") {
		return refusal
	}
	return &StrangerError{Status: api.Status, DataPlane: true, what: "it is a gateway's data plane"}
}
