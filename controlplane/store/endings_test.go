package store

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

func mark(id string, mark, overrun int64) budget.ClosedLease {
	return budget.ClosedLease{Budget: id, Window: today, Mark: mark, Overrun: overrun}
}

// dying is a bank whose session s holds 60 of 100 and has told that it spent 20.
func dying(b *bank) {
	b.budget("b", 100)
	b.need("s", 60, "b")
	b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 60, Spent: 20, Held: 15, Overrun: 1})
	b.stands("b", "21 15 25 39")
}

var endings = []scenario{
	onBank("a closed session is charged up to its mark, and the rest is back", func(b *bank) {
		dying(b)
		if o := b.close("s", false, mark("b", 35, 3)); len(o.Closed) != 1 || o.Closed[0] != "s" {
			b.Errorf("closed %v", o.Closed)
		}
		b.stands("b", "38 0 0 62")
	}),
	onBank("a mark below what was told is not believed", func(b *bank) {
		dying(b)
		b.close("s", false, mark("b", 5, 0))
		b.stands("b", "21 0 0 79")
	}),
	onBank("a mark above what is out charges what is out", func(b *bank) {
		dying(b)
		b.tell("s", budget.Lease{Budget: "b", Window: today, Granted: 60, Spent: 20, Returned: 30, Overrun: 1})
		b.close("s", false, mark("b", math.MaxInt64, 0))
		b.stands("b", "31 0 0 69")
	}),
	onBank("a lost journal charges all that is out", func(b *bank) {
		dying(b)
		b.close("s", true)
		b.stands("b", "61 0 0 39")
	}),
	onBank("a lease that the journal does not know was not spent from", func(b *bank) {
		b.budget("b", 100)
		b.need("s", 60, "b")
		b.close("s", false)
		b.stands("b", "0 0 0 100")
	}),
	onBank("closing again changes nothing, whatever it claims", func(b *bank) {
		dying(b)
		b.close("s", false, mark("b", 35, 3))
		want := b.dump(allOfLeases)
		for _, again := range []budget.Closing{
			{Session: "s", Leases: []budget.ClosedLease{mark("b", 35, 3)}}, {Session: "s"}, {Session: "s", Lost: true},
			{Session: "s", Leases: []budget.ClosedLease{mark("b", 60, 3), mark("b", 1, 0)}},
		} {
			b.seqs["s-heir"] = 0
			if o := b.call("s-heir", budget.Call{Close: []budget.Closing{again}}); len(o.Closed) != 1 {
				b.Errorf("closed %v", o.Closed)
			}
			if got := b.dump(allOfLeases); got != want {
				b.Errorf("%+v:\n%s\nwant\n%s", again, got, want)
			}
		}
	}),
	onBank("closing ends what a crash left half done", func(b *bank) {
		dying(b)
		if _, err := b.s.write.Exec(`UPDATE sessions SET closed_at = 1 WHERE session = 's'`); err != nil {
			b.Fatal(err)
		}
		b.close("s", false, mark("b", 35, 0))
		b.stands("b", "36 0 0 64")
	}),
	onBank("a session is closed by its own gateway alone", func(b *bank) {
		dying(b)
		b.home["thief"] = "other"
		want := b.dump(allOfLeases)
		o := b.call("thief", budget.Call{Close: []budget.Closing{{Session: "s", Lost: true}}})
		if len(o.Closed) != 0 {
			b.Errorf("closed %v", o.Closed)
		}
		if got := b.dump(allOfLeases); got != want+"thief other 1 0 \n" {
			b.Errorf("got\n%s\nwant\n%s", got, want)
		}
		b.home["s"] = "other"
		b.seqs["s"]++
		if _, err := b.send(budget.Call{Session: "s", Seq: b.seqs["s"], Needs: [][]budget.Need{needOf(1, "b")}}); !errors.Is(err, budget.ErrClosed) {
			b.Errorf("spoken for by another: %v", err)
		}
		b.stands("b", "21 15 25 39")
	}),
	onBank("nothing of a closed session counts any more, but its closings", func(b *bank) {
		dying(b)
		b.need("old", 10, "b")
		b.close("s", false, mark("b", 35, 0))
		before := b.dump(allOfLeases)
		late := budget.Call{Session: "s", Seq: 99, Needs: [][]budget.Need{needOf(1, "b")},
			Leases: []budget.Lease{{Budget: "b", Window: today, Granted: 60, Spent: 60, Overrun: 40, Returned: 60, Want: 9}}}
		if o, err := b.send(late); !errors.Is(err, budget.ErrClosed) || o.Answer != nil {
			b.Errorf("%+v %v", o, err)
		}
		if got := b.dump(allOfLeases); got != before {
			b.Errorf("got\n%s\nwant\n%s", got, before)
		}
		late.Close = []budget.Closing{{Session: "old"}}
		if _, err := b.send(late); !errors.Is(err, budget.ErrClosed) {
			b.Errorf("got %v", err)
		}
		b.stands("b", "36 0 0 64")
	}),
	onBank("a session that was never heard is closed before its first call arrives", func(b *bank) {
		b.budget("b", 100)
		if o := b.close("s", false); len(o.Closed) != 1 {
			b.Errorf("closed %v", o.Closed)
		}
		if _, err := b.send(budget.Call{Session: "s", Seq: 1, Leases: []budget.Lease{{Budget: "b", Window: "current", Want: 9}}}); !errors.Is(err, budget.ErrClosed) {
			b.Errorf("a late wish: %v", err)
		}
		b.stands("b", "0 0 0 100")
	}),
	onBank("what a closing gives back ends a shortage", func(b *bank) {
		dying(b)
		b.need("s2", 50, "b")
		b.budget("b", 1000) // far from short
		b.budget("b", 100)
		b.need("s2", 50, "b")
		o := b.close("s", false, mark("b", 0, 0))
		if o.recalled() != "" { // 79 left, but 50 was not met
			b.Errorf("recalled %q", o.recalled())
		}
		b.is(b.need("s2", 79, "b"), "b", "79 0 3 gone")
	}),
	onBank("more leases than one transaction locks are closed", func(b *bank) {
		const n = 2*together + 3
		var marks []budget.ClosedLease
		var needs [][]budget.Need
		for i := range n {
			id := fmt.Sprintf("b%03d", i)
			b.budget(id, 10)
			needs = append(needs, needOf(10, id))
			marks = append(marks, mark(id, int64(i%11), 0))
		}
		b.call("s", budget.Call{Needs: needs})
		b.close("s", false, marks...)
		for i := range n {
			b.stands(fmt.Sprintf("b%03d", i), fmt.Sprintf("%d 0 0 %d", i%11, 10-i%11))
		}
	}),
	onBank("a silent session is shown as charged, and as it is when it is heard again", func(b *bank) {
		dying(b)
		b.wait(10 * time.Second)
		b.stands("b", "21 15 25 39")
		b.wait(time.Microsecond)
		b.stands("b", "61 0 0 39")
		if got := b.need("s2", 1, "b").of("b").Settled; got != 61 {
			b.Errorf("a gateway is told %d settled", got)
		}
		b.tell("s")
		b.stands("b", "21 15 26 38")
	}),
	onBank("copies of any call, at any time after it, change nothing", copies),
	onBank("facts come to the same in any order", reordered),
	onBank("no call, however wrong, unbalances a counter or passes its limit", nonsense),
}

// copies runs one history of three sessions twice: as it was, and with every call
// delivered again and again, late.
func copies(b *bank) {
	for _, id := range []string{"a", "b"} {
		b.budget(id, 500)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var sent []budget.Call
	deliver := func(c budget.Call) {
		if _, err := b.send(c); err != nil && !errors.Is(err, budget.ErrClosed) {
			b.Fatal(err)
		}
	}
	known := map[string]*budget.Lease{}
	for step := range 240 {
		session := fmt.Sprintf("s%d", r.IntN(3)+3*(step/60))
		id := string("ab"[r.IntN(2)])
		l := known[session+id]
		if l == nil {
			l = &budget.Lease{Budget: id, Window: today}
			known[session+id] = l
		}
		c := budget.Call{Session: session, Seq: int64(step + 1)}
		idle := l.Granted - l.Returned - l.Spent
		spend := r.Int64N(idle + 1)
		l.Spent += spend
		l.Returned += r.Int64N(idle - spend + 1)
		if l.Granted > 0 {
			l.Overrun += r.Int64N(2)
		}
		l.Held = l.Granted - l.Returned - l.Spent
		fact := *l
		fact.Want = r.Int64N(20)
		c.Leases = []budget.Lease{fact}
		if r.IntN(3) == 0 {
			c.Needs = [][]budget.Need{needOf(r.Int64N(30), "a", "b"), needOf(r.Int64N(30), id)}
		}
		if step%60 == 59 {
			for i := range 3 {
				c.Close = append(c.Close, budget.Closing{Session: fmt.Sprintf("s%d", i+3*(step/60)), Lost: i == 1, Leases: []budget.ClosedLease{mark("a", 30, int64(step))}})
			}
		}
		o, err := b.send(c)
		if err != nil && !errors.Is(err, budget.ErrClosed) {
			b.Fatal(err)
		}
		if err == nil {
			for _, info := range o.Leases {
				if k := known[session+info.Budget]; k != nil {
					k.Granted, k.Phase = max(k.Granted, info.Granted), info.Phase
				} else {
					known[session+info.Budget] = &budget.Lease{Budget: info.Budget, Window: today, Granted: info.Granted}
				}
			}
		}
		sent = append(sent, c)
		b.sound()
		want := b.dump(allOfLeases)
		for range 3 {
			deliver(sent[len(sent)-1-r.IntN(min(len(sent), 60))])
		}
		if got := b.dump(allOfLeases); got != want {
			b.Fatalf("step %d: a copy changed\n%s\nto\n%s", step, want, got)
		}
		b.wait(time.Duration(r.IntN(300)) * time.Millisecond)
	}
}

// reordered delivers calls that bring facts alone in many orders, with copies.
func reordered(b *bank) {
	const sessions, calls = 3, 12
	r := rand.New(rand.NewPCG(3, 4))
	var want string
	for round := range 20 {
		id := fmt.Sprintf("b%d", round)
		b.budget(id, 10_000)
		var list []budget.Call
		for n := range sessions {
			s := fmt.Sprintf("s%d", n)
			b.need(s, 1000, id)
			base := b.seqs[s]
			// The same history each round, told in another order.
			h := rand.New(rand.NewPCG(5, uint64(n)))
			l := budget.Lease{Budget: id, Window: today, Granted: 1000}
			for i := range calls {
				l.Spent += h.Int64N(40)
				l.Returned += h.Int64N(40)
				l.Overrun += h.Int64N(3)
				l.Held = h.Int64N(5)
				list = append(list, budget.Call{Session: s, Seq: base + int64(i) + 1, Leases: []budget.Lease{l}})
			}
			b.seqs[s] += calls
		}
		if round > 0 {
			list = append(list, list[r.IntN(len(list))], list[r.IntN(len(list))])
			r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		}
		for _, c := range list {
			if _, err := b.send(c); err != nil {
				b.Fatal(err)
			}
			b.sound()
		}
		var got string
		for n := range sessions {
			got += fmt.Sprintf("%+v\n", *b.read(id, fmt.Sprintf("s%d", n)))
		}
		if round == 0 {
			want = got
		} else if got != want {
			b.Fatalf("round %d:\n%s\nwant\n%s", round, got, want)
		}
	}
}

// read returns a session's lease and its counter's sums.
func (b *bank) read(id, session string) *counter {
	b.Helper()
	tx, err := b.s.read.Begin()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	c, err := (&Tx{tx: tx, now: b.at}).counter(b.Context(), "org", place{id, today}, session)
	if err != nil || c == nil {
		b.Fatal(c, err)
	}
	c.budget = ""
	return c
}

// nonsense sends calls that no honest gateway would.
func nonsense(b *bank) {
	r := rand.New(rand.NewPCG(6, 7))
	amounts := []int64{0, 0, 1, 2, 7, 30, 100, 1 << 40, math.MaxInt64 / 2, math.MaxInt64 - 1, math.MaxInt64}
	any := func() int64 { return amounts[r.IntN(len(amounts))] }
	b.budget("a", 100)
	b.budget("b", 1000)
	for step := range 600 {
		id := string("ab"[r.IntN(2)])
		session := fmt.Sprintf("s%d", r.IntN(4)+4*(step/120))
		c := budget.Call{Session: session, Seq: 1 + r.Int64N(int64(step)+1)}
		for _, id := range []string{"a", "b"} {
			c.Leases = append(c.Leases, budget.Lease{Budget: id, Window: today, Granted: any(), Returned: any(), Spent: any(),
				Held: any(), Overrun: amounts[r.IntN(3)], Phase: any(), Want: any()})
		}
		c.Needs = [][]budget.Need{needOf(any(), id), needOf(any(), "a", "b")}
		if r.IntN(40) == 0 {
			c.Close = []budget.Closing{{Session: fmt.Sprintf("s%d", r.IntN(20)), Lost: r.IntN(2) == 0, Leases: []budget.ClosedLease{mark(id, any(), any()%3)}}}
		}
		if _, err := b.send(c); err != nil && !errors.Is(err, budget.ErrClosed) {
			b.Fatal(err)
		}
		b.sound()
		for _, id := range []string{"a", "b"} {
			if k := b.peek(id); k != nil && k.taken-k.overrun > k.lim {
				b.Fatalf("step %d: %s: taken %d, overrun %d, limit %d", step, id, k.taken, k.overrun, k.lim)
			}
		}
		if r.IntN(20) == 0 {
			if _, err := b.s.Standing(b.Context(), "org", "a", "b"); err != nil {
				b.Fatal(err)
			}
			b.wait(time.Duration(r.IntN(5)) * time.Second)
		}
	}
}

func (b *bank) peek(id string) *counter {
	c, err := scanCounter(b.s.read.QueryRow(selectCounter, "org", id, today, "-"), place{id, today})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func TestACallWhoseContextHasEndedTakesNothing(t *testing.T) {
	b := newBank(t, open(t, t.TempDir()+"/k.db"))
	b.budget("b", 10)
	ctx, cancel := contextEnded()
	defer cancel()
	if _, _, err := b.s.Leases(ctx, "org", "gw", &budget.Call{Session: "s", Seq: 1, Needs: [][]budget.Need{needOf(1, "b")}}); err == nil {
		t.Error("it was taken")
	}
	b.stands("b", "0 0 0 10")
}
