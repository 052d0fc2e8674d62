package controlplane

import (
	"context"
	"sync"
	"time"
)

// toldWithin is how long the answer to a change waits at most for this process's own
// gateway to be told.
const toldWithin = 250 * time.Millisecond

// telling knows how far the watches of this process's own gateway have been told.
type telling struct {
	within time.Duration

	mu    sync.Mutex
	at    map[*watching]int64
	moved chan struct{} // closed when one of them is told more, or ends
}

func newTelling() *telling {
	return &telling{within: toldWithin, at: map[*watching]int64{}, moved: make(chan struct{})}
}

// note takes that w has been told all up to a revision.
func (t *telling) note(w *watching, revision int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[w] = revision
	t.move()
}

func (t *telling) end(w *watching) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.at, w)
	t.move()
}

func (t *telling) move() {
	close(t.moved)
	t.moved = make(chan struct{})
}

// least is the revision up to which all have been told; ok is false where there is none.
func (t *telling) least() (revision int64, ok bool, moved <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, at := range t.at {
		if !ok || at < revision {
			revision, ok = at, true
		}
	}
	return revision, ok, t.moved
}

// tellOwn waits until the gateway in this process has been told all changes up to
// now, so that who is answered can use at once what it changed. Gateways elsewhere
// are not waited for.
func (s *Server) tellOwn(ctx context.Context) {
	if _, any, _ := s.told.least(); !any {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.told.within)
	defer cancel()
	head, err := s.store.Head(ctx)
	if err != nil {
		return
	}
	for {
		revision, any, moved := s.told.least()
		if !any || revision >= head {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}
