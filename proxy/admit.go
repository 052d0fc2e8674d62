package proxy

import (
	"math/bits"
	"math/rand/v2"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

// admit puts the targets that are left in order, and takes what the call may use
// at most off the token's rate limits and budgets. Whatever is refused from here
// on, close gives back.
func (x *exchange) admit() error {
	if !x.s.streams.take(tokenSlot(&x.entry.Digest), 1, int64(x.rt.cfg.Limits.Streams)) {
		return refuse(codeOverloaded, "The gateway serves as many calls as it may; send the request again.")
	}
	x.slotted = true
	x.sort()
	x.enter(awaitsBudget)
	x.s.watcher.add(x)
	if err := x.reserve(); err != nil {
		return err
	}
	if x.rt.required {
		if err := x.recordAdmission(); err != nil {
			x.s.recordFailed(err)
			return refuse(codeOverloaded, "The decision can't be recorded, and this gateway serves nothing unrecorded; send the request again.")
		}
	}
	x.admitted = true
	return nil
}

// recordAdmission writes a record with status 0 before the call goes out; its
// ending is a second one under the same request id.
func (x *exchange) recordAdmission() error {
	x.rec.Time, x.rec.RequestID = x.began, x.requestID()
	x.describe()
	return x.s.records.Write(&x.rec)
}

// sort puts the targets in the order in which they are tried: the first by
// weight, the others as the config has them. One that stands there twice, under two
// names of the model, is tried once: a POST is never sent to it again.
func (x *exchange) sort() {
	x.order = x.order[:0]
	if first, ok := x.pick(); ok {
		x.order = append(x.order, first)
	}
	for left := x.left; left != 0; left &= left - 1 {
		i := uint8(bits.TrailingZeros64(left))
		if !x.ordered(x.serving.targets[i].up) {
			x.order = append(x.order, i)
		}
	}
}

func (x *exchange) ordered(up *upstream) bool {
	for _, i := range x.order {
		if x.serving.targets[i].up == up {
			return true
		}
	}
	return false
}

// pick draws one of the targets that are left by weight. With weights of 0 only
// the config's order counts.
func (x *exchange) pick() (uint8, bool) {
	if bits.OnesCount64(x.left) == 1 {
		return uint8(bits.TrailingZeros64(x.left)), true
	}
	targets := x.serving.model.Targets
	total := uint64(0)
	for left := x.left; left != 0; left &= left - 1 {
		total += uint64(targets[bits.TrailingZeros64(left)].Weight)
	}
	if total == 0 {
		return 0, false
	}
	at := rand.Uint64N(total)
	for left := x.left; left != 0; left &= left - 1 {
		i := bits.TrailingZeros64(left)
		w := uint64(targets[i].Weight)
		if at < w {
			return uint8(i), true
		}
		at -= w
	}
	panic("BUG: weights do not add up")
}

// allowance is what a token's calls are counted against: resolved once a token,
// and again when the ledger learns of a budget. Immutable.
type allowance struct {
	generation uint64
	set        *budget.Set
	unknown    string          // a budget that the token names and nobody knows here
	limiter    *budget.Limiter // nil: no rate limit
	perMinute  bool            // tokens a minute are limited
	counted    bool            // there is a budget
	usd        bool            // an enforced one in it counts money
	tokens     bool            // tokens
	sum        budget.Sum
}

// allowance returns that of the exchange's token.
func (x *exchange) allowance() *allowance {
	generation := x.s.ledger.Generation() // before the set is made: what comes meanwhile moves it
	if a, _ := x.entry.Memo.Load().(*allowance); a != nil && a.generation == generation {
		return a
	}
	b := &x.policy.Profile().Bindings
	a := &allowance{generation: generation}
	ids := make([]string, len(b.Budgets))
	for i := range b.Budgets {
		ids[i] = b.Budgets[i].ID
	}
	a.set, a.unknown = x.s.budgetsOf(ids, deref(b.TeamID))
	if a.unknown == "" {
		a.counted = !a.set.Empty()
		a.usd, a.tokens = a.set.Enforces(budget.USD), a.set.Enforces(budget.Tokens)
	}
	if r := b.RateLimits; r != nil {
		a.perMinute = r.TokensPerMinute > 0
		a.limiter = x.s.limiters.Of(x.entry.ID, budget.Rates{
			RequestsPerMinute: r.RequestsPerMinute, TokensPerMinute: r.TokensPerMinute, MaxParallel: r.MaxParallelRequests,
		})
	}
	x.entry.Memo.Store(a)
	return a
}

// unowned refuses what nobody can answer for: an object that may be another caller's,
// and a price that is another model's. It comes last, so that every other refusal is
// told first.
func (x *exchange) unowned(a *allowance) error {
	b := &x.call.Beside
	if b.Stored != "" {
		return unsupported(b.Stored, "%q names an object kept at the provider, which every token of this gateway reaches under one credential: whose it is, is not known here. Send its content in the body.", b.Stored)
	}
	if len(b.Models) > 0 && a.usd {
		x.denied = codePriceUnknown
		f := refuse(codePriceUnknown, "Token %s spends from a budget in usd, and %q lets another model answer, at another price: leave it out.", x.entry.ID, b.Param)
		f.param = b.Param
		return f
	}
	return nil
}

// reserve is check 7: rate limits, which are local and told at once, then budgets.
func (x *exchange) reserve() error {
	a := x.allowance()
	if a.unknown != "" {
		x.reason = abac.ProfileInvalid
		return refuse("profile_invalid", "The profile of token %s names the budget %q, which this gateway does not know. Ask your administrator to make it, or to take it off the token.", x.entry.ID, a.unknown)
	}
	x.spends, x.asked = a, x.began
	if a.counted || a.limiter != nil { // the body may have taken its time
		x.asked = time.Now()
	}
	if err := x.bound(a); err != nil {
		return err
	}
	if a.limiter != nil {
		var ok bool
		if x.rates, ok = a.limiter.Take(x.asked, x.most.Input); !ok {
			if a.counted {
				if d := x.s.ledger.Spent(a.set, x.amounts(x.least())); d != nil && !d.Held {
					return x.overBudget(d)
				}
			}
			return x.overRate()
		}
		x.limiter = a.limiter
	}
	if a.counted {
		if err := x.take(a); err != nil {
			return err
		}
	}
	return x.unowned(a)
}
