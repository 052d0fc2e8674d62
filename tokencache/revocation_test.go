package tokencache

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// Set-Set: ristretto alone keeps the first of two writes that meet in its buffer.
func TestTheSecondOfTwoWritesStays(t *testing.T) {
	h, err := newHot(50_000)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	for i := range 20_000 {
		allow := newEntry(profile(i, 1, abac.Active), dig(i), time.Now())
		deny := newEntry(profile(i, 2, abac.Revoked), dig(i), time.Now())
		h.put(allow)
		h.put(deny)
		h.set.Wait()
		if got := h.get(&deny.Digest); got != deny {
			t.Fatalf("after %d: the first write stayed", i)
		}
	}
}

// Del, then a slower loader's Set: the answer was given before the revocation and
// comes after it.
func TestASlowAnswerDoesNotUndoARevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &plane{}
		p.set(dig(1), profile(1, 1, abac.Active))
		gate := make(chan struct{})
		p.after = func(token.Digest) { <-gate }
		c := open(t, p, nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			if e := get(t, c, dig(1)); status(e) != abac.Revoked {
				t.Errorf("the waiting request got %s", status(e))
			}
		})
		synctest.Wait()
		c.Revoke("tok_1", 2)
		close(gate)
		wg.Wait()
		d := dig(1)
		if e := c.hot.get(&d); e == nil || status(e) != abac.Revoked {
			t.Error("the live form is in the cache")
		}
		// The control plane's replica stays behind: still no way back.
		for range 10 {
			if e := get(t, c, dig(1)); status(e) != abac.Revoked {
				t.Errorf("got %s", status(e))
			}
		}
	})
}

// A tombstone inside the cache would be evicted by cold keys.
func TestAFloodDoesNotUndoARevocation(t *testing.T) {
	p := &plane{}
	old := profile(0, 1, abac.Active)
	p.set(dig(0), old)
	c := open(t, p, func(o *Options) { o.Profiles = 1000 })
	get(t, c, dig(0))
	c.Revoke(old.ID, 2)
	for i := range 100_000 {
		e := newEntry(profile(i+1, 1, abac.Active), dig(i+1), c.now())
		c.hot.set.Set(key(&e.Digest), e, 1)
		if i%1000 == 0 {
			c.hot.set.Wait()
		}
	}
	if n := c.hot.evicted.Load(); n == 0 {
		t.Fatal("the flood evicted nothing")
	}
	for range 100 {
		if e := get(t, c, dig(0)); status(e) != abac.Revoked {
			t.Fatalf("got %s", status(e))
		}
	}
}

// Integer keys have no conflict hash.
func TestTwoDigestsOfOneKeyKeepTheirOwnProfiles(t *testing.T) {
	p := &plane{}
	a, b := dig(1), dig(2)
	copy(b[:31], a[:31])
	if key(&a) != key(&b) || a == b {
		t.Fatal("not a collision")
	}
	p.set(a, profile(1, 1, abac.Active))
	p.set(b, profile(2, 1, abac.Active))
	c := open(t, p, nil)
	for range 100 {
		if e := get(t, c, a); e.ID != "tok_1" {
			t.Fatalf("got %s", e.ID)
		}
		if e := get(t, c, b); e.ID != "tok_2" {
			t.Fatalf("got %s", e.ID)
		}
	}
}

func TestAfterRevokeReturnsNobodyGetsTheOldRevision(t *testing.T) {
	const tries = 20_000
	p := &plane{}
	for i := range tries {
		p.set(dig(i), profile(i, 1, abac.Active)) // and stays so: a replica that lags for ever
	}
	c := open(t, p, func(o *Options) { o.Profiles = tries })
	var done [tries]atomic.Bool
	var live atomic.Int64
	var wg sync.WaitGroup
	ready := make(chan int, 64) // tokens that somebody is loading
	for w := range 4 {
		wg.Go(func() {
			for i := range tries {
				if w == 0 {
					ready <- i
				}
				revoked := done[i].Load()
				e, err := c.Get(context.Background(), dig(i))
				if err != nil {
					t.Error(err)
					continue
				}
				switch {
				case revoked && status(e) != abac.Revoked:
					t.Errorf("token %d: %s after its revocation", i, status(e))
				case status(e) == abac.Active:
					live.Add(1)
				}
			}
			if w == 0 {
				close(ready)
			}
		})
	}
	for i := range ready {
		c.Revoke(fmt.Sprintf("tok_%d", i), 2)
		done[i].Store(true)
		e, err := c.Get(context.Background(), dig(i))
		if err != nil || status(e) != abac.Revoked {
			t.Errorf("token %d: %v, %v after its revocation", i, e, err)
		}
	}
	wg.Wait()
	if live.Load() == 0 {
		t.Error("no request came before its revocation: nothing raced")
	}
}

func TestRevocationsOnlyRise(t *testing.T) {
	var r revocations
	for _, step := range []struct {
		revision, entry int64
		want            bool
		epoch           uint64
	}{
		{revision: 5, entry: 4, want: true, epoch: 1},
		{revision: 5, entry: 5, want: false, epoch: 1},
		{revision: 3, entry: 4, want: true, epoch: 1},
		{revision: 9, entry: 8, want: true, epoch: 2},
		{revision: 9, entry: 10, want: false, epoch: 2},
	} {
		r.add("tok_1", step.revision)
		e := newEntry(profile(1, step.entry, abac.Active), dig(1), time.Time{})
		if got := r.covers(e); got != step.want || r.epoch.Load() != step.epoch {
			t.Errorf("after %d, revision %d: covered %v, epoch %d", step.revision, step.entry, got, r.epoch.Load())
		}
	}
	if r.covers(newEntry(profile(2, 1, abac.Active), dig(2), time.Time{})) || r.n.Load() != 1 {
		t.Error("another token is covered")
	}
}

func TestReleaseIsAHigherRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &plane{}
		c := open(t, p, nil)
		for _, step := range []struct {
			revision     int64
			give, want   abac.Status
			leastIsKnown bool
		}{
			{1, abac.Active, abac.Active, false},
			{2, abac.Quarantined, abac.Quarantined, true},
			{1, abac.Active, abac.Quarantined, false}, // an answer from the past: what is newer is kept
			{3, abac.Active, abac.Active, false},
			{4, abac.Revoked, abac.Revoked, true},
			{3, abac.Active, abac.Revoked, false},
		} {
			p.set(dig(1), profile(1, step.revision, step.give))
			if step.leastIsKnown {
				c.Revoke("tok_1", step.revision)
			}
			if e := get(t, c, dig(1)); status(e) != step.want {
				t.Errorf("%s at %d: got %s", step.give, step.revision, status(e))
			}
			time.Sleep(31 * time.Second)
		}
	})
}

func TestARevocationSeenInAnAnswerIsKept(t *testing.T) {
	for _, s := range []abac.Status{abac.Revoked, abac.Quarantined} {
		t.Run(string(s), func(t *testing.T) {
			p := &plane{}
			p.set(dig(1), profile(1, 2, s))
			c := open(t, p, nil)
			get(t, c, dig(1))
			d := dig(1)
			c.hot.drop(&d) // evicted
			p.set(dig(1), profile(1, 1, abac.Active))
			if e := get(t, c, dig(1)); status(e) != abac.Revoked {
				t.Errorf("got %s", status(e))
			}
		})
	}
}

func TestARevocationIsServedWhileTheControlPlaneIsAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		get(t, c, dig(1))
		p.on(down)
		c.Revoke("tok_1", 2)
		for range 3 {
			e := get(t, c, dig(1))
			if got := abac.Identify(e.Policy, &abac.Request{Now: time.Now(), Action: abac.Execute, OrgID: "org_default"}); got.Reason != abac.TokenRevoked {
				t.Errorf("got %v", got.Reason)
			}
			time.Sleep(10 * time.Minute)
		}
	})
}

func TestAnAnswerFromThePastIsTakenWhenNothingElseIsLeft(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.set(dig(1), profile(1, 5, abac.Active))
		get(t, c, dig(1))
		p.set(dig(1), profile(1, 4, abac.Active)) // restored from a backup
		time.Sleep(time.Minute)
		if e := get(t, c, dig(1)); e.Revision != 5 {
			t.Errorf("went back to %d", e.Revision)
		}
		time.Sleep(10 * time.Minute)
		if e := get(t, c, dig(1)); e.Revision != 4 {
			t.Errorf("stuck at %d", e.Revision)
		}
	})
}

func TestAnUnknownFromBeforeARevocationIsNotRemembered(t *testing.T) {
	p := &plane{}
	c := open(t, p, nil)
	p.after = func(d token.Digest) {
		c.Revoke("tok_"+fmt.Sprint(binary.BigEndian.Uint64(d[:8])), 1)
	}
	fails(t, c, dig(1), token.ErrUnknown)
	fails(t, c, dig(1), token.ErrUnknown)
	if n := p.asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

// Everything at once, for the race detector.
func TestStress(t *testing.T) {
	const tokens = 300
	p := &plane{}
	c := open(t, p, func(o *Options) { o.Profiles = 100; o.FreshFor = time.Millisecond })
	for i := range tokens {
		p.set(dig(i), profile(i, 1, abac.Active))
	}
	var fail atomic.Int64
	p.on(func(context.Context, token.Digest) error {
		if fail.Add(1)%97 == 0 {
			return errDown
		}
		return nil
	})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 5000 {
				n := (i*7 + w*13) % (tokens + 20)
				e, err := c.Get(context.Background(), dig(n))
				if err == nil && (e.Digest != dig(n) || e.ID != fmt.Sprintf("tok_%d", n)) {
					t.Errorf("got %s for %d", e.ID, n)
				}
				if i%50 == 0 && w == 0 {
					c.Revoke(fmt.Sprintf("tok_%d", n), 2)
				}
			}
		})
	}
	wg.Wait()
}
