//go:build !race

package token

import "testing"

func TestNothingAllocatesOnTheWayToADigest(t *testing.T) {
	minted, old, wrong := []byte(vector), []byte("kt_ak_12345678901234"), []byte(vector[:Len-1]+"6")
	secret := NewSecret(vector)
	tests := map[string]func(){
		"WellFormed, minted": func() { sink = WellFormed(minted, legacy) },
		"WellFormed, legacy": func() { sink = WellFormed(old, legacy) },
		"WellFormed, wrong":  func() { sink = WellFormed(wrong, legacy) },
		"Sum":                func() { sinkDigest = Sum(minted) },
		"Secret.Reveal":      func() { sink = secret.Reveal() == "" },
	}
	for name, f := range tests {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
