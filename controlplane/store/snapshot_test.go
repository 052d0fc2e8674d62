package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

var snapshots = []scenario{
	{"a snapshot tells an org whole, in order", snapshotWhole},
	{"a snapshot is of one moment", snapshotOfOneMoment},
	{"a snapshot ends with its reader", snapshotEnds},
}

// told is a snapshot as it was told.
type told struct {
	head   int64
	tokens int
	all    []string
}

func (t *told) to(each func()) *SnapshotTold {
	add := func(format string, args ...any) error {
		t.all = append(t.all, fmt.Sprintf(format, args...))
		each()
		return nil
	}
	return &SnapshotTold{
		Begin: func(head int64, tokens int) error {
			t.head, t.tokens = head, tokens
			each()
			return nil
		},
		Token:   func(k *Known) error { return add("known %s %s %s %q", k.ID, k.Status, k.Purpose, k.GatewayID) },
		Budget:  func(b *budget.Record) error { return add("budget %s %d", b.ID, b.Limit) },
		Team:    func(t *Team) error { return add("team %s %v", t.ID, t.DeletedAt != nil) },
		Profile: func(n *Token) error { return add("profile %s", n.Profile.Name) },
	}
}

// of returns what was told of one kind.
func (t *told) of(kind string) string {
	var list []string
	for _, s := range t.all {
		if rest, ok := strings.CutPrefix(s, kind+" "); ok {
			list = append(list, rest)
		}
	}
	return strings.Join(list, ", ")
}

func snapshotOf(t *testing.T, s *Store, of SnapshotOf) *told {
	t.Helper()
	all := &told{}
	if err := s.Snapshot(context.Background(), of, all.to(func() {})); err != nil {
		t.Fatal(err)
	}
	return all
}

func snapshotWhole(t *testing.T, s *Store) {
	ctx := context.Background()
	of := SnapshotOf{OrgID: "org", GatewayID: "gw_1", Profiles: 10, Now: noon}
	if empty := snapshotOf(t, s, of); empty.head != 0 || len(empty.all) != 0 {
		t.Errorf("of nothing: %+v", empty)
	}
	mint := func(name string, change func(*Token)) Token {
		n := sample(s, name)
		change(&n)
		return insert(t, s, n)
	}
	at := func(n Token, gateway string, ago time.Duration) {
		update(t, s, func(tx *Tx) error {
			return tx.Used(ctx, Use{TokenID: n.Profile.ID, OrgID: "org", GatewayID: gateway, At: noon.Add(-ago)})
		})
	}
	theirs := mint("theirs", func(n *Token) { n.Profile.Bindings.GatewayID = pointer("gw_2") })
	mine := mint("mine", func(n *Token) { n.Profile.Bindings.GatewayID = pointer("gw_1") })
	early := mint("early", func(n *Token) {})
	mint("never", func(n *Token) {})
	mint("later", func(n *Token) { n.Profile.ExpiresAt = pointer(noon.Add(time.Microsecond)) })
	past := mint("past", func(n *Token) { n.Profile.ExpiresAt = pointer(noon) })
	revoked := mint("revoked", func(n *Token) { n.Profile.Status = abac.Revoked; n.Profile.Purpose = abac.Integration })
	odd := mint("odd", func(n *Token) { n.Profile.Status = abac.Quarantined })
	mint("foreign", func(n *Token) { n.Profile.OrgID = "else" })
	for _, n := range []Token{past, revoked} {
		at(n, "gw_1", 0)
	}
	at(theirs, "gw_2", 0)
	at(mine, "gw_1", time.Hour)
	at(early, "gw_1", 2*time.Hour)
	at(odd, "gw_3", time.Minute)
	update(t, s, func(tx *Tx) error {
		for _, org := range []string{"org", "else"} {
			b := Budget{OrgID: org, Record: budget.Record{ID: "b_" + org, Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce, Limit: 5}}
			if _, _, err := tx.PutBudget(ctx, &b); err != nil {
				return err
			}
			for _, team := range []Team{{ID: "gone_" + org, DeletedAt: pointer(noon)}, {ID: "stands_" + org}} {
				team.OrgID, team.CreatedAt = org, noon
				if err := tx.PutTeam(ctx, &team); err != nil {
					return err
				}
			}
		}
		return nil
	})
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := snapshotOf(t, s, of)
	if all.head != head || all.tokens != 8 || len(strings.Split(all.of("known"), ", ")) != 8 {
		t.Errorf("head %d of %d, %d tokens: %s", all.head, head, all.tokens, all.of("known"))
	}
	for _, want := range []string{theirs.Profile.ID + ` active general "gw_2"`, mine.Profile.ID + ` active general "gw_1"`,
		revoked.Profile.ID + ` revoked integration ""`, odd.Profile.ID + ` quarantined general ""`} {
		if !strings.Contains(all.of("known"), want) {
			t.Errorf("no %s in %s", want, all.of("known"))
		}
	}
	for kind, want := range map[string]string{
		"budget": "b_org 5", "team": "gone_org true", "profile": "odd, mine, early, later, never, theirs",
	} {
		if got := all.of(kind); got != want {
			t.Errorf("%s: got %s, want %s", kind, got, want)
		}
	}
	of.Profiles = 2
	if got := snapshotOf(t, s, of).of("profile"); got != "odd, mine" {
		t.Errorf("2 profiles: %s", got)
	}
	of.Profiles = 0
	if got := snapshotOf(t, s, of).of("profile"); got != "" {
		t.Errorf("no profiles: %s", got)
	}
}

// Whatever changes while it is told: nothing of it is in the snapshot.
func snapshotOfOneMoment(t *testing.T, s *Store) {
	ctx := context.Background()
	first := insert(t, s, sample(s, "first"))
	second := insert(t, s, sample(s, "second"))
	all, steps := &told{}, 0
	err := s.Snapshot(ctx, SnapshotOf{OrgID: "org", Profiles: 10, Now: noon}, all.to(func() {
		steps++
		insert(t, s, sample(s, fmt.Sprint("later ", steps)))
		update(t, s, func(tx *Tx) error {
			for _, n := range []*Token{&first, &second} {
				n.Profile.Status, n.Profile.Name = abac.Quarantined, "changed"
				if err := tx.Change(ctx, n, "token.quarantined"); err != nil {
					return err
				}
			}
			b := Budget{OrgID: "org", Record: budget.Record{ID: fmt.Sprint("b", steps), Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce}}
			if _, _, err := tx.PutBudget(ctx, &b); err != nil {
				return err
			}
			return tx.PutTeam(ctx, &Team{OrgID: "org", ID: fmt.Sprint("t", steps), CreatedAt: noon, DeletedAt: pointer(noon)})
		})
	}))
	if err != nil {
		t.Fatal(err)
	}
	if all.head != 2 || all.tokens != 2 || steps != 5 || strings.Contains(all.of("known"), "quarantined") || all.of("profile") != "second, first" ||
		all.of("budget") != "" || all.of("team") != "" {
		t.Errorf("%d steps, %+v", steps, all)
	}
}

func snapshotEnds(t *testing.T, s *Store) {
	ctx, cancel := context.WithCancel(context.Background())
	for range 2 * readers {
		insert(t, s, sample(s, "n"))
	}
	mine := errors.New("mine")
	for range 2 * readers { // each gives its connection back
		to := (&told{}).to(func() {})
		to.Token = func(*Known) error { return mine }
		if err := s.Snapshot(ctx, SnapshotOf{OrgID: "org", Profiles: 10, Now: noon}, to); !errors.Is(err, mine) {
			t.Fatalf("got %v", err)
		}
	}
	to := (&told{}).to(cancel)
	if err := s.Snapshot(ctx, SnapshotOf{OrgID: "org", Profiles: 10, Now: noon}, to); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A reader takes its time, which is not the statement's.
func TestASnapshotOutlivesTheBoundOfAStatement(t *testing.T) {
	dsn := postgresURL(t)
	s := openPG(t, dsn)
	name := strings.Repeat("n", 100<<10)
	for range 100 { // more than a socket's buffers hold
		insert(t, s, sample(s, name))
	}
	s = openPG(t, dsn+"&statement_timeout=200ms")
	if _, err := s.read.Exec(`SELECT pg_sleep(1)`); err == nil {
		t.Fatal("statements are not bound")
	}
	profiles, slow := 0, sync.OnceFunc(func() { time.Sleep(500 * time.Millisecond) })
	to := (&told{}).to(func() {})
	to.Profile = func(*Token) error {
		slow()
		profiles++
		return nil
	}
	if err := s.Snapshot(context.Background(), SnapshotOf{OrgID: "org", Profiles: 1000, Now: noon}, to); err != nil || profiles != 100 {
		t.Errorf("%d profiles, %v", profiles, err)
	}
}
