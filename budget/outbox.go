package budget

import (
	"context"
	"crypto/rand"
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
	// sumsATurn bounds what sums cost: of more tokens than that a sum waits for its
	// turn, and grows meanwhile.
	sumsATurn     = 500
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

// sumKey names settlements that may be one: those of a minute, so that a sum is of
// one day.
type sumKey struct {
	token, team, model, target string
	minute                     int64
	unpriced, estimated        bool
}

// sum is of several settlements, until it is told.
type sum struct {
	Settlement
	key  sumKey
	told bool // or about to be: nothing may be added
}

func newOutbox(a Authority, log *zap.Logger) *outbox {
	o := &outbox{authority: a, log: log, full: make(chan struct{}, 1), done: make(chan struct{}), sums: map[sumKey]*sum{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

// Sum remembers where a token's settlements without budgets were last summed, which
// spares looking it up: one a token, its zero value ready.
type Sum struct{ at *sum }

// Note puts a settlement into the outbox. One with budgets is told within
// a second, others too unless there are very many; each again until the authority
// keeps it. One without budgets needs no id. to may be nil.
func (l *Ledger) Note(s *Settlement, to *Sum) { l.outbox.note(s, to) }

func (o *outbox) note(s *Settlement, to *Sum) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(s.Budgets) == 0 {
		k := sumKey{s.TokenID, s.TeamID, s.Model, s.Target, s.At.Unix() / 60, s.Unpriced, s.Estimated}
		if to != nil && to.at != nil && !to.at.told && to.at.key == k {
			to.at.add(s)
			return
		}
		at := o.sums[k]
		switch {
		case at != nil:
			at.add(s)
		case o.pending() < outboxMost:
			at = &sum{Settlement: *s, key: k}
			o.sums[k] = at
			o.queue = append(o.queue, at)
		}
		if at != nil {
			if to != nil {
				to.at = at
			}
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

// add makes s a sum, which is of several records and so has an id of its own.
func (s *Settlement) add(o *Settlement) {
	if !isSum(s.ID) {
		s.ID = sumID()
	}
	s.Requests += o.Requests
	s.Input += o.Input
	s.CachedInput += o.CachedInput
	s.CacheWrite += o.CacheWrite
	s.Output += o.Output
	s.Reasoning += o.Reasoning
	s.AudioInput += o.AudioInput
	s.AudioOutput += o.AudioOutput
	s.Cost = add(s.Cost, max(0, o.Cost))
}

const sumPrefix = "sum_"

func sumID() string {
	var random [16]byte
	rand.Read(random[:])
	return sumPrefix + hex.EncodeToString(random[:])
}

func isSum(id string) bool { return len(id) > len(sumPrefix) && id[:len(sumPrefix)] == sumPrefix }

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
	o.sending = append(make([]Settlement, 0, n+min(len(o.queue), sumsATurn)), o.list[:n]...)
	rest := copy(o.list, o.list[n:])
	clear(o.list[rest:])
	o.list = o.list[:rest]
	n = min(len(o.queue), sumsATurn)
	for _, at := range o.queue[:n] {
		at.told = true
		if at.ID == "" {
			at.ID = sumID()
		}
		delete(o.sums, at.key)
		o.sending = append(o.sending, at.Settlement)
	}
	rest = copy(o.queue, o.queue[n:])
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
