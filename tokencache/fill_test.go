package tokencache

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// told is a snapshot for tests: its profiles make its index too.
type told struct {
	at       time.Time // zero: now
	profiles []*abac.Profile
	numbers  []int // of their digests
	bare     map[int]Known
}

func knownOf(p *abac.Profile) Known {
	return Known{ID: p.ID, Revision: p.Revision, Status: p.Status, Purpose: p.Purpose}
}

// numbered is profiles by the numbers of their tokens; nil ones are left out.
func snapshot(profiles ...*abac.Profile) *told {
	s := &told{bare: map[int]Known{}}
	for _, p := range profiles {
		var n int
		if _, err := fmt.Sscanf(p.ID, "tok_%d", &n); err != nil {
			panic(err)
		}
		s.profiles, s.numbers = append(s.profiles, p), append(s.numbers, n)
	}
	return s
}

func (s *told) with(n int, k Known) *told {
	s.bare[n] = k
	return s
}

func (s *told) begin(t testing.TB, c *Cache) *Fill {
	t.Helper()
	f := c.Fill()
	if !s.at.IsZero() {
		f = c.FillFrom(s.at)
	}
	f.Head("org_default", len(s.profiles)+len(s.bare))
	for n, k := range s.bare {
		if err := f.Token(dig(n), k); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range s.profiles {
		if err := f.Token(dig(s.numbers[i]), knownOf(p)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// finish gives the profiles and puts the index to use.
func (s *told) finish(f *Fill) {
	for i, p := range s.profiles {
		f.Profile(dig(s.numbers[i]), p)
	}
	f.Done()
}

func (s *told) fill(t testing.TB, c *Cache) {
	t.Helper()
	s.finish(s.begin(t, c))
}

func TestInSyncTheIndexAnswers(t *testing.T) {
	gone := func(s abac.Status, p abac.Purpose) Known {
		return Known{ID: "tok_x", Revision: 4, Status: s, Purpose: p}
	}
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.set(dig(2), profile(2, 3, abac.Active))
		snapshot(profile(1, 3, abac.Active)).
			with(2, Known{ID: "tok_2", Revision: 3, Status: abac.Active, Purpose: abac.General}).
			with(3, gone(abac.Revoked, abac.General)).with(4, gone(abac.Quarantined, abac.Integration)).
			with(5, gone(abac.Revoked, abac.GatewayRuntime)).fill(t, c)
		c.Synced(time.Now())
		for n, want := range map[int]abac.Status{3: abac.Revoked, 4: abac.Quarantined, 5: abac.Revoked} {
			e := get(t, c, dig(n))
			if status(e) != want || e.ID != "tok_x" || e.Revision != 4 || e.Policy.Problem() != "" {
				t.Errorf("token %d: %s of %s at %d, problem %q", n, status(e), e.ID, e.Revision, e.Policy.Problem())
			}
			d := abac.Decide(e.Policy, &abac.Request{Now: time.Now(), Action: abac.List, OrgID: "org_default", GatewayID: "gw"})
			if d.Reason != abac.TokenRevoked {
				t.Errorf("token %d is denied with %v", n, d.Reason)
			}
		}
		get(t, c, dig(1))
		fails(t, c, dig(99), token.ErrUnknown)
		if n := p.asked.Load(); n != 0 {
			t.Errorf("asked %d times", n)
		}
		get(t, c, dig(2))
		get(t, c, dig(2))
		if n := p.asked.Load(); n != 1 {
			t.Errorf("asked %d times for what has no profile", n)
		}
		if n := c.unknown.len(); n != 0 {
			t.Errorf("%d remembered as unknown", n)
		}
		// Out of sync, every miss is loaded.
		time.Sleep(syncedFor)
		p.set(dig(98), profile(98, 9, abac.Active))
		get(t, c, dig(98))
		p.set(dig(4), profile(4, 9, abac.Active)) // released
		if e := get(t, c, dig(4)); status(e) != abac.Active {
			t.Error("not released")
		}
		asked := p.asked.Load()
		if e := get(t, c, dig(3)); status(e) != abac.Revoked || p.asked.Load() != asked {
			t.Error("what is revoked for good is asked for")
		}
	})
}

func TestAWatchThatIsCutDoesNotKnowThatADigestIsNobodys(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		snapshot(profile(1, 3, abac.Active)).fill(t, c)
		c.Synced(time.Now())
		c.Cut()
		p.set(dig(9), profile(9, 5, abac.Active))
		get(t, c, dig(9)) // minted since
		p.on(down)
		fails(t, c, dig(8), ErrUnavailable)
		get(t, c, dig(1))
		c.Synced(time.Now())
		asked := p.asked.Load()
		fails(t, c, dig(8), token.ErrUnknown)
		if p.asked.Load() != asked {
			t.Error("asked in sync")
		}
	})
}

func TestBeforeTheFirstHeadASnapshotDoesNotMakeItInSync(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		snapshot(profile(1, 3, abac.Active)).fill(t, c)
		p.set(dig(9), profile(9, 5, abac.Active))
		if c.InSync() {
			t.Error("in sync")
		}
		get(t, c, dig(9)) // minted since
		if p.asked.Load() != 1 {
			t.Error("not asked")
		}
	})
}

func TestASnapshotsProfilesNeedNoLoad(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		var all []*abac.Profile
		for i := range 3 * fillBatch {
			all = append(all, profile(i, 1, abac.Active))
		}
		snapshot(all...).fill(t, c) // more than its 1000 places
		c.Synced(time.Now())
		for i := range 1000 {
			get(t, c, dig(i))
		}
		if n := p.asked.Load(); n != 0 {
			t.Errorf("asked %d times for those that come first", n)
		}
		if c.hot.evicted.Load() != 0 || c.hot.len() != 1000 {
			t.Errorf("%d evicted, %d held", c.hot.evicted.Load(), c.hot.len())
		}
		heads(c, 3600)
		get(t, c, dig(0))
		if n := p.asked.Load(); n != 0 {
			t.Errorf("asked %d times in an hour in sync", n)
		}
	})
}

// After a gap, the new index decides of everything that was held.
func TestAfterAGapWhatTheSnapshotHasUnchangedCountsOn(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		for i := 1; i <= 4; i++ {
			p.set(dig(i), profile(i, 1, abac.Active))
		}
		c.Synced(time.Now())
		var held []*Entry
		for i := range 4 {
			held = append(held, get(t, c, dig(1+i)))
		}
		asked := p.asked.Load()
		time.Sleep(time.Second)
		c.Gap()
		p.set(dig(2), profile(2, 7, abac.Active))
		(&told{bare: map[int]Known{
			1: {ID: "tok_1", Revision: 1, Status: abac.Active, Purpose: abac.General},
			2: {ID: "tok_2", Revision: 7, Status: abac.Active, Purpose: abac.General},
			3: {ID: "tok_3", Revision: 8, Status: abac.Revoked, Purpose: abac.General},
		}}).fill(t, c)
		if !c.Revoked(held[2]) || c.Revoked(held[0]) {
			t.Error("a call under way does not see what the snapshot revoked")
		}
		check := func() {
			t.Helper()
			if e := get(t, c, dig(1)); e.Revision != 1 || e.Policy != held[0].Policy {
				t.Error("what is unchanged was replaced")
			}
			if e := get(t, c, dig(2)); e.Revision != 7 {
				t.Errorf("served at revision %d", e.Revision)
			}
			if e := get(t, c, dig(3)); status(e) != abac.Revoked {
				t.Error("revoked, and served")
			}
		}
		check() // before the head too
		c.Synced(time.Now())
		check()
		fails(t, c, dig(4), token.ErrUnknown)
		if n := p.asked.Load() - asked; n != 1 {
			t.Errorf("asked %d times", n)
		}
		heads(c, 100)
		check()
		if n := p.asked.Load() - asked; n != 1 {
			t.Errorf("asked %d times", n)
		}
		if e := c.Peek(&held[0].Digest, time.Now()); e == nil {
			t.Error("not a hit again")
		}
	})
}

func TestNoAnswerOlderThanTheIndexIsUsed(t *testing.T) {
	for _, tt := range []struct {
		name string
		was  *abac.Profile
	}{
		{"an older profile", profile(1, 1, abac.Active)},
		{"that nobody has it", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *Cache, p *plane) {
				snapshot().with(1, Known{ID: "tok_1", Revision: 2, Status: abac.Active, Purpose: abac.General}).fill(t, c)
				c.Synced(time.Now())
				p.set(dig(1), tt.was)
				fails(t, c, dig(1), ErrUnavailable)
				p.set(dig(1), profile(1, 2, abac.Active))
				get(t, c, dig(1))
			})
		})
	}
}

// A load that was answered before the snapshot's moment, and placed before the snapshot
// was in: its entry is of the run by its time, and older than the index.
func TestALoadBesideASnapshotIsCheckedAgainstIt(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		s := snapshot().with(1, Known{ID: "tok_1", Revision: 2, Status: abac.Active, Purpose: abac.General})
		f := s.begin(t, c)
		time.Sleep(time.Millisecond)
		p.set(dig(1), profile(1, 1, abac.Active))
		get(t, c, dig(1))
		p.set(dig(1), profile(1, 2, abac.Active))
		s.finish(f)
		c.Synced(time.Now())
		if e := get(t, c, dig(1)); e.Revision != 2 {
			t.Errorf("revision %d is served in sync", e.Revision)
		}
	})
}

func TestChangesToldBesideASnapshotAreNotLost(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		s := snapshot(profile(1, 1, abac.Active), profile(2, 1, abac.Active))
		f := s.begin(t, c)
		c.Upsert(dig(1), profile(1, 5, abac.Active))
		c.Stop(dig(2), "tok_2", 6)
		p.set(dig(3), profile(3, 7, abac.Active))
		get(t, c, dig(3)) // minted after the snapshot's moment
		s.finish(f)
		c.Synced(time.Now())
		p.set(dig(1), profile(1, 5, abac.Active))
		if e := get(t, c, dig(1)); e.Revision != 5 {
			t.Errorf("revision %d", e.Revision)
		}
		if e := get(t, c, dig(2)); status(e) != abac.Revoked {
			t.Error("the revocation is lost")
		}
		asked := p.asked.Load()
		get(t, c, dig(3))
		if p.asked.Load() != asked {
			t.Error("asked again for what was loaded meanwhile")
		}
	})
}

func TestAnAbandonedSnapshotChangesNoAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		s := snapshot(profile(1, 1, abac.Active))
		f := s.begin(t, c)
		f.Abandon()
		c.Synced(time.Now())
		p.set(dig(9), profile(9, 1, abac.Active))
		get(t, c, dig(9))
		snapshot(profile(1, 1, abac.Active)).fill(t, c)
		c.Synced(time.Now())
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestWithAnIndexANewTokenNeedsNoLoadWhereThereIsRoom(t *testing.T) {
	bubble(t, func(t *testing.T, _ *Cache, p *plane) {
		c := open(t, p, func(o *Options) { o.Profiles = 20 })
		snapshot(profile(1, 1, abac.Active)).fill(t, c)
		c.Synced(time.Now())
		fails(t, c, dig(2), token.ErrUnknown)
		for i := 2; i < 40; i++ {
			c.Upsert(dig(i), profile(i, int64(i), abac.Active))
			p.set(dig(i), profile(i, int64(i), abac.Active))
		}
		get(t, c, dig(2))
		// Where another budget is named, the watch has told it before.
		next := profile(2, 50, abac.Active)
		next.Bindings.Budgets = []abac.BudgetBinding{{ID: "b"}}
		c.Upsert(dig(2), next)
		p.set(dig(2), next)
		if e := get(t, c, dig(2)); e.Revision != 50 {
			t.Errorf("revision %d", e.Revision)
		}
		if p.asked.Load() != 0 || c.hot.evicted.Load() != 0 {
			t.Errorf("asked %d times, %d evicted", p.asked.Load(), c.hot.evicted.Load())
		}
		for i := 2; i < 40; i++ {
			get(t, c, dig(i))
		}
		if n := p.asked.Load(); n == 0 {
			t.Error("more than its room")
		}
	})
}

func TestARestoredSnapshotAgesFromItsTimeAndIsNotInSync(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		s := snapshot(profile(1, 1, abac.Active))
		s.at = time.Now().Add(-2 * time.Second)
		s.fill(t, c)
		p.on(down)
		if c.InSync() {
			t.Error("in sync")
		}
		fails(t, c, dig(9), ErrUnavailable) // never "nobody's" without the watch
		c.Lost(time.Now())
		time.Sleep(10*time.Minute - 2*time.Second)
		if d := took(func() { get(t, c, dig(1)) }); d != 0 {
			t.Errorf("waited %v", d)
		}
		time.Sleep(time.Nanosecond)
		fails(t, c, dig(1), ErrUnavailable)
		// Back: one new snapshot, and nothing needs to be asked for.
		asked := p.asked.Load()
		snapshot(profile(1, 1, abac.Active)).fill(t, c)
		c.Synced(time.Now())
		get(t, c, dig(1))
		if p.asked.Load() != asked {
			t.Error("asked")
		}
	})
}

func TestTheStopsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		s := snapshot()
		const many = 5 * stopsLimit
		for i := range many {
			s.with(i, Known{ID: ulid(i), Revision: 1, Status: abac.Revoked, Purpose: abac.General})
		}
		s.fill(t, c)
		c.Synced(time.Now())
		for range 2 {
			for i := range many {
				if e := get(t, c, dig(i)); e.ID != ulid(i) || status(e) != abac.Revoked {
					t.Fatalf("%s, %s", e.ID, status(e))
				}
			}
		}
		if n := len(c.stops.young) + len(c.stops.old); n > 2*stopsLimit || p.asked.Load() != 0 {
			t.Errorf("%d are kept, asked %d times", n, p.asked.Load())
		}
	})
}

func TestEachRevocationIsToldOnceBeforeItTakesEffect(t *testing.T) {
	bubble(t, func(t *testing.T, _ *Cache, p *plane) {
		var c *Cache
		var got []string
		c = open(t, p, func(o *Options) {
			o.Stopped = func(id string, revision int64) {
				if c.revocations.has(id, revision) {
					t.Error("told after it took effect")
				}
				got = append(got, fmt.Sprint(id, " ", revision))
			}
		})
		p.set(dig(1), profile(1, 7, abac.Revoked))
		get(t, c, dig(1)) // learned by a load
		c.Stop(dig(1), "tok_1", 7)
		c.Stop(dig(2), "tok_2", 8)
		c.Stop(dig(2), "tok_2", 8)
		c.Revoke("tok_2", 5)
		if want := []string{"tok_1 7", "tok_2 8"}; !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
	})
}

// Whatever comes beside each other, nothing older than the last change that was told
// is served, and what is revoked stays so.
func TestSnapshotsBesideLoadsUpsertsRevocationsAndCloseAreSafe(t *testing.T) {
	p := &plane{}
	const many = 48
	for i := range many {
		p.set(dig(i), profile(i, 1, abac.Active))
	}
	c := open(t, p, func(o *Options) { o.Profiles = 32; o.FreshFor = 0 })
	done := make(chan struct{})
	for g := range 3 {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				n := (i*7 + g) % many
				if e, err := c.Get(t.Context(), dig(n)); err == nil {
					c.Revoked(e)
				}
			}
		}()
	}
	for r := int64(2); r < 80; r++ {
		if r%10 == 0 {
			c.Gap()
		}
		s := snapshot()
		for i := range many - 1 {
			s.profiles, s.numbers = append(s.profiles, profile(i, r-1, abac.Active)), append(s.numbers, i)
		}
		s.with(many-1, Known{ID: fmt.Sprintf("tok_%d", many-1), Revision: r, Status: abac.Revoked, Purpose: abac.General})
		f := s.begin(t, c)
		for i := range many - 1 {
			next := profile(i, r, abac.Active)
			p.set(dig(i), next)
			c.Upsert(dig(i), next)
		}
		s.finish(f)
		c.Synced(time.Now())
		for i := range many - 1 {
			if e, err := c.Get(t.Context(), dig(i)); err != nil || e.Revision < r {
				t.Fatalf("token %d after an upsert of %d: %+v, %v", i, r, e, err)
			}
		}
		if e, err := c.Get(t.Context(), dig(many-1)); err == nil && !c.Revoked(e) {
			t.Fatal("what a snapshot revoked is served")
		}
		_ = c.Each(func(token.Digest, *Known) error { return nil }, func(token.Digest, *abac.Profile) error { return nil })
	}
	close(done)
	f := snapshot(profile(1, 99, abac.Active)).begin(t, c)
	c.Close()
	f.Profile(dig(1), profile(1, 99, abac.Active))
	f.Done()
	c.Stop(dig(1), "tok_1", 100)
	c.Forget()
}
