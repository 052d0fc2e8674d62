package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// bank is a store with a clock that stands until it is moved, and gateways that call.
type bank struct {
	*testing.T
	s    *Store
	at   time.Time
	seqs map[string]int64
	home map[string]string // the gateway of a session; "gw" unless named
}

func newBank(t *testing.T, s *Store) *bank {
	b := &bank{T: t, s: s, at: noon, seqs: map[string]int64{}, home: map[string]string{}}
	s.Clock(func() time.Time { return b.at })
	return b
}

// today is the window of a day's budget at noon.
const today = "2026-11-24.0"

func (b *bank) wait(d time.Duration) { b.at = b.at.Add(d) }

// budget makes or changes an enforced budget of a day in requests.
func (b *bank) budget(id string, limit int64, change ...func(*Budget)) []budget.Recall {
	b.Helper()
	n := Budget{OrgID: "org", Record: budget.Record{ID: id, Unit: budget.Requests, Window: budget.Day, Limit: limit, Mode: budget.Enforce}}
	for _, f := range change {
		f(&n)
	}
	recalls, err := b.put(&n)
	if err != nil {
		b.Fatal(err)
	}
	return recalls
}

func (b *bank) put(n *Budget) (recalls []budget.Recall, err error) {
	err = b.s.Update(context.Background(), b.at, func(tx *Tx) error {
		_, recalls, err = tx.PutBudget(context.Background(), n)
		return err
	})
	return recalls, err
}

func (b *bank) topUp(id string, amount int64, key string) (again bool, recalls []budget.Recall, err error) {
	err = b.s.Update(context.Background(), b.at, func(tx *Tx) error {
		again, recalls, err = tx.TopUp(context.Background(), "org", id, amount, key)
		return err
	})
	return again, recalls, err
}

// outcome is what came of a call.
type outcome struct {
	*budget.Answer
	recalls []budget.Recall
}

// send delivers a call as it is.
func (b *bank) send(c budget.Call) (outcome, error) {
	home := b.home[c.Session]
	if home == "" {
		home = "gw"
	}
	answer, recalls, err := b.s.Leases(context.Background(), "org", home, &c)
	return outcome{answer, recalls}, err
}

// call delivers a session's next call, which must be taken.
func (b *bank) call(session string, c budget.Call) outcome {
	b.Helper()
	b.seqs[session]++
	c.Session, c.Seq = session, b.seqs[session]
	o, err := b.send(c)
	if err != nil {
		b.Fatalf("%s: %v", session, err)
	}
	if o.Seq != c.Seq || o.Closed == nil || o.Leases == nil {
		b.Fatalf("%s: %+v", session, o.Answer)
	}
	return o
}

func (b *bank) tell(session string, facts ...budget.Lease) outcome {
	b.Helper()
	return b.call(session, budget.Call{Leases: facts})
}

func (b *bank) want(session, id, window string, amount int64) outcome {
	b.Helper()
	return b.tell(session, budget.Lease{Budget: id, Window: window, Want: amount})
}

// need asks for one amount in each of some budgets at once.
func (b *bank) need(session string, amount int64, ids ...string) outcome {
	b.Helper()
	return b.call(session, budget.Call{Needs: [][]budget.Need{needOf(amount, ids...)}})
}

func needOf(amount int64, ids ...string) []budget.Need {
	var n []budget.Need
	for _, id := range ids {
		n = append(n, budget.Need{Budget: id, Window: budget.WindowCurrent, Amount: amount})
	}
	return n
}

func (b *bank) close(session string, lost bool, marks ...budget.ClosedLease) outcome {
	b.Helper()
	return b.call(session+"-heir", budget.Call{Close: []budget.Closing{{Session: session, Leases: marks, Lost: lost}}})
}

// of finds what an answer says of a budget.
func (o outcome) of(id string) budget.LeaseInfo {
	for _, l := range o.Leases {
		if l.Budget == id {
			return l
		}
	}
	return budget.LeaseInfo{Granted: -1, Left: -1}
}

// is holds an answer about a budget to "granted left phase".
func (b *bank) is(o outcome, id, want string) {
	b.Helper()
	l := o.of(id)
	got := fmt.Sprintf("%d %d %d", l.Granted, l.Left, l.Phase)
	if l.Gone {
		got += " gone"
	}
	if got != want {
		b.Errorf("%s: granted, left, phase: got %s, want %s", id, got, want)
	}
	b.sound()
}

// stands holds a budget to "settled held leased left".
func (b *bank) stands(id, want string) {
	b.Helper()
	all, err := b.s.Standing(context.Background(), "org", id)
	if err != nil {
		b.Fatal(err)
	}
	s := all[id]
	if got := fmt.Sprintf("%d %d %d %d", s.Settled, s.Held, s.Leased, s.Left); got != want {
		b.Errorf("%s: settled, held, leased, left: got %s, want %s (%+v)", id, got, want, s)
	}
}

// recalled is "budget/phase" of what is to be told to the watches.
func (o outcome) recalled() string {
	var list []string
	for _, r := range o.recalls {
		list = append(list, fmt.Sprintf("%s/%d", r.Budget, r.Phase))
	}
	return strings.Join(list, " ")
}

// sound holds the counters to what is true of them at any time.
func (b *bank) sound() {
	b.Helper()
	rows, err := b.s.read.Query(`SELECT c.budget, c.win, c.lim, c.taken, c.overrun,
		COALESCE(SUM(l.granted - l.returned), 0), COALESCE(SUM(l.overrun), 0), COALESCE(MAX(l.returned + l.spent + l.held - l.granted), 0)
		FROM counters c LEFT JOIN leases l ON l.org_id = c.org_id AND l.budget = c.budget AND l.win = c.win
		GROUP BY c.org_id, c.budget, c.win, c.lim, c.taken, c.overrun`)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id, window string
		var lim, taken, overrun, out, over, excess int64
		if err := rows.Scan(&id, &window, &lim, &taken, &overrun, &out, &over, &excess); err != nil {
			b.Fatal(err)
		}
		if taken != out+over || overrun != over || taken < 0 || excess > 0 {
			b.Fatalf("%s %s: taken %d, overrun %d, but out %d and overrun %d of leases, of which one passes its grant by %d", id, window, taken, overrun, out, over, excess)
		}
	}
}

// dump is all that the protocol keeps, but when sessions were heard.
func (b *bank) dump(columns string) string {
	b.Helper()
	var all strings.Builder
	for _, q := range []string{
		`SELECT budget, win, lim, taken, overrun, phase, phase_at, unmet FROM counters ORDER BY budget, win`,
		`SELECT budget, win, session, ` + columns + ` FROM leases ORDER BY budget, win, session`,
		`SELECT session, gateway_id, seq, CASE WHEN closed_at IS NULL THEN 0 ELSE 1 END FROM sessions ORDER BY session`,
	} {
		rows, err := b.s.read.Query(q)
		if err != nil {
			b.Fatal(err)
		}
		names, err := rows.Columns()
		if err != nil {
			b.Fatal(err)
		}
		for rows.Next() {
			row := make([]any, len(names))
			for i := range row {
				row[i] = new(any)
			}
			if err := rows.Scan(row...); err != nil {
				b.Fatal(err)
			}
			for _, v := range row {
				fmt.Fprintf(&all, "%v ", *v.(*any))
			}
			all.WriteByte('\n')
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			b.Fatal(err)
		}
	}
	return all.String()
}

const allOfLeases = "granted, returned, spent, overrun, held, seen, acked"
