// Package fill puts more tokens into a control plane's PostgreSQL database than
// could be minted one by one.
package fill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// Options say what is put in.
type Options struct {
	Tokens  int       // how many
	OrgID   string    // "": org_default
	Used    int       // so many of them, all over, were used at a gateway: one a second before Now, each
	Gateway string    // where they were used; "": gw_local
	Now     time.Time // zero: time.Now. One was made each second before it
	Keep    int       // the strings of so many are returned, those used last first
}

// Tokens adds active tokens of purpose general, with a team and a filter of models
// each, by one COPY; the schema is made when absent. The log of changes is
// emptied, so that whoever watches takes a new snapshot. It returns the strings of
// Keep tokens: the rest is known by its digests alone.
func Tokens(ctx context.Context, dsn string, o Options) ([]token.Secret, error) {
	if o.Used > o.Tokens || o.Keep > o.Tokens {
		return nil, errors.New("fill: more used or kept than there are")
	}
	if o.OrgID == "" {
		o.OrgID = "org_default"
	}
	if o.Gateway == "" {
		o.Gateway = "gw_local"
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	s, err := store.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	r := &rows{o: o, newID: s.NewID, step: stride(o.Tokens), kept: make([]token.Secret, o.Keep)}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `UPDATE head SET revision = revision + $1 RETURNING revision - $1`, int64(o.Tokens)).Scan(&r.first); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM changes`); err != nil {
			return err
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"tokens"}, []string{"id", "digest", "org_id", "name", "purpose", "principal_type", "status",
			"revision", "bindings", "team_id", "hint", "created_at", "last_used_at", "last_used_gateway"}, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	if _, err := conn.Exec(ctx, `VACUUM ANALYZE tokens`); err != nil { // as a database that lives for long is
		return nil, fmt.Errorf("fill: %w", err)
	}
	return r.kept, nil
}

// stride is a step that meets each of n places once, far from the last.
func stride(n int) int {
	for s := int(float64(n) * 0.618); s > 1; s-- {
		a, b := n, s
		for b != 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return s
		}
	}
	return 1
}

// rows makes the tokens while they are copied.
type rows struct {
	o     Options
	newID func(time.Time) string
	first int64 // the revision before them
	step  int
	n     int
	kept  []token.Secret
}

func (r *rows) Next() bool {
	r.n++
	return r.n <= r.o.Tokens
}

func (r *rows) Err() error { return nil }

func (r *rows) Values() ([]any, error) {
	at := (r.n * r.step) % r.o.Tokens // the rank by use
	secret := token.Mint()
	if at < len(r.kept) {
		r.kept[at] = secret
	}
	created := r.o.Now.Add(time.Duration(r.n-r.o.Tokens) * time.Second)
	team := fmt.Sprintf("team_%d", r.n%1000)
	var used *int64
	var gateway *string
	if at < r.o.Used {
		used, gateway = new(int64), &r.o.Gateway
		*used = r.o.Now.Add(-time.Duration(at) * time.Second).UnixMicro()
	}
	return []any{r.newID(created), secret.Digest().String(), r.o.OrgID, fmt.Sprintf("app-%d", r.n), "general", "api_token", "active",
		r.first + int64(r.n), `{"team_id":"` + team + `","models":["gpt-5.4-*","!gpt-5.4-pro"]}`, team, secret.Hint(),
		created.UnixMicro(), used, gateway}, nil
}
