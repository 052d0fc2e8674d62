package store

import (
	"context"
	"database/sql"
	"fmt"
)

// beside runs f in one write transaction, as Update does, but without the lock that
// orders changes: f must take no revision. Who waits for a turn gives up when ctx
// ends; once begun, f is not interrupted. What f does must be harmless when it is done
// again: where the connection breaks amid a commit, f runs once more.
func (s *Store) beside(ctx context.Context, f func(context.Context, *Tx) error) error {
	return retried(ctx, func() error { return s.besideOnce(ctx, f) }, func(err error) bool { return again(err) || lost(err) })
}

func (s *Store) besideOnce(ctx context.Context, f func(context.Context, *Tx) error) error {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = conn.Close() }()
	// Without an end: the driver watches over each statement of a context that may end.
	ctx = context.WithoutCancel(ctx)
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	t := s.begun(tx, s.clock())
	if err := t.turn(ctx); err != nil {
		return err
	}
	if !s.turns || s.clocked {
		t.now = s.clock() // after the wait
	}
	if err := f(ctx, t); err != nil {
		return err
	}
	return s.commit(ctx, t)
}

// statements are those that a call of a gateway runs many times, prepared on the
// writer's connection, by their text.
type statements map[string]*sql.Stmt

func prepare(ctx context.Context, db *sql.DB, numbered bool) (statements, error) {
	list := statements{}
	for _, q := range []string{
		selectBudget, hearKnown, hearNew, fence, selectUntold, selectCounter, selectOthers,
		insertCounter, updateCounter, insertLease, updateLease,
		insertSettlements(numbered, rowsAtOnce), insertUsage(numbered, rowsAtOnce), noteUses(numbered, usesAtOnce),
	} {
		stmt, err := db.PrepareContext(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("prepare a statement: %w", err)
		}
		list[q] = stmt
	}
	return list, nil // the connection's end closes them
}

// exec returns how many rows it changed.
func (t *Tx) exec(ctx context.Context, q string, args ...any) (int64, error) {
	var result sql.Result
	var err error
	if s := t.stmts[q]; s != nil {
		result, err = t.tx.StmtContext(ctx, s).ExecContext(ctx, args...)
	} else {
		result, err = t.tx.ExecContext(ctx, q, args...)
	}
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t *Tx) row(ctx context.Context, q string, args ...any) *sql.Row {
	if s := t.stmts[q]; s != nil {
		return t.tx.StmtContext(ctx, s).QueryRowContext(ctx, args...)
	}
	return t.tx.QueryRowContext(ctx, q, args...)
}

func (t *Tx) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	if s := t.stmts[q]; s != nil {
		return t.tx.StmtContext(ctx, s).QueryContext(ctx, args...)
	}
	return t.tx.QueryContext(ctx, q, args...)
}
