package proxy

import (
	"math/bits"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/config"
)

// authorize runs the whole decision for the model that the body names.
func (x *exchange) authorize() error {
	x.ask.Model = str(x.call.Model)
	d := x.decideCall(x.ask.Model)
	x.reason, x.judged = d.Reason, true
	if d.Reason != abac.Allowed {
		return x.denial(d)
	}
	x.left = d.Targets
	if err := x.beside(); err != nil {
		return err
	}
	x.s.used.note(x) // here, for after the call the entry is in no near cache any more
	return nil
}

// beside judges what the call names beside its model. A model named there is checked
// like the model itself.
func (x *exchange) beside() error {
	b := &x.call.Beside
	for _, name := range b.Models {
		if err := x.other(str(name)); err != nil {
			return err
		}
	}
	if b.Tier != "" {
		return unsupported(b.Tier, "%q asks for a tier whose price this gateway does not know: leave it out, or send \"default\".", b.Tier)
	}
	for left := x.left; left != 0; left &= left - 1 {
		up := x.serving.targets[bits.TrailingZeros64(left)].up
		if param := b.Routed(up.source.Provider); param != "" {
			return unsupported(param, "%q would choose who answers behind target %s, which the token's profile could not see: leave it out.", param, up.id)
		}
	}
	return nil
}

// other decides about one more model of the call. What it is called is passed on as
// it stands, so it must be what its targets call it.
func (x *exchange) other(name string) error {
	ask, serving := x.ask, x.serving
	d := x.decide(name)
	x.reason = d.Reason
	var f *refusal
	if d.Reason != abac.Allowed {
		f = x.denial(d)
		f.param = x.call.Beside.Param
	} else {
		for left := d.Targets; left != 0 && f == nil; left &= left - 1 {
			if x.serving.targets[bits.TrailingZeros64(left)].rename != "" {
				f = unsupported(x.call.Beside.Param, "%q names a model that its provider knows under another name: send it as \"model\".", x.call.Beside.Param)
			}
		}
	}
	x.ask, x.serving = ask, serving
	if f != nil {
		return f
	}
	return nil
}

func unsupported(param, format string, args ...any) *refusal {
	f := refuse(codeUnsupportedField, format, args...)
	f.param = param
	return f
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
