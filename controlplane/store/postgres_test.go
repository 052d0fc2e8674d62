package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/test/postgres"
)

// server is the tests' own PostgreSQL, started by the first that needs it.
var server struct {
	once sync.Once
	*postgres.Server
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if server.Server != nil {
		server.Stop()
	}
	os.Exit(code)
}

// postgresURL is that of an empty database. Without a server the test fails.
func postgresURL(t *testing.T) string {
	t.Helper()
	server.once.Do(func() { server.Server, server.err = postgres.New() })
	if server.err != nil {
		t.Fatal(server.err)
	}
	dsn, err := server.Database()
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

func openPG(t *testing.T, dsn string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestPostgres(t *testing.T) {
	contract(t, func(t *testing.T) *Store { return openPG(t, postgresURL(t)) })
}

func TestReplicasMigrateAtOnce(t *testing.T) {
	dsn := postgresURL(t)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			s, err := Open(context.Background(), dsn)
			if err == nil {
				err = s.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestNoErrorRepeatsAPassword(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, dsn := range []string{
		"postgres://kt:" + secret + "@127.0.0.1:1/kt",
		"postgres://kt:" + secret + "@127.0.0.1:port/kt",
		"postgres://kt:" + secret + "@/kt?sslmode=wrong",
		"mysql://kt:" + secret + "@127.0.0.1/kt",
	} {
		if _, err := Open(context.Background(), dsn); err == nil || strings.Contains(fmt.Sprintf("%v %+v %q", err, err, err), secret) {
			t.Errorf("%v", err)
		}
	}
}

// beforeRecalls is a schema, and what a process of that version runs on it all the time.
const beforeRecalls = 4

var oldStatements = []string{
	`UPDATE turns SET taken = taken + 1 WHERE name = 'leases'`,
	`INSERT INTO counters (org_id, budget, win, lim, taken, overrun, phase, phase_at, unmet, starts_at, ends_at)
		VALUES ('org', $1, 'w', 5, 0, 0, 0, 0, 0, 0, 1)`,
	`UPDATE counters SET lim = 5, taken = 1, overrun = 0, phase = 1, phase_at = 0, unmet = 0
		WHERE org_id = 'org' AND budget = $1 AND win = 'w'`,
	`UPDATE instances SET watching = 0 WHERE instance = $1`,
	`INSERT INTO changes (revision, at, org_id, subject, event)
		SELECT COALESCE(MAX(revision), 0) + 1, 0, 'org', $1, 'token.created' FROM changes`,
}

func TestReplicasMigrateAtOnceUnderTheVersionBefore(t *testing.T) {
	ctx := context.Background()
	dsn := postgresURL(t)
	all, err := migrations(postgresMigrations)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	old := &Store{write: db, read: db, turns: true}
	if err := old.apply(ctx, all[:beforeRecalls]); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error)
	var ran atomic.Int64
	go func() {
		for i := 0; ; i++ {
			if ctx.Err() != nil {
				done <- nil
				return
			}
			tx, err := db.Begin()
			for _, q := range oldStatements {
				if err != nil {
					break
				}
				var args []any
				if strings.Contains(q, "$1") {
					args = []any{fmt.Sprint(i)}
				}
				_, err = tx.Exec(q, args...)
			}
			if err == nil {
				err = tx.Commit()
			}
			if err != nil {
				done <- err
				return
			}
			ran.Add(1)
		}
	}()
	for ran.Load() < 20 {
		time.Sleep(time.Millisecond)
	}
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			s, err := Open(context.Background(), dsn)
			if err == nil {
				err = s.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for had := ran.Load(); ran.Load() < had+20; { // it goes on over the new one
		select {
		case err := <-done:
			t.Fatalf("the version before: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("the version before: %v", err)
	}
}
