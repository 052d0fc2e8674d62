package store

import (
	"context"
	"fmt"
	"time"
)

// HearEvery is how often at most the hearing of one instance needs to be stored: it
// is forgotten so much later than its MaxStale says.
const HearEvery = time.Second

// Instance is one process of a gateway.
type Instance struct {
	OrgID     string
	GatewayID string
	ID        string // "" for one that did not name itself
	Build     string
	MaxStale  time.Duration // unheard for longer, it can't serve and is forgotten
	LastSeen  time.Time
}

// Hear notes that an instance was heard at the transaction's time, and forgets all
// that were not for longer than their own MaxStale.
func (t *Tx) Hear(ctx context.Context, i Instance) error {
	if _, err := t.tx.ExecContext(ctx, `DELETE FROM instances WHERE last_seen + max_stale < $1`,
		micros(t.now.Add(-HearEvery))); err != nil {
		return fmt.Errorf("forget instances: %w", err)
	}
	_, err := t.tx.ExecContext(ctx, `INSERT INTO instances (org_id, gateway_id, instance, build, max_stale, last_seen)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (org_id, gateway_id, instance) DO UPDATE SET
		build = excluded.build, max_stale = excluded.max_stale, last_seen = excluded.last_seen`,
		i.OrgID, i.GatewayID, i.ID, i.Build, i.MaxStale.Microseconds(), micros(t.now))
	if err != nil {
		return fmt.Errorf("note instance: %w", err)
	}
	return nil
}

// Forget drops an instance that signed off.
func (t *Tx) Forget(ctx context.Context, org, gateway, instance string) error {
	if _, err := t.tx.ExecContext(ctx, `DELETE FROM instances WHERE org_id = $1 AND gateway_id = $2 AND instance = $3`,
		org, gateway, instance); err != nil {
		return fmt.Errorf("forget instance: %w", err)
	}
	return nil
}

// Instances lists those of an org, or of all where org is "", that were heard
// within their own MaxStale before now, by gateway, org and instance.
func (s *Store) Instances(ctx context.Context, org string, now time.Time) ([]Instance, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT org_id, gateway_id, instance, build, max_stale, last_seen FROM instances
		WHERE ($1 = '' OR org_id = $1) AND last_seen + max_stale >= $2 ORDER BY gateway_id, org_id, instance`,
		org, micros(now.Add(-HearEvery)))
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	defer func() { _ = rows.Close() }()
	list := []Instance{}
	for rows.Next() {
		var i Instance
		var stale, seen int64
		if err := rows.Scan(&i.OrgID, &i.GatewayID, &i.ID, &i.Build, &stale, &seen); err != nil {
			return nil, fmt.Errorf("list instances: %w", err)
		}
		i.MaxStale, i.LastSeen = time.Duration(stale)*time.Microsecond, timeOf(seen)
		list = append(list, i)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	return list, nil
}
