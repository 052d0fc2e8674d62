package budget

import "os"

// What tests see of the inside.

// LeaseState is a lease as the gateway has it.
type LeaseState struct {
	Session, Budget, Window                 string
	Granted, Returned, Spent, Overrun, Held int64
	Idle, Free, Mark, Waiting, Step, Phase  int64
	Running                                 bool // of the running session
}

func (le *lease) state(l *Ledger) LeaseState {
	return LeaseState{Session: le.session.id, Budget: le.account.id, Window: le.window,
		Granted: le.granted, Returned: le.returned, Spent: le.spent, Overrun: le.overrun, Held: le.held,
		Idle: le.idle(), Free: le.free(), Mark: le.mark, Waiting: le.waiting, Step: le.account.step(), Phase: le.phase,
		Running: le.session == l.session}
}

// States returns every lease that the ledger still knows.
func (l *Ledger) States() []LeaseState {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []LeaseState
	for _, s := range append(l.retired[:len(l.retired):len(l.retired)], l.session) {
		if s == nil {
			continue
		}
		for _, le := range s.leases {
			list = append(list, le.state(l))
		}
	}
	return list
}

// Waiting is how many requests wait.
func (l *Ledger) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) + len(l.writing)
}

// Kill ends the ledger as kill -9 would: nothing more is written or told.
func (l *Ledger) Kill() []LeaseState {
	states := l.States()
	l.mu.Lock()
	l.ended = true
	l.dirty = nil
	for _, w := range append(append([]*waiter{}, l.queue...), l.writing...) {
		l.drop(w, ErrUnavailable)
	}
	l.dirty = nil
	sessions := append(l.retired, l.session)
	l.mu.Unlock()
	l.cancel()
	l.outbox.cancel()
	<-l.ran
	<-l.outbox.done
	l.mu.Lock()
	l.dirty = nil
	l.mu.Unlock()
	close(l.stop)
	<-l.flushed
	for _, s := range sessions {
		if s != nil {
			s.journal.close()
		}
	}
	return states
}

// Parts returns what the hold has of each lease.
func (h *Hold) Parts() []LeaseState {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	var list []LeaseState
	for _, p := range h.parts {
		if p.lease != nil {
			s := p.lease.state(h.ledger)
			s.Held = p.amount
			list = append(list, s)
		}
	}
	return list
}

// ReadJournal reads a session's file as the next start would.
func ReadJournal(dir, session string) ([]ClosedLease, error) {
	b, err := os.ReadFile(journalPath(dir, session))
	if err != nil {
		return nil, err
	}
	return readJournal(b, session)
}
