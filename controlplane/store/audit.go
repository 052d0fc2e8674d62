package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
)

// Entry is one row of the audit log, which is only ever added to.
type Entry struct {
	Seq     int64           // rises without a gap; set by Audit
	At      time.Time       // set by Audit
	Actor   string          // who did it
	Event   string          // "token.created", …
	Subject string          // the id of what it was done to
	Before  json.RawMessage // nil: there was nothing
	After   json.RawMessage // nil: there is nothing
}

// Audit adds an entry, at the transaction's time.
func (t *Tx) Audit(ctx context.Context, e Entry) error {
	if err := t.tx.QueryRowContext(ctx,
		`UPDATE head SET audit = audit + 1 WHERE one = 1 RETURNING audit`).Scan(&e.Seq); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if _, err := t.tx.ExecContext(ctx, `INSERT INTO audit (seq, at, actor, event, subject, before_is, after_is)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, e.Seq, micros(t.now), e.Actor, e.Event, e.Subject,
		text(e.Before), text(e.After)); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

func text(j json.RawMessage) sql.NullString {
	return sql.NullString{String: string(j), Valid: j != nil}
}

// Audited says whether an entry with e's actor, event and subject was added after a time.
func (t *Tx) Audited(ctx context.Context, e Entry, since time.Time) (bool, error) {
	var has bool
	err := t.tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM audit WHERE subject = $1 AND event = $2 AND actor = $3 AND at > $4)`,
		e.Subject, e.Event, e.Actor, micros(since)).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("read audit log: %w", err)
	}
	return has, nil
}

// AuditFilter narrows the audit log; a zero field does not.
type AuditFilter struct {
	Event   string
	Subject string
	Before  int64 // the Seq before which the page begins
	Limit   int   // at most so many, at least 1
}

// AuditLog lists the audit log, the newest entry first.
func (s *Store) AuditLog(ctx context.Context, f AuditFilter) ([]Entry, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT seq, at, actor, event, subject, before_is, after_is FROM audit
		WHERE ($1 = 0 OR seq < $1) AND ($2 = '' OR event = $2) AND ($3 = '' OR subject = $3)
		ORDER BY seq DESC LIMIT $4`, f.Before, f.Event, f.Subject, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	defer func() { _ = rows.Close() }()
	list := []Entry{}
	for rows.Next() {
		var e Entry
		var at int64
		var before, after sql.NullString
		if err := rows.Scan(&e.Seq, &at, &e.Actor, &e.Event, &e.Subject, &before, &after); err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		e.At = timeOf(at)
		if before.Valid {
			e.Before = json.RawMessage(before.String)
		}
		if after.Valid {
			e.After = json.RawMessage(after.String)
		}
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return list, nil
}
