package budget

import (
	"slices"
	"time"
)

// hear takes an answer: what is granted first, then who can go, then who can't.
func (l *Ledger) hear(c *call, answer *Answer, now time.Duration) {
	l.pace.heardAt = c.sent
	l.staleAt = add2(c.sent, l.o.MaxStale)
	l.closed(c, answer.Closed, now)
	if c.session != l.session {
		return
	}
	fresh := answer.Seq == c.Seq
	for i, le := range c.leases {
		if le == nil {
			continue
		}
		le.told, le.toldAt = c.Leases[i], c.sent
		le.told.Want = 0
		le.account.probe = false
	}
	for i := range answer.Leases {
		l.learn(&answer.Leases[i], c, fresh)
	}
	l.serve(now)
	for _, le := range c.session.leases {
		// A grant that nobody waits for any more goes back, too.
		if le.giveBack(now) && le.idle() > 0 && le.returnAt == 0 {
			le.returnAt = now + returnAfter
		}
	}
	if !fresh {
		return
	}
	for _, w := range c.waiters {
		if w.state == needing {
			w.answered, w.answeredAt = true, c.sent
			l.judge(w, c, now)
		}
	}
	// Those whom the answer concerns as well, though they did not ask.
	for _, w := range slices.Clone(l.queue) {
		if w.state != needing {
			continue
		}
		if d := l.kept(w.parts, now); d != nil {
			l.count(d)
			l.drop(w, d)
		}
	}
}

// learn takes what the authority knows of one lease.
func (l *Ledger) learn(info *LeaseInfo, c *call, fresh bool) {
	k := key{info.Budget, info.Window}
	le := c.session.leases[k]
	if le == nil {
		a := l.account(info.Budget)
		// One that was done here and is named again goes on where it ended.
		le = &lease{account: a, session: c.session, window: info.Window,
			returned: info.Returned, spent: info.Spent, overrun: info.Overrun, phase: info.Phase, used: true}
		c.session.leases[k] = le
		a.leases = append(a.leases, le)
		l.rise(le, a.pushed[info.Window])
		delete(a.pushed, info.Window)
		// Its first wish need not wait for the tick.
		l.pace.ticked = min(l.pace.ticked, c.sent-tick)
	}
	le.granted = max(le.granted, info.Granted)
	if !fresh || c.Seq <= le.infoSeq {
		return
	}
	le.infoSeq, le.infoAt, le.doubt = c.Seq, c.sent, false
	le.starts = after(c.sent, info.StartsInMS)
	le.ends = after(c.sent, info.EndsInMS)
	le.limit, le.left, le.settled, le.gone = info.Limit, info.Left, info.Settled, info.Gone
	l.rise(le, info.Phase)
	if d := le.denial; !le.gone || le.left+le.idle() >= d.amount {
		le.denial = denial{}
	}
	le.account.cur = nil
}

// after adds milliseconds to an instant; a window of a lifetime never ends.
func after(t time.Duration, ms int64) time.Duration {
	const lifetime = 100 * 365 * 24 * 3600 * 1000
	if ms >= lifetime {
		return never
	}
	return t + time.Duration(max(ms, -lifetime))*time.Millisecond
}

func add2(t, d time.Duration) time.Duration { return time.Duration(add(int64(t), int64(d))) }

// holders says that an amount would fit, were nothing held or leased. What was spent
// here since it was last told counts as settled.
func (le *lease) holders(amount int64) bool { return le.unspent() >= amount }

func (le *lease) unspent() int64 {
	since := le.spent - le.told.Spent + le.overrun - le.told.Overrun
	return le.limit - le.settled - max(0, since)
}

// judge denies a need that an answer says can't be borne now.
func (l *Ledger) judge(w *waiter, c *call, now time.Duration) {
	if now-c.sent > denialTrue {
		return
	}
	for i := range w.parts {
		p := &w.parts[i]
		le := p.on(now)
		if le == nil || le.infoSeq != c.Seq || !le.gone || le.left+le.idle() >= p.amount {
			continue
		}
		if d := le.denial; d.until <= now || p.amount < d.amount {
			le.denial = denial{amount: p.amount, until: min(now+denialKept, c.sent+denialTrue)}
		}
		d := p.denied(le.holders(p.amount), now)
		l.count(d)
		l.drop(w, d)
		return
	}
	if now-w.since >= heldAfter {
		l.deny(w, now, w.worst(now))
	}
}
