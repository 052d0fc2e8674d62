package budget

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Options say what a ledger works with.
type Options struct {
	Authority  Authority
	Dir        string                // of journals, made 0700 if absent; the caller MUST hold the data folder's lock
	MaxStale   time.Duration         // leases serve at most so long without an answer; 0: 10 minutes
	Away       func() bool           // the control plane is known to be away; nil: never. Called without a lock held
	Log        *zap.Logger           // nil: none
	Registerer prometheus.Registerer // nil: none
}

// Ledger holds a gateway's leases and what its requests have reserved of them. It
// is safe for concurrent use.
type Ledger struct {
	o       Options
	epoch   time.Time
	metrics metrics
	outbox  *outbox

	generation atomic.Uint64
	kick       chan struct{}
	flush      chan struct{}
	cancel     context.CancelFunc // of the loop
	ran        chan struct{}
	stop       chan struct{} // of the flusher
	flushed    chan struct{}

	// One lock over every lease: a request checks all its budgets and then takes of
	// all, so there is nothing to undo and nobody sees a shortage that is none.
	mu       sync.Mutex
	ended    bool
	opened   int // holds open now
	accounts map[string]*account
	session  *session // nil while a new one can't be begun
	last     string   // id of the latest session
	retired  []*session
	closings []*closing
	queue    []*waiter // with a need, in order of arrival
	writing  []*waiter // taken, until the mark is durable
	dirty    []*lease
	overran  []*account    // to be told
	staleAt  time.Duration // leases serve until then
	pace     pace
}

// Open begins a session: its journal is durable when Open returns. What earlier
// sessions left in the folder is closed in the background.
func Open(o Options) (*Ledger, error) {
	if o.MaxStale <= 0 {
		o.MaxStale = 10 * time.Minute
	}
	if o.Away == nil {
		o.Away = func() bool { return false }
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	l := &Ledger{
		o: o, epoch: time.Now().Add(-time.Nanosecond), accounts: map[string]*account{},
		kick: make(chan struct{}, 1), flush: make(chan struct{}, 1),
		ran: make(chan struct{}), stop: make(chan struct{}), flushed: make(chan struct{}),
		pace: pace{timeout: firstTimeout}, staleAt: o.MaxStale,
	}
	l.outbox = newOutbox(o.Authority, o.Log)
	if err := l.replay(); err != nil {
		return nil, fmt.Errorf("read journals: %w", err)
	}
	s, err := newSession(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("begin a journal: %w", err)
	}
	if err := l.register(o.Registerer); err != nil {
		s.journal.remove()
		return nil, err
	}
	l.session, l.last = s, s.id
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go l.run(ctx)
	go l.flushing()
	go l.outbox.run()
	return l, nil
}

// now is the ledger's clock: monotonic, so that no step of a wall clock moves a
// window. It is never 0, which stands for no instant.
func (l *Ledger) now() time.Duration { return time.Since(l.epoch) }

// Session is the id of the session that the ledger runs now: another one after the
// authority closed it.
func (l *Ledger) Session() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Generation moves when a Set made earlier may be out of date.
func (l *Ledger) Generation() uint64 { return l.generation.Load() }

// Upsert tells what is known of budgets; a revision that is not newer than the
// known one is ignored.
func (l *Ledger) Upsert(records ...Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		a := l.account(r.ID)
		old := a.record()
		if old != nil && old.Revision >= r.Revision {
			continue
		}
		a.rec.Store(&r)
		a.forgive()
		if old != nil && old.Limit != r.Limit {
			l.refresh(a)
		}
		if old == nil || old.AppliesTo != r.AppliesTo || old.Mode != r.Mode || old.Unit != r.Unit {
			l.generation.Add(1)
		}
	}
}

// Recall takes a recall from the watch, also of a lease not known yet: push and
// answer may overtake each other.
func (l *Ledger) Recall(r Recall) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(r.Budget)
	a.forgive()
	known := false
	for _, le := range a.leases {
		if le.window != r.Window {
			continue
		}
		if known = true; r.Phase == le.phase { // not the phase has changed: what is left has
			l.refresh(a)
		}
		l.rise(le, r.Phase)
	}
	if !known {
		a.push(r)
	}
}

// refresh has the next tick ask how a budget stands.
func (l *Ledger) refresh(a *account) {
	a.probe = true
	l.wake()
}

// rise takes a phase that a push or an answer told.
func (l *Ledger) rise(le *lease, phase int64) {
	if phase <= le.phase {
		return
	}
	le.phase = phase
	if le.short() {
		le.returnAt = l.now()
		l.wake()
	}
}

// wake makes the loop look for something to do.
func (l *Ledger) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// account returns that of an id, known or not.
func (l *Ledger) account(id string) *account {
	a := l.accounts[id]
	if a == nil {
		a = &account{id: id}
		l.accounts[id] = a
	}
	return a
}

// Close ends the session after the drain: it tells the settlements kept, closes the
// session with exact marks and deletes its journal. Reservations fail from now on;
// what still holds something is charged with its hold. An error: the authority did
// not answer before ctx ended, and the next start closes the session by its journal.
func (l *Ledger) Close(ctx context.Context) error {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return nil
	}
	l.ended = true
	for _, w := range slices.Concat(l.queue, l.writing) {
		l.drop(w, ErrUnavailable)
	}
	l.mu.Unlock()
	l.cancel()
	<-l.ran
	kept := l.outbox.close(ctx)
	closed := l.sayGoodbye(ctx)
	close(l.stop)
	<-l.flushed
	l.unregister(l.o.Registerer)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range append(l.retired, l.session) {
		if s != nil {
			s.journal.close()
		}
	}
	return errors.Join(kept, closed)
}
