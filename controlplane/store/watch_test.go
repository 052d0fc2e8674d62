package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

var watched = []scenario{
	{"the log is read in the order of commits under parallel writers", readsOn},
	{"an org's log holds its own changes, each subject once", ownChanges},
	{"the log keeps a day and a hundred thousand changes", pruned},
	{"an instance's revision only rises, to what was given", revisionRises},
	{"a team is one change, and its own org's", teamsChange},
	{"a watch is live until it ends or its time is over", liveWatch},
	{"an instance is forgotten when another runs from its folder", sameFolder},
}

func change(t *testing.T, s *Store, n *Token, name string) {
	t.Helper()
	update(t, s, func(tx *Tx) error {
		n.Profile.Name = name
		return tx.Change(context.Background(), n, "token.updated")
	})
}

func changes(t *testing.T, s *Store, org string, since int64, limit int) Changes {
	t.Helper()
	c, err := s.Changes(context.Background(), org, since, limit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func readsOn(t *testing.T, s *Store) {
	var mu sync.Mutex
	committed := map[string]int64{} // noted after the commit: at least this can be read
	var writers sync.WaitGroup
	defer writers.Wait()
	for w := range 4 {
		writers.Go(func() {
			n := sample(s, "n")
			for i := range 40 {
				err := s.Update(context.Background(), noon, func(tx *Tx) error {
					if i == 0 {
						return tx.Insert(context.Background(), &n)
					}
					n.Profile.Name = fmt.Sprint(w, i)
					return tx.Change(context.Background(), &n, "token.updated")
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				committed[n.Profile.ID] = n.Profile.Revision
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	read := map[string]int64{}
	at, last := int64(0), false
	for !last {
		select {
		case <-done:
			last = true
		default:
		}
		mu.Lock()
		least := make(map[string]int64, len(committed))
		for id, r := range committed {
			least[id] = r
		}
		mu.Unlock()
		for caught := false; !caught; {
			c := changes(t, s, "org", at, 3)
			before := at
			for _, ch := range c.List {
				if ch.Revision <= before || ch.Revision > c.UpTo || ch.Token == nil || ch.Token.Profile.Revision != ch.Revision {
					t.Fatalf("change %+v after %d, up to %d", ch, before, c.UpTo)
				}
				before, read[ch.Subject] = ch.Revision, ch.Revision
			}
			at, caught = c.UpTo, c.UpTo == c.Head
		}
		for id, r := range least {
			if read[id] < r {
				t.Fatalf("at head %d token %s is known at %d, it was at %d before", at, id, read[id], r)
			}
		}
	}
	if at != 160 || len(read) != 4 {
		t.Errorf("ended at %d with %v", at, read)
	}
}

func ownChanges(t *testing.T, s *Store) {
	a, b := insert(t, s, sample(s, "a")), insert(t, s, sample(s, "b"))
	other := sample(s, "other")
	other.Profile.OrgID = "else"
	insert(t, s, other)
	change(t, s, &a, "a2")
	change(t, s, &a, "a3")
	c := changes(t, s, "org", 0, 10)
	if c.Head != 5 || c.UpTo != 5 || len(c.List) != 2 || c.List[0].Subject != b.Profile.ID ||
		c.List[1].Revision != 5 || c.List[1].Token.Profile.Name != "a3" || c.List[1].Token.Digest != a.Digest {
		t.Errorf("all: %+v", c)
	}
	if c := changes(t, s, "org", 2, 10); len(c.List) != 1 || c.UpTo != 5 {
		t.Errorf("after 2: %+v", c)
	}
	// The first two entries are of tokens that changed later: nothing is told, all is left out up to there.
	if c := changes(t, s, "org", 2, 1); len(c.List) != 0 || c.UpTo != 4 {
		t.Errorf("one entry: %+v", c)
	}
	if c := changes(t, s, "else", 3, 10); len(c.List) != 0 || c.UpTo != 5 {
		t.Errorf("another org's: %+v", c)
	}
	if c := changes(t, s, "org", 5, 10); len(c.List) != 0 || c.UpTo != 5 {
		t.Errorf("from the head: %+v", c)
	}
	if _, err := s.Changes(context.Background(), "org", 6, 10); !errors.Is(err, ErrGone) {
		t.Errorf("a revision that was never given: %v", err)
	}
}

func pruned(t *testing.T, s *Store) {
	ctx := context.Background()
	const old = logLeast + 2000
	n := insert(t, s, sample(s, "n"))
	update(t, s, func(tx *Tx) error {
		if _, err := tx.tx.ExecContext(ctx, `DELETE FROM changes`); err != nil {
			return err
		}
		if _, err := tx.tx.ExecContext(ctx, `INSERT INTO changes (revision, at, org_id, subject, event)
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
			SELECT i, $2, 'org', 'gone', 'token.updated' FROM n`, int64(old), micros(noon)); err != nil {
			return err
		}
		_, err := tx.tx.ExecContext(ctx, `UPDATE head SET revision = $1`, int64(old))
		return err
	})
	turn := func(at time.Time) {
		t.Helper()
		if err := s.Update(ctx, at, func(tx *Tx) error {
			for range pruneEvery {
				if err := tx.Change(ctx, &n, "token.updated"); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	turn(noon.Add(logKeeps - time.Minute))
	if c := changes(t, s, "org", 0, 1); c.Head != old+pruneEvery {
		t.Errorf("head %d", c.Head)
	}
	for range 5 {
		turn(noon.Add(logKeeps + time.Minute))
	}
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// The last turn pruned as of a multiple of pruneEvery.
	oldest := head/pruneEvery*pruneEvery - logLeast + 1
	if _, err := s.Changes(ctx, "org", oldest-2, 1); !errors.Is(err, ErrGone) {
		t.Errorf("before the oldest: %v", err)
	}
	if _, err := s.Changes(ctx, "org", oldest-1, 1); err != nil {
		t.Errorf("from the oldest, %d, on: %v", oldest, err)
	}
}

func revisionRises(t *testing.T, s *Store) {
	insert(t, s, sample(s, "a"))
	insert(t, s, sample(s, "b"))
	hear := func(r int64) int64 {
		t.Helper()
		update(t, s, func(tx *Tx) error {
			return tx.Hear(context.Background(), Instance{OrgID: "org", GatewayID: "g", ID: "i", MaxStale: time.Minute, Revision: r})
		})
		return heard(t, s)[0].Revision
	}
	for _, tt := range []struct{ told, want int64 }{{3, 0}, {1, 1}, {2, 2}, {1, 2}, {0, 2}, {9, 2}} {
		if got := hear(tt.told); got != tt.want {
			t.Errorf("told %d: %d, want %d", tt.told, got, tt.want)
		}
	}
}

func heard(t *testing.T, s *Store) []Instance {
	t.Helper()
	list, err := s.Instances(context.Background(), "", noon)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func liveWatch(t *testing.T, s *Store) {
	ctx := context.Background()
	i := Instance{OrgID: "org", GatewayID: "g", ID: "i", MaxStale: time.Minute, WatchedUntil: noon.Add(5 * time.Second)}
	update(t, s, func(tx *Tx) error { return tx.Hear(ctx, i) })
	without := i
	without.WatchedUntil = time.Time{}
	update(t, s, func(tx *Tx) error { return tx.Hear(ctx, without) })
	got := heard(t, s)[0]
	if !got.Watching(noon.Add(4*time.Second)) || got.Watching(noon.Add(5*time.Second)) {
		t.Errorf("watched until %v", got.WatchedUntil)
	}
	update(t, s, func(tx *Tx) error { return tx.Unwatched(ctx, i) })
	if got := heard(t, s)[0]; got.Watching(noon) {
		t.Error("it watches on")
	}
}

func sameFolder(t *testing.T, s *Store) {
	ctx := context.Background()
	hear := func(i Instance) {
		t.Helper()
		i.OrgID, i.MaxStale = "org", time.Minute
		update(t, s, func(tx *Tx) error { return tx.Hear(ctx, i) })
	}
	hear(Instance{GatewayID: "g", ID: "copy", Folder: "f", WatchedUntil: noon.Add(time.Second)})
	hear(Instance{GatewayID: "g", ID: "old", Folder: "f"})
	hear(Instance{GatewayID: "g", ID: "beside", Folder: "f2"})
	hear(Instance{GatewayID: "g", ID: "silent"})
	hear(Instance{GatewayID: "other", ID: "old", Folder: "f"})
	hear(Instance{GatewayID: "g", ID: "new", Folder: "f"})
	hear(Instance{GatewayID: "g", ID: "new"}) // does not lose it
	hear(Instance{GatewayID: "g", ID: "silent2"})
	var got []string
	for _, i := range heard(t, s) {
		got = append(got, i.GatewayID+"/"+i.ID+"/"+i.Folder)
	}
	if want := "[g/beside/f2 g/copy/f g/new/f g/silent/ g/silent2/ other/old/f]"; fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func teamsChange(t *testing.T, s *Store) {
	ctx := context.Background()
	put := func(org, id string, deleted *time.Time) Team {
		t.Helper()
		n := Team{OrgID: org, ID: id, Name: "n", CreatedAt: noon, DeletedAt: deleted}
		update(t, s, func(tx *Tx) error { return tx.PutTeam(ctx, &n) })
		return n
	}
	at := noon.Add(time.Hour)
	first := put("org", "a", nil)
	put("org_b", "a", &at)
	token := insert(t, s, sample(s, "n"))
	last := put("org", "a", &at)
	b := put("org", "b", nil)

	c := changes(t, s, "org", 0, 100)
	if len(c.List) != 3 || c.List[0].Token == nil || c.List[1].Team.Told() != last.Told() || c.List[2].Team.Told() != b.Told() || c.List[1].Revision != last.Revision {
		t.Fatalf("%+v", c.List)
	}
	if first.Revision >= token.Profile.Revision || last.Told().Revision != last.Revision || !last.Told().Deleted || b.Told().Deleted {
		t.Errorf("%+v %+v %+v", first, last, b)
	}
	got, err := s.Team(ctx, "org", "a")
	if err != nil || got.DeletedAt == nil || !got.DeletedAt.Equal(at) || !got.CreatedAt.Equal(noon) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.Team(ctx, "org", "c"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	gone, err := s.DeletedTeams(ctx, "org")
	if err != nil || len(gone) != 1 || gone[0].ID != "a" {
		t.Errorf("%+v, %v", gone, err)
	}
	list, err := s.Teams(ctx, "org", "a", 10)
	if err != nil || len(list) != 1 || list[0].ID != "b" {
		t.Errorf("%+v, %v", list, err)
	}
	bound := sample(s, "bound")
	bound.Profile.Bindings.TeamID = pointer("c")
	insert(t, s, bound)
	update(t, s, func(tx *Tx) error {
		for id, want := range map[string]bool{"c": true, "a": false} {
			if has, err := tx.TeamHasTokens(ctx, "org", id); err != nil || has != want {
				t.Errorf("%s: %v, %v", id, has, err)
			}
		}
		return nil
	})
}
