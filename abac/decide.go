package abac

import "slices"

// Decide runs checks 1 to 6, the first failure being the reason. It does not
// allocate, does not keep r, and is safe for concurrent use with the same policy
// and the same request. A nil policy or request denies.
func Decide(p *Policy, r *Request) Decision {
	d := Identify(p, r)
	if d.Reason != Allowed || r.Action != Execute {
		return d
	}
	if !p.models.allows(r.Model) {
		return Decision{Reason: ModelNotAllowed}
	}
	if len(r.Targets) == 0 {
		return Decision{Reason: ModelNotFound}
	}
	if len(r.Targets) > MaxTargets {
		return Decision{} // can't be said in Decision.Targets
	}

	left := everyTarget(r)
	if left = p.openToTeam(r, left); left == 0 {
		return Decision{Reason: TeamMismatch}
	}
	if left = p.notExcluded(r, left); left == 0 {
		return Decision{Reason: ModelNotAllowed}
	}
	if left = p.ofProviders(r, left); left == 0 {
		return Decision{Reason: ProviderNotAllowed}
	}
	return Decision{Reason: Allowed, Targets: left}
}

// Identify runs checks 1 to 4 alone: all that can be known before the body is
// read. Action counts already, Model and Targets do not. A request that Identify
// denies Decide denies too, for the same reason.
func Identify(p *Policy, r *Request) Decision {
	if p == nil || r == nil {
		return Decision{}
	}
	reason := p.profileReason(r)
	if reason == Allowed {
		reason = p.purposeReason(r)
	}
	if reason == Allowed {
		reason = p.gatewayReason(r)
	}
	if reason == Allowed {
		reason = p.teamReason(r)
	}
	return Decision{Reason: reason}
}

// profileReason is check 1.
func (p *Policy) profileReason(r *Request) Reason {
	if p.standing != Allowed {
		return p.standing
	}
	if p.timed {
		if r.Now.Before(p.notBefore) {
			return TokenNotYetValid
		}
		if p.expiring && !r.Now.Before(p.expires) {
			return TokenExpired
		}
	}
	if p.org != r.OrgID {
		return TokenUnknown
	}
	return Allowed
}

// purposeReason is check 2.
func (p *Policy) purposeReason(r *Request) Reason {
	switch r.Action {
	case Execute, List, Self:
		// A runtime token has no business on the data plane, whatever it asks.
		if p.dataPlane {
			return Allowed
		}
	}
	return PurposeNotAllowed
}

// gatewayReason is check 3.
func (p *Policy) gatewayReason(r *Request) Reason {
	if p.gateway != "" && p.gateway != r.GatewayID {
		return GatewayMismatch
	}
	return Allowed
}

// teamReason is check 4.
func (p *Policy) teamReason(r *Request) Reason {
	if r.Team != "" && r.Team != p.team || p.team != "" && r.DeletedTeams.Has(p.team) {
		return TeamMismatch
	}
	return Allowed
}

func everyTarget(r *Request) uint64 {
	return ^uint64(0) >> (MaxTargets - len(r.Targets))
}

// openToTeam, notExcluded and ofProviders are check 6: each returns what it
// leaves of left.
func (p *Policy) openToTeam(r *Request, left uint64) uint64 {
	for i := range r.Targets {
		if teams := r.Targets[i].Teams; len(teams) > 0 && (p.team == "" || !slices.Contains(teams, p.team)) {
			left &^= 1 << i
		}
	}
	return left
}

func (p *Policy) notExcluded(r *Request, left uint64) uint64 {
	if len(p.models.excludes) == 0 {
		return left
	}
	for i := range r.Targets {
		if left&(1<<i) != 0 && matches(p.models.excludes, upstreamModel(r, i)) {
			left &^= 1 << i
		}
	}
	return left
}

func (p *Policy) ofProviders(r *Request, left uint64) uint64 {
	if p.providers.all {
		return left
	}
	for i := range r.Targets {
		if left&(1<<i) != 0 && !p.providers.allows(r.Targets[i].ID) {
			left &^= 1 << i
		}
	}
	return left
}

func upstreamModel(r *Request, i int) string {
	if m := r.Targets[i].Model; m != "" {
		return m
	}
	return r.Model
}
