package controlplane

import (
	"context"
	"database/sql"
	"os"
	"sync"
	"testing"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/test/postgres"
)

// overPostgres is the test under which those of SQLite are run over PostgreSQL.
const overPostgres = "TestOverPostgreSQL"

// database is the tests' own PostgreSQL, started by the first that needs it.
var database struct {
	once     sync.Once
	server   *postgres.Server
	template string // a URL of one that is migrated
	err      error

	mu   sync.Mutex
	free []string // URLs of those that tests have left, made empty again
}

func TestMain(m *testing.M) {
	code := m.Run()
	if database.server != nil {
		database.server.Stop()
	}
	os.Exit(code)
}

// postgresURL is that of a database without a token, which is the test's alone.
// Without a server the test fails.
func postgresURL(t testing.TB) string {
	t.Helper()
	d := &database
	d.once.Do(func() {
		if d.server, d.err = postgres.New(); d.err != nil {
			return
		}
		if d.template, d.err = d.server.Database(); d.err != nil {
			return
		}
		var s *store.Store
		if s, d.err = store.Open(context.Background(), d.template); d.err == nil {
			d.err = s.Close()
		}
	})
	if d.err != nil {
		t.Fatal(d.err)
	}
	dsn := takeDatabase()
	if dsn == "" {
		var err error
		if dsn, err = d.server.Copy(d.template); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := leaveDatabase(dsn); err != nil {
			t.Error(err)
		}
	})
	return dsn
}

func takeDatabase() (dsn string) {
	database.mu.Lock()
	defer database.mu.Unlock()
	if n := len(database.free); n > 0 {
		dsn, database.free = database.free[n-1], database.free[:n-1]
	}
	return dsn
}

// leaveDatabase ends all connections to a database and makes it as it was: to copy
// another costs a hundred times as much.
func leaveDatabase(dsn string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	// One connection, whose role keeps the triggers from refusing.
	db.SetMaxOpenConns(1)
	for _, q := range []string{
		`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`,
		`SET session_replication_role = replica`,
		`DO $$ DECLARE t TEXT; BEGIN
			FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ('migrations', 'head', 'turns') LOOP
				EXECUTE format('DELETE FROM %I', t);
			END LOOP;
		END $$`,
		`UPDATE head SET revision = 0, audit = 0`,
		`UPDATE turns SET taken = 0`,
	} {
		if _, err := db.Exec(q); err != nil {
			return err
		}
	}
	database.mu.Lock()
	defer database.mu.Unlock()
	database.free = append(database.free, dsn)
	return nil
}

// listening counts the connections that listen in a database.
func listening(dsn string) (n int, err error) {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }()
	err = db.QueryRow(`SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'`).Scan(&n)
	return n, err
}
