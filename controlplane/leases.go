package controlplane

import (
	"context"
	"errors"
	"net/http"

	"github.com/keeptrusts/gateway/budget"
)

var (
	_ budget.Authority = (*Client)(nil)
	_ budget.Authority = (*Embedded)(nil)
)

// Leases makes one call of the ledger's.
func (e *Embedded) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	return e.s.lease(ctx, e.who, c)
}

// Settle tells who spent.
func (e *Embedded) Settle(ctx context.Context, list []budget.Settlement) error {
	return e.s.store.Settle(ctx, e.who.org, e.who.gateway, list)
}

// Leases makes one call of the ledger's. budget.ErrClosed: the session is closed.
func (c *Client) Leases(ctx context.Context, call *budget.Call) (*budget.Answer, error) {
	var answer budget.Answer
	err := c.Call(ctx, http.MethodPost, "/v1/runtime/leases", call, &answer)
	var api *APIError
	if errors.As(err, &api) && api.Status == http.StatusConflict && api.Code == "session_closed" {
		return nil, budget.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	return &answer, nil
}

// Settle tells who spent.
func (c *Client) Settle(ctx context.Context, list []budget.Settlement) error {
	return c.Call(ctx, http.MethodPost, "/v1/runtime/settlements", map[string]any{"settlements": list}, nil)
}

func (s *Server) lease(ctx context.Context, who runtimeID, c *budget.Call) (*budget.Answer, error) {
	answer, recalls, err := s.store.Leases(ctx, who.org, who.gateway, c)
	if len(recalls) > 0 {
		s.push(who.org, recalls...)
	}
	return answer, err
}
