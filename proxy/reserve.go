package proxy

import (
	"context"
	"errors"
	"math"
	"math/bits"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy/dialect"
)

const (
	// leastOutput is the smallest limit of output, in tokens a choice, that a call is
	// cut down to: with less an answer is of no use.
	leastOutput = 16
	// reserveWithin bounds what a call waits in all for its budgets where it was
	// denied once and asks again for less.
	reserveWithin = time.Second
)

// most is what a call may use at most.
type most struct {
	dialect.Bound       // of its input; what is outside of the body is in Input
	known         bool  // Bound and output are
	output        int64 // tokens a choice
	own           bool  // the request limits its output itself
	model         bool  // output is what the model can at most: nobody need be told
	limit         int64 // the output limit to be written into the body; 0: none
}

// bound finds out what the call may use at most, as far as it matters to the
// allowance, and refuses a call whose cost has no bound.
func (x *exchange) bound(a *allowance) error {
	if !a.usd && !a.tokens && !a.perMinute {
		return nil
	}
	x.estimate()
	if x.most.Outside && x.serving.model.Context == 0 && (a.usd || a.tokens) {
		x.denied = codeContextUnknown
		return refuse(codeContextUnknown, "Part of this call's input is not in its body, and token %s spends from a budget that must bear all of it. The gateway's operator must set models[%s].context, the most input tokens that the model takes; or send the input in the body.", x.entry.ID, x.serving.model.Name)
	}
	if a.usd {
		for _, slot := range x.order {
			t := &x.serving.targets[slot]
			if _, known := worst(t.price, x.most.Bound, x.outputs(x.most.output)); !known {
				x.denied = codePriceUnknown
				return refuse(codePriceUnknown, "Token %s spends from a budget in usd, and what model %s costs at target %s is not known. The gateway's operator must set models[%s].%s; or ask your administrator for a token without one.", x.entry.ID, x.serving.model.Name, t.up.id, x.serving.model.Name, missingPrice(t.price, x.most.Bound))
			}
		}
	}
	return nil
}

// estimate fills in x.most, once.
func (x *exchange) estimate() {
	w, m := &x.most, x.serving.model
	if w.known {
		return
	}
	w.Bound, w.known, w.own = x.call.Bound(x.body), true, true
	if w.Outside {
		w.Input = max(w.Input, m.Context)
	}
	for left := x.left; left != 0; left &= left - 1 {
		own := x.call.OwnLimit(x.serving.targets[bits.TrailingZeros64(left)].up.outputLimit)
		w.output = max(w.output, own)
		w.own = w.own && own >= 0
	}
	switch {
	case w.own:
	case m.MaxOutput > 0:
		w.output, w.model = max(w.output, m.MaxOutput), true
	default:
		w.output = max(w.output, x.rt.cfg.Limits.OutputTokens)
	}
}

// missingPrice names the key of the config that would make a cost known.
func missingPrice(p *config.Price, b dialect.Bound) string {
	switch {
	case p == nil:
		return "price"
	case p.Input == nil:
		return "price.input"
	case b.AudioIn && p.AudioInput == nil:
		return "price.audio_input"
	case b.AudioOut && p.AudioOutput == nil:
		return "price.audio_output"
	}
	return "price.output"
}

// outputs is the output of all choices together.
func (x *exchange) outputs(each int64) int64 { return times(each, x.call.N) }

// amounts is what the call is to reserve for an output of so many tokens a choice.
func (x *exchange) amounts(each int64) budget.Amounts {
	need := budget.Amounts{Requests: 1}
	if x.spends.tokens {
		need.Tokens = plus(x.most.Input, x.outputs(each))
	}
	if x.spends.usd {
		for _, slot := range x.order {
			nano, _ := worst(x.serving.targets[slot].price, x.most.Bound, x.outputs(each))
			need.USD = max(need.USD, nano)
		}
	}
	return need
}

// bears is how many output tokens a choice, of n, amounts bear after the input at
// one target; math.MaxInt64: nothing that is enforced counts them.
func (x *exchange) bears(have budget.Amounts, n int64, slot uint8) int64 {
	each := int64(math.MaxInt64)
	if x.spends.tokens {
		each = max(0, have.Tokens-x.most.Input) / n
	}
	if x.spends.usd {
		each = min(each, affordable(x.serving.targets[slot].price, have.USD, x.most.Bound, n))
	}
	return each
}

// bearsAll is bears at the dearest of the targets.
func (x *exchange) bearsAll(have budget.Amounts) int64 {
	each := int64(math.MaxInt64)
	for _, slot := range x.order {
		each = min(each, x.bears(have, x.call.N, slot))
	}
	return each
}

// least is the smallest output a choice that the call could be served with.
func (x *exchange) least() int64 {
	if x.most.own {
		return x.most.output
	}
	return min(leastOutput, x.most.output)
}

// take reserves. A call that names no limit of its own is cut down to what its
// budgets bear.
func (x *exchange) take(a *allowance) error {
	ledger, output := x.s.ledger, x.most.output
	free := !x.most.own && (a.usd || a.tokens)
	if free {
		output = min(output, max(x.bearsAll(ledger.Headroom(a.set)), x.least()))
	}
	err := ledger.Reserve((*waiting)(x), a.set, x.amounts(output), &x.hold)
	for tries := 0; err != nil; tries++ {
		var d *budget.Denied
		if !free || !errors.As(err, &d) || d.Record.Unit == budget.Requests {
			return x.unreserved(err)
		}
		less := x.bearsAll(leftBy(d))
		if less < x.least() {
			// Not what was asked for, but the least is what may be borne once others settle.
			d.Held = d.Held || x.bearsAll(boundBy(d.Record.Unit, d.Unspent)) >= x.least()
			return x.unreserved(err)
		}
		if less >= output {
			return x.unreserved(err)
		}
		if tries == 2 {
			d.Held = true // what is left would bear it: others were faster
			return x.unreserved(err)
		}
		again := x.reserveAgain(less)
		if errors.Is(again, context.DeadlineExceeded) {
			d.Held = true
			return x.unreserved(err) // the denial says more
		}
		output, err = less, again
	}
	return x.reserved(output, free)
}

// reserved notes what was reserved. A client that left while it waited is not
// served, and so not charged.
func (x *exchange) reserved(output int64, free bool) error {
	if free && (output < x.most.output || !x.most.model) {
		x.most.limit = output
	}
	x.most.output = output
	x.s.holding.Add(1)
	x.holds = true
	if x.waited() {
		x.s.watcher.notice(x)
	}
	if x.aborted() != notAborted {
		return x.upstreamFault(context.Canceled)
	}
	return nil
}

// leftBy is what a denial says is left.
func leftBy(d *budget.Denied) budget.Amounts { return boundBy(d.Record.Unit, d.Left) }

// boundBy is an amount of one unit; nothing bounds the others.
func boundBy(u budget.Unit, n int64) budget.Amounts {
	have := budget.Amounts{USD: math.MaxInt64, Tokens: math.MaxInt64}
	switch u {
	case budget.USD:
		have.USD = n
	case budget.Tokens:
		have.Tokens = n
	}
	return have
}

// reserveAgain asks for less, within what is left of reserveWithin.
func (x *exchange) reserveAgain(output int64) error {
	ctx, done := x.cancellable(reserveWithin - time.Since(x.asked))
	defer done()
	return x.s.ledger.Reserve(ctx, x.spends.set, x.amounts(output), &x.hold)
}

// unreserved turns the ledger's error into a refusal.
func (x *exchange) unreserved(err error) error {
	var d *budget.Denied
	switch {
	case x.aborted() != notAborted:
		return x.upstreamFault(err)
	case errors.As(err, &d):
		return x.overBudget(d)
	}
	x.denied = codeUnavailable
	return refuse(codeUnavailable, "The control plane can't be reached, and what this gateway has left of the budgets of token %s does not bear the call; send the request again.", x.entry.ID)
}

// budgetsOf makes a token's set; unknown names a budget that is not known here.
func (s *Server) budgetsOf(ids []string, team string) (set *budget.Set, unknown string) {
	set, err := s.ledger.Set(ids, team)
	var u *budget.UnknownError
	if errors.As(err, &u) {
		return nil, u.ID
	}
	return set, ""
}

func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func times(a, b int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi > 0 || lo > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(lo)
}

// waiting is an exchange as a context that is done when the exchange is aborted.
// Its channel is made only where somebody waits.
type waiting exchange

// Deadline implements context.Context: there is none.
func (w *waiting) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context: there is none.
func (w *waiting) Value(any) any { return nil }

// Err implements context.Context.
func (w *waiting) Err() error {
	if (*exchange)(w).aborted() == notAborted {
		return nil
	}
	return context.Canceled
}

// Done implements context.Context.
func (w *waiting) Done() <-chan struct{} {
	x := (*exchange)(w)
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	if x.life.gone == nil {
		x.life.gone = make(chan struct{})
		if x.aborted() != notAborted {
			close(x.life.gone)
			x.life.told = true
		}
	}
	return x.life.gone
}

// waited says whether the ledger made the exchange wait.
func (x *exchange) waited() bool {
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	return x.life.gone != nil
}

// cancellable returns a context that an abort of the exchange ends, and what must
// be called when it is done with. Of one exchange one is in use at a time.
func (x *exchange) cancellable(within time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	x.life.mu.Lock()
	x.life.cancel = cancel
	if x.aborted() != notAborted {
		cancel()
	}
	x.life.mu.Unlock()
	return ctx, func() {
		x.life.mu.Lock()
		x.life.cancel = nil
		x.life.mu.Unlock()
		cancel()
	}
}
