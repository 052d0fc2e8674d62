package tokencache

import (
	"sync"
	"time"

	"github.com/keeptrusts/gateway/token"
)

const (
	unknownFor   = 30 * time.Second
	unknownLimit = 1 << 16 // digests: about 6 MiB, whatever floods in
)

// unknown remembers digests that are nobody's, exactly, in two generations: when
// the young one is full or has had its time, it becomes the old one and the old
// one goes. Forgetting early only means asking again.
type unknown struct {
	mu         sync.RWMutex
	young, old map[token.Digest]time.Time // when it was asked
	since      time.Time                  // of the young generation
}

func (u *unknown) has(d *token.Digest, now time.Time) bool {
	u.mu.RLock()
	asked, ok := u.young[*d]
	if !ok {
		asked, ok = u.old[*d]
	}
	u.mu.RUnlock()
	return ok && now.Sub(asked) < unknownFor
}

func (u *unknown) add(d *token.Digest, asked time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.young == nil || len(u.young) >= unknownLimit/2 || asked.Sub(u.since) >= unknownFor {
		u.old, u.young, u.since = u.young, map[token.Digest]time.Time{}, asked
	}
	u.young[*d] = asked
}

func (u *unknown) remove(d *token.Digest) {
	if !u.holds(d) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.young, *d)
	delete(u.old, *d)
}

func (u *unknown) holds(d *token.Digest) bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	_, young := u.young[*d]
	_, old := u.old[*d]
	return young || old
}

func (u *unknown) len() int {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return len(u.young) + len(u.old)
}

// clear forgets all.
func (u *unknown) clear() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.young, u.old = nil, nil
}
