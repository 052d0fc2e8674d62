package store

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// listens returns what s hears; the first word comes with the listening.
func listens(t *testing.T, s *Store) (heard chan News, ended chan error) {
	t.Helper()
	heard, ended = make(chan News, 1000), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	go func() { ended <- s.Listen(ctx, func(n News) { heard <- n }) }()
	hears(t, heard, Moved)
	return heard, ended
}

func hears(t *testing.T, heard chan News, want News) {
	t.Helper()
	select {
	case got := <-heard:
		if got != want {
			t.Fatalf("heard %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%q was not heard", want)
	}
}

func TestEveryProcessHearsACommitThatHasNews(t *testing.T) {
	ctx := context.Background()
	dsn := postgresURL(t)
	writer, other := openPG(t, dsn), openPG(t, dsn)
	own, _ := listens(t, writer)
	heard, _ := listens(t, other)
	b := newBank(t, writer)
	both := func(want News) {
		t.Helper()
		hears(t, heard, want)
		hears(t, own, want)
	}
	insert(t, writer, sample(writer, "n"))
	both(Moved)
	b.budget("b", 100)
	both(Moved)
	b.need("s1", 100, "b") // nobody else is concerned
	b.need("s2", 1, "b")
	both(Moved)
	b.need("s2", 1, "b") // within 100 ms
	if _, _, err := b.topUp("b", 5, "k"); err != nil {
		t.Fatal(err)
	}
	both(Moved)
	update(t, writer, func(tx *Tx) error {
		return tx.Hear(ctx, Instance{OrgID: "org", GatewayID: "gw", ID: "i", MaxStale: time.Hour})
	})
	update(t, writer, func(tx *Tx) error {
		tx.Reported()
		return tx.Hear(ctx, Instance{OrgID: "org", GatewayID: "gw", ID: "i", MaxStale: time.Hour, Revision: 1})
	})
	both(Reported)
	_ = writer.Update(ctx, noon, func(tx *Tx) error {
		n := sample(writer, "n")
		return errors.Join(tx.Insert(ctx, &n), errors.New("taken back"))
	})
	insert(t, writer, sample(writer, "n"))
	both(Moved)
	if len(heard)+len(own) > 0 {
		t.Error("more was heard")
	}
}

func TestAStoreWithoutNotifyWorksAndHearsNothing(t *testing.T) {
	dsn := postgresURL(t)
	quiet, other := openPG(t, dsn), openPG(t, dsn)
	quiet.Quiet()
	if err := quiet.Listen(context.Background(), nil); !errors.Is(err, ErrNoNews) {
		t.Errorf("listen: %v", err)
	}
	heard, _ := listens(t, other)
	insert(t, quiet, sample(quiet, "n"))
	insert(t, other, sample(other, "n"))
	hears(t, heard, Moved)
	if len(heard) > 0 {
		t.Error("the quiet one was heard")
	}
	if err := open(t, filepath.Join(t.TempDir(), "k.db")).Listen(context.Background(), nil); !errors.Is(err, ErrNoNews) {
		t.Errorf("SQLite: %v", err)
	}
}

// TestAnEngineThatRefusesToNotifyIsServed has pg_notify refused, as an engine that
// has none does: a transaction that called it would be lost.
func TestAnEngineThatRefusesToNotifyIsServed(t *testing.T) {
	dsn := postgresURL(t)
	first := openPG(t, dsn)
	for _, q := range []string{
		`CREATE ROLE deaf LOGIN`, `REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM public`,
		`GRANT CREATE ON SCHEMA public TO deaf`, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO deaf`,
	} {
		if _, err := first.write.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	s := openPG(t, strings.Replace(dsn, "kt@", "deaf@", 1))
	if s.notifies {
		t.Fatal("it notifies")
	}
	insert(t, s, sample(s, "n"))
	b := newBank(t, s)
	b.budget("b", 5)
	b.need("s1", 5, "b")
	at := b.turn()
	b.need("s2", 1, "b")
	var got []budget.Recall
	if err := s.Recalls(context.Background(), at, b.turn(), func(_ string, r budget.Recall) { got = append(got, r) }); err != nil || len(got) != 1 {
		t.Errorf("recalls %v, %v", got, err)
	}
}

func TestListeningEndsWithItsConnection(t *testing.T) {
	s := openPG(t, postgresURL(t))
	_, ended := listens(t, s)
	if _, err := s.write.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND query LIKE 'LISTEN%'`); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, ErrNoNews) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}
