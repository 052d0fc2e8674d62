package proxy

import (
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/proxy/dialect"
)

// unseen is an output of which nothing can be said.
const unseen = -1

// bill is what a call is charged.
type bill struct {
	usage     dialect.Usage
	nano      int64
	unpriced  bool // a part of it has no price
	estimated bool // the provider did not tell all of it
}

func (b *bill) tokens() int64 { return b.usage.InputTotal() + b.usage.OutputTotal() }

// settle ends what admission took, whatever ended the call: exactly once.
func (x *exchange) settle(code string, now time.Time) {
	if x.spends == nil {
		return
	}
	x.stream.stopAsking()
	if x.rec.Stream {
		x.usage, x.metered = x.meter.Usage()
	}
	if !x.admitted {
		x.giveBack()
		return
	}
	b := x.bill(code)
	used := budget.Amounts{USD: b.nano, Tokens: b.tokens()}
	if x.reached {
		used.Requests = 1
		x.note(&b, used)
	}
	x.endHold(used)
	if l := x.limiter; l != nil {
		x.limiter = nil
		l.Done(now, b.usage.OutputTotal())
	}
	r := &x.rec
	r.InputTokens, r.OutputTokens, r.Cost, r.Estimated = b.usage.InputTotal(), b.usage.OutputTotal(), b.nano, b.estimated
}

// giveBack undoes what was taken for a call that was not admitted.
func (x *exchange) giveBack() {
	x.endHold(budget.Amounts{})
	if l := x.limiter; l != nil {
		x.limiter = nil
		l.Undo(x.rates)
	}
}

func (x *exchange) endHold(used budget.Amounts) {
	x.hold.Settle(used)
	if x.holds {
		x.holds = false
		x.s.holding.Add(-1)
	}
}

// bill says what the call is charged (DESIGN §11).
func (x *exchange) bill(code string) bill {
	var b bill
	switch {
	case x.metered:
		b = x.told()
	case !x.owes:
	default:
		b = x.guessed(code)
	}
	b.add(&x.prior)
	return b
}

// add adds what another target told that it used.
func (b *bill) add(o *bill) {
	u, v := &b.usage, &o.usage
	u.Input += v.Input
	u.CachedInput += v.CachedInput
	u.CacheWrite += v.CacheWrite
	u.Output += v.Output
	u.Reasoning += v.Reasoning
	u.AudioInput += v.AudioInput
	u.AudioOutput += v.AudioOutput
	b.nano = plus(b.nano, o.nano)
	b.unpriced = b.unpriced || o.unpriced
}

// told is what the provider's usage costs. Of a stream that broke off it may tell
// only the beginning.
func (x *exchange) told() bill {
	b := bill{usage: x.usage}
	if x.rec.Stream && !x.stream.ended {
		likely, least := x.emittedSoFar()
		if b.usage.InputTotal() == 0 {
			x.estimate()
			b.usage.Input, b.estimated = x.most.Input, true
		}
		if more := likely - b.usage.OutputTotal(); b.usage.OutputTotal() < least && more > 0 {
			b.usage.Output, b.estimated = b.usage.Output+more, true
		}
	}
	var known bool
	b.nano, known = cost(b.usage, x.serving.targets[x.slot].price)
	b.unpriced = !known
	if b.unpriced && x.spends.usd {
		b.nano = max(b.nano, x.hold.Amounts().USD) // something was used that nobody reckoned with
	}
	return b
}

// guessed is what a call is charged whose provider told no usage: the input's bound
// and what came out, or may have, at most what the hold bears.
func (x *exchange) guessed(code string) bill {
	x.estimate()
	all := x.outputs(x.most.output)
	output, least := x.emitted, int64(0)
	switch {
	case x.rec.Stream:
		output, least = x.emittedSoFar()
		if !x.stream.ended && code != codeUpstreamError && code != codeUpstreamTimeout {
			output = plus(output, x.meter.UnderWay()) // it was not the provider that ended it
		}
	case code == codeClientLeft, code == codeInternal, output == unseen:
		output = all // nobody knows how far the provider was
	}
	if x.most.own || x.most.model || x.most.limit > 0 { // what is likely may be more than the limit that was kept to
		output = min(output, max(all, least))
	}
	var held budget.Amounts
	if x.holds {
		held = x.hold.Amounts()
		output = min(output, x.bears(held, 1, x.slot))
	}
	b := bill{usage: dialect.Usage{Input: x.most.Input, Output: output}, estimated: true}
	nano, known := worst(x.serving.targets[x.slot].price, x.most.Bound, output)
	b.nano, b.unpriced = nano, !known
	if x.holds && x.spends.usd {
		b.nano = min(b.nano, held.USD)
	}
	return b
}

// note tells the control plane who spent.
func (x *exchange) note(b *bill, used budget.Amounts) {
	u := &b.usage
	n := budget.Settlement{
		At: x.asked, TokenID: x.entry.ID, TeamID: x.entry.Team, Model: x.serving.model.Name, Target: x.target.id,
		Requests: 1, Input: u.Input, CachedInput: u.CachedInput, CacheWrite: u.CacheWrite, Output: u.Output, Reasoning: u.Reasoning,
		AudioInput: u.AudioInput, AudioOutput: u.AudioOutput, Cost: b.nano, Unpriced: b.unpriced, Estimated: b.estimated,
	}
	if x.spends.counted {
		n.ID, n.Budgets = x.settlement(used)
	}
	x.s.ledger.Note(&n, &x.spends.sum)
}

// slab is where settlements lie until they are told: the ledger keeps what it is
// handed, so what was given out is never used again.
type slab struct {
	ids     []byte
	charges []budget.Charge
}

// slabSize is how many settlements a slab has room for, of three budgets each.
const slabSize = 64

// settlement gives the id of the exchange's settlement, and what its budgets are charged.
func (x *exchange) settlement(used budget.Amounts) (id string, charges []budget.Charge) {
	s, _ := x.s.slabs.Get().(*slab)
	if s == nil {
		s = new(slab)
	}
	defer x.s.slabs.Put(s)
	if cap(s.ids)-len(s.ids) < idLen {
		s.ids = make([]byte, 0, slabSize*idLen)
	}
	from := len(s.ids)
	s.ids = append(s.ids, x.id[:]...)
	if cap(s.charges)-len(s.charges) < 3 {
		s.charges = make([]budget.Charge, 0, slabSize*3)
	}
	n := len(s.charges)
	s.charges = x.hold.Charges(s.charges, used)
	return str(s.ids[from:]), s.charges[n:len(s.charges):len(s.charges)]
}

// unsettled is the last resort of an exchange whose books broke off: what it holds
// is charged.
func (x *exchange) unsettled() {
	if x.holds {
		x.endHold(x.hold.Amounts())
	}
	if l := x.limiter; l != nil {
		l.Done(time.Now(), x.outputs(x.most.output))
	}
}

// emittedSoFar is a stream's output as counted while it passed: what is likely,
// and what it is at least.
func (x *exchange) emittedSoFar() (likely, least int64) {
	likely, _ = x.meter.Emitted()
	return likely, x.meter.Least()
}
