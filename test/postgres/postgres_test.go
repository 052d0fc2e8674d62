package postgres

import (
	"database/sql"
	"runtime"
	"syscall"
	"testing"
	"time"
)

func TestWhatWasCommittedIsThereHoweverTheServerEnded(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	one, err := p.Database()
	if err != nil {
		t.Fatal(err)
	}
	count := func(database, do string) (n int) {
		t.Helper()
		db, err := sql.Open("pgx", database)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if do != "" {
			if _, err := db.Exec(do); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.QueryRow(`SELECT count(*) FROM t`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	count(one, `CREATE TABLE t (a int)`)
	for i, end := range []func(){p.Kill, func() { p.End(syscall.SIGQUIT) }, func() { p.End(syscall.SIGINT) }} {
		if n := count(one, `INSERT INTO t VALUES (1)`); n != i+1 {
			t.Fatalf("%d rows, want %d", n, i+1)
		}
		end()
		end() // of nothing
		if err := p.ping(); err == nil {
			t.Fatal("it answers still")
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	two, err := p.Copy(one)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := count(two, `INSERT INTO t VALUES (1)`), count(one, ""); a != 4 || b != 3 {
		t.Errorf("%d rows in the copy, want 4, and %d in what it was made of, want 3", a, b)
	}
}

// The server is ended with the thread that forked it, which must not be one that
// goes with a goroutine of the caller.
func TestTheServerOutlivesTheThreadsOfItsCallers(t *testing.T) {
	var p *Server
	var start func() error
	start = func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // it goes with this goroutine
			if syscall.Gettid() == syscall.Getpid() {
				done <- start() // but for the first thread, which stays: keep it meanwhile
				return
			}
			var err error
			p, err = New()
			done <- err
		}()
		return <-done
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	select {
	case <-p.exited:
		t.Fatal("it ended with the thread of who started it")
	case <-time.After(500 * time.Millisecond):
	}
	if err := p.ping(); err != nil {
		t.Fatal(err)
	}
}
