package controlplane

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

const (
	maxRecalls = 10_000                 // that wait for one reader; one that is so far behind is cut
	pollEvery  = 250 * time.Millisecond // of the database: another process may write to it
	pollSoon   = 100 * time.Millisecond // while recalls are told
	listenSoon = 50 * time.Millisecond  // after the listening ended; then twice as long each time
	listenLate = time.Second            // at the most
	noteEvery  = 2 * time.Second        // that watches are live, for other processes
	liveFor    = 5 * time.Second        // that a note counts
	readWithin = time.Second            // a head that took longer is not of its second
)

// hub is where the watches of this process get their news from. While there is one,
// a goroutine reads for all of them how far the database has come, and where others
// write to it another listens, so as to read at once. What the hub is told is not lost
// with a watch that is not there: changes are in the log, and a recall is told again.
type hub struct {
	mu       sync.Mutex
	watches  map[*watching]struct{}
	feeding  context.CancelFunc // nil: nobody reads the head
	head     head
	reported chan struct{} // closed at the next report
	closed   bool

	noting sync.Mutex // that watches are live; taken before mu

	news chan struct{} // there is something to read, says a committer
	quit chan struct{} // closed with the server
}

// head is a head revision and when it was read.
type head struct {
	revision int64
	read     time.Time
}

// watching is one live watch.
type watching struct {
	instance store.Instance
	wake     chan struct{} // of one: news that nobody took stays one
	end      chan struct{} // closed when the instance signs off
	noted    atomic.Bool   // it was tried to note it as live

	mu      sync.Mutex
	recalls map[recallKey]int64 // the latest phase of each
	behind  bool                // more of them than may wait
}

type recallKey struct{ budget, window string }

func newHub() *hub {
	return &hub{
		watches: map[*watching]struct{}{}, reported: make(chan struct{}),
		news: make(chan struct{}, 1), quit: make(chan struct{}),
	}
}

// recall has the watches of the org told by every process.
func (s *Server) recall(org string, recalls ...budget.Recall) {
	if !s.store.Shared() { // else the feeds read them, this one's as the first
		s.push(org, recalls...)
	}
}

// push tells every live watch of the org, and keeps nothing for the others.
func (s *Server) push(org string, recalls ...budget.Recall) {
	if len(recalls) == 0 {
		return
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for w := range s.hub.watches {
		if w.instance.OrgID == org {
			w.take(recalls)
		}
	}
}

// changed wakes the feed: a transaction committed revisions or recalls.
func (s *Server) changed() { poke(s.hub.news) }

// Close ends all watches, and refuses new ones. The rest goes on being served.
func (s *Server) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if !s.hub.closed {
		s.hub.closed = true
		close(s.hub.quit)
	}
}

var errClosing = refuse("draining", "The control plane is shutting down; try again.")

// join makes w live. Whoever joins leaves.
func (s *Server) join(w *watching) error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.hub.closed {
		return errClosing
	}
	s.hub.watches[w] = struct{}{}
	if s.hub.feeding == nil {
		ctx, stop := context.WithCancel(context.Background())
		s.hub.feeding = stop
		go s.feed(ctx)
		go s.note(ctx)
		go s.listen(ctx)
	}
	poke(s.hub.news)
	return nil
}

// leave ends w, and says so to other processes unless the same instance has another.
func (s *Server) leave(w *watching) {
	s.hub.mu.Lock()
	delete(s.hub.watches, w)
	another := false
	for o := range s.hub.watches {
		another = another || sameInstance(o.instance, w.instance)
	}
	if len(s.hub.watches) == 0 && s.hub.feeding != nil {
		s.hub.feeding()
		s.hub.feeding = nil
	}
	s.hub.mu.Unlock()
	if another {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.store.Note(ctx, s.now(), func(tx *store.Tx) error { return tx.Unwatched(ctx, w.instance) }); err != nil {
		s.log.Warn("the end of a watch could not be noted", zap.String("gateway_id", w.instance.GatewayID), zap.Error(err))
	}
}

// dismiss ends the watches of an instance that signs off. Until the returned func
// is called none is noted as live.
func (h *hub) dismiss(i store.Instance) (release func()) {
	h.noting.Lock()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.end(i)
	return h.noting.Unlock
}

// end ends the watches of an instance. h.mu is held.
func (h *hub) end(i store.Instance) {
	for w := range h.watches {
		if sameInstance(w.instance, i) {
			delete(h.watches, w)
			close(w.end)
		}
	}
}

// feed reads for all watches how far the database has come, until there is none.
func (s *Server) feed(ctx context.Context) {
	poll := time.NewTimer(pollEvery)
	defer poll.Stop()
	failing, turn := false, int64(fromNow)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.hub.news:
		case <-poll.C:
		}
		told, err := s.read(ctx, &turn)
		if err != nil && !failing && !errors.Is(err, context.Canceled) {
			s.log.Error("the head revision can't be read: no watch is told one", zap.Error(err))
		}
		failing = err != nil
		if told {
			poll.Reset(pollSoon)
		} else {
			poll.Reset(pollEvery)
		}
	}
}

// fromNow is the turn of a feed that has not read yet.
const fromNow = -1

// read wakes the watches where the head has moved, and pushes what is to be told
// since a turn, which it moves on.
func (s *Server) read(ctx context.Context, turn *int64) (told bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	began := time.Now()
	pulse, err := s.store.Pulse(ctx)
	if err != nil {
		return false, err
	}
	s.hub.see(head{pulse.Revision, began})
	if *turn != fromNow && pulse.Turn > *turn {
		err := s.store.Recalls(ctx, *turn, pulse.Turn, func(org string, r budget.Recall) {
			told = true
			s.push(org, r)
		})
		if err != nil {
			return told, err
		}
	}
	*turn = pulse.Turn
	return told, nil
}

func (h *hub) see(now head) {
	h.mu.Lock()
	defer h.mu.Unlock()
	moved := now.revision != h.head.revision
	h.head = now
	if moved {
		for w := range h.watches {
			w.poke()
		}
	}
}

// listen wakes the feed as soon as any process commits, while there are watches.
// Without it there is the feed's poll.
func (s *Server) listen(ctx context.Context) {
	if !s.store.Shared() {
		return // this process tells itself
	}
	for wait := listenSoon; ; wait = min(2*wait, listenLate) {
		began := time.Now()
		err := s.store.Listen(ctx, s.take)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, store.ErrNoNews):
			s.deafOnce.Do(func() {
				s.log.Info("the database notifies nobody: what other replicas change is found by a poll", zap.Duration("every", pollEvery), zap.Error(err))
			})
			return
		case time.Since(began) > listenLate:
			wait = listenSoon
			s.log.Warn("the database's notifications ended; what other replicas change is found by a poll until they are back", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// take is told what a process has committed. A word that it does not know is of a
// newer version.
func (s *Server) take(n store.News) {
	if n == store.Reported {
		s.hub.noteReport()
		return
	}
	s.changed()
}

// note keeps noting, while there are watches, that they are live: beside the feed,
// since a write may have to wait.
func (s *Server) note(ctx context.Context) {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.noteWatches(ctx)
		}
	}
}

// noteWatches keeps the instances that watch from being forgotten. One that is no
// longer known has signed off, through another process too: its watch ends. One that
// lives comes back.
func (s *Server) noteWatches(ctx context.Context) {
	s.hub.noting.Lock()
	defer s.hub.noting.Unlock()
	now := s.now()
	s.hub.mu.Lock()
	list := make([]store.Instance, 0, len(s.hub.watches))
	for w := range s.hub.watches {
		if w.noted.Load() {
			list = append(list, w.instance)
		}
	}
	s.hub.mu.Unlock()
	if len(list) == 0 {
		return
	}
	var gone []store.Instance
	err := s.store.Update(ctx, now, func(tx *store.Tx) (err error) {
		gone, err = tx.Watch(ctx, list, now.Add(liveFor))
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("the live watches could not be noted", zap.Error(err))
		}
		return
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for _, i := range gone {
		s.hub.end(i)
	}
}

// latest returns the last head that was read, if that was within this second.
func (h *hub) latest() (head, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.head, time.Since(h.head.read) < time.Second
}

// nextReport returns a channel that is closed at the next report.
func (h *hub) nextReport() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reported
}

func (h *hub) noteReport() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.reported)
	h.reported = make(chan struct{})
}

func (h *hub) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watches)
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

var errBehind = errors.New("the watch does not read")

// taken returns what was pushed since the last time.
func (w *watching) taken() ([]Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.behind {
		return nil, errBehind
	}
	events := make([]Event, 0, len(w.recalls))
	for k, phase := range w.recalls {
		events = append(events, Event{Kind: KindRecall, Recall: &budget.Recall{Budget: k.budget, Window: k.window, Phase: phase}})
	}
	clear(w.recalls)
	return events, nil
}

func sameInstance(a, b store.Instance) bool {
	return a.OrgID == b.OrgID && a.GatewayID == b.GatewayID && a.ID == b.ID
}

func (w *watching) poke() { poke(w.wake) }

func newWatching(i store.Instance) *watching {
	return &watching{instance: i, wake: make(chan struct{}, 1), end: make(chan struct{})}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
