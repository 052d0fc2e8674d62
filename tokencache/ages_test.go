package tokencache

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// bubble runs f on a clock of its own, which only goes on while all wait.
func bubble(t *testing.T, f func(t *testing.T, c *Cache, p *plane)) {
	synctest.Test(t, func(t *testing.T) {
		p := &plane{}
		p.set(dig(1), profile(1, 1, abac.Active))
		p.set(dig(2), profile(2, 1, abac.Active))
		f(t, open(t, p, nil), p)
	})
}

// took runs f and returns how long it waited.
func took(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

func slow(d time.Duration) func(context.Context, token.Digest) error {
	return func(ctx context.Context, _ token.Digest) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestFreshProfileIsUsedWithoutAsking(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		first := get(t, c, dig(1))
		time.Sleep(30 * time.Second)
		if get(t, c, dig(1)) != first || p.asked.Load() != 1 {
			t.Error("asked at fresh_for")
		}
		time.Sleep(time.Nanosecond)
		if get(t, c, dig(1)) == first || p.asked.Load() != 2 {
			t.Error("not asked past fresh_for")
		}
		time.Sleep(30 * time.Second)
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 2 {
			t.Errorf("asked %d times: the second answer did not make it fresh", n)
		}
	})
}

func TestAgeCountsFromTheBeginningOfTheAsk(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(slow(time.Second))
		get(t, c, dig(1))
		time.Sleep(29*time.Second + time.Nanosecond)
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestRevokedProfileIsSeenAfterFreshFor(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		get(t, c, dig(1))
		p.set(dig(1), profile(1, 2, abac.Revoked))
		time.Sleep(30*time.Second + 1)
		if e := get(t, c, dig(1)); status(e) != abac.Revoked {
			t.Errorf("got %s", status(e))
		}
	})
}

func TestOldProfileWaits250msForASlowAnswerThenIsServed(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		first := get(t, c, dig(1))
		time.Sleep(time.Minute)
		p.on(slow(time.Second))
		if d := took(func() {
			if get(t, c, dig(1)) != first {
				t.Error("not the old one")
			}
		}); d != staleWait {
			t.Errorf("waited %v", d)
		}
		// Another that comes later does not wait as long again for the same ask.
		if d := took(func() { get(t, c, dig(1)) }); d != 0 {
			t.Errorf("a later request waited %v", d)
		}
		time.Sleep(time.Second)
		if get(t, c, dig(1)) == first || p.asked.Load() != 2 {
			t.Error("the answer that came after the wait was lost")
		}
	})
}

func TestOldProfileIsServedUpToMaxStale(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		first := get(t, c, dig(1))
		p.on(down)
		time.Sleep(10 * time.Minute)
		if get(t, c, dig(1)) != first {
			t.Error("not the old one")
		}
		time.Sleep(time.Nanosecond)
		fails(t, c, dig(1), ErrUnavailable)
	})
}

func TestProfileThatReachesMaxStaleWhileWaitingIsNotServed(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		get(t, c, dig(1))
		p.on(hang)
		time.Sleep(10*time.Minute - staleWait/2)
		fails(t, c, dig(1), ErrUnavailable)
	})
}

func TestFirstLoadWaits2sAndIsNotLost(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(slow(3 * time.Second))
		if d := took(func() { fails(t, c, dig(1), ErrUnavailable) }); d != firstWait {
			t.Errorf("waited %v", d)
		}
		if c.Away() {
			t.Error("away, though the ask has not failed")
		}
		time.Sleep(time.Second + 1)
		get(t, c, dig(1))
		if n := p.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestALoadIsGivenUpAfter5s(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(hang)
		fails(t, c, dig(1), ErrUnavailable)
		time.Sleep(3*time.Second - 1)
		synctest.Wait()
		if c.Away() {
			t.Error("away too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !c.Away() {
			t.Error("not away")
		}
	})
}

func TestNobodyWaitsWhileTheControlPlaneIsAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		get(t, c, dig(1))
		time.Sleep(time.Minute)
		p.on(down)
		get(t, c, dig(1)) // asks, fails, is served
		if !c.Away() {
			t.Fatal("not away")
		}
		p.on(hang)
		if d := took(func() {
			for range 100 {
				get(t, c, dig(1))
				fails(t, c, dig(2), ErrUnavailable)
			}
		}); d != 0 {
			t.Errorf("waited %v", d)
		}
		time.Sleep(time.Second)
		if d := took(func() { get(t, c, dig(1)); fails(t, c, dig(2), ErrUnavailable) }); d != 0 {
			t.Errorf("the probe made somebody wait %v", d)
		}
	})
}

func TestOneProbeASecondWhileAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(down)
		fails(t, c, dig(1), ErrUnavailable)
		before := p.asked.Load()
		for range 1000 { // 10 s of traffic
			time.Sleep(10 * time.Millisecond)
			for i := range 5 {
				fails(t, c, dig(i), ErrUnavailable)
			}
		}
		synctest.Wait()
		if n := p.asked.Load() - before; n != 10 {
			t.Errorf("%d probes in 10 s", n)
		}
		p.on(nil)
		back := took(func() {
			for i := 0; c.Away() && i < 500; i++ {
				_, _ = c.Get(t.Context(), dig(1))
				time.Sleep(10 * time.Millisecond)
			}
		})
		if back > time.Second+10*time.Millisecond {
			t.Errorf("back after %v", back)
		}
		// One answer is an answer for all.
		if e := get(t, c, dig(2)); status(e) != abac.Active {
			t.Errorf("got %s", status(e))
		}
	})
}

func TestAnAnswerElsewhereEndsTheAbsence(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		if !c.LastAnswer().IsZero() {
			t.Error("an answer before any")
		}
		p.on(down)
		fails(t, c, dig(1), ErrUnavailable)
		if !c.LastAnswer().IsZero() {
			t.Error("a failure counts as an answer")
		}
		p.on(nil)
		c.answered()
		if c.Away() || !c.LastAnswer().Equal(time.Now()) {
			t.Error("not heard")
		}
		get(t, c, dig(1))
		time.Sleep(time.Second)
		fails(t, c, dig(3), token.ErrUnknown)
		if !c.LastAnswer().Equal(time.Now()) {
			t.Error("unknown does not count as an answer")
		}
	})
}

func TestAFailureThatBeganBeforeAnAnswerIsNoAbsence(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(hang)
		fails(t, c, dig(1), ErrUnavailable)
		p.on(nil)
		get(t, c, dig(2))
		time.Sleep(4 * time.Second) // the first ask is given up
		synctest.Wait()
		if c.Away() {
			t.Error("away")
		}
	})
}

func TestUnknownIsRememberedFor30s(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		fails(t, c, dig(3), token.ErrUnknown)
		p.set(dig(3), profile(3, 5, abac.Active)) // minted after
		time.Sleep(unknownFor - 1)
		fails(t, c, dig(3), token.ErrUnknown)
		if n := p.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(time.Nanosecond)
		get(t, c, dig(3))
	})
}

func TestUnknownIsRememberedWhileAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		fails(t, c, dig(3), token.ErrUnknown)
		p.on(down)
		fails(t, c, dig(1), ErrUnavailable)
		fails(t, c, dig(3), token.ErrUnknown)
		time.Sleep(unknownFor)
		fails(t, c, dig(3), ErrUnavailable)
	})
}

func TestADeletedTokenStopsWithTheFirstAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		get(t, c, dig(1))
		p.set(dig(1), nil)
		time.Sleep(time.Minute)
		fails(t, c, dig(1), token.ErrUnknown)
		p.on(down)
		fails(t, c, dig(1), token.ErrUnknown)
		time.Sleep(unknownFor)
		fails(t, c, dig(1), ErrUnavailable) // not served as stale
	})
}

func TestWhoeverLeavesLeavesTheLoadToTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(slow(time.Second))
		ctx, cancel := context.WithCancelCause(t.Context())
		left := errors.New("client left")
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.Get(ctx, dig(1))
			if !errors.Is(err, left) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { get(t, c, dig(1)) })
		time.Sleep(100 * time.Millisecond)
		cancel(left)
		wg.Wait()
		if n := p.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}
