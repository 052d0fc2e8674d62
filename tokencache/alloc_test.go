//go:build !race

package tokencache

import (
	"testing"

	"github.com/keeptrusts/gateway/abac"
)

func TestAHitDoesNotAllocate(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 1, abac.Active))
	c := open(t, p, nil)
	c.Revoke("tok_2", 1) // the revocations' maps are read too
	ctx, d := t.Context(), dig(1)
	get(t, c, d)
	if n := testing.AllocsPerRun(10_000, func() {
		if _, err := c.Get(ctx, d); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a hit", n)
	}
}

func TestARememberedUnknownDoesNotAllocate(t *testing.T) {
	c := open(t, &plane{}, nil)
	ctx, d := t.Context(), dig(1)
	if n := testing.AllocsPerRun(10_000, func() {
		if _, err := c.Get(ctx, d); err == nil {
			t.Fatal("no error")
		}
	}); n != 0 {
		t.Errorf("%v allocations a look-up", n)
	}
}
