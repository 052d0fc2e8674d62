package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// Token is all that is kept of a token.
type Token struct {
	Profile         abac.Profile
	Digest          token.Digest
	LastUsedGateway string // "" before the first use
}

const columns = `id, digest, org_id, name, purpose, principal_type, status, revision,
	not_before, expires_at, bindings, hint, created_at, last_used_at, last_used_gateway, rotated_from`

func scan(scanned func(...any) error) (Token, error) {
	var (
		t                            Token
		digest, bindings             string
		notBefore, expires, used     sql.NullInt64
		created                      int64
		usedGateway, rotated         sql.NullString
		purpose, principal, standing string
	)
	p := &t.Profile
	if err := scanned(&p.ID, &digest, &p.OrgID, &p.Name, &purpose, &principal, &standing, &p.Revision,
		&notBefore, &expires, &bindings, &p.Hint, &created, &used, &usedGateway, &rotated); err != nil {
		return Token{}, err
	}
	p.Purpose, p.PrincipalType, p.Status = abac.Purpose(purpose), abac.PrincipalType(principal), abac.Status(standing)
	p.NotBefore, p.ExpiresAt, p.LastUsedAt = timePointer(notBefore), timePointer(expires), timePointer(used)
	p.CreatedAt, p.RotatedFrom, t.LastUsedGateway = timeOf(created), stringPointer(rotated), usedGateway.String
	var err error
	if t.Digest, err = token.ParseDigest(digest); err != nil {
		return Token{}, fmt.Errorf("token %s: digest: %w", p.ID, err)
	}
	if err := json.Unmarshal([]byte(bindings), &p.Bindings); err != nil {
		return Token{}, fmt.Errorf("token %s: bindings: %w", p.ID, err)
	}
	return t, nil
}

// Token returns the token with this id, or ErrNotFound.
func (s *Store) Token(ctx context.Context, id string) (Token, error) {
	return one(s.read.QueryRowContext(ctx, `SELECT `+columns+` FROM tokens WHERE id = $1`, id))
}

// Token returns the token with this id as the transaction sees it, or ErrNotFound.
func (t *Tx) Token(ctx context.Context, id string) (Token, error) {
	return one(t.tx.QueryRowContext(ctx, `SELECT `+columns+` FROM tokens WHERE id = $1`, id))
}

func one(row *sql.Row) (Token, error) {
	t, err := scan(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Token{}, ErrNotFound
	}
	if err != nil {
		return Token{}, fmt.Errorf("read token: %w", err)
	}
	return t, nil
}

// ByDigest returns the token with this digest, or ErrNotFound, and the head
// revision of the same moment.
func (s *Store) ByDigest(ctx context.Context, d token.Digest) (Token, int64, error) {
	var head int64
	// One statement sees one moment; a transaction would cost two round trips more.
	row := s.read.QueryRowContext(ctx,
		`SELECT (SELECT revision FROM head), `+columns+` FROM tokens WHERE digest = $1`, d.String())
	t, err := scan(func(to ...any) error { return row.Scan(append([]any{&head}, to...)...) })
	if errors.Is(err, sql.ErrNoRows) {
		return Token{}, 0, ErrNotFound
	}
	if err != nil {
		return Token{}, 0, fmt.Errorf("read token by digest: %w", err)
	}
	return t, head, nil
}

// Filter narrows a list of tokens; a zero field does not.
type Filter struct {
	Purpose     abac.Purpose
	OrgID       string
	TeamID      string
	Status      abac.Status
	UnusedSince time.Time // neither used nor made at this time or later
	After       string    // the id after which the page begins
	Limit       int       // at most so many, at least 1
}

// Tokens lists tokens in the order of their ids, which is that of their making.
func (s *Store) Tokens(ctx context.Context, f Filter) ([]Token, error) {
	where, args := []string{`id > $1`}, []any{f.After}
	add := func(condition string, v any) {
		args = append(args, v)
		where = append(where, strings.ReplaceAll(condition, "?", fmt.Sprintf("$%d", len(args))))
	}
	if f.Purpose != "" {
		add(`purpose = ?`, string(f.Purpose))
	}
	if f.OrgID != "" {
		add(`org_id = ?`, f.OrgID)
	}
	if f.TeamID != "" {
		add(`team_id = ?`, f.TeamID)
	}
	if f.Status != "" {
		add(`status = ?`, string(f.Status))
	}
	if !f.UnusedSince.IsZero() {
		add(`COALESCE(last_used_at, created_at) < ?`, micros(f.UnusedSince))
	}
	args = append(args, f.Limit)
	rows, err := s.read.QueryContext(ctx, fmt.Sprintf(`SELECT `+columns+` FROM tokens WHERE %s ORDER BY id LIMIT $%d`,
		strings.Join(where, " AND "), len(args)), args...)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	defer func() { _ = rows.Close() }()
	list := []Token{}
	for rows.Next() {
		t, err := scan(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list tokens: %w", err)
		}
		list = append(list, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return list, nil
}

// Insert adds a token as a change, and sets its revision and what storing does to
// its times: UTC, whole microseconds. ErrExists: the id or digest is taken.
func (t *Tx) Insert(ctx context.Context, n *Token) error {
	p := &n.Profile
	bindings, err := json.Marshal(p.Bindings)
	if err != nil {
		return fmt.Errorf("insert token: %w", err)
	}
	revision, err := t.revision(ctx, p.OrgID, p.ID, "token.created")
	if err != nil {
		return err
	}
	_, err = t.tx.ExecContext(ctx, `INSERT INTO tokens (id, digest, org_id, name, purpose, principal_type, status,
		revision, not_before, expires_at, bindings, gateway_id, team_id, hint, created_at, rotated_from)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		p.ID, n.Digest.String(), p.OrgID, p.Name, string(p.Purpose), string(p.PrincipalType), string(p.Status),
		revision, microsOf(p.NotBefore), microsOf(p.ExpiresAt), string(bindings),
		nullable(p.Bindings.GatewayID), nullable(p.Bindings.TeamID), p.Hint, micros(p.CreatedAt), nullable(p.RotatedFrom))
	if taken(err) {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("insert token: %w", err)
	}
	p.Revision = revision
	p.CreatedAt, p.NotBefore, p.ExpiresAt = timeOf(micros(p.CreatedAt)), stored(p.NotBefore), stored(p.ExpiresAt)
	return nil
}

// Change stores a token's name, status, times and bindings as a change of the
// kind that event names, and sets its revision. Nothing else of a token can
// change, and bindings that hold something not understood stay as they are stored. ErrNotFound: there is none with this id.
func (t *Tx) Change(ctx context.Context, n *Token, event string) error {
	p := &n.Profile
	bindings, err := json.Marshal(p.Bindings)
	if err != nil {
		return fmt.Errorf("change token %s: %w", p.ID, err)
	}
	if len(p.Bindings.Invalid) > 0 {
		bindings = nil // what was not understood would be lost, and with it a restriction
	}
	revision, err := t.revision(ctx, p.OrgID, p.ID, event)
	if err != nil {
		return err
	}
	result, err := t.tx.ExecContext(ctx, `UPDATE tokens SET name = $2, status = $3, revision = $4, not_before = $5,
		expires_at = $6, bindings = COALESCE($7, bindings), team_id = $8, gateway_id = $9 WHERE id = $1`,
		p.ID, p.Name, string(p.Status), revision, microsOf(p.NotBefore), microsOf(p.ExpiresAt), text(bindings),
		nullable(p.Bindings.TeamID), nullable(p.Bindings.GatewayID))
	if err != nil {
		return fmt.Errorf("change token %s: %w", p.ID, err)
	}
	if rows, err := result.RowsAffected(); err != nil || rows != 1 {
		return errors.Join(ErrNotFound, err)
	}
	p.Revision, p.NotBefore, p.ExpiresAt = revision, stored(p.NotBefore), stored(p.ExpiresAt)
	return nil
}

// usesAtOnce is how many uses one statement notes: a statement a use cost a busy
// gateway a tenth of its CPU.
const usesAtOnce = 200

// Used notes that tokens of this org were used at a gateway; an older use than the
// one known changes nothing, and no use is a change. A token bound to another
// gateway can't have been used there: it is left alone, as is one that does not
// exist. No token may stand twice in uses.
func (t *Tx) Used(ctx context.Context, uses ...Use) error {
	for chunk := range slices.Chunk(uses, usesAtOnce) {
		args := make([]any, 0, 4*len(chunk))
		for _, u := range chunk {
			args = append(args, u.TokenID, u.OrgID, u.GatewayID, micros(u.At))
		}
		if _, err := t.exec(ctx, noteUses(t.turns, len(chunk)), args...); err != nil {
			return fmt.Errorf("note uses: %w", err)
		}
	}
	return nil
}

func noteUses(numbered bool, n int) string {
	var q strings.Builder
	q.WriteString(`WITH used (token, org, gateway, at) AS (VALUES `)
	for i := range n {
		if i > 0 {
			q.WriteByte(',')
		}
		if numbered {
			fmt.Fprintf(&q, "($%d,$%d,$%d,CAST($%d AS BIGINT))", 4*i+1, 4*i+2, 4*i+3, 4*i+4)
		} else {
			q.WriteString("(?,?,?,?)") // see values
		}
	}
	q.WriteString(`) UPDATE tokens SET last_used_at = used.at, last_used_gateway = used.gateway FROM used
		WHERE tokens.id = used.token AND tokens.org_id = used.org
		AND (last_used_at IS NULL OR last_used_at < used.at)
		AND (tokens.gateway_id IS NULL OR tokens.gateway_id = used.gateway)`)
	return q.String()
}

// Use is one use of a token.
type Use struct {
	TokenID   string
	OrgID     string
	GatewayID string
	At        time.Time
}

func stored(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	v := timeOf(micros(*t))
	return &v
}
