package proxy

import (
	"sync/atomic"

	"github.com/keeptrusts/gateway/abac"
)

// A decision depends on the profile, the config, the org, its deleted teams and the time, and all but
// the last stay the same from one call to the next. What was allowed is noted with
// the token's entry, under a number for the rest: reading a policy anew costs a
// look at six lines of memory that of many tokens are in no cache. Only what was
// allowed is noted, so a refusal is always found by the whole decision.

// setting is what identifying depends on beside the entry and the time.
type setting struct {
	rt     *runtime
	org    string
	gone   *abac.TeamSet
	number uint64
}

// numbers are never given twice in a process: servers may share a cache.
var numbers atomic.Uint64

// setting returns the one in force for this exchange.
func (x *exchange) setting() *setting {
	v := x.s.setting.Load()
	if v == nil || v.rt != x.rt || v.org != x.ask.OrgID || v.gone != x.ask.DeletedTeams {
		v = &setting{x.rt, x.ask.OrgID, x.ask.DeletedTeams, numbers.Add(1)}
		x.s.setting.Store(v)
	}
	return v
}

// identified is abac.Identify of x.ask.
func (x *exchange) identified() abac.Decision {
	if x.ask.Action != abac.Execute || x.ask.Team != "" {
		return abac.Identify(x.policy, &x.ask)
	}
	e, v := x.entry, x.setting()
	if now := x.ask.Now.UnixNano(); e.Notes.Identified.Load() == v.number && e.From <= now && now < e.Until {
		return abac.Decision{Reason: abac.Allowed}
	}
	d := abac.Identify(x.policy, &x.ask)
	if d.Reason == abac.Allowed {
		e.Notes.Identified.Store(v.number)
	}
	return d
}

// decideCall is decide for a call that was identified as one.
func (x *exchange) decideCall(model string) abac.Decision {
	m := x.rt.cfg.Find(model)
	if m == nil || m.Pattern() || len(m.Targets) > 32 { // a pattern's decision depends on the name; 32 fit beside the number
		return x.decide(model)
	}
	sv, e := x.rt.served[m], x.entry
	if noted := e.Notes.Decided.Load(); sv.number != 0 && uint32(noted>>32) == sv.number {
		x.ask.Model, x.ask.Targets, x.serving = model, m.AbacTargets(), sv
		return abac.Decision{Reason: abac.Allowed, Targets: noted & (1<<32 - 1)}
	}
	d := x.decide(model)
	if d.Reason == abac.Allowed && sv.number != 0 {
		e.Notes.Decided.Store(uint64(sv.number)<<32 | d.Targets)
	}
	return d
}

// newNumber is one for a model entry of a runtime; 0 where they have run out.
func newNumber() uint32 {
	n := numbers.Add(1)
	if n >= 1<<32 {
		return 0
	}
	return uint32(n)
}
