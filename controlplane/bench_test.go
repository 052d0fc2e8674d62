package controlplane

import (
	"context"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/token"
)

// BenchmarkLoad is what a miss of the gateway's cache costs here.
func BenchmarkLoad(b *testing.B) {
	p := newPlane(b)
	_, secret := p.mint("general", fields{"models": []string{"gpt-*"}})
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	over, err := NewClient(ClientOptions{URL: p.url, Instance: "i", MaxStale: time.Minute,
		Token: func() (token.Secret, error) { return token.NewSecret(runtime), nil }})
	if err != nil {
		b.Fatal(err)
	}
	d := token.Sum([]byte(secret))
	for name, resolve := range map[string]func(context.Context, token.Digest) (Resolved, error){
		"in process": p.server.Embedded("gw").Resolve, "over HTTP": over.Resolve,
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := resolve(context.Background(), d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMint is a change: one durable transaction.
func BenchmarkMint(b *testing.B) {
	p := newPlane(b)
	for b.Loop() {
		p.mint("general", nil)
	}
}
