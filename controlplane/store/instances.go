package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	Folder    string        // names the data folder that it runs from; "": it did not tell
	LastSeen  time.Time
	Revision  int64 // up to which it has applied all changes; 0: it did not tell
	// WatchedUntil is until when it counts as having a live watch, unless that is
	// seen to end earlier; zero: it has none.
	WatchedUntil time.Time
}

// Watching says whether the instance has a live watch.
func (i *Instance) Watching(now time.Time) bool { return i.WatchedUntil.After(now) }

// Hear notes that instances were heard at the transaction's time. A revision that
// is lower than the known one or was never given here, an empty Folder and a zero
// WatchedUntil change nothing. All that were not heard for longer than their own
// MaxStale and do not watch are forgotten, as are those whose data folder another one
// runs from now.
func (t *Tx) Hear(ctx context.Context, list ...Instance) error {
	if _, err := t.tx.ExecContext(ctx, `DELETE FROM instances WHERE last_seen + max_stale < $1 AND watching < $2`,
		micros(t.now.Add(-HearEvery)), micros(t.now)); err != nil {
		return fmt.Errorf("forget instances: %w", err)
	}
	for i := range list {
		if err := t.hear(ctx, &list[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tx) hear(ctx context.Context, i *Instance) error {
	var watched int64
	if !i.WatchedUntil.IsZero() {
		watched = micros(i.WatchedUntil)
	}
	_, err := t.tx.ExecContext(ctx, `INSERT INTO instances
		(org_id, gateway_id, instance, build, max_stale, last_seen, folder, watching, revision)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, (SELECT CASE WHEN $9 <= head.revision THEN $9 ELSE 0 END FROM head))
		ON CONFLICT (org_id, gateway_id, instance) DO UPDATE SET
		build = excluded.build, max_stale = excluded.max_stale, last_seen = excluded.last_seen,
		folder = CASE WHEN excluded.folder = '' THEN instances.folder ELSE excluded.folder END,
		watching = CASE WHEN excluded.watching = 0 THEN instances.watching ELSE excluded.watching END,
		revision = CASE WHEN excluded.revision > instances.revision THEN excluded.revision ELSE instances.revision END`,
		i.OrgID, i.GatewayID, i.ID, i.Build, i.MaxStale.Microseconds(), micros(t.now), i.Folder, watched, i.Revision)
	if err != nil {
		return fmt.Errorf("note instance: %w", err)
	}
	if i.Folder == "" {
		return nil
	}
	// The folder is locked, so whoever ran from it before is gone; one that watches is
	// a copy's.
	if _, err := t.tx.ExecContext(ctx, `DELETE FROM instances WHERE org_id = $1 AND gateway_id = $2 AND folder = $3
		AND instance <> $4 AND watching < $5`, i.OrgID, i.GatewayID, i.Folder, i.ID, micros(t.now)); err != nil {
		return fmt.Errorf("forget an instance of the same folder: %w", err)
	}
	return nil
}

// Watch notes that instances have a live watch until a time, and were heard, and
// returns those that were forgotten: they signed off, through any process.
func (t *Tx) Watch(ctx context.Context, list []Instance, until time.Time) (gone []Instance, err error) {
	type key struct{ org, gateway, instance string }
	for part := range slices.Chunk(list, importAtOnce) {
		args := []any{micros(t.now), micros(until)}
		for i := range part {
			args = append(args, part[i].OrgID, part[i].GatewayID, part[i].ID)
		}
		rows, err := t.tx.QueryContext(ctx, `UPDATE instances SET last_seen = $1, watching = $2
			WHERE (org_id, gateway_id, instance) IN (VALUES `+placesFrom(3, len(part), 3)+`) RETURNING org_id, gateway_id, instance`, args...)
		if err != nil {
			return nil, fmt.Errorf("note watches: %w", err)
		}
		there := make(map[key]bool, len(part))
		for rows.Next() {
			var k key
			if err := rows.Scan(&k.org, &k.gateway, &k.instance); err != nil {
				return nil, errors.Join(fmt.Errorf("note watches: %w", err), rows.Close())
			}
			there[k] = true
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, fmt.Errorf("note watches: %w", err)
		}
		for i := range part {
			if !there[key{part[i].OrgID, part[i].GatewayID, part[i].ID}] {
				gone = append(gone, part[i])
			}
		}
	}
	return gone, nil
}

// Unwatched notes that an instance's watch ended.
func (t *Tx) Unwatched(ctx context.Context, i Instance) error {
	if _, err := t.tx.ExecContext(ctx, `UPDATE instances SET watching = 0
		WHERE org_id = $1 AND gateway_id = $2 AND instance = $3`, i.OrgID, i.GatewayID, i.ID); err != nil {
		return fmt.Errorf("note the end of a watch: %w", err)
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
// within their own MaxStale before now or watch, by gateway, org and instance.
func (s *Store) Instances(ctx context.Context, org string, now time.Time) ([]Instance, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT org_id, gateway_id, instance, build, max_stale, last_seen, folder,
		watching, revision FROM instances
		WHERE ($1 = '' OR org_id = $1) AND (last_seen + max_stale >= $2 OR watching > $3) ORDER BY gateway_id, org_id, instance`,
		org, micros(now.Add(-HearEvery)), micros(now))
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	defer func() { _ = rows.Close() }()
	list := []Instance{}
	for rows.Next() {
		var i Instance
		var stale, seen, watched int64
		if err := rows.Scan(&i.OrgID, &i.GatewayID, &i.ID, &i.Build, &stale, &seen, &i.Folder, &watched, &i.Revision); err != nil {
			return nil, fmt.Errorf("list instances: %w", err)
		}
		i.MaxStale, i.LastSeen = time.Duration(stale)*time.Microsecond, timeOf(seen)
		if watched != 0 {
			i.WatchedUntil = timeOf(watched)
		}
		list = append(list, i)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	return list, nil
}
