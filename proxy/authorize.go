package proxy

import (
	"math/bits"
	"math/rand/v2"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/config"
)

// authorize runs the whole decision for the model that the body names.
func (x *exchange) authorize() error {
	x.ask.Model = str(x.call.Model)
	d := x.decideCall(x.ask.Model)
	x.reason = d.Reason
	if d.Reason != abac.Allowed {
		return x.denial(d)
	}
	x.left = d.Targets
	return nil
}

// decide looks the model's entry up and decides over its targets.
func (x *exchange) decide(model string) abac.Decision {
	x.ask.Model, x.ask.Targets, x.serving = model, nil, nil
	if m := x.rt.cfg.Find(model); m != nil {
		x.serving = x.rt.served[m]
		x.ask.Targets = m.AbacTargets()
	}
	return abac.Decide(x.policy, &x.ask)
}

// admit puts the targets that are left in the order in which they are tried: the
// first by weight, the others as the config has them.
func (x *exchange) admit() error {
	if total := x.s.streams.Add(1); total > int64(x.rt.cfg.Limits.Streams) {
		x.s.streams.Add(-1)
		return refuse(codeOverloaded, "The gateway serves as many calls as it may; send the request again.")
	}
	x.slotted = true
	if x.rt.required {
		if err := x.recordAdmission(); err != nil {
			x.s.recordFailed(err)
			return refuse(codeOverloaded, "The decision can't be recorded, and this gateway serves nothing unrecorded; send the request again.")
		}
	}
	x.order = x.order[:0]
	if first, ok := x.pick(); ok {
		x.order = append(x.order, first)
	}
	for left := x.left; left != 0; left &= left - 1 {
		i := uint8(bits.TrailingZeros64(left))
		if len(x.order) == 0 || i != x.order[0] {
			x.order = append(x.order, i)
		}
	}
	return nil
}

// recordAdmission writes a record with status 0 before the call goes out; its
// ending is a second one under the same request id.
func (x *exchange) recordAdmission() error {
	x.rec.Time, x.rec.RequestID = x.began, x.requestID()
	x.describe()
	return x.s.records.Write(&x.rec)
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

// served is a model entry with what relaying it needs.
type served struct {
	model   *config.Model
	number  uint32 // see decideCall
	targets []servedTarget
}

type servedTarget struct {
	up     *upstream
	rename string // the upstream's name where it differs from what every client sends; "": as requested
	price  *config.Price
	meter  *targetMetrics
}
