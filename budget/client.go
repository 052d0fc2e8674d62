package budget

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"
)

// The bounds of one call, so that it stays answerable in its time.
const (
	mostLeases   = 2000
	mostNeeds    = 1000
	mostClosings = 16
)

// pace is when the loop calls.
type pace struct {
	timeout  time.Duration // of the next call
	sentAt   time.Duration // the last one
	notFor   time.Duration // no call before: the last one failed
	ticked   time.Duration
	heardAt  time.Duration // the sending of the last answered call
	called   bool
	again    bool // the last one was not answered
	said     bool // the authority is said to be away
	saidAt   time.Duration
	probe    bool // somebody wants to know whether it is
	answered uint64
	missed   uint64
	refused  uint64
}

// call is one with what it carries.
type call struct {
	Call
	session *session
	leases  []*lease // beside Call.Leases; nil for a window not known yet
	waiters []*waiter
	sent    time.Duration
}

// run makes the calls, one at a time. What comes up meanwhile goes with the next.
func (l *Ledger) run(ctx context.Context) {
	defer close(l.ran)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.renew()
		said := l.o.Away()
		l.mu.Lock()
		now := l.now()
		l.pace.note(said, now)
		wait := l.due(now) - now
		var c *call
		if wait <= 0 {
			c = l.build(now)
		}
		alarms := l.alarms()
		l.mu.Unlock()
		for _, a := range alarms {
			l.o.Log.Warn("budget overrun: more was used than was held, and it is charged", zap.String("budget", a.id), zap.String("more", a.more))
		}
		if c != nil {
			l.call(ctx, c)
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-l.kick:
		case <-timer.C:
		}
	}
}

// note keeps whether the authority is said to be away, and since when.
func (p *pace) note(said bool, now time.Duration) {
	if said && !p.said {
		p.saidAt = now
	}
	p.said = said
}

// away says whether the authority is known to be away. What is said may be about other
// calls than the ledger's, and long ago: it is believed until a call of later than that
// is answered, and again when the last one was not.
func (p *pace) away() bool {
	return p.said && (p.again || !p.called || p.heardAt < p.saidAt)
}

type alarm struct{ id, more string }

// alarms returns what has overrun since it was told.
func (l *Ledger) alarms() []alarm {
	var list []alarm
	for _, a := range l.overran {
		if r := a.record(); r != nil && a.overrun > a.alarmed {
			list = append(list, alarm{a.id, r.Unit.Format(a.overrun - a.alarmed)})
			a.alarmed = a.overrun
		}
	}
	l.overran = l.overran[:0]
	return list
}

// due says when the next call goes, were nothing to happen until then.
func (l *Ledger) due(now time.Duration) time.Duration {
	if l.session == nil {
		return max(now+leastGap, l.pace.notFor)
	}
	at := l.pace.ticked + tick
	if at <= now && !l.busy(now) {
		l.tick(now)
		at = now + tick
	}
	for _, w := range l.queue[:min(len(l.queue), mostNeeds)] {
		if w.asked {
			at = min(at, w.askedAt+pollEvery)
		} else {
			at = now
			break
		}
	}
	for _, le := range l.session.leases {
		if le.returnAt != 0 {
			at = min(at, le.returnAt)
		}
	}
	for _, c := range l.closings {
		at = min(at, c.askAt)
	}
	if l.pace.again {
		at = now
	}
	if l.pace.probe {
		at = min(at, max(now, l.pace.sentAt+probeEvery))
	}
	if l.pace.called {
		at = max(at, l.pace.sentAt+leastGap, l.pace.notFor)
	}
	return at
}

// tick reckons the rates. The wishes of a tick go with its call.
func (l *Ledger) tick(now time.Duration) {
	elapsed := now - l.pace.ticked
	l.pace.ticked = now
	for _, a := range l.accounts {
		a.reckon(elapsed)
		a.probe = a.probe && a.serving(now) != nil
	}
	for k, le := range l.session.leases {
		if le.done(now) {
			delete(l.session.leases, k)
			le.account.leases = slices.DeleteFunc(le.account.leases, func(other *lease) bool { return other == le })
			le.account.cur = nil
		}
	}
	l.retire(now)
}

// busy says whether a tick has something to tell or to wish.
func (l *Ledger) busy(now time.Duration) bool {
	alive := false
	for _, le := range l.session.leases {
		alive = alive || le.out() > 0
		if l.wish(le, now) > 0 || le.account.probe || le.giveBack(now) && le.idle() > 0 || le.moved() && now-le.toldAt >= reportEvery {
			return true
		}
		if l.wantsNext(le, now) {
			return true
		}
	}
	return alive && now-l.pace.heardAt >= heartbeat
}

// moved says whether the authority knows less than there is.
func (le *lease) moved() bool { return le.told != le.facts() }

// wish is the top-up that a lease wants; nobody waits for it.
func (l *Ledger) wish(le *lease, now time.Duration) int64 {
	a := le.account
	if le.short() || !le.used || a.serving(now) != le || !a.enforced() {
		return 0
	}
	target := a.target()
	if le.idle() >= target/2 {
		return 0
	}
	return target - le.idle()
}

// wantsNext says that a window's last second has come and the next one is not known.
func (l *Ledger) wantsNext(le *lease, now time.Duration) bool {
	a := le.account
	if le.ends == never || le.ends-now > askNext || a.serving(now) != le || now-a.lastUse > horizon || !a.enforced() {
		return false
	}
	return !slices.ContainsFunc(a.leases, func(other *lease) bool { return other.starts >= le.ends || other.starts > now })
}

// build makes a call of all that is to be told and wished now. What is returned
// leaves free here, before anybody hears of it.
func (l *Ledger) build(now time.Duration) *call {
	s := l.session
	s.seq++
	atTick := now-l.pace.ticked >= tick
	c := &call{Call: Call{Session: s.id, Seq: s.seq}, session: s, sent: now}
	needed := l.carry(c, now)
	for _, le := range s.leases {
		if len(c.Leases) >= mostLeases {
			break // the rest goes with the next call, in whatever order
		}
		if le.giveBack(now) && le.idle() > 0 {
			le.returned += le.idle()
		}
		le.returnAt = 0
		var want int64
		if atTick || needed[le] {
			want = l.wish(le, now)
		}
		if want > 0 || needed[le] || le.account.probe && atTick || le.urgent() || le.moved() && now-le.toldAt >= reportEvery {
			facts := le.facts()
			facts.Want = want
			le.used = le.used && want == 0
			c.Leases = append(c.Leases, facts)
			c.leases = append(c.leases, le)
		}
		if atTick && l.wantsNext(le, now) {
			c.Leases = append(c.Leases, Lease{Budget: le.account.id, Window: WindowNext, Want: max(1, le.account.target())})
			c.leases = append(c.leases, nil)
		}
	}
	for _, closing := range l.closings {
		if closing.askAt <= now && len(c.Close) < mostClosings {
			c.Close = append(c.Close, closing.Closing)
		}
	}
	if atTick {
		l.tick(now)
	}
	l.pace.sentAt, l.pace.called, l.pace.probe = now, true, false
	return c
}

// urgent says that a call which goes anyway should tell of it.
func (le *lease) urgent() bool {
	return le.told.Granted != le.granted || le.told.Returned != le.returned || le.told.Overrun != le.overrun || le.told.Phase != le.phase
}

// carry puts the needs into a call, and returns the leases that they are about.
func (l *Ledger) carry(c *call, now time.Duration) map[*lease]bool {
	needed := map[*lease]bool{}
	for _, w := range l.queue[:min(len(l.queue), mostNeeds)] {
		need := make([]Need, 0, len(w.parts))
		for i := range w.parts {
			p := &w.parts[i]
			window := WindowCurrent
			if le := p.on(now); le != nil {
				needed[le] = true
				window = le.window
			}
			if p.amount > 0 {
				need = append(need, Need{Budget: p.account.id, Window: window, Amount: p.amount})
			}
		}
		if len(need) > 0 {
			c.Needs = append(c.Needs, need)
		}
		c.waiters = append(c.waiters, w)
		w.asked, w.askedAt = true, now
	}
	return needed
}

// call makes one and takes what comes of it.
func (l *Ledger) call(ctx context.Context, c *call) {
	timeout := l.pace.timeout
	limited, cancel := context.WithTimeout(ctx, timeout+rand.N(timeout/4))
	answer, err := l.o.Authority.Leases(limited, &c.Call)
	cancel()
	away := err != nil && l.o.Away()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	switch {
	case errors.Is(err, ErrClosed):
		l.pace.refused++
		l.pace.notFor = now + firstTimeout
		l.cutOff(now)
	case err != nil || answer == nil:
		l.pace.missed++
		l.pace.again = true
		l.pace.notFor = c.sent + min(timeout, time.Second)
		l.pace.timeout = min(2*timeout, lastTimeout)
		for i, le := range c.leases {
			if le != nil && c.Leases[i].Want > 0 {
				le.used = true
			}
		}
		if away {
			for _, w := range slices.Clone(l.queue) {
				l.drop(w, ErrUnavailable)
			}
		}
	default:
		l.pace.answered++
		l.pace.again = false
		l.pace.notFor, l.pace.timeout = 0, firstTimeout
		l.hear(c, answer, now)
	}
}
