package proxy

import (
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
	x.s.used.note(x) // here, for after the call the entry is in no near cache any more
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
