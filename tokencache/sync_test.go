package tokencache

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// heads tells a head now and at each of n seconds after.
func heads(c *Cache, n int) {
	c.Synced(time.Now())
	for range n {
		time.Sleep(time.Second)
		c.Synced(time.Now())
	}
}

func TestInSyncNobodyAsks(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Synced(time.Now())
		first := get(t, c, dig(1))
		heads(c, 3600)
		if !c.InSync() || get(t, c, dig(1)) != first || p.asked.Load() != 1 {
			t.Errorf("in sync %v, asked %d times in an hour", c.InSync(), p.asked.Load())
		}
		// Up to 3 s after the last event; from then on its age counts from there.
		time.Sleep(3*time.Second - time.Nanosecond)
		if !c.InSync() {
			t.Error("not in sync within 3 s")
		}
		time.Sleep(time.Nanosecond)
		if c.InSync() {
			t.Error("in sync 3 s after the last event")
		}
		time.Sleep(27 * time.Second)
		if get(t, c, dig(1)) != first || p.asked.Load() != 1 {
			t.Error("asked 30 s after the last event")
		}
		time.Sleep(time.Nanosecond)
		if get(t, c, dig(1)) == first || p.asked.Load() != 2 {
			t.Error("not asked past that")
		}
	})
}

func TestMaxStaleCountsFromTheLastEvent(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Synced(time.Now())
		first := get(t, c, dig(1))
		heads(c, 1800)
		p.on(down)
		time.Sleep(10 * time.Minute)
		if get(t, c, dig(1)) != first {
			t.Error("not served at max_stale")
		}
		time.Sleep(time.Nanosecond)
		fails(t, c, dig(1), ErrUnavailable)
	})
}

func TestAFreshForOfNothingIsEnoughInSync(t *testing.T) {
	bubble(t, func(t *testing.T, _ *Cache, p *plane) {
		c := open(t, p, func(o *Options) { o.FreshFor = 0 })
		c.Synced(time.Now())
		get(t, c, dig(1))
		time.Sleep(3*time.Second - time.Nanosecond)
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(time.Nanosecond)
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 2 {
			t.Errorf("asked %d times past it", n)
		}
	})
}

func TestWhatWasLoadedBeforeTheWatchBeganIsNotVouchedFor(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		first := get(t, c, dig(1))
		time.Sleep(time.Nanosecond)
		heads(c, 30)
		if get(t, c, dig(1)) == first {
			t.Error("a profile from before the watch is used past fresh_for")
		}
		heads(c, 3600)
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestAfterAGapEverythingIsAskedForAnew(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Synced(time.Now())
		first := get(t, c, dig(1))
		fails(t, c, dig(9), token.ErrUnknown)
		heads(c, 100)
		c.Gap()
		if c.InSync() {
			t.Error("in sync over a gap")
		}
		p.set(dig(9), profile(9, 1, abac.Active))
		get(t, c, dig(9)) // what is nobody's may be somebody's by now
		time.Sleep(2 * time.Second)
		heads(c, 28)
		if get(t, c, dig(1)) != first {
			t.Error("asked within fresh_for of the last event before the gap")
		}
		heads(c, 1)
		next := get(t, c, dig(1))
		if next == first {
			t.Error("the watch that began after the gap vouched for what was before")
		}
		heads(c, 100)
		if get(t, c, dig(1)) != next {
			t.Error("asked again in sync")
		}
		// The control plane is gone: what the first run vouched for counts on.
		p.on(down)
		time.Sleep(10 * time.Minute)
		if get(t, c, dig(1)) != next {
			t.Error("not served at max_stale")
		}
	})
}

func TestAnEntryOfBeforeTheGapIsServedUpToMaxStaleOfTheLastEvent(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Synced(time.Now())
		first := get(t, c, dig(1))
		heads(c, 3600)
		c.Gap()
		p.on(down)
		time.Sleep(time.Minute)
		heads(c, 539)
		if get(t, c, dig(1)) != first {
			t.Error("not served within max_stale")
		}
		time.Sleep(time.Second + time.Nanosecond)
		fails(t, c, dig(1), ErrUnavailable)
	})
}

func TestAConnectionThatBreaksIsNoGap(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Synced(time.Now())
		first := get(t, c, dig(1))
		time.Sleep(5 * time.Minute) // out of sync; what came meanwhile is told before the next head
		c.Synced(time.Now())
		if get(t, c, dig(1)) != first || p.asked.Load() != 1 {
			t.Error("asked though the watch missed nothing")
		}
	})
}

func TestUpsert(t *testing.T) {
	team, other := "red", "blue"
	with := func(revision int64, team *string, budgets ...string) *abac.Profile {
		p := profile(1, revision, abac.Active)
		p.Bindings.TeamID = team
		for _, id := range budgets {
			p.Bindings.Budgets = append(p.Bindings.Budgets, abac.BudgetBinding{ID: id})
		}
		return p
	}
	for _, tt := range []struct {
		name      string
		held, now *abac.Profile
		asks      int64 // for the next Get
		want      int64 // its revision
	}{
		{"a later revision replaces", with(3, nil), with(4, nil), 0, 4},
		{"an earlier one does nothing", with(3, nil), with(2, nil), 0, 3},
		{"with less budgets too", with(3, &team, "a", "b"), with(4, &team, "b"), 0, 4},
		{"another budget is loaded", with(3, nil, "a"), with(4, nil, "a", "b"), 1, 4},
		{"another team is loaded", with(3, &team), with(4, &other), 1, 4},
		{"no team any more is loaded", with(3, &team), with(4, nil), 1, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *Cache, p *plane) {
				p.set(dig(1), tt.held)
				get(t, c, dig(1))
				p.set(dig(1), tt.now)
				before := p.asked.Load()
				c.Upsert(dig(1), tt.now)
				if e := get(t, c, dig(1)); e.Revision != tt.want || p.asked.Load()-before != tt.asks {
					t.Errorf("revision %d after %d asks", e.Revision, p.asked.Load()-before)
				}
			})
		})
	}
}

func TestAnUpsertOfWhatIsNotHeldIsLeftToBeLoaded(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Upsert(dig(1), profile(1, 1, abac.Active))
		if c.hot.len() != 0 {
			t.Error("a mass import would push out what is in use")
		}
		get(t, c, dig(1))
		if p.asked.Load() != 1 {
			t.Error("not asked")
		}
	})
}

func TestAnUpsertEndsADigestsBeingUnknown(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		fails(t, c, dig(9), token.ErrUnknown)
		p.set(dig(9), profile(9, 5, abac.Active))
		fails(t, c, dig(9), token.ErrUnknown) // remembered
		c.Upsert(dig(9), profile(9, 5, abac.Active))
		get(t, c, dig(9))
	})
}

// The ask's answer is fixed before the change, and given after it was told.
func TestALoadUnderWayPublishesNothingOlderThanAnUpsert(t *testing.T) {
	for _, tt := range []struct {
		name string
		was  *abac.Profile
		held bool
	}{
		{"an older profile", profile(1, 1, abac.Active), false},
		{"an older profile where another is held", profile(1, 1, abac.Active), true},
		{"that nobody has it", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *Cache, p *plane) {
				p.set(dig(1), tt.was)
				if tt.held {
					get(t, c, dig(1))
					time.Sleep(time.Minute)
				}
				before := p.asked.Load()
				told := false
				p.mu.Lock()
				p.after = func(d token.Digest) {
					if !told {
						told = true
						p.set(d, profile(1, 2, abac.Active))
						c.Upsert(d, profile(1, 2, abac.Active))
					}
				}
				p.mu.Unlock()
				if e := get(t, c, dig(1)); e.Revision != 2 || p.asked.Load()-before != 2 {
					t.Errorf("revision %d after %d asks", e.Revision, p.asked.Load()-before)
				}
				if e := get(t, c, dig(1)); e.Revision != 2 {
					t.Errorf("then %d", e.Revision)
				}
			})
		})
	}
}

func TestAControlPlaneThatAnswersFromBeforeItsOwnChangeIsNotBelieved(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.mu.Lock()
		p.after = func(d token.Digest) { c.Upsert(d, profile(1, 2, abac.Active)) }
		p.mu.Unlock()
		fails(t, c, dig(1), ErrUnavailable)
		if n := p.asked.Load(); n != asksAgain {
			t.Errorf("asked %d times", n)
		}
		if c.Away() {
			t.Error("away though it answered")
		}
	})
}

func TestALostWatchIsAnAbsence(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		c.Synced(time.Now())
		first := get(t, c, dig(1))
		began := time.Now()
		time.Sleep(time.Minute)
		c.Lost(began)
		if !c.Away() {
			t.Fatal("not away")
		}
		p.on(hang)
		if d := took(func() {
			if get(t, c, dig(1)) != first {
				t.Error("not the old one")
			}
			fails(t, c, dig(2), ErrUnavailable)
		}); d != 0 {
			t.Errorf("waited %v", d)
		}
		p.on(nil)
		c.Synced(time.Now())
		if c.Away() || !c.InSync() {
			t.Error("away though the watch is in sync")
		}
		// An ask that fails is an absence of its own, which no head ends.
		p.on(down)
		fails(t, c, dig(2), ErrUnavailable)
		c.Synced(time.Now())
		if !c.Away() {
			t.Error("a head ended an absence that an ask met")
		}
		// But it has somebody ask again, once a second.
		asked := p.asked.Load()
		for range 10 {
			time.Sleep(probeEvery / 5)
			c.Synced(time.Now())
			synctest.Wait()
		}
		if n := p.asked.Load() - asked; n < 1 || n > 2 || !c.Away() {
			t.Errorf("asked %d times in two seconds, away: %v", n, c.Away())
		}
		p.on(nil)
		time.Sleep(probeEvery)
		c.Synced(time.Now())
		synctest.Wait()
		if c.Away() {
			t.Error("still away though it answers")
		}
	})
}

func TestRevokedIsToldOfAnEntryThatSomebodyKeeps(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		e := get(t, c, dig(1))
		if c.Revoked(e) {
			t.Error("revoked from the start")
		}
		c.Revoke(e.ID, e.Revision+1)
		if !c.Revoked(e) {
			t.Error("not revoked")
		}
		c.Upsert(dig(1), profile(1, e.Revision+2, abac.Active)) // released
		if c.Revoked(get(t, c, dig(1))) || !c.Revoked(e) {
			t.Error("the released one, or not the one from before")
		}
	})
}

func TestUpsertsBesideLoadsEvictionsAndCloseAreSafe(t *testing.T) {
	p := &plane{}
	for i := range 64 {
		p.set(dig(i), profile(i, 1, abac.Active))
	}
	c := open(t, p, func(o *Options) { o.Profiles = 16 })
	done := make(chan struct{})
	for g := range 4 {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				n := (i*7 + g) % 64
				if _, err := c.Get(context.Background(), dig(n)); err != nil && fmt.Sprint(err) == "" {
					return
				}
			}
		}()
	}
	for r := int64(2); r < 60; r++ {
		for i := range 64 {
			next := profile(i, r, abac.Active)
			p.set(dig(i), next)
			c.Upsert(dig(i), next)
			if e, err := c.Get(context.Background(), dig(i)); err == nil && e.Revision < r {
				t.Fatalf("token %d at %d after an upsert of %d", i, e.Revision, r)
			}
		}
	}
	close(done)
	go c.Upsert(dig(1), profile(1, 99, abac.Active))
	c.Close()
	c.Upsert(dig(1), profile(1, 100, abac.Active))
}
