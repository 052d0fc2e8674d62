package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The log of changes keeps those of the last day, at least logLeast and at most
// logMost. Who wants to read on from before that starts anew.
const (
	logKeeps    = 24 * time.Hour
	logLeast    = 100_000
	logMost     = 1_000_000
	pruneEvery  = 256 // revisions
	pruneAtOnce = 4 * pruneEvery
)

// ErrGone says that the log does not reach back to a revision, or that the revision
// was never given here.
var ErrGone = errors.New("the log of changes does not reach back to this revision")

// Change is an entry of the log, with what it left.
type Change struct {
	Revision int64
	At       time.Time // of its transaction
	Subject  string    // the id of what changed
	Token    *Token    // nil: it is no token
	Team     *Team     // nil: it is no team
	Budget   bool      // Subject is a budget
}

// Changes are entries of the log in the order of their commits. Of several about
// one subject only the last is there.
type Changes struct {
	List []Change
	// UpTo is the revision up to which List leaves nothing out; Head that of the
	// last change of any org, at the same moment.
	UpTo, Head int64
}

// Changes reads an org's log after a revision, at most limit entries of it.
// ErrGone: what is after since is no longer there, or since was never given here.
func (s *Store) Changes(ctx context.Context, org string, since int64, limit int) (Changes, error) {
	// What is left out for a later change is never followed by a head without that
	// change: all of it is read at one moment.
	tx, err := s.moment(ctx)
	if err != nil {
		return Changes{}, fmt.Errorf("read changes: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	c, err := readChanges(ctx, tx, window{org: org, since: since, limit: limit})
	if err != nil && !errors.Is(err, ErrGone) {
		err = fmt.Errorf("read changes: %w", err)
	}
	return c, err
}

// moment begins a transaction whose reads all see the same moment.
func (s *Store) moment(ctx context.Context) (*sql.Tx, error) {
	if s.turns { // PostgreSQL; in SQLite every transaction is like that
		return s.read.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	}
	return s.read.BeginTx(ctx, nil)
}

// window is a part of an org's log: (since, upTo].
type window struct {
	org         string
	since, upTo int64
	limit       int
}

func readChanges(ctx context.Context, tx *sql.Tx, w window) (Changes, error) {
	var c Changes
	var oldest int64
	if err := tx.QueryRowContext(ctx, `SELECT revision, COALESCE((SELECT MIN(revision) FROM changes), revision + 1) FROM head`).
		Scan(&c.Head, &oldest); err != nil {
		return c, err
	}
	if w.since < oldest-1 || w.since > c.Head {
		return c, ErrGone
	}
	at, last, err := w.times(ctx, tx)
	if err != nil {
		return c, err
	}
	if w.upTo = last; len(at) < w.limit {
		w.upTo = c.Head
	}
	c.UpTo = w.upTo
	if len(at) == 0 {
		return c, nil
	}
	if c.List, err = w.budgets(ctx, tx); err != nil {
		return c, err
	}
	changed, err := w.teams(ctx, tx)
	if err != nil {
		return c, err
	}
	c.List = append(c.List, changed...)
	tokens, err := w.tokens(ctx, tx)
	c.List = append(c.List, tokens...)
	for i := range c.List {
		c.List[i].At = at[c.List[i].Revision]
	}
	slices.SortFunc(c.List, func(a, b Change) int { return cmp.Compare(a.Revision, b.Revision) })
	return c, err
}

// times returns when each entry was made, and the last one's revision.
func (w window) times(ctx context.Context, tx *sql.Tx) (at map[int64]time.Time, last int64, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT revision, at FROM changes
		WHERE org_id = $1 AND revision > $2 ORDER BY revision LIMIT $3`, w.org, w.since, w.limit)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close(), rows.Err()) }()
	at = map[int64]time.Time{}
	for rows.Next() {
		var made int64
		if err := rows.Scan(&last, &made); err != nil {
			return nil, 0, err
		}
		at[last] = timeOf(made)
	}
	return at, last, nil
}

func (w window) tokens(ctx context.Context, tx *sql.Tx) (list []Change, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+columns+` FROM tokens
		WHERE org_id = $1 AND revision > $2 AND revision <= $3`, w.org, w.since, w.upTo)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close(), rows.Err()) }()
	for rows.Next() {
		t, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, Change{Revision: t.Profile.Revision, Subject: t.Profile.ID, Token: &t})
	}
	return list, nil
}

func (w window) teams(ctx context.Context, tx *sql.Tx) ([]Change, error) {
	changed, err := teams(tx.QueryContext(ctx, `SELECT `+teamColumns+` FROM teams
		WHERE org_id = $1 AND revision > $2 AND revision <= $3`, w.org, w.since, w.upTo))
	list := make([]Change, len(changed))
	for i := range changed {
		list[i] = Change{Revision: changed[i].Revision, Subject: changed[i].ID, Team: &changed[i]}
	}
	return list, err
}

func (w window) budgets(ctx context.Context, tx *sql.Tx) (list []Change, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT MAX(revision), subject FROM changes
		WHERE org_id = $1 AND revision > $2 AND revision <= $3 AND event LIKE 'budget.%' GROUP BY subject`, w.org, w.since, w.upTo)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close(), rows.Err()) }()
	for rows.Next() {
		c := Change{Budget: true}
		if err := rows.Scan(&c.Revision, &c.Subject); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// prune forgets changes that nobody needs to read on from, a few at a time.
func (t *Tx) prune(ctx context.Context, head int64) error {
	if head%pruneEvery != 0 {
		return nil
	}
	return t.forget(ctx, head)
}

func (t *Tx) forget(ctx context.Context, head int64) error {
	if _, err := t.tx.ExecContext(ctx, `DELETE FROM changes WHERE revision < (SELECT MIN(revision) FROM changes) + $1
		AND (revision <= $2 AND at < $3 OR revision <= $4)`,
		int64(pruneAtOnce), head-logLeast, micros(t.now.Add(-logKeeps)), head-logMost); err != nil {
		return fmt.Errorf("prune the log of changes: %w", err)
	}
	return nil
}
