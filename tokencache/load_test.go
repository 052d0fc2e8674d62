package tokencache

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

func TestOneLoadATokenHoweverManyWait(t *testing.T) {
	for name, known := range map[string]bool{"a profile": true, "nobody's": false} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				p := &plane{}
				if known {
					p.set(dig(1), profile(1, 1, abac.Active))
				}
				c := open(t, p, nil)
				var wg sync.WaitGroup
				start := make(chan struct{})
				for range 1000 {
					wg.Go(func() {
						<-start
						if _, err := c.Get(t.Context(), dig(1)); (err == nil) != known {
							t.Errorf("got %v", err)
						}
					})
				}
				close(start)
				wg.Wait()
				if n := p.asked.Load(); n != 1 {
					t.Fatalf("asked %d times", n)
				}
				c.Close()
			}
		})
	}
}

func TestAtMost64LoadsAreUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under, most atomic.Int64
		p := &plane{}
		for i := range 1000 {
			p.set(dig(i), profile(i, 1, abac.Active))
		}
		c := open(t, p, nil)
		stale := get(t, c, dig(999))
		time.Sleep(time.Minute)
		release := make(chan struct{})
		p.on(func(ctx context.Context, d token.Digest) error {
			most.Store(max(most.Load(), under.Add(1)))
			defer under.Add(-1)
			return held(release)(ctx, d)
		})
		var wg sync.WaitGroup
		for i := range maxLoads {
			wg.Go(func() { get(t, c, dig(i)) })
		}
		synctest.Wait()
		if d := took(func() {
			for i := maxLoads; i < 500; i++ {
				fails(t, c, dig(i), ErrOverloaded)
			}
			if get(t, c, dig(999)) != stale {
				t.Error("what is known is not served past the cap")
			}
		}); d != 0 {
			t.Errorf("waited %v past the cap", d)
		}
		if errors.Is(ErrOverloaded, token.ErrUnknown) || c.Away() {
			t.Error("overload is taken for something else")
		}
		close(release)
		wg.Wait()
		if most.Load() != maxLoads {
			t.Errorf("%d loads were under way", most.Load())
		}
		get(t, c, dig(499))
	})
}

func TestWhatIsNotAdmittedIsServedAndCounted(t *testing.T) {
	p := &plane{}
	c := open(t, p, func(o *Options) { o.Profiles = 100 })
	for i := range 300 {
		p.set(dig(i), profile(i, 1, abac.Active))
	}
	for range 20 { // make the first hundred hot
		for i := range 100 {
			get(t, c, dig(i))
		}
	}
	for i := range 300 {
		if e := get(t, c, dig(i)); e.ID != profile(i, 1, abac.Active).ID {
			t.Fatalf("got %s for %d", e.ID, i)
		}
	}
	lost := c.metrics.notAdmitted.Load() + c.hot.evicted.Load()
	if lost < 200 {
		t.Errorf("room for 100 of 300, and %d counted as left out", lost)
	}
	if n := c.hot.len(); n > 100 {
		t.Errorf("%d profiles in room for 100", n)
	}
}

func TestNothingIsLeftOutBelowTheLimit(t *testing.T) {
	const n = 20_000
	p := &plane{}
	for i := range n {
		p.set(dig(i), profile(i, 1, abac.Active))
	}
	c := open(t, p, func(o *Options) { o.Profiles = n })
	for range 2 {
		for i := range n {
			get(t, c, dig(i))
		}
	}
	if asked := p.asked.Load(); asked != n {
		t.Errorf("asked %d times", asked)
	}
	if lost := c.metrics.notAdmitted.Load() + c.hot.evicted.Load(); lost != 0 {
		t.Errorf("%d left out", lost)
	}
}

func TestALoadersPanicIsAFailureOfThatLoad(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 1, abac.Active))
	c := open(t, p, nil)
	defer c.Close()
	p.on(func(context.Context, token.Digest) error { panic("kt_live_secret") })
	_, err := c.Get(t.Context(), dig(1))
	if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Fatalf("got %v", err)
	}
}

func TestALoaderThatReturnsNothingIsAFailure(t *testing.T) {
	c := open(t, nil, func(o *Options) { o.Loader = nothing{} })
	fails(t, c, dig(1), ErrUnavailable)
	if !c.Away() {
		t.Error("not away")
	}
}

type nothing struct{}

func (nothing) Load(context.Context, token.Digest) (*abac.Profile, error) { return nil, nil }

// Whoever saw nothing before a load ended must not start another after it.
func TestJoiningLooksAgain(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 1, abac.Active))
	c := open(t, p, nil)
	e := get(t, c, dig(1))
	if f, known, err := c.join(dig(1)); f.flight != nil || known != e || err != nil {
		t.Errorf("got %v, %v, %v", f, known, err)
	}
	fails(t, c, dig(2), token.ErrUnknown)
	if f, known, err := c.join(dig(2)); f.flight != nil || known != nil || err != token.ErrUnknown {
		t.Errorf("got %v, %v, %v", f, known, err)
	}
	p.on(down)
	fails(t, c, dig(3), ErrUnavailable)
	if f, known, err := c.join(dig(3)); f.flight != nil || known != nil || err != ErrUnavailable {
		t.Errorf("got %v, %v, %v", f, known, err)
	}
}

func TestCloseEndsALoadUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T, c *Cache, p *plane) {
		p.on(hang)
		var wg sync.WaitGroup
		wg.Go(func() { fails(t, c, dig(1), ErrUnavailable) })
		synctest.Wait()
		if d := took(func() { c.Close(); wg.Wait() }); d != 0 {
			t.Errorf("took %v", d)
		}
		if c.Away() {
			t.Error("a load that Close ended counts as an absence")
		}
	})
}

func TestNothingIsKnownAfterClose(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 1, abac.Active))
	c := open(t, p, nil)
	get(t, c, dig(1))
	fails(t, c, dig(2), token.ErrUnknown)
	c.Close()
	fails(t, c, dig(1), ErrUnavailable)
	fails(t, c, dig(2), ErrUnavailable)
	if n := p.asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestCloseEndsAllThatIsUnderWay(t *testing.T) {
	for range 50 {
		p := &plane{}
		for i := range 100 {
			p.set(dig(i), profile(i, 1, abac.Active))
		}
		c := open(t, p, nil)
		for i := range 50 {
			get(t, c, dig(i))
		}
		p.on(func(ctx context.Context, d token.Digest) error {
			if d == dig(99) {
				return hang(ctx, d)
			}
			return nil
		})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := w; ; i++ {
					_, err := c.Get(context.Background(), dig(i%110))
					if err != nil && !errors.Is(err, token.ErrUnknown) {
						if !errors.Is(err, ErrUnavailable) {
							t.Errorf("got %v", err)
						}
						return
					}
				}
			})
		}
		wg.Go(c.Close)
		c.Close()
		if c.Away() {
			t.Error("a load that Close ended counts as an absence")
		}
		wg.Wait()
		fails(t, c, dig(1), ErrUnavailable)
		fails(t, c, dig(105), ErrUnavailable)
		c.Revoke("tok_1", 1)
	}
}

// ristretto's Get panics, or races, beside its Close.
func TestTheHotSetClosesBesideNoRead(t *testing.T) {
	h, err := newHot(100)
	if err != nil {
		t.Fatal(err)
	}
	d := dig(1)
	h.put(newEntry(profile(1, 1, abac.Active), d, time.Now()))
	turns := func(ended *atomic.Bool) bool {
		for range 10_000 {
			runtime.Gosched()
		}
		return ended.Load()
	}
	var read, closed atomic.Bool
	var wg sync.WaitGroup

	h.of(&d).Lock() // as close does
	wg.Go(func() { h.get(&d); read.Store(true) })
	if turns(&read) {
		t.Error("a read does not wait for close")
	}
	h.of(&d).Unlock()
	wg.Wait()

	h.of(&d).RLock() // as a read does
	wg.Go(func() { h.close(); closed.Store(true) })
	for !h.closing.Load() {
		runtime.Gosched()
	}
	if turns(&closed) {
		t.Error("close does not wait for a read")
	}
	h.of(&d).RUnlock()
	wg.Wait()
	if h.get(&d) != nil {
		t.Error("found after close")
	}
}

func TestUnknownDigestsTakeBoundedRoom(t *testing.T) {
	var u unknown
	now := time.Now()
	for i := range 5 * unknownLimit / 2 {
		d := dig(i)
		u.add(&d, now)
		if !u.has(&d, now) {
			t.Fatal("not remembered")
		}
		if n := u.len(); n > unknownLimit {
			t.Fatalf("%d remembered", n)
		}
	}
	// Time alone makes room too.
	d := dig(-1)
	u.add(&d, now.Add(unknownFor))
	u.add(&d, now.Add(2*unknownFor))
	if n := u.len(); n != 2 {
		t.Errorf("%d remembered after a minute", n)
	}
}
