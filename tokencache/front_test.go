package tokencache

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// The front may forget, but it never returns another's entry, one that was
// replaced, or one that was dropped.
func TestTheFrontIsAMapThatForgets(t *testing.T) {
	t.Parallel()
	f := newFront(64)
	want := map[token.Digest]*Entry{}
	r := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 20_000 {
		i := r.IntN(200)
		d := dig(i)
		switch r.IntN(4) {
		case 0:
			e := newEntry(profile(i, 1, abac.Active), d, time.Time{})
			f.put(key(&d), e)
			want[d] = e
		case 1:
			f.drop(key(&d))
			delete(want, d)
		default:
			if e := f.get(key(&d), &d); e != nil {
				if e != want[d] {
					t.Fatalf("digest %d: another entry than the last one put", i)
				}
				found++
			}
		}
	}
	if found < 1000 {
		t.Errorf("found %d: too few to say anything", found)
	}
	f.clear()
	for d := range want {
		if f.get(key(&d), &d) != nil {
			t.Fatal("an entry is left after clear")
		}
	}
}

// Digests that differ only behind the words that place them are kept apart.
func TestTheFrontComparesWholeDigests(t *testing.T) {
	f := newFront(4)
	a := dig(1)
	b := a
	b[31] ^= 1
	f.put(key(&a), newEntry(profile(1, 1, abac.Active), a, time.Time{}))
	if f.get(key(&b), &b) != nil {
		t.Error("another digest's entry was returned")
	}
}

// It grows with what is put, while others read it, and loses nothing by that.
func TestTheFrontGrows(t *testing.T) {
	t.Parallel()
	f := newFront(1 << 20)
	before := len(*f.buckets.Load())
	first := newEntry(profile(0, 1, abac.Active), dig(0), time.Time{})
	f.put(key(&first.Digest), first)
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if f.get(key(&first.Digest), &first.Digest) != first {
				t.Error("the first entry is not found while it grows")
				return
			}
		}
	})
	const all = 20_000
	for i := range all {
		e := newEntry(profile(i, 1, abac.Active), dig(i), time.Time{})
		if i == 0 {
			e = first
		}
		f.put(key(&e.Digest), e)
	}
	close(stop)
	reading.Wait()
	found := 0
	for i := range all {
		d := dig(i)
		if e := f.get(key(&d), &d); e != nil && e.Digest == d {
			found++
		}
	}
	if now := len(*f.buckets.Load()); now < 8*before || found < all*98/100 || found != f.entries {
		t.Errorf("%d buckets of %d, %d of %d found, %d counted", now, before, found, all, f.entries)
	}
}

func TestAHitOfTheFrontIsShownToTheSetNowAndThen(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 1, abac.Active))
	c := open(t, p, nil)
	d := dig(1)
	get(t, c, d)
	// What the set no longer has the front alone does not keep for long.
	c.hot.set.Del(key(&d))
	c.hot.set.Wait()
	for range 2 * sampled {
		get(t, c, d)
	}
	if n := c.metrics.miss.Load(); n != 2 {
		t.Errorf("%d loads, want 2", n)
	}
}

func TestALineOfAnEntryIsMadeOnce(t *testing.T) {
	var n Notes
	long := func(b []byte) []byte { return append(b, make([]byte, len(n.line)+1)...) }
	write := func(b []byte) []byte { return append(b, "made once"...) }
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if got := n.Line(write); got != nil && string(got) != "made once" {
				t.Errorf("got %q", got)
			}
		})
	}
	all.Wait()
	if got := n.Line(long); string(got) != "made once" {
		t.Errorf("got %q", got)
	}
	var full Notes
	for range 2 {
		if got := full.Line(long); got != nil {
			t.Errorf("got %q", got)
		}
	}
	if got := new(Notes).Line(func(b []byte) []byte { return b }); got == nil || len(got) != 0 {
		t.Errorf("an empty line is %v", got)
	}
}

func TestWhatTheSetDropsTheFrontDrops(t *testing.T) {
	c := open(t, &plane{}, nil)
	digests := fill(t, c, 10)
	for i := range digests {
		c.hot.of(&digests[i]).hits.Add(1) // else ristretto is asked
		c.hot.drop(&digests[i])
		if c.hot.get(&digests[i]) != nil {
			t.Errorf("entry %d is there after its drop", i)
		}
	}
}

// An entry that ristretto has evicted, and of which the front is not told yet, is
// not there any more after a watch's word.
func TestAnUpsertReachesWhatIsBeingEvicted(t *testing.T) {
	c := open(t, &plane{}, nil)
	d := fill(t, c, 1)[0]
	c.hot.set.Del(key(&d))
	c.hot.set.Wait()
	c.hot.of(&d).hits.Add(1) // else ristretto is asked
	if c.hot.get(&d) == nil {
		t.Fatal("the front does not hold it")
	}
	c.Upsert(d, profile(0, 2, abac.Active))
	if e := c.hot.get(&d); e != nil {
		t.Errorf("revision %d is served after an upsert of 2", e.Revision)
	}
}
