package tokencache

import (
	"sync"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// fillBatch is how many profiles of a snapshot are put at once: few enough for
// ristretto's write buffer, which drops what does not fit, and for those that wait.
const fillBatch = 512

// Fill is a snapshot on its way into the cache, one at a time: Head, then every Token,
// then Profiles, then Done or Abandon. Its profiles can be used as they come, so what
// they lean on must be there before. Not for concurrent use.
type Fill struct {
	c     *Cache
	at    time.Time
	index *index
	batch []*Entry

	mu     sync.Mutex
	placed map[token.Digest]struct{} // by others, meanwhile: of a time before the snapshot's, perhaps
}

// Fill begins to take a snapshot that is asked for from now on: what the cache then
// holds is as old as this call.
func (c *Cache) Fill() *Fill {
	f := &Fill{c: c, placed: map[token.Digest]struct{}{}}
	c.filling.Store(f)
	f.at = c.now() // after: what is asked for later is noted
	return f
}

// FillFrom is Fill for a snapshot of an earlier time, when the control plane vouched
// for it.
func (c *Cache) FillFrom(at time.Time) *Fill {
	f := c.Fill()
	f.at = at
	return f
}

// Head tells whose snapshot it is and how many tokens to expect; more or less is no error.
func (f *Fill) Head(org string, tokens int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index = newIndex(org, tokens)
}

// Token takes an entry of the index.
func (f *Fill) Token(d token.Digest, k Known) error {
	if err := k.check(); err != nil {
		return err
	}
	f.index.put(&d, &k)
	return nil
}

// Profile takes a profile, the most recently used first. One whose token has not come
// at this revision, or that there is no room for, is left to be loaded.
func (f *Fill) Profile(d token.Digest, p *abac.Profile) {
	if n, ok := f.index.get(&d); !ok || n.revision > p.Revision || n.stopped() {
		return
	}
	f.batch = append(f.batch, newEntry(p, d, f.at))
	if len(f.batch) == fillBatch {
		f.flush()
	}
}

// flush puts what has come into the hot set: all of it, and then one wait, where a load
// waits for its own.
func (f *Fill) flush() {
	c := f.c
	if !c.enter() {
		return
	}
	defer c.loads.Done()
	c.lockAll()
	defer c.unlockAll()
	room := c.hot.room()
	put := f.batch[:0]
	for _, e := range f.batch {
		switch old := c.hot.admitted(&e.Digest); {
		case old != nil && old.Revision > e.Revision:
		case old != nil && old.Revision == e.Revision && !old.Vouched.Before(e.Vouched):
		case old == nil && room == 0:
		default:
			if old == nil {
				room--
			}
			put = append(put, c.current(e).follows(old))
		}
	}
	c.metrics.notAdmitted.Add(c.hot.putAll(put))
	f.batch = f.batch[:0]
}

// Done puts the snapshot's index to use: what the cache held before counts where the
// index has it at the same revision. The next Synced says that the watch goes on from there.
func (f *Fill) Done() {
	f.flush()
	c := f.c
	if !c.enter() {
		return
	}
	defer c.loads.Done()
	c.lockAll()
	defer c.unlockAll()
	c.filling.CompareAndSwap(f, nil)
	for d := range f.placed {
		n, ok := f.index.get(&d)
		if e := c.hot.admitted(&d); e != nil && (!ok || e.Revision < n.revision) {
			c.hot.drop(&d)
		}
	}
	c.index.Store(f.index)
	c.watched.indexed(f.at)
	c.unknown.clear()
}

// Abandon forgets the snapshot; the profiles that came are used as loaded ones are.
func (f *Fill) Abandon() { f.c.filling.CompareAndSwap(f, nil) }

// late gives f the index that is being filled, once it is begun.
func (f *Fill) late(take func(*index)) {
	f.mu.Lock()
	x := f.index
	f.mu.Unlock()
	if x != nil {
		take(x)
	}
}

// note remembers what another placed.
func (f *Fill) note(d *token.Digest) {
	f.mu.Lock()
	f.placed[*d] = struct{}{}
	f.mu.Unlock()
}

// lockAll stops all that places entries.
func (c *Cache) lockAll() {
	for i := range c.placings {
		c.placings[i].Lock()
	}
}

func (c *Cache) unlockAll() {
	for i := range c.placings {
		c.placings[i].Unlock()
	}
}
