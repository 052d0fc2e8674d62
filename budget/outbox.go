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
	outboxEvery   = time.Second
	sumsEvery     = outboxEvery * 3 / 2 // at every other tick: of many tokens few have two calls in one second
	outboxBatch   = 500
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
	sums    map[sumKey]*Settlement
	epoch   uint64       // of sums: moves when some of them are taken out
	summed  time.Time    // when they were last begun to be taken out
	taking  bool         // they are being
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

func newOutbox(a Authority, log *zap.Logger) *outbox {
	o := &outbox{authority: a, log: log, full: make(chan struct{}, 1), done: make(chan struct{}), sums: map[sumKey]*Settlement{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

// Sum remembers where a token's settlements without budgets were last summed, which
// spares looking it up: one a token, its zero value ready.
type Sum struct {
	at    *Settlement // nil: nowhere yet
	key   sumKey
	epoch uint64
}

// Note puts a settlement into the outbox. It is told within two seconds, and again
// until the authority keeps it. to may be nil.
func (l *Ledger) Note(s *Settlement, to *Sum) { l.outbox.note(s, to) }

func (o *outbox) note(s *Settlement, to *Sum) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(s.Budgets) == 0 {
		k := sumKey{s.TokenID, s.TeamID, s.Model, s.Target, s.At.Unix() / 60, s.Unpriced, s.Estimated}
		if to != nil && to.at != nil && to.epoch == o.epoch && to.key == k {
			to.at.add(s)
			return
		}
		sum := o.sums[k]
		switch {
		case sum != nil:
			sum.add(s)
		case o.pending() < outboxMost:
			first := *s
			sum = &first
			o.sums[k] = sum
		}
		if sum != nil {
			if to != nil {
				*to = Sum{sum, k, o.epoch}
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
		var random [16]byte
		rand.Read(random[:])
		s.ID = sumPrefix + hex.EncodeToString(random[:])
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
	return len(o.list) >= outboxBatch || o.taking, nil
}

// next fills the batch, unless one is under way.
func (o *outbox) next() {
	if len(o.sending) > 0 {
		return
	}
	n := min(len(o.list), outboxBatch)
	o.sending = append(make([]Settlement, 0, n), o.list[:n]...)
	rest := copy(o.list, o.list[n:])
	clear(o.list[rest:])
	o.list = o.list[:rest]
	if len(o.sums) == 0 {
		return
	}
	// Once begun, all of them go, in as many batches as it takes.
	if !o.taking {
		now := time.Now()
		if now.Sub(o.summed) < sumsEvery && o.ctx.Err() == nil {
			return
		}
		o.taking, o.summed = true, now
	}
	o.epoch++
	for k, s := range o.sums {
		if len(o.sending) >= outboxBatch {
			break
		}
		o.sending = append(o.sending, *s)
		delete(o.sums, k)
	}
	o.taking = len(o.sums) > 0
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
