package store

import (
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/test/postgres"
)

// cut ends every other connection to the database of s, as a restart of the server or
// a failover does.
func cut(ctx context.Context, s *Store) error {
	_, err := s.write.ExecContext(ctx, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	return err
}

// overTCP is a database reached over TCP, where what is written to a connection that
// the server has ended seems to be sent.
func overTCP(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(u.Query().Get("host"), ".s.PGSQL.5432")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_, _ = to.Close(), from.Close()
	}
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", socket)
			if err != nil {
				_ = near.Close()
				continue
			}
			go pass(near, far)
			go pass(far, near)
		}
	}()
	u.Host, u.RawQuery = ln.Addr().String(), ""
	return u.String()
}

// busy has a store use so many connections at once.
func busy(t *testing.T, s *Store, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := s.read.Exec(`SELECT pg_sleep(0.2)`); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestConnectionsThatBrokeWhileIdleAreNotUsed(t *testing.T) {
	ctx := context.Background()
	dsn := postgresURL(t)
	s, other := openPG(t, overTCP(t, dsn)), openPG(t, dsn)
	conn, err := pgx.ConnectConfig(ctx, s.config.Copy())
	if err != nil {
		t.Fatal(err)
	}
	if doubtful(ctx, stdlib.ShouldPingParams{Conn: conn}) || !doubtful(ctx, stdlib.ShouldPingParams{Conn: conn, IdleDuration: 2 * pgTrusted}) {
		t.Error("only a connection that was idle for long is in doubt")
	}
	if err := cut(ctx, other); err != nil {
		t.Fatal(err)
	}
	if !doubtful(ctx, stdlib.ShouldPingParams{Conn: conn}) {
		t.Error("one that ended is trusted")
	}
	b := newBank(t, s)
	b.budget("b", 1000)
	for round := range 3 {
		busy(t, s, pgConnections)
		if err := cut(ctx, other); err != nil {
			t.Fatal(err)
		}
		// Each has a broken connection to meet.
		var wg sync.WaitGroup
		for range pgConnections / 2 {
			wg.Go(func() {
				if _, err := s.Head(ctx); err != nil {
					t.Errorf("round %d: read: %v", round, err)
				}
				if _, err := s.Changes(ctx, "org", 0, 10); err != nil {
					t.Errorf("round %d: read at one moment: %v", round, err)
				}
				n := sample(s, "n")
				if err := s.Update(ctx, noon, func(tx *Tx) error { return tx.Insert(ctx, &n) }); err != nil {
					t.Errorf("round %d: change: %v", round, err)
				}
				if err := s.Settle(ctx, "org", "gw", []budget.Settlement{{ID: n.Profile.ID, At: noon}}); err != nil {
					t.Errorf("round %d: settle: %v", round, err)
				}
			})
		}
		wg.Wait()
	}
}

func TestAnIdleConnectionOnWhichSomethingCameIsTried(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	for name, end := range map[string]func(net.Conn){
		"a word": func(c net.Conn) { _, _ = c.Write([]byte("x")) }, "its end": func(c net.Conn) { _ = c.Close() },
	} {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		reading := make(chan struct{})
		go func() {
			defer close(reading)
			_, _ = conn.Read(make([]byte, 0)) // returns at once
			if name == "its end" {
				_, _ = conn.Read(make([]byte, 1)) // the driver may read by itself
			}
		}()
		time.Sleep(20 * time.Millisecond)
		if stirred(conn) {
			t.Errorf("%s: nothing came", name)
		}
		end(far)
		for deadline := time.Now().Add(5 * time.Second); !stirred(conn); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s was not seen", name)
			}
		}
		<-reading
		_ = conn.Close()
		_ = far.Close()
	}
	near, far := net.Pipe()
	defer func() { _, _ = near.Close(), far.Close() }()
	if !stirred(near) {
		t.Error("what can't be looked at is trusted")
	}
}

func TestAConnectionThatBreaksAmidAChangeCostsNothing(t *testing.T) {
	ctx := context.Background()
	dsn := postgresURL(t)
	s, other := openPG(t, dsn), openPG(t, dsn)
	runs := 0
	n := sample(s, "n")
	if err := s.Update(ctx, noon, func(tx *Tx) error {
		if runs++; runs == 1 {
			if err := cut(ctx, other); err != nil {
				return err
			}
		}
		return tx.Insert(ctx, &n)
	}); err != nil || runs != 2 {
		t.Errorf("a change: %d runs, %v", runs, err)
	}
	runs = 0
	if err := s.beside(ctx, func(ctx context.Context, tx *Tx) error {
		if runs++; runs == 1 {
			if err := cut(ctx, other); err != nil {
				return err
			}
		}
		_, err := tx.exec(ctx, `INSERT INTO top_ups (org_id, budget, request, amount, win, at) VALUES ('o', 'b', 'r', 1, 'w', 1)`)
		return err
	}); err != nil || runs != 2 {
		t.Errorf("money: %d runs, %v", runs, err)
	}
}

// TestAConnectionThatBreaksAtTheCommit: nobody knows whether it took place. Money may
// be told again, a change is not made twice.
func TestAConnectionThatBreaksAtTheCommit(t *testing.T) {
	ctx := context.Background()
	s := openPG(t, postgresURL(t))
	for _, q := range []string{
		`CREATE SEQUENCE commits`,
		`CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN IF nextval('commits') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON tokens DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION breaks()`,
		`CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON top_ups DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION breaks()`,
	} {
		if _, err := s.write.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	runs := 0
	n := sample(s, "n")
	err := s.Update(ctx, noon, func(tx *Tx) error {
		runs++
		return tx.Insert(ctx, &n)
	})
	if err == nil || runs != 1 {
		t.Errorf("a change: %d runs, %v", runs, err)
	}
	if _, err := s.write.Exec(`ALTER SEQUENCE commits RESTART`); err != nil {
		t.Fatal(err)
	}
	runs = 0
	err = s.beside(ctx, func(ctx context.Context, tx *Tx) error {
		runs++
		_, err := tx.exec(ctx, `INSERT INTO top_ups (org_id, budget, request, amount, win, at) VALUES ('o', 'b', 'r', 1, 'w', 1)`)
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("money: %d runs, %v", runs, err)
	}
}

// TestReplicasClocksMayDiffer: what a shortage and a silence are reckoned from is the
// time of the server, whosever clock is wrong.
func TestReplicasClocksMayDiffer(t *testing.T) {
	ctx := context.Background()
	s := openPG(t, postgresURL(t))
	s.clock = func() time.Time { return time.Now().Add(time.Hour) }
	if err := s.Update(ctx, time.Now(), func(tx *Tx) error {
		_, _, err := tx.PutBudget(ctx, &Budget{OrgID: "org",
			Record: budget.Record{ID: "b", Unit: budget.Requests, Window: budget.Total, Limit: 10, Mode: budget.Enforce}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for session, amount := range map[string]int64{"one": 8, "two": 8} {
		if _, _, err := s.Leases(ctx, "org", "gw", &budget.Call{Session: session, Seq: 1, Needs: [][]budget.Need{needOf(amount, "b")}}); err != nil {
			t.Fatal(err)
		}
	}
	var short, told, heard int64
	if err := s.read.QueryRow(`SELECT phase_at, told_at, (SELECT MAX(last_seen) FROM sessions) FROM counters WHERE phase = 1`).Scan(&short, &told, &heard); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{short, told, heard} {
		if off := time.Since(timeOf(at)).Abs(); off > time.Minute {
			t.Errorf("noted at a time that is %v off", off)
		}
	}
}

// TestARestartedServerIsUsedAtOnce has the server killed and started again under
// load: the first calls after it are served.
func TestARestartedServerIsUsedAtOnce(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	server, err := postgres.New()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	dsn, err := server.Database()
	if err != nil {
		t.Fatal(err)
	}
	s := openPG(t, dsn)
	b := newBank(t, s)
	b.budget("b", 1_000_000)
	var failed, done atomic.Int64
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for seq := int64(1); ctx.Err() == nil; seq++ {
				_, _, err := s.Leases(context.Background(), "org", "gw", &budget.Call{Session: string(rune('a' + i)), Seq: seq,
					Needs: [][]budget.Need{needOf(1, "b")}})
				if err != nil {
					failed.Add(1)
					time.Sleep(time.Millisecond)
					continue
				}
				done.Add(1)
			}
		})
	}
	for range 3 {
		for had := done.Load(); done.Load() < had+20; {
			time.Sleep(time.Millisecond)
		}
		server.Kill()
		for had := failed.Load(); failed.Load() == had; {
			time.Sleep(time.Millisecond)
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Head(ctx); err != nil {
			t.Errorf("the first read: %v", err)
		}
		n := sample(s, "n")
		if err := s.Update(ctx, noon, func(tx *Tx) error { return tx.Insert(ctx, &n) }); err != nil {
			t.Errorf("the first change: %v", err)
		}
	}
	stop()
	wg.Wait()
	b.sound()
}
