package budget

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// key names a lease within a session.
type key struct{ budget, window string }

// session is one start of this process as the authority knows it. Its id is never
// used again: a wish of a dead one would park money that nobody knows.
type session struct {
	id      string
	seq     int64
	journal *journal
	leases  map[key]*lease
}

// closing is a session that is to be closed.
type closing struct {
	Closing
	askAt time.Duration
}

func newSession(dir string) (*session, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var random [16]byte
	rand.Read(random[:])
	s := &session{id: "ls_" + hex.EncodeToString(random[:]), leases: map[key]*lease{}}
	var err error
	s.journal, err = newJournal(dir, s.id, nil)
	return s, err
}

// replay finds what earlier processes left: each session is to be closed with what
// its journal bounds.
func (l *Ledger) replay() error {
	if err := os.MkdirAll(l.o.Dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(l.o.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), journalSuffix+".tmp") {
			os.Remove(journalPath(l.o.Dir, strings.TrimSuffix(f.Name(), journalSuffix+".tmp")) + ".tmp")
		}
		id, ok := strings.CutSuffix(f.Name(), journalSuffix)
		if !ok || id == "" {
			continue
		}
		c := &closing{Closing: Closing{Session: id}}
		b, err := os.ReadFile(journalPath(l.o.Dir, id))
		if err == nil {
			c.Leases, err = readJournal(b, id)
		}
		if err != nil {
			c.Lost = true
			l.metrics.lost++
			l.o.Log.Warn("lease journal lost: all that the session had leased is charged", zap.String("session", id), zap.Error(err))
		}
		l.closings = append(l.closings, c)
	}
	return nil
}

// closed deletes the journals of sessions that the authority has closed.
func (l *Ledger) closed(c *call, ids []string, now time.Duration) {
	l.closings = slices.DeleteFunc(l.closings, func(one *closing) bool {
		if slices.Contains(ids, one.Session) {
			// A file that stays is closed again by the next start, which changes nothing.
			os.Remove(journalPath(l.o.Dir, one.Session))
			return true
		}
		if slices.ContainsFunc(c.Close, func(sent Closing) bool { return sent.Session == one.Session }) {
			one.askAt = now + time.Second
		}
		return false
	})
}

// exact says how a session of this process ends: marks are what was spent, and what
// is still held.
func (s *session) exact() Closing {
	c := Closing{Session: s.id, Leases: make([]ClosedLease, 0, len(s.leases))}
	for _, le := range s.leases {
		c.Leases = append(c.Leases, ClosedLease{Budget: le.account.id, Window: le.window, Mark: le.spent + le.held, Overrun: le.overrun})
	}
	slices.SortFunc(c.Leases, func(a, b ClosedLease) int {
		return cmp.Or(cmp.Compare(a.Budget, b.Budget), cmp.Compare(a.Window, b.Window))
	})
	return c
}

// cutOff leaves a session that the authority has closed: nothing more is admitted on
// its leases, what they hold settles into them, and needs go on to the next one.
func (l *Ledger) cutOff(now time.Duration) {
	s := l.session
	if s == nil {
		return
	}
	l.session = nil
	l.retired = append(l.retired, s)
	for _, a := range l.accounts {
		a.leases, a.cur = nil, nil
	}
	again := append(l.writing, l.queue...)
	l.writing, l.queue = nil, nil
	for _, w := range again {
		if w.state == taken {
			for i := range w.parts {
				if p := &w.parts[i]; p.lease != nil {
					p.lease.release(p.amount)
				}
			}
		}
		if w.longer {
			l.finish(w, ErrUnavailable)
			continue
		}
		for i := range w.parts {
			w.parts[i].lease = nil
		}
		w.state, w.asked, w.answered = needing, false, false
		l.queue = append(l.queue, w)
	}
}

// renew begins a session in place of one that was closed.
func (l *Ledger) renew() {
	l.mu.Lock()
	need := l.session == nil && l.now() >= l.pace.notFor
	l.mu.Unlock()
	if !need {
		return
	}
	l.o.Log.Warn("the control plane has closed this gateway's lease session: beginning a new one")
	s, err := newSession(l.o.Dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.o.Log.Error("begin a lease journal", zap.Error(err))
		l.pace.notFor = l.now() + time.Second
		return
	}
	l.session, l.last = s, s.id
	l.pace.again = false
}

// retire closes sessions that the authority had closed, once what they held is settled.
func (l *Ledger) retire(now time.Duration) {
	l.retired = slices.DeleteFunc(l.retired, func(s *session) bool {
		for _, le := range s.leases {
			if le.held > 0 || le.dirty || le.pending != 0 {
				return false
			}
		}
		s.journal.close()
		l.closings = append(l.closings, &closing{Closing: s.exact(), askAt: now})
		return true
	})
}

// sayGoodbye closes the session with exact marks, and those that still wait for it.
func (l *Ledger) sayGoodbye(ctx context.Context) error {
	l.mu.Lock()
	s := l.session
	if s == nil || s.seq == 0 && len(l.closings) == 0 && len(l.retired) == 0 {
		if s != nil {
			s.journal.remove() // nobody has heard of it
		}
		l.mu.Unlock()
		return nil
	}
	l.closings = append(l.closings, &closing{Closing: s.exact()})
	for _, old := range l.retired {
		l.closings = append(l.closings, &closing{Closing: old.exact()})
	}
	l.mu.Unlock()
	for timeout := firstTimeout; ; timeout = min(2*timeout, lastTimeout) {
		done, err := l.ask(ctx, s, timeout)
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("close lease session %s: %w", s.id, err)
		case <-time.After(timeout / 4):
		}
	}
}

// ask sends closings alone, and says whether none is left.
func (l *Ledger) ask(ctx context.Context, s *session, timeout time.Duration) (bool, error) {
	l.mu.Lock()
	s.seq++
	c := &call{Call: Call{Session: s.id, Seq: s.seq}, session: s}
	for _, one := range l.closings[:min(len(l.closings), mostClosings)] {
		c.Close = append(c.Close, one.Closing)
	}
	l.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := l.o.Authority.Leases(limited, &c.Call)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, ErrClosed):
		// It closed what the call named first, and so the session that called.
		ids := make([]string, 0, len(c.Close))
		for _, one := range c.Close {
			ids = append(ids, one.Session)
		}
		l.closed(c, ids, 0)
	case err != nil:
		return false, err
	case answer != nil:
		l.closed(c, answer.Closed, 0)
	}
	return len(l.closings) == 0, nil
}
