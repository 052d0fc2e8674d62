package store

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// BenchmarkSettle is a second of 1000 calls, each of another token.
func BenchmarkSettle(b *testing.B) {
	s, err := Open(b.Context(), "sqlite:"+filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	list, n := make([]budget.Settlement, 1000), 0
	for b.Loop() {
		for i := range list {
			n++
			list[i] = budget.Settlement{ID: fmt.Sprint(n), At: time.Now(), TokenID: fmt.Sprint("tok_", i), Model: "m", Target: "t", Requests: 1}
		}
		if err := s.Settle(b.Context(), "org", "gw", list); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUsed is a report of a busy gateway, of 1000 tokens.
func BenchmarkUsed(b *testing.B) {
	s, err := Open(b.Context(), "sqlite:"+filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	uses, at := make([]Use, 1000), time.Now()
	if err := s.Update(b.Context(), at, func(tx *Tx) error {
		for i := range uses {
			n := sample(s, fmt.Sprint(i))
			uses[i] = Use{TokenID: n.Profile.ID, OrgID: n.Profile.OrgID, GatewayID: "gw_1"}
			if err := tx.Insert(b.Context(), &n); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		at = at.Add(time.Second)
		for i := range uses {
			uses[i].At = at
		}
		if err := s.Update(b.Context(), at, func(tx *Tx) error { return tx.Used(b.Context(), uses...) }); err != nil {
			b.Fatal(err)
		}
	}
}
