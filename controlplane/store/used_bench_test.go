package store

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

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
