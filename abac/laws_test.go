package abac

import (
	"slices"
	"strings"
	"testing"
)

// law changes a profile in a way that must never allow more. It returns false
// where the profile has nothing that it could change.
type law struct {
	name  string
	apply func(r random, p *Profile) bool
	keeps bool // what it changes is not decided here: every decision stays
}

// laws are those of the design, and those that follow at once.
var laws = []law{
	{name: "adding a model exclusion", apply: func(r random, p *Profile) bool {
		return exclude(r, &p.Bindings.Models, names)
	}},
	{name: "adding a provider exclusion", apply: func(r random, p *Profile) bool {
		return exclude(r, &p.Bindings.Providers, ids)
	}},
	{name: "adding a gateway", apply: func(r random, p *Profile) bool {
		if p.Bindings.GatewayID != nil || p.Purpose == GatewayRuntime {
			return false // without one that is invalid, with one denied by purpose
		}
		p.Bindings.GatewayID = new(pick(r, gateways))
		return true
	}},
	{name: "adding budgets", keeps: true, apply: func(_ random, p *Profile) bool {
		if p.Bindings.Budgets != nil && len(p.Bindings.Budgets) == 0 {
			return false // an empty list is no restriction to add to
		}
		p.Bindings.Budgets = append(p.Bindings.Budgets, BudgetBinding{ID: "b"})
		return true
	}},
	{name: "adding rate limits", keeps: true, apply: func(_ random, p *Profile) bool {
		if p.Bindings.RateLimits != nil {
			return false
		}
		p.Bindings.RateLimits = &RateLimits{RequestsPerMinute: 1}
		return true
	}},
	{name: "budgets that are none", apply: func(_ random, p *Profile) bool {
		p.Bindings.Budgets = []BudgetBinding{}
		return true
	}},
	{name: "rate limits that are none", apply: func(_ random, p *Profile) bool {
		p.Bindings.RateLimits = &RateLimits{}
		return true
	}},
	{name: "adding a models filter to a general token", apply: func(r random, p *Profile) bool {
		if p.Purpose != General || p.Bindings.Models != nil {
			return false
		}
		p.Bindings.Models = r.filter(0, names)
		return true
	}},
	{name: "adding a providers filter to a general token", apply: func(r random, p *Profile) bool {
		if p.Purpose != General || p.Bindings.Providers != nil {
			return false
		}
		p.Bindings.Providers = r.filter(0, ids)
		return true
	}},
	{name: "taking a granting model pattern", apply: func(r random, p *Profile) bool {
		return takeGrant(r, p.Bindings.Models, func(list []string) { p.Bindings.Models = list })
	}},
	{name: "taking a granting provider pattern", apply: func(r random, p *Profile) bool {
		return takeGrant(r, p.Bindings.Providers, func(list []string) { p.Bindings.Providers = list })
	}},
	{name: "an earlier expiry", apply: func(r random, p *Profile) bool {
		t := *r.near(noon)
		if p.ExpiresAt != nil && p.ExpiresAt.Before(t) {
			return false
		}
		p.ExpiresAt = &t
		return true
	}},
	{name: "a key that is not understood", apply: func(_ random, p *Profile) bool {
		p.Bindings.Invalid = append(p.Bindings.Invalid, "bindings.x: unknown key")
		return true
	}},
}

// exclude adds an exclusion at a random place, to an absent list too: there the
// list grants nothing from then on.
func exclude(r random, list *[]string, words []string) bool {
	pattern := "!" + strings.TrimLeft(r.pattern(words), "!")
	*list = slices.Insert(slices.Clone(*list), r.IntN(len(*list)+1), pattern)
	return true
}

// takeGrant takes a valid pattern, since taking one that makes the profile
// invalid would mend it.
func takeGrant(r random, list []string, set func([]string)) bool {
	for _, i := range r.Perm(len(list)) {
		if !strings.HasPrefix(list[i], "!") && !specBadPattern(list[i]) {
			set(slices.Delete(slices.Clone(list), i, i+1))
			return true
		}
	}
	return false
}

func copied(p *Profile) Profile {
	c := *p
	c.Bindings.Models = slices.Clone(p.Bindings.Models)
	c.Bindings.Providers = slices.Clone(p.Bindings.Providers)
	c.Bindings.Budgets = slices.Clone(p.Bindings.Budgets)
	c.Bindings.Invalid = slices.Clone(p.Bindings.Invalid)
	return c
}

func TestLaws(t *testing.T) {
	const profiles, requests = 1500, 10
	for _, seed := range seeds(t) {
		for n, l := range laws {
			t.Run(l.name, func(t *testing.T) {
				r := newRandom(seed, uint64(n))
				narrowed, allowed := 0, 0
				for range profiles {
					before := r.profile()
					after := copied(&before)
					if !l.apply(r, &after) {
						continue
					}
					p, q := Compile(&before), Compile(&after)
					for range requests {
						request := r.request(&before)
						if r.chance(50) {
							request = r.request(&after)
						}
						was, is := Decide(p, &request), Decide(q, &request)
						if is.Reason == Allowed {
							allowed++
						}
						if was != is {
							narrowed++
						}
						if is.Reason == Allowed && (was.Reason != Allowed || is.Targets&^was.Targets != 0) {
							t.Fatalf("seed %d: allows more: %s %b before, %s %b after\nbefore %+v\nafter %+v\nrequest %+v",
								seed, was.Reason, was.Targets, is.Reason, is.Targets, before, after, request)
						}
					}
				}
				if l.keeps != (narrowed == 0) {
					t.Errorf("changed %d decisions", narrowed)
				}
				if narrowed+allowed == 0 {
					t.Error("it tests nothing")
				}
				t.Logf("changed %d, allowed still %d", narrowed, allowed)
			})
		}
	}
}

func TestOrderWithinAListNeverMatters(t *testing.T) {
	for _, seed := range seeds(t) {
		r := newRandom(seed, 100)
		for range 5000 {
			p := r.profile()
			q := p
			q.Bindings.Models = shuffled(r, p.Bindings.Models)
			q.Bindings.Providers = shuffled(r, p.Bindings.Providers)
			a, b := Compile(&p), Compile(&q)
			for range 5 {
				request := r.request(&p)
				if x, y := Decide(a, &request), Decide(b, &request); x != y {
					t.Fatalf("seed %d: %v, %v\n%+v\n%+v", seed, x, y, p, request)
				}
			}
		}
	}
}

// The order of targets moves the bits and nothing else.
func TestOrderOfTargetsNeverMatters(t *testing.T) {
	for _, seed := range seeds(t) {
		r := newRandom(seed, 101)
		for range 5000 {
			p := r.profile()
			c := Compile(&p)
			request := r.request(&p)
			was := Decide(c, &request)
			slices.Reverse(request.Targets)
			is := Decide(c, &request)
			var back uint64
			for i := range request.Targets {
				if is.Targets&(1<<i) != 0 {
					back |= 1 << (len(request.Targets) - 1 - i)
				}
			}
			if was.Reason != is.Reason || was.Targets != back {
				t.Fatalf("seed %d: %v, %v\n%+v\n%+v", seed, was, is, p, request)
			}
		}
	}
}

// A profile that has been on the wire decides as it did before.
func TestTheWireKeepsTheMeaning(t *testing.T) {
	for _, seed := range seeds(t) {
		r := newRandom(seed, 102)
		for range 3000 {
			p := r.profile()
			sent := r.wire(&p, false)
			again := r.wire(&sent, false)
			request := r.request(&p)
			want := Decide(Compile(&p), &request)
			if got := Decide(Compile(&sent), &request); got != want {
				t.Fatalf("seed %d: %v, want %v\n%+v\n%+v", seed, got, want, p.Bindings, sent.Bindings)
			}
			if got := Decide(Compile(&again), &request); got != want {
				t.Fatalf("seed %d: twice on the wire: %v, want %v", seed, got, want)
			}
			damaged := r.wire(&p, true)
			copied := r.wire(&damaged, false)
			for _, p := range []*Profile{&damaged, &copied} {
				if got := Decide(Compile(p), &request); got.Reason == Allowed {
					t.Fatalf("seed %d: damaged bindings allow: %+v", seed, p.Bindings)
				}
			}
		}
	}
}
