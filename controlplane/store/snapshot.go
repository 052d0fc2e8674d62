package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

// snapshotStatement bounds a statement of a snapshot, which lasts as long as its
// reader takes, and the time between two.
const snapshotStatement = "10min"

// Known is what the index has of a token: enough to say whose it is.
type Known struct {
	Digest    token.Digest
	ID        string
	Revision  int64
	Status    abac.Status
	Purpose   abac.Purpose
	GatewayID string // "": bound to none
}

// SnapshotOf says what a snapshot is of.
type SnapshotOf struct {
	OrgID     string
	GatewayID string    // whose own profiles come before those bound to others
	Profiles  int       // at most so many
	Now       time.Time // what expired by then can't serve
}

// SnapshotTold takes a snapshot, in the order of its fields. An error of theirs ends it.
type SnapshotTold struct {
	Begin   func(head int64, tokens int) error // how many Token will be told
	Token   func(*Known) error                 // all of the org, whatever their status
	Budget  func(*budget.Record) error
	Team    func(*Team) error  // deleted
	Profile func(*Token) error // may serve, the most recently used first
}

// Snapshot tells all that a gateway of an org needs to know, as of one moment. Rows
// are told as they are read; until the end it holds a connection of the database.
func (s *Store) Snapshot(ctx context.Context, of SnapshotOf, told *SnapshotTold) error {
	tx, err := s.moment(ctx)
	if err != nil {
		return fmt.Errorf("read a snapshot: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	r := &snapshot{tx: tx, of: of, told: told}
	if s.turns {
		if _, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = '`+snapshotStatement+`'; SET LOCAL idle_in_transaction_session_timeout = '`+snapshotStatement+`'`); err != nil {
			return fmt.Errorf("read a snapshot: %w", err)
		}
	}
	for _, part := range []func(context.Context) error{r.begin, r.tokens, r.budgets, r.teams, r.profiles} {
		if err := part(ctx); err != nil {
			return fmt.Errorf("read a snapshot: %w", err)
		}
	}
	return nil
}

type snapshot struct {
	tx   *sql.Tx
	of   SnapshotOf
	told *SnapshotTold
}

func (r *snapshot) begin(ctx context.Context) error {
	var head int64
	var tokens int
	err := r.tx.QueryRowContext(ctx, `SELECT revision, (SELECT COUNT(*) FROM tokens WHERE org_id = $1) FROM head`, r.of.OrgID).
		Scan(&head, &tokens)
	if err != nil {
		return err
	}
	return r.told.Begin(head, tokens)
}

func (r *snapshot) tokens(ctx context.Context) error {
	var k Known
	return r.rows(ctx, func(rows *sql.Rows) error {
		var digest, status, purpose string
		var gateway sql.NullString
		err := rows.Scan(&k.ID, &digest, &k.Revision, &status, &purpose, &gateway)
		if err != nil {
			return err
		}
		k.Status, k.Purpose, k.GatewayID = abac.Status(status), abac.Purpose(purpose), gateway.String
		if k.Digest, err = token.ParseDigest(digest); err != nil {
			return fmt.Errorf("token %s: digest: %w", k.ID, err)
		}
		return r.told.Token(&k)
	}, `SELECT id, digest, revision, status, purpose, gateway_id FROM tokens WHERE org_id = $1`, r.of.OrgID)
}

func (r *snapshot) budgets(ctx context.Context) error {
	return r.rows(ctx, func(rows *sql.Rows) error {
		b, err := scanBudget(rows.Scan)
		if err != nil {
			return err
		}
		return r.told.Budget(&b.Record)
	}, `SELECT `+budgetColumns+` FROM budgets WHERE org_id = $1`, r.of.OrgID)
}

func (r *snapshot) teams(ctx context.Context) error {
	return r.rows(ctx, func(rows *sql.Rows) error {
		t, err := scanTeam(rows.Scan)
		if err != nil {
			return err
		}
		return r.told.Team(&t)
	}, selectDeletedTeams, r.of.OrgID)
}

// profiles tells the gateway's own before those that others serve: there may be many
// more of the latter.
func (r *snapshot) profiles(ctx context.Context) error {
	if r.of.Profiles <= 0 {
		return nil
	}
	return r.rows(ctx, func(rows *sql.Rows) error {
		t, err := scan(rows.Scan)
		if err != nil {
			return err
		}
		return r.told.Profile(&t)
	}, `SELECT `+columns+` FROM tokens
		WHERE org_id = $1 AND status <> 'revoked' AND (expires_at IS NULL OR expires_at > $2)
		ORDER BY CASE WHEN gateway_id IS NULL OR gateway_id = $3 THEN 0 ELSE 1 END, last_used_at DESC NULLS LAST, revision DESC
		LIMIT $4`, r.of.OrgID, micros(r.of.Now), r.of.GatewayID, r.of.Profiles)
}

// rows tells each row as it is read.
func (r *snapshot) rows(ctx context.Context, each func(*sql.Rows) error, q string, args ...any) (err error) {
	rows, err := r.tx.QueryContext(ctx, q, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
