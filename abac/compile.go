package abac

import (
	"math"
	"slices"
	"strings"
	"time"
)

// notBeforeLeeway is how far a gateway's clock may be behind the one that set
// not_before. Expiry has none.
const notBeforeLeeway = 60 * time.Second

// Policy is a profile made ready to decide. It is immutable and safe for
// concurrent use. The zero Policy and a nil one deny.
type Policy struct {
	// In the order in which the checks read them, and with every string that they
	// compare in one piece of memory, every pattern in another: of many policies
	// few are in the processor's caches.
	standing  Reason // Allowed, TokenRevoked or ProfileInvalid
	dataPlane bool   // the purpose may use it
	timed     bool   // not_before or expires_at is set
	expiring  bool   // expires_at is
	org       string
	gateway   string // "": any, since an empty binding is refused
	team      string // "": none, likewise
	models    filter
	providers filter
	notBefore time.Time // leeway taken off; zero: none
	expires   time.Time

	problem string
	profile Profile
}

// Compile makes a profile ready to decide. It never fails: of a profile that is
// not valid it makes a policy that denies with ProfileInvalid and whose Problem
// says why. It keeps nothing of p, which may change afterwards.
func Compile(p *Profile) *Policy {
	if p == nil {
		return &Policy{problem: "no profile"}
	}
	c := &Policy{
		dataPlane: p.Purpose == General || p.Purpose == Integration,
		problem:   problem(p),
		profile:   clone(p),
	}
	switch {
	case c.problem != "":
		c.standing = ProfileInvalid
	case p.Status == Active:
		c.standing = Allowed
	default:
		c.standing = TokenRevoked
	}
	if t := p.NotBefore; t != nil {
		c.notBefore, c.timed = t.Add(-notBeforeLeeway), true
	}
	if t := p.ExpiresAt; t != nil {
		c.expires, c.timed, c.expiring = *t, true, true
	}

	b := &c.profile.Bindings
	gather(&c.profile)
	c.org = c.profile.OrgID
	if b.GatewayID != nil {
		c.gateway = *b.GatewayID
	}
	if b.TeamID != nil {
		c.team = *b.TeamID
	}
	room := make([]Pattern, 0, len(b.Models)+len(b.Providers))
	c.models, room = compileFilter(b.Models, p.Purpose == General, room)
	c.providers, _ = compileFilter(b.Providers, p.Purpose == General, room)
	return c
}

// gather moves the strings that decisions compare into one.
func gather(p *Profile) {
	b := &p.Bindings
	list := []*string{&p.OrgID}
	if b.GatewayID != nil {
		list = append(list, b.GatewayID)
	}
	if b.TeamID != nil {
		list = append(list, b.TeamID)
	}
	for i := range b.Models {
		list = append(list, &b.Models[i])
	}
	for i := range b.Providers {
		list = append(list, &b.Providers[i])
	}
	var all strings.Builder
	for _, s := range list {
		all.WriteString(*s)
	}
	rest := all.String()
	for _, s := range list {
		*s, rest = rest[:len(*s)], rest[len(*s):]
	}
}

// Profile returns the profile that the policy was compiled from: the policy's own
// copy, read only.
func (p *Policy) Profile() *Profile { return &p.profile }

// Window returns the time in which the policy may allow, in Unix nanoseconds: from
// the first on, before the second. Without a limit it is the int64 of that end.
func (p *Policy) Window() (from, until int64) {
	from, until = math.MinInt64, math.MaxInt64
	if !p.notBefore.IsZero() {
		from = nanoseconds(p.notBefore)
	}
	if p.expiring {
		until = nanoseconds(p.expires)
	}
	return from, until
}

// nanoseconds is t.UnixNano, held where that would not fit.
func nanoseconds(t time.Time) int64 {
	switch {
	case t.Year() < 1679:
		return math.MinInt64
	case t.Year() > 2260:
		return math.MaxInt64
	}
	return t.UnixNano()
}

// Problem says why every decision is ProfileInvalid, with the path of what is
// wrong; "" when the profile is valid.
func (p *Policy) Problem() string { return p.problem }

// problem returns the first thing that makes a profile deny. It asks for less
// than Validate does: a profile that an older or newer control plane let pass,
// and whose meaning is clear, keeps working.
func problem(p *Profile) string {
	switch {
	case p.ID == "":
		return "id: missing"
	case p.OrgID == "":
		return "org_id: missing"
	}
	if err := purposeProblem(p.Purpose, p.PrincipalType); err != nil {
		return err.Error()
	}
	switch p.Status {
	case Active, Quarantined, Revoked:
	default:
		return "status: unknown"
	}

	b := &p.Bindings
	if len(b.Invalid) > 0 {
		return b.Invalid[0]
	}
	if list := restrictionProblems(p); len(list) > 0 {
		return list[0].Error()
	}
	if list := patternProblems("bindings.providers", b.Providers); len(list) > 0 {
		return list[0].Error()
	}
	if list := patternProblems("bindings.models", b.Models); len(list) > 0 {
		return list[0].Error()
	}
	return ""
}

func clone(p *Profile) Profile {
	c := *p
	c.NotBefore = clonePointer(p.NotBefore)
	c.ExpiresAt = clonePointer(p.ExpiresAt)
	c.LastUsedAt = clonePointer(p.LastUsedAt)
	c.RotatedFrom = clonePointer(p.RotatedFrom)
	b := &c.Bindings
	b.GatewayID = clonePointer(b.GatewayID)
	b.TeamID = clonePointer(b.TeamID)
	b.RateLimits = clonePointer(b.RateLimits)
	b.Providers = slices.Clone(b.Providers)
	b.Models = slices.Clone(b.Models)
	b.Budgets = slices.Clone(b.Budgets)
	b.Invalid = slices.Clone(b.Invalid)
	return c
}

func clonePointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
