package budget

import (
	"math"
	"sync/atomic"
	"time"
)

// The protocol's constants: what one gateway may ask of the authority, and how long
// a request may wait for it.
const (
	tick         = 500 * time.Millisecond
	horizon      = 10 * time.Second       // of spending kept in hand
	stepSpan     = 200 * time.Millisecond // of spending that a mark runs ahead
	reportEvery  = 2 * time.Second
	heartbeat    = 3 * time.Second
	pollEvery    = 25 * time.Millisecond
	probeEvery   = time.Second // of an authority that is said to be away
	leastGap     = 10 * time.Millisecond
	returnAfter  = 20 * time.Millisecond
	denialKept   = 500 * time.Millisecond
	denialTrue   = 700 * time.Millisecond // how old what a denial rests on may be
	heldAfter    = 750 * time.Millisecond
	unheardAfter = time.Second
	firstTimeout = 250 * time.Millisecond
	lastTimeout  = 4 * time.Second
	flushGap     = 5 * time.Millisecond
	askNext      = time.Second      // before a window ends
	doneAfter    = 30 * time.Second // a lease that is done is remembered past its window's end
)

const never = time.Duration(math.MaxInt64)

// account is a budget at this gateway. All but rec is under the ledger's lock; it
// lives as long as the ledger.
type account struct {
	id     string
	rec    atomic.Pointer[Record] // nil until it is told
	leases []*lease               // of the running session, until done
	cur    *lease                 // that serves now; nil: none known
	pushed map[string]int64       // phases of windows without a lease
	probe  bool                   // how it stands should be asked at the next tick

	lastHold int64
	used     int64   // Σ spent + held of all its leases ever
	counted  int64   // used at the last tick
	rate     float64 // a second; a guess of what is to come, never an amount
	lastUse  time.Duration

	exceeded, heldUp uint64 // denials
	overrun, alarmed int64
}

func (a *account) record() *Record { return a.rec.Load() }

// enforced says whether the budget is leased.
func (a *account) enforced() bool {
	r := a.rec.Load()
	return r == nil || r.Mode != Observe
}

// forgive forgets a denial that is kept: something about the budget has changed.
func (a *account) forgive() {
	for _, le := range a.leases {
		le.denial, le.doubt = denial{}, true
	}
}

// push remembers the phase of a window without a lease. Windows pass: a few are enough.
func (a *account) push(r Recall) {
	const most = 4
	if a.pushed == nil || len(a.pushed) >= most && a.pushed[r.Window] == 0 {
		a.pushed = map[string]int64{}
	}
	a.pushed[r.Window] = max(a.pushed[r.Window], r.Phase)
}

// serving returns the lease of the window that is open now; nil when none is known.
func (a *account) serving(now time.Duration) *lease {
	if le := a.cur; le != nil && now < le.ends && le.starts <= now {
		return le
	}
	a.cur = nil
	for _, le := range a.leases {
		if now < le.ends && le.starts <= now && (a.cur == nil || le.infoSeq >= a.cur.infoSeq) {
			a.cur = le
		}
	}
	return a.cur
}

// target is what should be in hand.
func (a *account) target() int64 {
	return max(span(a.rate, horizon), times4(a.lastHold))
}

// step is how far a mark runs ahead.
func (a *account) step() int64 {
	return max(span(a.rate, stepSpan), times4(a.lastHold))
}

// reckon follows the rate of spending, at the tick.
func (a *account) reckon(elapsed time.Duration) {
	const weight = 0.4
	rate := float64(max(0, a.used-a.counted)) / elapsed.Seconds()
	a.rate += (rate - a.rate) * weight
	a.counted = a.used
}

func span(rate float64, d time.Duration) int64 {
	return int64(min(rate*d.Seconds(), 1<<60))
}

func times4(n int64) int64 { return 4 * min(n, 1<<60) }

// add adds two amounts, neither below zero, and stops at the end of the numbers.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// lease is money of one budget and window that the authority has taken for this
// session. Its totals only rise, but held.
type lease struct {
	account      *account
	session      *session
	window       string
	starts, ends time.Duration // by the ledger's clock

	granted, returned, spent, overrun, held int64

	mark    int64 // durable: forwarded requests never pass it
	pending int64 // the mark that is being written; 0: none
	waiting int64 // of held: taken, and not forwarded until the mark is durable
	dirty   bool  // it should be written

	phase    int64
	told     Lease // the facts that the authority has answered
	toldAt   time.Duration
	returnAt time.Duration // when idle money of a short lease goes back; 0: no such date
	used     bool          // since the last wish

	limit, left, settled int64 // as last answered
	gone                 bool
	doubt                bool // something of it has changed since
	infoSeq              int64
	infoAt               time.Duration // the sending of that call
	denial               denial
}

// denial is one that was answered a moment ago.
type denial struct {
	amount int64
	until  time.Duration
}

func (le *lease) short() bool { return le.phase%2 != 0 }

func (le *lease) out() int64 { return le.granted - le.returned }

// idle is money that nothing has reserved.
func (le *lease) idle() int64 { return le.out() - le.spent - le.held }

// free is what the hot path may take.
func (le *lease) free() int64 { return min(le.mark, le.out()) - le.spent - le.held }

// take reserves; forwarded says that the mark bears it already.
func (le *lease) take(amount int64, forwarded bool, now time.Duration) {
	le.held += amount
	if !forwarded {
		le.waiting += amount
	}
	le.used = true
	a := le.account
	a.used += amount
	a.lastUse = now
	if amount > 0 {
		a.lastHold = amount
	}
}

// release undoes a take that was never forwarded.
func (le *lease) release(amount int64) {
	le.held -= amount
	le.waiting -= amount
	le.account.used -= amount
}

// settle ends a hold with what was used. Above it, the rest comes out of what is
// free; beyond that it is charged all the same.
func (le *lease) settle(amount, used int64) {
	le.held -= amount
	le.account.used += min(used, amount) - amount
	if used <= amount {
		le.spent += used
		return
	}
	extra := used - amount
	le.spent += amount
	x := min(extra, max(0, le.free()))
	le.spent += x
	le.account.used += x
	le.overrun = add(le.overrun, extra-x)
	le.account.overrun = add(le.account.overrun, extra-x)
}

// lowMark says that the mark should be raised before it stops anybody.
func (le *lease) lowMark() bool {
	ahead := max(le.mark, le.pending) - le.spent - le.held
	if le.short() {
		return ahead < 0
	}
	return ahead < le.account.step()/2
}

// nextMark is what the journal should say. It only rises.
func (le *lease) nextMark() int64 {
	m := le.spent + le.held
	if !le.short() {
		m = add(m, le.account.step())
	}
	return max(le.mark, m)
}

// giveBack says whether idle money has no business here.
func (le *lease) giveBack(now time.Duration) bool {
	return le.short() || le.ends <= now || !le.account.enforced()
}

// facts is what the gateway tells.
func (le *lease) facts() Lease {
	return Lease{Budget: le.account.id, Window: le.window, Granted: le.granted, Returned: le.returned,
		Spent: le.spent, Held: le.held, Overrun: le.overrun, Phase: le.phase}
}

// done says that the authority knows all there is to know.
func (le *lease) done(now time.Duration) bool {
	return le.ends < never && le.ends+doneAfter <= now && le.held == 0 && le.idle() == 0 && le.told == le.facts()
}
