package proxy

import (
	"bytes"
	"context"
	"errors"
	"math"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

const (
	// growth is what a hold grows by at least, in tokens of output.
	growth = 64
	// refusalStands is how long a refused extension is not asked for again.
	refusalStands = time.Second
	// extendWithin is longer than the ledger ever waits.
	extendWithin = 2 * time.Second
)

var (
	errAskBroke = errors.New("an extension broke off")
	errEndless  = errors.New("an event without an end")
)

// allotment keeps a stream within what its call holds.
type allotment struct {
	limit   int64      // output tokens that the hold bears; math.MaxInt64: nothing counts them
	ahead   int64      // from here on more is asked for while the stream goes on
	asking  chan error // has room for the answer; nil: nothing is asked for
	done    func()     // ends the asking, and must be called
	refused error
	at      time.Time // when it was
	spent   bool      // the stream was ended by it
}

// allot begins to keep the stream within its hold.
func (s *stream) allot() {
	s.limit, s.ahead = math.MaxInt64, math.MaxInt64
	if x := s.x; x.holds {
		s.allotted(x.bears(x.hold.Amounts(), 1, x.slot))
	}
}

func (s *stream) allotted(limit int64) {
	if s.limit = limit; limit < mostAffordable {
		s.ahead = limit - limit/5
	} else {
		s.limit, s.ahead = math.MaxInt64, math.MaxInt64
	}
}

// meter runs bytes of the upstream's through the meter into out, and keeps to the
// hold: an event that outgrows it does not pass.
func (s *stream) meter(p []byte) error {
	m := &s.x.meter
	if m.Boundary() {
		s.inside = 0
	} else if s.inside += int64(len(p)); s.inside > maxWhole {
		return errEndless
	}
	if s.limit == math.MaxInt64 {
		s.out = append(s.out, m.Next(p)...)
		return nil
	}
	// Whatever p is, it has no more chunks than lines, nor more text than bytes.
	if room := s.limit - m.Least(); int64(len(p))/8 < room && int64(bytes.Count(p, newline)) < room {
		s.out = append(s.out, m.Next(p)...)
	} else {
		for len(p) > 0 && !s.spent {
			n := bytes.IndexByte(p, '\n') + 1
			if n == 0 {
				n = len(p)
			}
			passed := m.Next(p[:n])
			p = p[n:]
			if m.Least() > s.limit {
				if err := s.grow(); err != nil {
					return s.outgrown(err)
				}
			}
			s.out = append(s.out, passed...)
		}
	}
	if s.asking != nil {
		select {
		case err := <-s.asking:
			s.answered(err)
		default:
		}
	} else if m.Least() > s.ahead {
		s.ask()
	}
	return nil
}

var newline = []byte{'\n'}

// grow makes the hold bear what was emitted, or says why it can't. It waits.
func (s *stream) grow() error {
	for s.x.meter.Least() > s.limit {
		if s.refused != nil && time.Since(s.at) < refusalStands {
			return s.refused
		}
		if s.asking == nil {
			s.ask()
		}
		s.x.enter(awaitsBudget)
		s.answered(<-s.asking)
		s.x.enter(awaitsBody)
	}
	return nil
}

// ask asks for more on a goroutine of its own, which stopAsking waits for.
func (s *stream) ask() {
	x := s.x
	ctx, done := x.cancellable(extendWithin)
	from := max(s.limit, x.meter.Least())
	s.asking, s.done, s.ahead = make(chan error, 1), done, math.MaxInt64
	go func(answer chan<- error) {
		err := errAskBroke
		defer func() {
			if v := recover(); v != nil {
				x.s.panicked(x, v)
			}
			answer <- err
		}()
		err = x.extend(ctx, from)
	}(s.asking)
}

// extend asks for a quarter more than an output of so many tokens, and where that
// is denied for what is left.
func (x *exchange) extend(ctx context.Context, from int64) error {
	held := x.hold.Amounts()
	err := x.hold.Extend(ctx, x.beyond(held, plus(from, max(from/4, growth))))
	var d *budget.Denied
	if !errors.As(err, &d) {
		return err
	}
	have := held
	switch d.Record.Unit {
	case budget.USD:
		have.USD, have.Tokens = plus(held.USD, d.Left), math.MaxInt64
	case budget.Tokens:
		have.Tokens, have.USD = plus(held.Tokens, d.Left), math.MaxInt64
	}
	if less := x.bears(have, 1, x.slot); less > from {
		return x.hold.Extend(ctx, x.beyond(held, less))
	}
	return err
}

// beyond is what an output of so many tokens takes more than is held.
func (x *exchange) beyond(held budget.Amounts, output int64) (more budget.Amounts) {
	if x.spends.tokens {
		more.Tokens = max(0, plus(x.most.Input, output)-held.Tokens)
	}
	if x.spends.usd {
		nano, _ := worst(x.serving.targets[x.slot].price, x.most.Bound, output)
		more.USD = max(0, nano-held.USD)
	}
	return more
}

func (s *stream) answered(err error) {
	s.done()
	s.asking, s.done = nil, nil
	if err != nil {
		s.refused, s.at = err, time.Now()
		return
	}
	s.refused = nil
	s.allotted(s.x.bears(s.x.hold.Amounts(), 1, s.x.slot))
}

// stopAsking ends what is asked for; after it nothing uses the hold but the books.
func (s *stream) stopAsking() {
	if s.asking == nil {
		return
	}
	s.x.life.mu.Lock()
	if s.x.life.cancel != nil {
		s.x.life.cancel()
	}
	s.x.life.mu.Unlock()
	s.answered(<-s.asking)
}

// outgrown ends a stream whose hold bears no more: whole by protocol, cut by limit.
func (s *stream) outgrown(err error) error {
	x := s.x
	if x.aborted() != notAborted || !x.meter.Boundary() {
		return err
	}
	var d *budget.Denied
	if !errors.As(err, &d) {
		x.rec.Code = codeUnavailable
		return err
	}
	x.drop()
	s.spent, s.ended = true, true
	x.ended = time.Now()
	x.rec.Code = codeBudgetExceeded
	b := x.guessed(codeBudgetExceeded)
	s.out = x.meter.FinishLength(s.out, x.call.IncludeUsage, b.usage, "keeptrusts budget_exceeded "+d.Record.ID)
	return nil
}
