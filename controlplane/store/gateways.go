package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keeptrusts/gateway/abac"
)

// Gateway is a gateway that has a record. Bindings may name one that has none, and
// instances be of one: a record lets nobody in and keeps nobody out, so that making
// or dropping it is no change that anyone is told of.
type Gateway struct {
	OrgID     string
	ID        string
	Name      string
	CreatedAt time.Time
}

const gatewayColumns = `org_id, id, name, created_at`

func scanGateway(scanned func(...any) error) (Gateway, error) {
	var g Gateway
	var created int64
	err := scanned(&g.OrgID, &g.ID, &g.Name, &created)
	g.CreatedAt = timeOf(created)
	return g, err
}

// Gateway returns the record as the transaction sees it, or ErrNotFound.
func (t *Tx) Gateway(ctx context.Context, org, id string) (Gateway, error) {
	g, err := scanGateway(t.tx.QueryRowContext(ctx, `SELECT `+gatewayColumns+` FROM gateways
		WHERE org_id = $1 AND id = $2`, org, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Gateway{}, ErrNotFound
	}
	if err != nil {
		return Gateway{}, fmt.Errorf("read gateway: %w", err)
	}
	return g, nil
}

// Gateways lists the records of an org, or of all where org is "", by id and org.
func (s *Store) Gateways(ctx context.Context, org string) (list []Gateway, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+gatewayColumns+` FROM gateways
		WHERE ($1 = '' OR org_id = $1) ORDER BY id, org_id`, org)
	if err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		g, err := scanGateway(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list gateways: %w", err)
		}
		list = append(list, g)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	return list, nil
}

// PutGateway makes a record, or changes its name.
func (t *Tx) PutGateway(ctx context.Context, g *Gateway) error {
	g.CreatedAt = timeOf(micros(g.CreatedAt))
	if _, err := t.tx.ExecContext(ctx, `INSERT INTO gateways (`+gatewayColumns+`) VALUES ($1, $2, $3, $4)
		ON CONFLICT (org_id, id) DO UPDATE SET name = excluded.name`, g.OrgID, g.ID, g.Name, micros(g.CreatedAt)); err != nil {
		return fmt.Errorf("store gateway: %w", err)
	}
	return nil
}

// DropGateway drops a record, if there is one.
func (t *Tx) DropGateway(ctx context.Context, org, id string) error {
	if _, err := t.tx.ExecContext(ctx, `DELETE FROM gateways WHERE org_id = $1 AND id = $2`, org, id); err != nil {
		return fmt.Errorf("drop gateway: %w", err)
	}
	return nil
}

// RuntimeTokens lists the ids of those tokens, at most limit, by which processes of a
// gateway may come in at this time or later.
func (t *Tx) RuntimeTokens(ctx context.Context, org, gateway string, limit int) (ids []string, err error) {
	rows, err := t.tx.QueryContext(ctx, `SELECT id FROM tokens WHERE org_id = $1 AND gateway_id = $2 AND purpose = $3
		AND status <> $4 AND (expires_at IS NULL OR expires_at > $5) ORDER BY id LIMIT $6`,
		org, gateway, string(abac.GatewayRuntime), string(abac.Revoked), micros(t.now), limit)
	if err != nil {
		return nil, fmt.Errorf("list a gateway's tokens: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close(), rows.Err()) }()
	ids = []string{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("list a gateway's tokens: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
