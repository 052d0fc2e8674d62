package config

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
)

func TestPricesAreExact(t *testing.T) {
	for _, tt := range []struct {
		give string
		want int64
	}{
		{"0", 0}, {"0.0", 0}, {"0.25", 250_000}, {"0.025", 25_000}, {"2.00", 2_000_000}, {"0.000001", 1},
		{"0.1", 100_000}, {"0.3", 300_000}, {"1.005", 1_005_000}, {"4.35", 4_350_000}, {"007", 7_000_000},
		{"99999.999999", 99_999_999_999}, {"100000", 100_000_000_000}, {"100000.000000", 100_000_000_000},
	} {
		got, problem := parseDecimal(tt.give)
		if got != tt.want || problem != "" {
			t.Errorf("%s: got %d %s, want %d", tt.give, got, problem, tt.want)
		}
	}
	for _, give := range []string{
		"", ".", ".5", "5.", "1.0000000", "0.0000000", "1e3", "+1", "-0", "-1", "1,5", "1_0", " 1", "1 ", "0x1", "∞", "١",
		"100000.000001", "9223372036854775808", "18446744073709551616", "1.-5", "1..2",
	} {
		if got, problem := parseDecimal(give); problem == "" {
			t.Errorf("%q is accepted as %d", give, got)
		}
	}
}

func TestPricesAgreeWithRationalArithmetic(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		decimals := rng.IntN(7)
		s := fmt.Sprintf("%.*f", decimals, rng.Float64()*99_999)
		want, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatal(s)
		}
		got, problem := parseDecimal(s)
		if problem != "" || want.Mul(want, big.NewRat(micro, 1)).Cmp(new(big.Rat).SetInt64(got)) != 0 {
			t.Errorf("%s: got %d %s", s, got, problem)
		}
	}
}

func TestAPriceIsPicoUSDATokenAndNanoUSDARequest(t *testing.T) {
	c := parse(t, `
providers: {targets: [{id: a, base_url: "https://a.example"}]}
models: [{name: m, targets: [{id: a}], price: {input: 0.25, output: 0, request: 0.01}}]
`)
	p := c.Models[0].Price
	// 0.25 USD per 10⁶ tokens = 250,000 × 10⁻¹² USD a token.
	if *p.Input != 250_000 || *p.Request != 10_000_000 || *p.Output != 0 || p.CachedInput != nil {
		t.Errorf("%d %d %d %v", *p.Input, *p.Request, *p.Output, p.CachedInput)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("free is no warning: %v", w)
	}
}
