package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// rowsAtOnce is how many rows one statement writes.
const rowsAtOnce = 16

// settleAtOnce is how many settlements one transaction keeps: lease calls wait for it.
const settleAtOnce = 8 * rowsAtOnce

const settlementColumns = 20

func insertSettlements(numbered bool, rows int) string {
	return `INSERT INTO settlements (org_id, id, gateway_id, at, token_id, team_id, model, target, ` +
		strings.Join(usageAmounts, ", ") + `, charged) VALUES ` + values(numbered, rows, settlementColumns) +
		` ON CONFLICT (org_id, id) DO NOTHING RETURNING id`
}

// Settle keeps who spent, each id of an org once, and adds it to usage and to what
// is told of the budgets that it names. A nil error: all of it is kept. It moves no
// money, but it is all that an observed budget counts.
func (s *Store) Settle(ctx context.Context, org, gateway string, list []budget.Settlement) error {
	for part := range slices.Chunk(unique(list), settleAtOnce) {
		if err := s.settle(ctx, org, gateway, part); err != nil {
			return err
		}
	}
	s.clean(ctx)
	return nil
}

func (s *Store) settle(ctx context.Context, org, gateway string, list []budget.Settlement) error {
	return s.beside(ctx, func(ctx context.Context, t *Tx) error {
		b := batch{Tx: t, org: org, gateway: gateway, usage: map[usageKey]*UsageRow{}, charges: map[place]*charged{}, records: map[string]*Budget{}}
		for part := range slices.Chunk(list, rowsAtOnce) {
			if err := b.insert(ctx, part); err != nil {
				return err
			}
		}
		if err := b.addUsage(ctx); err != nil {
			return err
		}
		if err := b.addCharges(ctx); err != nil {
			return err
		}
		return t.forgetSettlements(ctx, forgetRatio*len(list))
	})
}

func unique(list []budget.Settlement) []budget.Settlement {
	seen := make(map[string]bool, len(list))
	once := make([]budget.Settlement, 0, len(list))
	for i := range list {
		if !seen[list[i].ID] {
			seen[list[i].ID] = true
			once = append(once, list[i])
		}
	}
	return once
}

// batch is what a list of settlements adds up to.
type batch struct {
	*Tx
	org, gateway string
	usage        map[usageKey]*UsageRow
	charges      map[place]*charged
	records      map[string]*Budget
}

type usageKey struct{ day, token, team, model, target string }

type charged struct{ amount, unpriced, ends int64 }

// insert keeps settlements and takes those into the sums that were not known.
func (b *batch) insert(ctx context.Context, list []budget.Settlement) (err error) {
	args := make([]any, 0, settlementColumns*len(list))
	for i := range list {
		n := &list[i]
		n.At = b.past(n.At)
		for _, s := range []*string{&n.ID, &n.TokenID, &n.TeamID, &n.Model, &n.Target} {
			*s = storable(*s)
		}
		row := sums(n)
		charges, err := json.Marshal(n.Budgets)
		if err != nil {
			return fmt.Errorf("keep settlements: %w", err)
		}
		args = append(args, b.org, n.ID, b.gateway, micros(n.At), n.TokenID, n.TeamID, n.Model, n.Target)
		args = append(args, row.amounts()...)
		args = append(args, string(charges))
	}
	rows, err := b.query(ctx, insertSettlements(b.turns, len(list)), args...)
	if err != nil {
		return fmt.Errorf("keep settlements: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	added := make(map[string]bool, len(list))
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("keep settlements: %w", err)
		}
		added[id] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("keep settlements: %w", err)
	}
	for i := range list {
		if !added[list[i].ID] {
			continue
		}
		if err := b.add(ctx, &list[i]); err != nil {
			return err
		}
	}
	return nil
}

// storable leaves out what a database may refuse in a text: a settlement that is
// never kept would keep those behind it from being told.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "")
}

// past keeps a gateway's clock from writing into days to come.
func (b *batch) past(t time.Time) time.Time {
	if t.After(b.now) {
		return b.now
	}
	return t
}

// add takes a settlement into the sums.
func (b *batch) add(ctx context.Context, n *budget.Settlement) error {
	key := usageKey{n.At.UTC().Format(time.DateOnly), n.TokenID, n.TeamID, n.Model, n.Target}
	if b.usage[key] == nil {
		b.usage[key] = &UsageRow{Day: key.day, TokenID: key.token, TeamID: key.team, Model: key.model, Target: key.target}
	}
	row := sums(n)
	b.usage[key].add(&row)
	for _, c := range n.Budgets {
		record, ok := b.records[c.Budget]
		if !ok {
			found, err := b.Budget(ctx, b.org, c.Budget)
			if err == nil {
				record = &found
			} else if !errors.Is(err, ErrNotFound) {
				return err
			}
			b.records[c.Budget] = record
		}
		if record == nil {
			continue // nobody can ask for it
		}
		w := spanAt(record.Window, n.At)
		if c.Window == "" {
			c.Window = w.name
		}
		sum := b.charges[place{c.Budget, c.Window}]
		if sum == nil {
			sum = &charged{ends: w.ends}
			b.charges[place{c.Budget, c.Window}] = sum
		}
		sum.amount = plus(sum.amount, c.Amount)
		if n.Unpriced && record.Unit == budget.USD {
			sum.unpriced = plus(sum.unpriced, n.Requests)
		}
	}
	return nil
}

func (b *batch) addCharges(ctx context.Context) error {
	places := make([]place, 0, len(b.charges))
	for p := range b.charges {
		places = append(places, p)
	}
	slices.SortFunc(places, cmpPlaces)
	const columns = 6
	for part := range slices.Chunk(places, rowsAtOnce) {
		args := make([]any, 0, columns*len(part))
		for _, p := range part {
			c := b.charges[p]
			args = append(args, b.org, p.budget, p.window, c.amount, c.unpriced, c.ends)
		}
		if _, err := b.exec(ctx, `INSERT INTO charges (org_id, budget, win, amount, unpriced, ends_at) VALUES `+values(b.turns, len(part), columns)+
			` ON CONFLICT (org_id, budget, win) DO UPDATE SET `+added("charges", "amount", "unpriced"), args...); err != nil {
			return fmt.Errorf("add up charges: %w", err)
		}
	}
	return nil
}

// forgetSettlements forgets at most n that are older than they are kept.
func (t *Tx) forgetSettlements(ctx context.Context, n int) error {
	if _, err := t.exec(ctx, `DELETE FROM settlements WHERE (org_id, id) IN
		(SELECT org_id, id FROM settlements WHERE at < $1 ORDER BY at LIMIT $2)`, micros(t.now.Add(-settledStay)), n); err != nil {
		return fmt.Errorf("forget settlements: %w", err)
	}
	return nil
}

// values writes the places of rows of arguments: ($1,$2),($3,$4) where they are
// numbered, else (?,?),(?,?). To SQLite a $1 is a name, which it finds, in making a
// statement and at every argument, by a walk over all names: of a few hundred that
// was most of a settlement's cost. PostgreSQL knows numbers only.
func values(numbered bool, rows, columns int) string {
	q := make([]byte, 0, 5*rows*columns)
	for r := range rows {
		if r > 0 {
			q = append(q, ',')
		}
		q = append(q, '(')
		for c := range columns {
			if c > 0 {
				q = append(q, ',')
			}
			if numbered {
				q = strconv.AppendInt(append(q, '$'), int64(r*columns+c+1), 10)
			} else {
				q = append(q, '?')
			}
		}
		q = append(q, ')')
	}
	return string(q)
}

// added sets columns to what they were and what comes, as far as they can count:
// one database would go on in floating point, the other fail.
func added(table string, columns ...string) string {
	set := make([]string, len(columns))
	for i, c := range columns {
		set[i] = fmt.Sprintf(`%[2]s = CASE WHEN %[1]s.%[2]s > %[3]d - excluded.%[2]s THEN %[3]d ELSE %[1]s.%[2]s + excluded.%[2]s END`,
			table, c, int64(maxAmount))
	}
	return strings.Join(set, ", ")
}

// plus adds amounts from 0 on, as far as they can count.
func plus(a, b int64) int64 { return a + min(b, maxAmount-a) }
