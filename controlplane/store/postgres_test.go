package store

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

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
