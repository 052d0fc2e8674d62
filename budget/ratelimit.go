package budget

import (
	"sync"
	"time"
)

// Rates are the rate limits of a token, each at most 1e12. 0: none.
type Rates struct{ RequestsPerMinute, TokensPerMinute, MaxParallel int64 }

// burst is how many requests may come at once: a tenth of a minute's worth.
func (r Rates) burst() int64 { return max(1, r.RequestsPerMinute/10) }

// What refused a call.
const (
	LimitRequests = "requests"
	LimitTokens   = "tokens"
	LimitParallel = "parallel"
)

// RateState is what is left of a token's rate limits, for the headers of an
// answer, and what was taken, for Undo.
type RateState struct {
	LimitRequests, RemainingRequests int64         // a minute; at once. 0 limit: there is none
	LimitTokens, RemainingTokens     int64         // a minute; at once
	ResetRequests, ResetTokens       time.Duration // until all is there again
	RetryAfter                       time.Duration // of a refusal, rounded up to a ns
	Which                            string        // that refused; "": admitted

	at               time.Time
	input            int64
	requests, tokens bucket // as they were left
}

// aMomentLater is when a call comes back that found too many others under way:
// nobody knows when one ends.
const aMomentLater = time.Second

// Limiters are the rate limits of a gateway, a Limiter a token. They are local:
// what other gateways admit is not known. Safe for concurrent use.
type Limiters struct {
	mu   sync.Mutex
	all  map[string]*Limiter
	seen time.Time // no later than now
}

// NewLimiters makes an empty set.
func NewLimiters() *Limiters { return &Limiters{all: map[string]*Limiter{}} }

// Of returns the limiter of a token, at the rates given from now on: what was
// taken stays taken. nil where there is no rate, and a nil Limiter admits. It may be
// kept for as long as the caller likes.
func (ls *Limiters) Of(tokenID string, r Rates) *Limiter {
	if r == (Rates{}) {
		return nil
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.all[tokenID]
	if l == nil {
		ls.forget()
		l = &Limiter{owner: ls, id: tokenID}
		ls.all[tokenID] = l
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rates != r {
		l.rates = r
		l.requests.limit(r.RequestsPerMinute, r.burst())
		l.tokens.limit(r.TokensPerMinute, r.TokensPerMinute)
	}
	return l
}

// looked is how many limiters are looked at when one more comes: more than one, so
// that they don't pile up.
const looked = 8

// forget drops limiters that are as a new one would be. Which are looked at is
// up to the map, whose order is random; the time is the latest that one of them saw,
// so that no clock is needed.
func (ls *Limiters) forget() {
	n := 0
	for id, l := range ls.all {
		l.mu.Lock()
		if l.last.After(ls.seen) {
			ls.seen = l.last
		}
		if l.idle(ls.seen) {
			l.gone = true
			delete(ls.all, id)
		}
		l.mu.Unlock()
		if n++; n == looked {
			return
		}
	}
}

// current is the limiter that counts for a token, whichever of them is kept: l
// again where all were forgotten.
func (ls *Limiters) current(l *Limiter) *Limiter {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if other := ls.all[l.id]; other != nil {
		return other
	}
	l.mu.Lock()
	l.gone = false
	l.mu.Unlock()
	ls.all[l.id] = l
	return l
}

// Limiter is the rate limits of one token at this gateway. Every call that Take
// admits must end in one Done or one Undo. Safe for concurrent use.
type Limiter struct {
	owner *Limiters
	id    string

	mu               sync.Mutex
	gone             bool // forgotten: another may count for the token
	rates            Rates
	last             time.Time // of the last refill
	requests, tokens bucket
	open             int64 // calls under way
}

// lock locks the limiter that counts.
func (l *Limiter) lock() *Limiter {
	l.mu.Lock()
	for l.gone {
		l.mu.Unlock()
		l = l.owner.current(l)
		l.mu.Lock()
	}
	return l
}

// idle says whether a new limiter would be as this one is at a time.
func (l *Limiter) idle(now time.Time) bool {
	return l.open == 0 && l.fullBy(&l.requests, now) && l.fullBy(&l.tokens, now)
}

func (l *Limiter) fullBy(b *bucket, now time.Time) bool {
	return b.rate == 0 || b.full() || b.until(b.size, 0) <= now.Sub(l.last)
}

// refill goes on to now. Callers come in any order: an earlier time changes nothing.
func (l *Limiter) refill(now time.Time) {
	elapsed := now.Sub(l.last)
	if l.last.IsZero() {
		elapsed = 0
	} else if elapsed <= 0 {
		return
	}
	l.last = now
	l.requests.refill(elapsed)
	l.tokens.refill(elapsed)
}

// Take admits a call, with the bound of its input in tokens, or takes nothing. Only
// limits of tokens that have a rate look at the input; they need their bucket above
// zero, not the whole of it.
func (l *Limiter) Take(now time.Time, input int64) (RateState, bool) {
	if l == nil {
		return RateState{}, true
	}
	l = l.lock()
	defer l.mu.Unlock()
	l.refill(now)
	var s RateState
	refuse := func(which string, wait time.Duration) {
		if s.Which == "" {
			s.Which = which
		}
		s.RetryAfter = max(s.RetryAfter, wait)
	}
	if l.rates.MaxParallel > 0 && l.open >= l.rates.MaxParallel {
		refuse(LimitParallel, aMomentLater)
	}
	if l.requests.rate > 0 && l.requests.level < 1 {
		refuse(LimitRequests, l.requests.until(1, 0))
	}
	if l.tokens.rate > 0 && !l.tokens.aboveZero() {
		refuse(LimitTokens, l.tokens.until(0, 1))
	}
	if s.Which == "" {
		l.open++
		l.requests.take(1)
		l.tokens.take(max(input, 0))
		s.at, s.input, s.requests, s.tokens = l.last, max(input, 0), l.requests, l.tokens
	}
	l.tell(&s)
	return s, s.Which == ""
}

func (l *Limiter) tell(s *RateState) {
	if b := &l.requests; b.rate > 0 {
		s.LimitRequests, s.RemainingRequests, s.ResetRequests = b.rate, max(b.level, 0), b.until(b.size, 0)
	}
	if b := &l.tokens; b.rate > 0 {
		s.LimitTokens, s.RemainingTokens, s.ResetTokens = b.rate, max(b.level, 0), b.until(b.size, 0)
	}
}

// Undo gives back what Take took, as it told: the call was refused after it.
func (l *Limiter) Undo(taken RateState) {
	if l == nil || taken.Which != "" {
		return
	}
	l = l.lock()
	defer l.mu.Unlock()
	l.open--
	since := l.last.Sub(taken.at)
	l.requests.undo(1, taken.requests, since)
	l.tokens.undo(taken.input, taken.tokens, since)
}

// Done is the end of an admitted call, with its output in tokens. It may leave the
// bucket below zero: the next calls wait.
func (l *Limiter) Done(now time.Time, output int64) {
	if l == nil {
		return
	}
	l = l.lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.open--
	l.tokens.take(max(output, 0))
}
