package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// News is what a commit tells every process over the database, in one word: what has
// happened is read from the tables.
type News string

const (
	Moved    News = "moved"    // a revision was taken, or a recall is to be told
	Reported News = "reported" // an instance told how far it is
)

// channel is the name under which all listen.
const channel = "kt_gateway"

// ErrNoNews says that the database notifies nobody: what it has is found by looking.
var ErrNoNews = errors.New("the database has no LISTEN and NOTIFY")

// Quiet keeps the store from notifying others, and from listening: as over an engine
// that can't. It must be called before the first call.
func (s *Store) Quiet() { s.notifies = false }

// tryNotify finds out whether the engine notifies; it fails where it can't be asked.
func (s *Store) tryNotify(ctx context.Context) error {
	_, err := s.write.ExecContext(ctx, `SELECT pg_notify($1, $2)`, channel, string(Moved))
	var refused *pgconn.PgError
	if errors.As(err, &refused) && !lost(err) {
		return nil
	}
	s.notifies = err == nil
	return err
}

// announceNews sends at the commit what it brings.
func (t *Tx) announceNews(ctx context.Context) error {
	if !t.notifies {
		return nil
	}
	for _, n := range []struct {
		due  bool
		word News
	}{{t.moved || t.told, Moved}, {t.reported, Reported}} {
		if !n.due {
			continue
		}
		if _, err := t.tx.ExecContext(ctx, `SELECT pg_notify($1, $2)`, channel, string(n.word)); err != nil {
			return fmt.Errorf("notify: %w", err)
		}
	}
	return nil
}

// Reported has those told who wait for an instance's report.
func (t *Tx) Reported() { t.reported = true }

// Listen calls heard for what any process commits, this one included, over a
// connection of its own; at first with Moved, since what came before nobody told.
// It ends with ctx or the connection, and says why: ErrNoNews, where the database
// never will. heard must return at once.
func (s *Store) Listen(ctx context.Context, heard func(News)) error {
	if !s.notifies {
		return ErrNoNews
	}
	conn, err := pgx.ConnectConfig(ctx, s.config.Copy())
	if err != nil {
		return fmt.Errorf("listen: %w", plain(err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, `LISTEN `+channel)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && !lost(err) {
		return fmt.Errorf("%w: %s", ErrNoNews, refused.Message)
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	heard(Moved)
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		heard(News(n.Payload))
	}
}
