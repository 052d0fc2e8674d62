package controlplane

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"strings"
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
}

func TestMain(m *testing.M) {
	code := m.Run()
	if database.server != nil {
		database.server.Stop()
	}
	os.Exit(code)
}

// postgresURL is that of a database without a token, gone with the test. Without a
// server the test fails.
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
	dsn, err := d.server.Copy(d.template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u, _ := url.Parse(dsn)
		db, err := sql.Open("pgx", d.server.URL("postgres"))
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = db.Close() }()
		if _, err := db.Exec(`DROP DATABASE ` + strings.TrimPrefix(u.Path, "/") + ` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
	})
	return dsn
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
