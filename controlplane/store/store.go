// Package store is the control plane's state: tokens by their digests, the
// revisions of their changes, an audit log, and the gateways heard from. It keeps
// no token's string, only its SHA-256 and its hint. One concrete type over
// database/sql, over SQLite or PostgreSQL, in SQL that both read.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	// ErrNotFound says that there is no such token or budget.
	ErrNotFound = errors.New("no such token or budget")
	// ErrExists says that the digest or id is taken.
	ErrExists = errors.New("a token with this digest or id exists")
	// ErrNewer says that a later version of the program wrote the database.
	ErrNewer = errors.New("the database was written by a newer version")
	// ErrConflict says that what stands differs in something that can't change.
	ErrConflict = errors.New("another one with this id stands")
	// ErrTooMuch says that an amount is beyond what can be counted.
	ErrTooMuch = errors.New("more than can be counted")
)

const (
	busyTimeout = 5 * time.Second
	readers     = 8 // of which snapshots may hold half for long
	attempts    = 5
)

// Store is an open database. It is safe for concurrent use; every change is
// durable when its call returns.
type Store struct {
	write *sql.DB // SQLite: one connection, where writers wait for each other, not in the database
	read  *sql.DB // PostgreSQL: the same as write
	turns bool    // transactions beside changes wait for each other in the database: PostgreSQL
	ids   idSource
	clock func() time.Time
	stmts statements
	swept sweeping
	moved func()

	config   *pgx.ConnConfig // of PostgreSQL, for a connection beside those of write
	notifies bool
	clocked  bool // clock was set
}

// Clock sets the clock of budgets' windows and leases: unless it is set they go by
// time.Now, or where the database is Shared by its server's. It must be set before the
// first call.
func (s *Store) Clock(now func() time.Time) { s.clock, s.clocked = now, true }

// Moved sets what is called after each commit that took a revision, or after which
// Recalls has something to tell; it must return at once. It must be set before the first call.
func (s *Store) Moved(f func()) { s.moved = f }

// Open opens the database that dsn names, "sqlite:FILE" or "postgres://…", and
// brings its schema up to date; several processes may do so at once. A file is made
// when absent, readable by its owner alone. A database of a newer version is
// refused with ErrNewer and left as it was. No error repeats the dsn.
func Open(ctx context.Context, dsn string) (*Store, error) {
	scheme, path, ok := strings.Cut(dsn, ":")
	switch {
	case ok && scheme == "sqlite" && path != "" && !strings.HasPrefix(path, ":"):
		return openFile(ctx, path)
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return openPostgres(ctx, dsn)
	}
	return nil, errors.New("open database: unknown form; allowed: sqlite:FILE, postgres://USER@HOST:PORT/NAME")
}

func newStore() *Store { return &Store{clock: time.Now, moved: func() {}} }

func openFile(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := private(path); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	s := newStore()
	if s.write, err = openSQLite(path, 1, "_txlock=immediate"); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := s.migrate(ctx, sqliteMigrations); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if s.stmts, err = prepare(ctx, s.write, s.turns); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if s.read, err = openSQLite(path, readers, "_pragma=query_only(1)"); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return s, nil
}

func openSQLite(path string, connections int, more string) (*sql.DB, error) {
	dsn := (&url.URL{Scheme: "file", Path: path}).String() + "?" + strings.Join([]string{
		fmt.Sprintf("_pragma=busy_timeout(%d)", busyTimeout.Milliseconds()),
		"_pragma=journal_mode(WAL)", "_pragma=synchronous(FULL)", "_pragma=foreign_keys(1)",
		"_pragma=secure_delete(1)", "_dqs=0", more,
	}, "&")
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// private makes the file with mode 0600, before SQLite would make it with the
// umask's; its -wal and -shm take the same mode. One that others may read is
// closed to them.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return f.Chmod(0o600)
	}
	return nil
}

// Close waits for calls under way and closes the database.
func (s *Store) Close() error {
	return errors.Join(s.read.Close(), s.write.Close())
}

// Ping says whether the database answers a read.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.Head(ctx)
	return err
}

// Head returns the revision of the last change, 0 before the first.
func (s *Store) Head(ctx context.Context) (int64, error) {
	var head int64
	if err := s.read.QueryRowContext(ctx, `SELECT revision FROM head`).Scan(&head); err != nil {
		return 0, fmt.Errorf("read head: %w", err)
	}
	return head, nil
}

// Tx is one write transaction. It is not safe for concurrent use.
type Tx struct {
	tx    *sql.Tx
	now   time.Time
	stmts statements
	turns bool  // as the store's
	taken int64 // the turn, once it was taken

	notifies bool // as the store's
	clocked  bool // as the store's
	ordered  bool // it has the lock that orders all changes
	moved    bool // a revision was taken
	told     bool // a recall is to be told
	reported bool // an instance told how far it is
}

// Update runs f in one write transaction, at the time that now gives: all of it
// is durable when Update returns nil, nothing of it has happened when it returns
// f's error. Where the database asks for it, f runs again from the start, so it
// must have no effect but through its Tx.
func (s *Store) Update(ctx context.Context, now time.Time, f func(*Tx) error) error {
	return s.updated(ctx, now, f, (*Tx).order)
}

// Note is Update for what is no change, and takes no revision: how far a gateway is. On
// PostgreSQL it waits for no Update, and none for it: a revocation has the whole fleet
// report at once.
func (s *Store) Note(ctx context.Context, now time.Time, f func(*Tx) error) error {
	return s.updated(ctx, now, f, func(*Tx, context.Context) error { return nil })
}

func (s *Store) updated(ctx context.Context, now time.Time, f func(*Tx) error, first func(*Tx, context.Context) error) error {
	return retried(ctx, func() error { return s.updateOnce(ctx, now, f, first) }, func(err error) bool {
		// A change that may have been committed could be made twice.
		var doubt *unsure
		return again(err) || lost(err) && !errors.As(err, &doubt)
	})
}

func retried(ctx context.Context, once func() error, more func(error) bool) error {
	for try := 1; ; try++ {
		if err := once(); err == nil || !more(err) || try == attempts || ctx.Err() != nil {
			return err
		}
	}
}

func (s *Store) updateOnce(ctx context.Context, now time.Time, f func(*Tx) error, first func(*Tx, context.Context) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing; after a panic in f it must
	t := s.begun(tx, now)
	if err := first(t, ctx); err != nil {
		return err
	}
	if err := f(t); err != nil {
		return err
	}
	return s.commit(ctx, t)
}

// order takes the one lock that orders all changes, before anything is read.
func (t *Tx) order(ctx context.Context) error {
	if _, err := t.tx.ExecContext(ctx, `UPDATE head SET revision = revision WHERE one = 1`); err != nil {
		return fmt.Errorf("lock head: %w", err)
	}
	t.ordered = true
	return nil
}

func (s *Store) begun(tx *sql.Tx, now time.Time) *Tx {
	return &Tx{tx: tx, now: now, stmts: s.stmts, turns: s.turns, notifies: s.notifies, clocked: s.clocked}
}

func (s *Store) commit(ctx context.Context, t *Tx) error {
	if err := t.announceNews(ctx); err != nil {
		return err
	}
	if err := t.tx.Commit(); err != nil {
		return &unsure{err}
	}
	if t.moved || t.told && s.turns {
		s.moved()
	}
	return nil
}

// revision takes the next revision for a change of a token or budget.
func (t *Tx) revision(ctx context.Context, org, id, event string) (int64, error) {
	if !t.ordered {
		panic("BUG: a change without its order")
	}
	var r int64
	t.moved = true
	if err := t.tx.QueryRowContext(ctx,
		`UPDATE head SET revision = revision + 1 WHERE one = 1 RETURNING revision`).Scan(&r); err != nil {
		return 0, fmt.Errorf("take a revision: %w", err)
	}
	if _, err := t.tx.ExecContext(ctx,
		`INSERT INTO changes (revision, at, org_id, subject, event) VALUES ($1, $2, $3, $4, $5)`,
		r, micros(t.now), org, id, event); err != nil {
		return 0, fmt.Errorf("note change %d: %w", r, err)
	}
	return r, t.prune(ctx, r)
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func microsOf(t *time.Time) sql.NullInt64 {
	if t == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: micros(*t), Valid: true}
}

func timeOf(n int64) time.Time { return time.UnixMicro(n).UTC() }

func timePointer(n sql.NullInt64) *time.Time {
	if !n.Valid {
		return nil
	}
	t := timeOf(n.Int64)
	return &t
}

func stringPointer(s sql.NullString) *string {
	if !s.Valid {
		return nil
	}
	return &s.String
}

func nullable(s *string) sql.NullString {
	if s == nil {
		return sql.NullString{}
	}
	return sql.NullString{String: *s, Valid: true}
}

// idSource makes ids that sort by their time, and within a process by their order.
type idSource struct {
	mu   sync.Mutex
	last [16]byte
}
