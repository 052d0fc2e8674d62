package budget

import (
	"time"

	"go.uber.org/zap"
)

// write marks a lease to be journalled.
func (l *Ledger) write(le *lease) {
	if !le.dirty {
		le.dirty = true
		l.dirty = append(l.dirty, le)
		l.sync()
	}
}

// sync wakes the flusher.
func (l *Ledger) sync() {
	select {
	case l.flush <- struct{}{}:
	default:
	}
}

// flushing writes the journals, off the hot path: one write for all that wait, at
// most every 5 ms.
func (l *Ledger) flushing() {
	defer close(l.flushed)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-l.stop:
			l.flushOnce()
			return
		case <-l.flush:
		}
		<-pause.C
		begun := time.Now()
		gap := flushGap
		if !l.flushOnce() {
			gap = 100 * time.Millisecond
		}
		pause.Reset(max(0, gap-time.Since(begun)))
	}
}

// batch is what one journal is to be told: marks on their way to the disk.
type batch struct {
	session *session
	leases  []*lease
	records []ClosedLease
	anew    bool // every lease, into a new file
}

// flushOnce writes what is due and lets those go who waited for it.
func (l *Ledger) flushOnce() bool {
	l.mu.Lock()
	batches := l.collect()
	l.mu.Unlock()
	ok := true
	for _, b := range batches {
		err := b.save()
		if err != nil {
			ok = false
			l.o.Log.Error("write the lease journal: what waits for it is not served", zap.String("session", b.session.id), zap.Error(err))
		}
		l.mu.Lock()
		for i, le := range b.leases {
			le.pending = 0
			if err != nil {
				l.write(le)
			} else {
				le.mark = max(le.mark, b.records[i].Mark)
			}
		}
		l.mu.Unlock()
	}
	if len(batches) > 0 {
		l.mu.Lock()
		l.forward()
		l.serve(l.now())
		l.mu.Unlock()
	}
	return ok
}

// collect takes the marks that are to be written, by session; of a journal that is
// to be written anew those of every lease.
func (l *Ledger) collect() []*batch {
	var batches []*batch
	of := func(s *session) *batch {
		for _, b := range batches {
			if b.session == s {
				return b
			}
		}
		b := &batch{session: s, anew: s.journal.full(len(s.leases))}
		batches = append(batches, b)
		if b.anew {
			for _, le := range s.leases {
				b.add(le)
			}
		}
		return b
	}
	for _, le := range l.dirty {
		le.dirty = false
		if b := of(le.session); !b.anew {
			b.add(le)
		}
	}
	clear(l.dirty)
	l.dirty = l.dirty[:0]
	return batches
}

func (b *batch) add(le *lease) {
	le.pending = max(1, le.nextMark())
	b.leases = append(b.leases, le)
	b.records = append(b.records, ClosedLease{Budget: le.account.id, Window: le.window, Mark: le.nextMark(), Overrun: le.overrun})
}

// save makes the marks durable.
func (b *batch) save() error {
	if b.anew {
		return b.session.journal.renew(b.records)
	}
	return b.session.journal.append(b.records)
}
