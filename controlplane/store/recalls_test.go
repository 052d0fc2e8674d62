package store

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

var recalling = []scenario{
	onBank("a recall is told at once, and again every 100 ms while a need stays unmet", func(b *bank) {
		b.budget("b", 100)
		b.need("s1", 100, "b")
		for i, tt := range []struct {
			after   time.Duration
			session string
			want    string
		}{
			{0, "s2", "b/1"}, {25 * time.Millisecond, "s2", ""}, {25 * time.Millisecond, "s3", ""},
			{49 * time.Millisecond, "s2", ""}, {time.Millisecond, "s3", "b/1"}, {99 * time.Millisecond, "s2", ""},
			{time.Millisecond, "s2", "b/1"}, {-time.Hour, "s2", "b/1"}, // the clock was set back
		} {
			b.wait(tt.after)
			if got := b.need(tt.session, 1, "b").recalled(); got != tt.want {
				b.Errorf("%d: recalled %q, want %q", i, got, tt.want)
			}
		}
		b.wait(time.Millisecond)
		if got := b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 50, Phase: 1}).recalled(); got != "b/2" {
			b.Errorf("a new phase: recalled %q", got)
		}
	}),
	{"every process over a shared database reads what is to be told, once", func(t *testing.T, s *Store) {
		b := newBank(t, s)
		at := b.turn()
		told := func(want string) {
			t.Helper()
			now := b.turn()
			var got []string
			if err := s.Recalls(context.Background(), at, now, func(org string, r budget.Recall) {
				got = append(got, fmt.Sprintf("%s/%s/%s/%d", org, r.Budget, r.Window, r.Phase))
			}); err != nil {
				t.Fatal(err)
			}
			if at = now; !s.Shared() {
				want = "" // whom a call's answer tells
			}
			if strings.Join(got, " ") != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
		told("")
		b.budget("b", 100)
		b.budget("c", 100)
		b.need("s1", 100, "b", "c")
		told("") // nothing that a watch does not tell
		b.need("s2", 1, "b")
		told("org/b/" + today + "/1")
		told("")
		b.wait(25 * time.Millisecond)
		b.need("s2", 1, "b")
		told("")
		b.wait(75 * time.Millisecond)
		b.need("s2", 1, "b")
		b.need("s2", 1, "c")
		told("org/b/" + today + "/1 org/c/" + today + "/1")
		b.wait(100 * time.Millisecond)
		b.need("s2", 1, "b")
		b.tell("s1", budget.Lease{Budget: "b", Window: today, Granted: 100, Returned: 50, Phase: 1})
		told("org/b/" + today + "/2")
		b.budget("b", 1000)
		if _, _, err := b.topUp("c", 5, "k"); err != nil {
			t.Fatal(err)
		}
		told("org/b/" + today + "/2 org/c/" + today + "/2")
		if _, _, err := b.topUp("c", 5, "k"); err != nil {
			t.Fatal(err)
		}
		told("") // a top-up that was there
		b.need("s3", 2000, "b")
		told("org/b/" + today + "/3")
		b.need("s4", 110, "c")
		told("org/c/" + today + "/3")
		b.budget("d", 100)
		b.need("s5", 100, "d")
		b.need("s6", 1, "d")
		told("org/d/" + today + "/1")
		b.close("s5", false)
		told("org/d/" + today + "/2")
	}},
	{"what fails or changes no money is told to nobody", func(t *testing.T, s *Store) {
		b := newBank(t, s)
		pokes := 0
		s.Moved(func() { pokes++ })
		b.budget("b", 100)
		b.need("s1", 100, "b")
		b.want("s1", "b", "current", 5)
		if pokes != 1 {
			t.Errorf("woken %d times for one budget", pokes)
		}
		b.need("s2", 1, "b")
		want := 1
		if s.Shared() {
			want = 2
		}
		if pokes != want {
			t.Errorf("woken %d times, want %d", pokes, want)
		}
		at := b.turn()
		failed := fmt.Errorf("no")
		if err := s.Update(context.Background(), b.at, func(tx *Tx) error {
			if _, _, err := tx.TopUp(context.Background(), "org", "b", 5, "k"); err != nil {
				return err
			}
			return failed
		}); err != failed {
			t.Fatal(err)
		}
		if now := b.turn(); now != at || pokes != want {
			t.Errorf("turn %d after %d, woken %d times", now, at, pokes)
		}
	}},
}

// turn is how far money has come.
func (b *bank) turn() int64 {
	b.Helper()
	p, err := b.s.Pulse(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return p.Turn
}
