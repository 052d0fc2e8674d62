package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// Budget is all that is kept of a budget but what it counted.
type Budget struct {
	OrgID string
	budget.Record
	CreatedAt time.Time
}

// eventBudget is the kind of every change of a budget.
const eventBudget = "budget.changed"

const (
	budgetColumns = `org_id, id, unit, period, lim, mode, team_id, whole_org, revision, created_at`
	selectBudget  = `SELECT ` + budgetColumns + ` FROM budgets WHERE org_id = $1 AND id = $2`
)

func scanBudget(scanned func(...any) error) (Budget, error) {
	var b Budget
	var unit, period, mode string
	var team sql.NullString
	var whole, created int64
	if err := scanned(&b.OrgID, &b.ID, &unit, &period, &b.Limit, &mode, &team, &whole, &b.Revision, &created); err != nil {
		return Budget{}, err
	}
	b.Unit, b.Window, b.Mode = budget.Unit(unit), budget.Window(period), budget.Mode(mode)
	b.AppliesTo = budget.AppliesTo{TeamID: team.String, Org: whole == 1}
	b.CreatedAt = timeOf(created)
	return b, nil
}

func oneBudget(row *sql.Row) (Budget, error) {
	b, err := scanBudget(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Budget{}, ErrNotFound
	}
	if err != nil {
		return Budget{}, fmt.Errorf("read budget: %w", err)
	}
	return b, nil
}

// Budget returns the org's budget with this id, or ErrNotFound.
func (s *Store) Budget(ctx context.Context, org, id string) (Budget, error) {
	return oneBudget(s.read.QueryRowContext(ctx, selectBudget, org, id))
}

// Budget returns the budget as the transaction sees it, or ErrNotFound.
func (t *Tx) Budget(ctx context.Context, org, id string) (Budget, error) {
	return oneBudget(t.row(ctx, selectBudget, org, id))
}

// Budgets lists at most limit budgets of an org, or of all where org is "", by id
// and org. After is the Place of the last one before the page, or "".
func (s *Store) Budgets(ctx context.Context, org, after string, limit int) ([]Budget, error) {
	id, place, _ := strings.Cut(after, "\x00")
	if org != "" {
		place = org
	}
	return s.budgets(ctx, `SELECT `+budgetColumns+` FROM budgets
		WHERE ($1 = '' OR org_id = $1) AND (id > $2 OR id = $2 AND org_id > $3) ORDER BY id, org_id LIMIT $4`,
		org, id, place, limit)
}

// Place is where a budget stands in the list of all orgs' budgets. In that of one
// org its id is as good.
func (b *Budget) Place() string { return b.ID + "\x00" + b.OrgID }

func (s *Store) budgets(ctx context.Context, q string, args ...any) (list []Budget, err error) {
	rows, err := s.read.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("list budgets: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	list = []Budget{}
	for rows.Next() {
		b, err := scanBudget(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list budgets: %w", err)
		}
		list = append(list, b)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list budgets: %w", err)
	}
	return list, nil
}

// BudgetsOf returns the budgets of the org that have one of these ids, or apply to
// all of the org, or to the team, unless it is "". They come by id; an id that no
// budget has is left out.
func (s *Store) BudgetsOf(ctx context.Context, org string, ids []string, team string) ([]Budget, error) {
	args := []any{org}
	// A union takes an index for each part, where one condition would read them all.
	q := `SELECT ` + budgetColumns + ` FROM budgets WHERE org_id = $1 AND whole_org = 1`
	if team != "" {
		args = append(args, team)
		q += ` UNION SELECT ` + budgetColumns + ` FROM budgets WHERE org_id = $1 AND team_id = $2`
	}
	if len(ids) > 0 {
		q += ` UNION SELECT ` + budgetColumns + ` FROM budgets WHERE org_id = $1 AND id IN (`
		for i, id := range ids {
			args = append(args, id)
			q += strings.Repeat(",", min(i, 1)) + fmt.Sprintf("$%d", len(args))
		}
		q += `)`
	}
	return s.budgets(ctx, q+` ORDER BY id`, args...)
}

// PutBudget makes a budget, or changes its limit, mode and whom it applies to as a
// change, and sets its revision and CreatedAt; one that is as it stands stays.
// The counters of the open window, and of the next where there is one, take the
// new limit at once; recalls are to be told to the org's watches after the commit, unless Recalls does.
// ErrConflict: the one that stands has another unit or window.
func (t *Tx) PutBudget(ctx context.Context, b *Budget) (created bool, recalls []budget.Recall, err error) {
	if err := t.turn(ctx); err != nil {
		return false, nil, err
	}
	old, err := t.Budget(ctx, b.OrgID, b.ID)
	if errors.Is(err, ErrNotFound) {
		return true, nil, t.insertBudget(ctx, b)
	}
	if err != nil {
		return false, nil, err
	}
	if old.Unit != b.Unit || old.Window != b.Window {
		return false, nil, ErrConflict
	}
	b.CreatedAt, b.Revision = old.CreatedAt, old.Revision
	if old.Record == b.Record {
		return false, nil, nil
	}
	if b.Revision, err = t.revision(ctx, b.OrgID, b.ID, eventBudget); err != nil {
		return false, nil, err
	}
	if _, err := t.exec(ctx, `UPDATE budgets SET lim = $3, mode = $4, team_id = $5, whole_org = $6, revision = $7
		WHERE org_id = $1 AND id = $2`, b.OrgID, b.ID, b.Limit, string(b.Mode), team(b), whole(b), b.Revision); err != nil {
		return false, nil, fmt.Errorf("change budget %s: %w", b.ID, err)
	}
	recalls, err = t.relimit(ctx, b, &old)
	return false, recalls, err
}

func (t *Tx) insertBudget(ctx context.Context, b *Budget) (err error) {
	if b.Revision, err = t.revision(ctx, b.OrgID, b.ID, eventBudget); err != nil {
		return err
	}
	b.CreatedAt = timeOf(micros(t.now))
	_, err = t.exec(ctx, `INSERT INTO budgets (`+budgetColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		b.OrgID, b.ID, string(b.Unit), string(b.Window), b.Limit, string(b.Mode), team(b), whole(b), b.Revision, micros(b.CreatedAt))
	if err != nil {
		return fmt.Errorf("make budget %s: %w", b.ID, err)
	}
	return nil
}

func team(b *Budget) sql.NullString {
	return sql.NullString{String: b.AppliesTo.TeamID, Valid: b.AppliesTo.TeamID != ""}
}

func whole(b *Budget) int64 {
	if b.AppliesTo.Org {
		return 1
	}
	return 0
}

// relimit brings the counters that are open to a budget's change.
func (t *Tx) relimit(ctx context.Context, b, old *Budget) (recalls []budget.Recall, err error) {
	enforced := old.Mode != b.Mode && b.Mode == budget.Enforce
	open := spanAt(b.Window, t.now)
	for _, w := range []span{open, open.next()} {
		c, err := t.counter(ctx, b.OrgID, place{b.ID, w.name}, "")
		if err != nil {
			return nil, err
		}
		switch {
		case c == nil && enforced && w == open:
			c = newCounter(place{b.ID, w.name}, w, old.Limit)
		case c == nil:
			continue
		}
		if enforced {
			if err := t.observed(ctx, b.OrgID, c); err != nil {
				return nil, err
			}
		}
		c.limited(b.Limit-old.Limit, t.now)
		recalls = append(recalls, t.announce(c))
		if err := t.keep(ctx, b.OrgID, c, ""); err != nil {
			return nil, err
		}
		if w.ends == never {
			break
		}
	}
	return recalls, nil
}

// observed charges a counter with what its budget was seen to spend while nobody
// leased it: it denies by that from now on.
func (t *Tx) observed(ctx context.Context, org string, c *counter) error {
	var told int64
	err := t.row(ctx, `SELECT amount FROM charges WHERE org_id = $1 AND budget = $2 AND win = $3`, org, c.budget, c.window).Scan(&told)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read charges: %w", err)
	}
	rest, err := t.others(ctx, org, c, "")
	if err != nil {
		return err
	}
	if more := told - rest.settled - c.own.spent - c.own.overrun; more > 0 {
		c.own.isNew, c.own.exists = !c.own.exists, true
		c.overran(c.own.overrun + more)
	}
	return nil
}

// TopUp raises the limit of the open window by an amount, which must be above 0.
// A key that was taken before changes nothing: again; with another amount it is
// ErrConflict. ErrTooMuch: the limit would be beyond what can be counted.
func (t *Tx) TopUp(ctx context.Context, org, id string, amount int64, key string) (again bool, recalls []budget.Recall, err error) {
	if err := t.turn(ctx); err != nil {
		return false, nil, err
	}
	b, err := t.Budget(ctx, org, id)
	if err != nil {
		return false, nil, err
	}
	if amount <= 0 {
		return false, nil, fmt.Errorf("top up budget %s: an amount of %d", id, amount)
	}
	var before int64
	switch err := t.row(ctx, `SELECT amount FROM top_ups WHERE org_id = $1 AND budget = $2 AND request = $3`, org, id, key).Scan(&before); {
	case err == nil && before == amount:
		return true, nil, nil
	case err == nil:
		return false, nil, ErrConflict
	case !errors.Is(err, sql.ErrNoRows):
		return false, nil, fmt.Errorf("top up budget %s: %w", id, err)
	}
	w := spanAt(b.Window, t.now)
	c, err := t.counter(ctx, org, place{id, w.name}, "")
	if err != nil {
		return false, nil, err
	}
	if c == nil {
		c = newCounter(place{id, w.name}, w, b.Limit)
	}
	if amount > maxAmount-c.lim {
		return false, nil, ErrTooMuch
	}
	c.limited(amount, t.now)
	told := t.announce(c)
	if err := t.keep(ctx, org, c, ""); err != nil {
		return false, nil, err
	}
	if _, err := t.exec(ctx, `INSERT INTO top_ups (org_id, budget, request, amount, win, at) VALUES ($1, $2, $3, $4, $5, $6)`,
		org, id, key, amount, w.name, micros(t.now)); err != nil {
		return false, nil, fmt.Errorf("top up budget %s: %w", id, err)
	}
	return false, []budget.Recall{told}, nil
}
