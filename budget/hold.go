package budget

import (
	"context"
	"errors"
)

// Hold is what one running request has reserved. The zero value is ready; it must
// not be copied, and be settled before it is used again. Its methods are safe
// against each other.
type Hold struct {
	ledger *Ledger
	set    *Set
	total  Amounts
	parts  []part
	few    [8]part // what parts is in, mostly
	open   bool
	longer *waiter // an extension that waits
}

// part is what a request holds of one budget.
type part struct {
	account *account
	lease   *lease // nil until it is reserved
	amount  int64
}

// ErrSettled says that the hold was settled while it waited for more.
var ErrSettled = errors.New("the hold is settled")

var errOpen = errors.New("BUG: the hold is open already")

// Reserve reserves worst in every enforced budget of the set, or in none: nil,
// *Denied, ErrUnavailable or ctx's error. It returns at once where the leases bear
// it, and else waits, 1 s at most. An empty or nil set reserves nothing and opens
// the hold all the same. Amounts below zero count as zero.
func (l *Ledger) Reserve(ctx context.Context, s *Set, worst Amounts, h *Hold) error {
	l.mu.Lock()
	if h.open || h.longer != nil {
		l.mu.Unlock()
		return errOpen
	}
	h.ledger, h.set, h.total = l, s, worst
	h.parts = h.few[:0]
	if s.Empty() {
		h.open = true
		l.opened++
		l.mu.Unlock()
		return nil
	}
	now := l.now()
	for _, a := range s.accounts {
		r := a.record()
		if r.Mode == Observe {
			continue
		}
		amount := max(0, worst.Of(r.Unit))
		if !r.sound() {
			d := &Denied{Record: *r, Need: amount}
			l.count(d)
			l.mu.Unlock()
			return d
		}
		h.parts = append(h.parts, part{account: a, amount: amount})
	}
	if l.bears(h.parts, now) == fromFree {
		l.take(h.parts, true, now)
		h.open = true
		l.opened++
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	return l.admit(ctx, &waiter{hold: h, parts: h.parts, ready: make(chan struct{})})
}

// sound says whether a record can be counted by. Another one denies.
func (r *Record) sound() bool {
	switch r.Unit {
	case USD, Tokens, Requests:
		return r.Window.Valid() && r.Mode == Enforce
	}
	return false
}

// Open says that it is reserved and not settled.
func (h *Hold) Open() bool {
	if h.ledger == nil {
		return false
	}
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return h.open
}

// Amounts is what it holds now, extensions included; zero when it is not open.
func (h *Hold) Amounts() Amounts {
	if h.ledger == nil {
		return Amounts{}
	}
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	if !h.open {
		return Amounts{}
	}
	return h.total
}

// Extend reserves more on the leases of the reservation, whatever the window now;
// errors as Reserve's, and ErrSettled. One at a time.
func (h *Hold) Extend(ctx context.Context, more Amounts) error {
	l := h.ledger
	if l == nil {
		return ErrSettled
	}
	l.mu.Lock()
	if !h.open || h.longer != nil {
		l.mu.Unlock()
		return ErrSettled
	}
	w := &waiter{hold: h, longer: true, more: more, parts: make([]part, 0, len(h.parts)), ready: make(chan struct{})}
	for _, p := range h.parts {
		w.parts = append(w.parts, part{account: p.account, lease: p.lease, amount: max(0, more.Of(p.account.record().Unit))})
	}
	h.longer = w
	l.mu.Unlock()
	err := l.admit(ctx, w)
	if err != nil {
		l.mu.Lock()
		if h.longer == w {
			h.longer = nil
		}
		l.mu.Unlock()
	}
	return err
}

// finish tells a waiter how it ended.
func (l *Ledger) finish(w *waiter, err error) {
	w.state, w.err = decided, err
	h := w.hold
	if w.longer {
		if h.longer == w {
			h.longer = nil
		}
		if err == nil {
			for i, p := range w.parts {
				h.parts[i].amount = add(h.parts[i].amount, p.amount)
			}
			h.total = h.total.plus(w.more)
		}
	} else if err == nil {
		h.parts = w.parts
		h.open = true
		l.opened++
	}
	close(w.ready)
}

func (a Amounts) plus(b Amounts) Amounts {
	return Amounts{USD: add(a.USD, max(0, b.USD)), Tokens: add(a.Tokens, max(0, b.Tokens)), Requests: add(a.Requests, max(0, b.Requests))}
}

// Settle ends the hold with what was used, of which what is below zero counts as
// zero: Settle(Amounts{}) gives everything back. Only the first call counts. It
// never waits for I/O. What was used above the hold is charged all the same.
func (h *Hold) Settle(used Amounts) {
	l := h.ledger
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !h.open {
		return
	}
	h.open = false
	l.opened--
	if h.longer != nil {
		l.drop(h.longer, ErrSettled)
	}
	now := l.now()
	for _, p := range h.parts {
		if p.lease == nil {
			continue
		}
		before := p.lease.overrun
		p.lease.settle(p.amount, max(0, used.Of(p.account.record().Unit)))
		if p.lease.overrun != before {
			l.write(p.lease)
			l.overran = append(l.overran, p.account)
			l.wake()
		}
	}
	l.freed(h.parts, now)
}

// Charges appends what the budgets of the set are charged with, observed ones
// included. It may be called until the hold is used again.
func (h *Hold) Charges(b []Charge, used Amounts) []Charge {
	if h.ledger == nil || h.set.Empty() {
		return b
	}
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	for _, a := range h.set.accounts {
		c := Charge{Budget: a.id, Amount: max(0, used.Of(a.record().Unit))}
		for _, p := range h.parts {
			if p.account == a && p.lease != nil {
				c.Window = p.lease.window
			}
		}
		b = append(b, c)
	}
	return b
}
