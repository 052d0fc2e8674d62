package controlplane

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/keeptrusts/gateway/budget"
)

const (
	settleBatch    = 500     // settlements a call, which keeps it under the server's limit
	maxLedgerBody  = 8 << 20 // bytes: 10,000 leases and as many needs
	maxLeases      = 10_000  // a call
	maxNeeds       = 10_000  // a call
	maxClosings    = 1_000   // a call
	maxSettlements = 1_000   // a call
	maxParts       = 1_000   // budgets of one need, or of one settlement
	maxMarks       = 100_000 // leases of one closing
	maxText        = 1_024   // bytes of a name that the gateway has from its file
)

var (
	_ budget.Authority = (*Client)(nil)
	_ budget.Authority = (*Embedded)(nil)
)

// Leases makes one call of a ledger. budget.ErrClosed: its session is closed.
func (e *Embedded) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	return e.s.lease(ctx, e.who, c)
}

// Settle tells who spent. A nil error: all of it is kept.
func (e *Embedded) Settle(ctx context.Context, list []budget.Settlement) error {
	return e.s.store.Settle(ctx, e.who.org, e.who.gateway, list)
}

// Leases makes one call of a ledger. budget.ErrClosed: its session is closed.
func (c *Client) Leases(ctx context.Context, call *budget.Call) (*budget.Answer, error) {
	var answer budget.Answer
	err := c.Call(ctx, http.MethodPost, "/v1/runtime/leases", call, &answer)
	var api *APIError
	if errors.As(err, &api) && api.Status == http.StatusConflict && api.Code == codeSessionClosed {
		return nil, budget.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	if answer.Seq != call.Seq {
		return nil, errStranger("an answer to another call")
	}
	return &answer, nil
}

// settlements is the body of a call that tells who spent.
type settlements struct {
	Settlements []budget.Settlement `json:"settlements"`
}

// Settle tells who spent, in several calls where it is much. A nil error: all of it
// is kept.
func (c *Client) Settle(ctx context.Context, list []budget.Settlement) error {
	for part := range slices.Chunk(list, settleBatch) {
		if err := c.Call(ctx, http.MethodPost, "/v1/runtime/settlements", settlements{part}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) leaseMoney(c *call) (int, any, error) {
	call, err := readCall(c.body)
	if err != nil {
		return 0, nil, err
	}
	answer, err := s.lease(c.r.Context(), runtimeID{c.who.org(), c.who.gateway()}, call)
	if errors.Is(err, budget.ErrClosed) {
		return 0, nil, refuse(codeSessionClosed, "This session is closed, here or by another gateway: begin a new one.").at("session")
	}
	return http.StatusOK, answer, err
}

func (s *Server) settleMoney(c *call) (int, any, error) {
	list, err := readSettlements(c.body)
	if err != nil {
		return 0, nil, err
	}
	err = s.store.Settle(c.r.Context(), c.who.org(), c.who.gateway(), list)
	return http.StatusOK, struct{}{}, err
}

// lease takes a gateway's call and tells the others what they are to give back.
func (s *Server) lease(ctx context.Context, who runtimeID, c *budget.Call) (*budget.Answer, error) {
	answer, recalls, err := s.store.Leases(ctx, who.org, who.gateway, c)
	s.recall(who.org, recalls...)
	return answer, err
}
