package controlplane

import (
	"sync"

	"github.com/keeptrusts/gateway/budget"
)

// maxRecalls bounds what waits for one reader; one that is so far behind is cut.
const maxRecalls = 10_000

// hub wakes the watches of this process. What it is told is not lost with a watch
// that is not there: changes are in the log, and a recall is pushed again.
type hub struct {
	mu      sync.Mutex
	watches map[*watching]struct{}
}

// watching is one live watch.
type watching struct {
	org  string
	wake chan struct{} // of one: news that nobody took stays one

	mu      sync.Mutex
	recalls map[recallKey]int64 // the latest phase
	behind  bool                // more waits than may
}

type recallKey struct{ budget, window string }

// push tells every live watch of the org, and keeps nothing for the others.
func (s *Server) push(org string, recalls ...budget.Recall) {
	if len(recalls) == 0 {
		return
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for w := range s.hub.watches {
		if w.org == org {
			w.take(recalls)
		}
	}
}

// changed wakes the watches to read the log: a transaction committed revisions.
func (s *Server) changed() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for w := range s.hub.watches {
		w.poke()
	}
}

func (w *watching) take(recalls []budget.Recall) {
	w.mu.Lock()
	for _, r := range recalls {
		k := recallKey{r.Budget, r.Window}
		if _, known := w.recalls[k]; !known && len(w.recalls) >= maxRecalls {
			w.behind = true
			break
		}
		if w.recalls == nil {
			w.recalls = map[recallKey]int64{}
		}
		w.recalls[k] = max(w.recalls[k], r.Phase)
	}
	w.mu.Unlock()
	w.poke()
}

func (w *watching) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
