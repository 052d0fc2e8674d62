package abac

import (
	"fmt"
	"testing"
)

// decided keeps the compiler from dropping what is measured.
var decided Decision

const benchProfiles = 100_000

// BenchmarkDecide allows over 100,000 profiles in random order, so that each
// policy is as far from the caches as in a running gateway.
func BenchmarkDecide(b *testing.B) {
	r := newRandom(1, 0)
	policies := make([]*Policy, benchProfiles)
	for i := range policies {
		p := grant(General, team("platform"), gateway("gw_local"), until(1),
			models(fmt.Sprintf("team-%d-*", i%100), "gpt-5.4-*", "!gpt-5.4-pro"), providers("openai", "azure-*"))
		own := r.wire(p, false) // strings of its own, as a control plane's answer gives them
		policies[i] = Compile(&own)
	}
	order := r.Perm(benchProfiles)
	request := ask()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		decided = Decide(policies[order[i]], request)
		if i++; i == benchProfiles {
			i = 0
		}
	}
	if decided.Reason != Allowed {
		b.Fatal(decided.Reason)
	}
}

func BenchmarkDecideHot(b *testing.B) {
	for name, p := range map[string]*Policy{
		"unbound": Compile(grant(General)),
		"bound":   Compile(grant(General, team("platform"), models("gpt-5.4-*", "!gpt-5.4-pro"), providers("openai", "azure-*"))),
	} {
		b.Run(name, func(b *testing.B) {
			request := ask()
			b.ReportAllocs()
			for b.Loop() {
				decided = Decide(p, request)
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	p := grant(General, team("platform"), models("gpt-5.4-*", "!gpt-5.4-pro"), providers("openai", "azure-*"))
	b.ReportAllocs()
	for b.Loop() {
		Compile(p)
	}
}

func BenchmarkPattern(b *testing.B) {
	plain, err := ParsePattern("gpt-5.4-*")
	if err != nil {
		b.Fatal(err)
	}
	worst, name := hostile(256)
	for _, bb := range []struct {
		name    string
		pattern Pattern
		s       string
	}{{"prefix", plain, "gpt-5.4-mini"}, {"hostile", worst, name + "b"}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				if !bb.pattern.Match(bb.s) {
					b.Fatal("no match")
				}
			}
		})
	}
}
