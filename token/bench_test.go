package token

import "testing"

var (
	sink       bool
	sinkDigest Digest
)

func BenchmarkWellFormed(b *testing.B) {
	give := []byte(vector)
	b.ReportAllocs()
	for b.Loop() {
		sink = WellFormed(give, legacy)
	}
}

func BenchmarkSum(b *testing.B) {
	give := []byte(vector)
	b.ReportAllocs()
	for b.Loop() {
		sinkDigest = Sum(give)
	}
}

func BenchmarkMint(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		sink = Mint().Empty()
	}
}
