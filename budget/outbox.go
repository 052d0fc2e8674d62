package budget

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	outboxEvery = time.Second
	outboxBatch = 500
	// Of more sums than sumsATurn a sum waits for its turn, and grows meanwhile, but
	// for about turnsAll turns at most: what a sum costs the authority does not depend
	// on how much it is of.
	sumsATurn     = 200
	turnsAll      = 45
	outboxMost    = 50_000
	outboxTimeout = 5 * time.Second
)

// outbox keeps settlements until the authority does. Those without budgets are
// summed meanwhile; what does not fit is dropped and counted: the budgets were
// charged by the leases, so only who spent is lost.
type outbox struct {
	authority Authority
	log       *zap.Logger
	ctx       context.Context
	cancel    context.CancelFunc
	full      chan struct{}
	done      chan struct{}

	mu      sync.Mutex
	list    []Settlement
	sums    map[sumKey]*sum
	queue   []*sum       // the sums, the oldest first
	sending []Settlement // the batch under way: sent again as it is, its ids make that harmless
	dropped uint64
}

// sumKey names settlements that may be one.
type sumKey struct {
	token, team string
	kind        sumKind
}

// sumKind is what one token's settlements that may be one have in common: a minute,
// so that a sum is of one day, and more.
type sumKind struct {
	minute              int64
	model, target       string
	unpriced, estimated bool
}

// sum is of several settlements, until it is told. What one more reads and writes
// lies together: of many tokens none is in the processor's caches.
type sum struct {
	told                           bool // or about to be: nothing may be added
	kind                           sumKind
	requests                       int64
	input, cachedInput, cacheWrite int64
	output, reasoning              int64
	audioInput, audioOutput, cost  int64
	id                             string // of the only one, where it had one
	token, team                    string
	at                             time.Time // of the first
}

func newOutbox(a Authority, log *zap.Logger) *outbox {
	o := &outbox{authority: a, log: log, full: make(chan struct{}, 1), done: make(chan struct{}), sums: map[sumKey]*sum{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

// Sum remembers where a token's settlements without budgets were last summed, which
// spares looking it up: one a token and team, its zero value ready.
type Sum struct{ at *sum }

// Note puts a settlement into the outbox. One with budgets is told within
// a second, others too unless there are very many; each again until the authority
// keeps it. One without budgets needs no id. to may be nil.
func (l *Ledger) Note(s *Settlement, to *Sum) { l.outbox.note(s, to) }

func (o *outbox) note(s *Settlement, to *Sum) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(s.Budgets) == 0 {
		if at := o.sumOf(s, to); at != nil {
			at.add(s)
			return
		}
	}
	if o.pending() >= outboxMost {
		o.dropped++
		return
	}
	o.list = append(o.list, *s)
	if len(o.list) == outboxBatch {
		select {
		case o.full <- struct{}{}:
		default:
		}
	}
}

// sumOf finds or begins the sum that a settlement belongs to; nil where no more fit.
func (o *outbox) sumOf(s *Settlement, to *Sum) *sum {
	kind := sumKind{s.At.Unix() / 60, s.Model, s.Target, s.Unpriced, s.Estimated}
	if to != nil && to.at != nil && !to.at.told && to.at.kind == kind {
		return to.at
	}
	key := sumKey{s.TokenID, s.TeamID, kind}
	at := o.sums[key]
	if at == nil {
		if o.pending() >= outboxMost {
			return nil
		}
		at = &sum{kind: kind, token: s.TokenID, team: s.TeamID, id: s.ID, at: s.At}
		o.sums[key] = at
		o.queue = append(o.queue, at)
	}
	if to != nil {
		to.at = at
	}
	return at
}

func (a *sum) add(s *Settlement) {
	a.requests += s.Requests
	a.input += s.Input
	a.cachedInput += s.CachedInput
	a.cacheWrite += s.CacheWrite
	a.output += s.Output
	a.reasoning += s.Reasoning
	a.audioInput += s.AudioInput
	a.audioOutput += s.AudioOutput
	a.cost = add(a.cost, max(0, s.Cost))
}

// settlement ends the sum. Of several records, it has an id of its own.
func (a *sum) settlement() Settlement {
	a.told = true
	s := Settlement{
		ID: a.id, At: a.at, TokenID: a.token, TeamID: a.team, Model: a.kind.model, Target: a.kind.target,
		Requests: a.requests, Input: a.input, CachedInput: a.cachedInput, CacheWrite: a.cacheWrite, Output: a.output,
		Reasoning: a.reasoning, AudioInput: a.audioInput, AudioOutput: a.audioOutput,
		Cost: a.cost, Unpriced: a.kind.unpriced, Estimated: a.kind.estimated,
	}
	if s.ID == "" || s.Requests > 1 {
		s.ID = sumID(a.at)
	}
	return s
}

// sumID gives ids that sort by time: an index of ids in no order costs a page of the
// authority's database each.
func sumID(at time.Time) string {
	var b [16]byte
	rand.Read(b[:])
	binary.BigEndian.PutUint64(b[:8], uint64(at.UnixMilli())<<16|uint64(b[6])<<8|uint64(b[7]))
	return "sum_" + hex.EncodeToString(b[:])
}

// pending is how many are kept; under the lock.
func (o *outbox) pending() int { return len(o.list) + len(o.sums) + len(o.sending) }

func (o *outbox) run() {
	defer close(o.done)
	timer := time.NewTimer(outboxEvery)
	defer timer.Stop()
	pause := firstTimeout
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-timer.C:
		case <-o.full:
		}
		wait := outboxEvery
		for {
			more, err := o.send(o.ctx)
			if err != nil {
				o.log.Warn("tell settlements: they are kept and told again", zap.Error(err))
				wait = pause
				pause = min(2*pause, lastTimeout)
				break
			}
			pause = firstTimeout
			if !more {
				break
			}
		}
		timer.Reset(wait)
	}
}

// send tells one batch, and says whether there is more than one can wait with.
func (o *outbox) send(ctx context.Context) (more bool, err error) {
	o.mu.Lock()
	o.next()
	batch := o.sending
	o.mu.Unlock()
	if len(batch) == 0 {
		return false, nil
	}
	limited, cancel := context.WithTimeout(ctx, outboxTimeout)
	err = o.authority.Settle(limited, batch)
	cancel()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		return true, err
	}
	o.sending = nil
	return len(o.list) >= outboxBatch, nil
}

// next fills the batch, unless one is under way.
func (o *outbox) next() {
	if len(o.sending) > 0 {
		return
	}
	n := min(len(o.list), outboxBatch)
	turn := min(len(o.queue), max(sumsATurn, len(o.queue)/turnsAll))
	o.sending = append(make([]Settlement, 0, n+turn), o.list[:n]...)
	rest := copy(o.list, o.list[n:])
	clear(o.list[rest:])
	o.list = o.list[:rest]
	for _, at := range o.queue[:turn] {
		delete(o.sums, sumKey{at.token, at.team, at.kind})
		o.sending = append(o.sending, at.settlement())
	}
	rest = copy(o.queue, o.queue[turn:])
	clear(o.queue[rest:])
	o.queue = o.queue[:rest]
}

// close tells all that is left.
func (o *outbox) close(ctx context.Context) error {
	o.cancel()
	<-o.done
	for {
		_, err := o.send(ctx)
		o.mu.Lock()
		left := o.pending()
		o.mu.Unlock()
		switch {
		case left == 0:
			return nil
		case err == nil:
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d settlements are not told: %w", left, errors.Join(err, ctx.Err()))
		case <-time.After(firstTimeout):
		}
	}
}
