package budget

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrUnavailable says that no lease bears the amount and the authority did not
// answer, or is known to be away.
var ErrUnavailable = errors.New("the budgets' authority is out of reach")

// Denied says that a budget can't bear an amount.
type Denied struct {
	Held      bool          // requests in flight or other gateways hold the money; else it is spent
	Record    Record        // of the budget that lacks
	Left      int64         // that could be reserved here, in the record's unit
	Unspent   int64         // of the limit: Left, and what may come back from calls and gateways
	Need      int64         // that was asked for
	ReopensIn time.Duration // until the window ends; 0: it never does
}

func (d *Denied) Error() string {
	how := "is spent"
	if d.Held {
		how = "is held by calls in flight"
	}
	u := d.Record.Unit
	return fmt.Sprintf("budget %s %s: %s %s of %s left, %s needed", d.Record.ID, how, u.Format(d.Left), u, u.Format(d.Record.Limit), u.Format(d.Need))
}

// The states of a waiter.
const (
	needing = iota // holds nothing; its need is in the queue
	taken          // holds, and waits for the journal
	decided
)

// waiter is one request that waits.
type waiter struct {
	hold   *Hold
	parts  []part
	longer bool // an extension, on given leases
	more   Amounts

	since      time.Duration
	state      int
	asked      bool
	askedAt    time.Duration // the sending of the last call that carried the need
	answered   bool
	answeredAt time.Duration // the sending of the last one that was answered

	ready chan struct{} // closed when decided
	err   error
}

// How leases bear a reservation.
const (
	fromFree = iota // nothing to wait for
	fromIdle        // once the mark is durable
	lacking
)

// bears finds the leases of the parts, and says how they bear them all.
func (l *Ledger) bears(parts []part, now time.Duration) int {
	if now > l.staleAt || l.ended {
		return lacking
	}
	how := fromFree
	for i := range parts {
		p := &parts[i]
		le := p.on(now)
		switch {
		case le == nil && p.amount == 0: // nothing to reserve, and nothing to reserve it in
		case le == nil || le.session != l.session || le.idle() < p.amount:
			return lacking
		case le.free() < p.amount:
			how = fromIdle
		}
	}
	return how
}

// take reserves what bears found.
func (l *Ledger) take(parts []part, forwarded bool, now time.Duration) {
	for i := range parts {
		p := &parts[i]
		if p.lease = p.on(now); p.lease == nil {
			continue
		}
		p.lease.take(p.amount, forwarded, now)
		if p.lease.lowMark() {
			l.write(p.lease)
		}
	}
}

// admit brings a reservation to its end: taken, or denied, or given up.
func (l *Ledger) admit(ctx context.Context, w *waiter) error {
	said := l.o.Away()
	l.mu.Lock()
	now := l.now()
	l.pace.note(said, now)
	w.since = now
	switch how := l.bears(w.parts, now); {
	case w.state == decided: // settled already
	case how == fromFree:
		l.take(w.parts, true, now)
		l.finish(w, nil)
	case how == fromIdle:
		w.state = taken
		l.take(w.parts, false, now)
		l.writing = append(l.writing, w)
		l.sync()
	default:
		if d := l.kept(w.parts, now); d != nil {
			l.count(d)
			l.mu.Unlock()
			return d
		}
		if l.pace.away() {
			l.pace.probe = true
			l.wake()
			l.mu.Unlock()
			return ErrUnavailable
		}
		if l.ended || w.cut(l.session) {
			l.mu.Unlock()
			return ErrUnavailable
		}
		l.queue = append(l.queue, w)
		l.wake()
	}
	l.mu.Unlock()
	return l.await(ctx, w)
}

// cut says that an extension's lease is of a session that the authority closed.
func (w *waiter) cut(s *session) bool {
	return w.longer && slices.ContainsFunc(w.parts, func(p part) bool { return p.lease != nil && p.lease.session != s })
}

func (l *Ledger) await(ctx context.Context, w *waiter) error {
	timer := time.NewTimer(heldAfter)
	defer timer.Stop()
	for {
		select {
		case <-w.ready:
			return w.err
		case <-ctx.Done():
			l.mu.Lock()
			if w.state != decided {
				l.drop(w, ctx.Err())
			}
			l.mu.Unlock()
			return w.err
		case <-timer.C:
			l.mu.Lock()
			now := l.now()
			if w.state != decided {
				l.overdue(w, now)
			}
			l.mu.Unlock()
			timer.Reset(max(0, w.since+unheardAfter-now))
		}
	}
}

// overdue ends a wait that is too long: denied where an answer of late says so.
func (l *Ledger) overdue(w *waiter, now time.Duration) {
	if w.state == needing && w.answered && now-w.answeredAt <= denialTrue {
		l.deny(w, now, w.worst(now))
	} else if now-w.since >= unheardAfter {
		l.drop(w, ErrUnavailable)
	}
}

// drop ends a wait without a reservation; what was taken was never forwarded.
func (l *Ledger) drop(w *waiter, err error) {
	state := w.state
	l.queue = without(l.queue, w)
	l.writing = without(l.writing, w)
	l.finish(w, err)
	if state == taken {
		for _, p := range w.parts {
			if p.lease != nil {
				p.lease.release(p.amount)
			}
		}
		l.freed(w.parts, l.now())
	}
}

func without(list []*waiter, w *waiter) []*waiter {
	if i := slices.Index(list, w); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// freed looks who can use money that came back.
func (l *Ledger) freed(parts []part, now time.Duration) {
	l.serve(now)
	for _, p := range parts {
		if le := p.lease; le != nil && le.session == l.session && le.giveBack(now) && le.idle() > 0 && le.returnAt == 0 {
			le.returnAt = now + returnAfter
			l.wake()
		}
	}
}

// serve gives idle money to those who wait, in order of arrival.
func (l *Ledger) serve(now time.Duration) {
	if len(l.queue) == 0 {
		return
	}
	rest := l.queue[:0]
	for _, w := range l.queue {
		switch l.bears(w.parts, now) {
		case fromFree:
			l.take(w.parts, true, now)
			l.finish(w, nil)
		case fromIdle:
			l.take(w.parts, false, now)
			w.state = taken
			l.writing = append(l.writing, w)
			l.sync()
		default:
			rest = append(rest, w)
		}
	}
	clear(l.queue[len(rest):])
	l.queue = rest
}

// forward lets those go for whom the mark is durable now.
func (l *Ledger) forward() {
	rest := l.writing[:0]
	for _, w := range l.writing {
		if !w.durable() {
			rest = append(rest, w)
			continue
		}
		for _, p := range w.parts {
			if p.lease != nil {
				p.lease.waiting -= p.amount
			}
		}
		l.finish(w, nil)
	}
	clear(l.writing[len(rest):])
	l.writing = rest
	for _, w := range rest {
		for _, p := range w.parts {
			if p.lease != nil {
				l.write(p.lease)
			}
		}
	}
}

// durable says that the marks bear what is forwarded and this request.
func (w *waiter) durable() bool {
	for _, p := range w.parts {
		if le := p.lease; le != nil && le.spent+le.held-le.waiting+p.amount > le.mark {
			return false
		}
	}
	return true
}

// on returns the lease that a part is about; nil when none is known.
func (p *part) on(now time.Duration) *lease {
	if p.lease != nil {
		return p.lease
	}
	return p.account.serving(now)
}

// kept returns the denial that a moment ago's answer gives, or that follows from
// the limit; nil when the authority should be asked.
func (l *Ledger) kept(parts []part, now time.Duration) *Denied {
	for i := range parts {
		p := &parts[i]
		le := p.on(now)
		if le == nil || le.session != l.session || le.infoSeq == 0 {
			continue
		}
		if d := le.denial; d.until > now && p.amount >= d.amount && le.idle() < p.amount {
			return p.denied(le.holders(p.amount), now)
		}
		// A need that the limit could never bear would leave the budget short for ever.
		if !le.doubt && p.amount > max(le.limit, p.account.record().Limit) {
			p.account.probe = p.account.probe || now-le.infoAt > denialKept
			return p.denied(false, now)
		}
	}
	return nil
}

// worst is the part that lacks the most.
func (w *waiter) worst(now time.Duration) *part {
	worst, most := &w.parts[0], int64(-1)
	for i := range w.parts {
		p := &w.parts[i]
		if le := p.on(now); le != nil && p.amount-le.left-le.idle() > most {
			worst, most = p, p.amount-le.left-le.idle()
		}
	}
	return worst
}

// deny ends a need: at the limit of its time the money is held by somebody.
func (l *Ledger) deny(w *waiter, now time.Duration, p *part) {
	d := p.denied(true, now)
	l.count(d)
	l.drop(w, d)
}

func (p *part) denied(held bool, now time.Duration) *Denied {
	d := &Denied{Held: held, Record: *p.account.record(), Need: p.amount}
	if le := p.on(now); le != nil {
		d.Left = add(max(0, le.left), max(0, le.idle()))
		if le.infoSeq > 0 {
			d.Record.Limit, d.Unspent = le.limit, max(0, le.unspent())
		}
		if le.ends < never {
			d.ReopensIn = max(0, le.ends-now)
		}
	}
	return d
}

func (l *Ledger) count(d *Denied) {
	a := l.account(d.Record.ID)
	if d.Held {
		a.heldUp++
	} else {
		a.exceeded++
	}
}

// Spent returns a denial that is kept from a moment ago, or nil. It asks nobody.
func (l *Ledger) Spent(s *Set, worst Amounts) *Denied {
	if s.Empty() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, a := range s.accounts {
		if !a.enforced() {
			continue
		}
		one := [1]part{{account: a, amount: max(0, worst.Of(a.record().Unit))}}
		if d := l.kept(one[:], now); d != nil {
			l.count(d)
			return d
		}
	}
	return nil
}
