package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/keeptrusts/gateway/token"
)

// importAtOnce is how many rows one statement takes: a statement a row costs a round
// trip each, and SQLite finds each parameter by a walk over all of them.
const importAtOnce = 40

// ByDigests returns those of the digests that tokens have, as the transaction sees them.
func (t *Tx) ByDigests(ctx context.Context, digests []token.Digest) (map[token.Digest]Token, error) {
	if t.turns {
		// A plan made while the table was small reads all of it, for as long as the
		// database has not counted its rows anew.
		if _, err := t.tx.ExecContext(ctx, `SET LOCAL enable_seqscan = off`); err != nil {
			return nil, fmt.Errorf("read tokens by digests: %w", err)
		}
	}
	found := map[token.Digest]Token{}
	for part := range slices.Chunk(digests, 100) {
		args := make([]any, len(part))
		for i, d := range part {
			args[i] = d.String()
		}
		rows, err := t.tx.QueryContext(ctx, `SELECT `+columns+` FROM tokens WHERE digest IN `+places(1, len(part)), args...)
		if err != nil {
			return nil, fmt.Errorf("read tokens by digests: %w", err)
		}
		for rows.Next() {
			n, err := scan(rows.Scan)
			if err != nil {
				_ = rows.Close()
				return nil, fmt.Errorf("read tokens by digests: %w", err)
			}
			found[n.Digest] = n
		}
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("read tokens by digests: %w", err)
		}
	}
	return found, nil
}

// InsertAll adds tokens as Insert does, in few statements. No id or digest may be
// taken, or stand twice: ErrExists, and the transaction is over.
func (t *Tx) InsertAll(ctx context.Context, list []Token) error {
	if len(list) == 0 {
		return nil
	}
	var head int64
	t.moved = true
	if err := t.tx.QueryRowContext(ctx,
		`UPDATE head SET revision = revision + $1 WHERE one = 1 RETURNING revision`, len(list)).Scan(&head); err != nil {
		return fmt.Errorf("take revisions: %w", err)
	}
	next := head - int64(len(list))
	for part := range slices.Chunk(list, importAtOnce) {
		var changed, made []any
		for i := range part {
			next++
			p := &part[i].Profile
			bindings, err := json.Marshal(p.Bindings)
			if err != nil {
				return fmt.Errorf("insert token: %w", err)
			}
			changed = append(changed, next, micros(t.now), p.OrgID, p.ID, "token.created")
			made = append(made, p.ID, part[i].Digest.String(), p.OrgID, p.Name, string(p.Purpose), string(p.PrincipalType), string(p.Status),
				next, microsOf(p.NotBefore), microsOf(p.ExpiresAt), string(bindings),
				nullable(p.Bindings.GatewayID), nullable(p.Bindings.TeamID), p.Hint, micros(p.CreatedAt), nullable(p.RotatedFrom))
			p.Revision = next
			p.CreatedAt, p.NotBefore, p.ExpiresAt = timeOf(micros(p.CreatedAt)), stored(p.NotBefore), stored(p.ExpiresAt)
		}
		if _, err := t.tx.ExecContext(ctx, `INSERT INTO changes (revision, at, org_id, subject, event) VALUES `+
			rowPlaces(len(part), 5), changed...); err != nil {
			return fmt.Errorf("note changes: %w", err)
		}
		_, err := t.tx.ExecContext(ctx, `INSERT INTO tokens (id, digest, org_id, name, purpose, principal_type, status,
			revision, not_before, expires_at, bindings, gateway_id, team_id, hint, created_at, rotated_from) VALUES `+
			rowPlaces(len(part), 16), made...)
		if taken(err) {
			return ErrExists
		}
		if err != nil {
			return fmt.Errorf("insert tokens: %w", err)
		}
	}
	if head/pruneEvery == (head-int64(len(list)))/pruneEvery {
		return nil
	}
	return t.forget(ctx, head)
}

// AuditAll adds entries as Audit does, in few statements.
func (t *Tx) AuditAll(ctx context.Context, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	var last int64
	if err := t.tx.QueryRowContext(ctx,
		`UPDATE head SET audit = audit + $1 WHERE one = 1 RETURNING audit`, len(entries)).Scan(&last); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	next := last - int64(len(entries))
	for part := range slices.Chunk(entries, importAtOnce) {
		var args []any
		for _, e := range part {
			next++
			args = append(args, next, micros(t.now), e.Actor, e.Event, e.Subject, text(e.Before), text(e.After))
		}
		if _, err := t.tx.ExecContext(ctx, `INSERT INTO audit (seq, at, actor, event, subject, before_is, after_is) VALUES `+
			rowPlaces(len(part), 7), args...); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	return nil
}

// Try runs f so that nothing of it has happened when it fails; what came before in
// the transaction stays.
func (t *Tx) Try(ctx context.Context, f func() error) error {
	if _, err := t.tx.ExecContext(ctx, `SAVEPOINT part`); err != nil {
		return fmt.Errorf("begin a part: %w", err)
	}
	failed := f()
	if failed != nil {
		if _, err := t.tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT part`); err != nil {
			return fmt.Errorf("take a part back: %w", err)
		}
	}
	if _, err := t.tx.ExecContext(ctx, `RELEASE SAVEPOINT part`); err != nil {
		return fmt.Errorf("end a part: %w", err)
	}
	return failed
}

// places writes "($1,$2,…)" from a number on.
func places(from, n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteByte("(,"[min(i, 1)])
		fmt.Fprintf(&b, "$%d", from+i)
	}
	return b.String() + ")"
}

// rowPlaces writes n rows of places.
func rowPlaces(n, width int) string { return placesFrom(1, n, width) }

func placesFrom(from, n, width int) string {
	rows := make([]string, n)
	for i := range rows {
		rows[i] = places(from+i*width, width)
	}
	return strings.Join(rows, ",")
}
