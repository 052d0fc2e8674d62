package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	pgConnections = 16
	pgIdle        = 5 * time.Minute
	pgDial        = 5 * time.Second
	// pgStatement bounds one statement: a caller has given up long before.
	pgStatement = "30s"
)

// openPostgres opens a database of a PostgreSQL server, or of one that speaks its
// protocol. READ COMMITTED is enough: each kind of write takes its turn by a row.
func openPostgres(ctx context.Context, dsn string) (*Store, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("open database: the URL can't be read; it is like postgres://USER@HOST:PORT/NAME?sslmode=verify-full")
	}
	cfg.ConnectTimeout = pgDial
	for key, value := range map[string]string{
		"application_name": "kt-gateway", "statement_timeout": pgStatement,
		"default_transaction_isolation": "read committed", "timezone": "UTC",
	} {
		if _, set := cfg.RuntimeParams[key]; !set {
			cfg.RuntimeParams[key] = value
		}
	}
	s := newStore()
	s.turns, s.config = true, cfg
	s.write = stdlib.OpenDB(*cfg)
	s.write.SetMaxOpenConns(pgConnections)
	s.write.SetMaxIdleConns(pgConnections)
	s.write.SetConnMaxIdleTime(pgIdle)
	s.read = s.write
	where := fmt.Sprintf("open database %s at %s:%d", cfg.Database, cfg.Host, cfg.Port)
	if err := s.migrate(ctx, postgresMigrations); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("%s: %w", where, plain(err))
	}
	if err := s.tryNotify(ctx); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("%s: %w", where, plain(err))
	}
	return s, nil
}

// plain takes what a connection's error tells of its settings out of it.
func plain(err error) error {
	var c *pgconn.ConnectError
	if errors.As(err, &c) {
		return fmt.Errorf("the server can't be reached or refuses the login: %w", c.Unwrap())
	}
	return err
}

const takeTurn = `UPDATE turns SET taken = taken + 1 WHERE name = 'leases' RETURNING taken`

// turn waits until nobody else moves money: what SQLite's one writer gives for
// nothing. Whoever changes tokens or budgets, too, takes it after head's lock.
func (t *Tx) turn(ctx context.Context) error {
	if !t.turns {
		return nil
	}
	if err := t.tx.QueryRowContext(ctx, takeTurn).Scan(&t.taken); err != nil {
		return fmt.Errorf("take a turn: %w", err)
	}
	return nil
}

// lockMigrations keeps other processes from migrating until the transaction ends.
func (s *Store) lockMigrations(ctx context.Context, tx *sql.Tx) error {
	if !s.turns {
		return nil
	}
	_, err := tx.ExecContext(ctx, `LOCK TABLE migrations IN ACCESS EXCLUSIVE MODE`)
	return err
}
