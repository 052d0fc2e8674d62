package store

import (
	"context"
	"testing"

	"github.com/keeptrusts/gateway/budget"
)

var standings = []scenario{
	{"budgets' standings are of one moment", standingOfOneMoment},
}

// Two budgets that change together are never seen apart.
func standingOfOneMoment(t *testing.T, s *Store) {
	ctx := context.Background()
	limit := func(n int64) error {
		return s.Update(ctx, noon, func(tx *Tx) error {
			for _, id := range []string{"a", "b"} {
				b := Budget{OrgID: "org", Record: budget.Record{ID: id, Unit: budget.Requests, Window: budget.Total, Mode: budget.Enforce, Limit: n}}
				if _, _, err := tx.PutBudget(ctx, &b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := limit(1); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for n := int64(2); n < 300 && err == nil; n++ {
			err = limit(n)
		}
		done <- err
	}()
	for looks := 0; ; looks++ {
		select {
		case err := <-done:
			if err != nil || looks == 0 {
				t.Errorf("%d looks, %v", looks, err)
			}
			return
		default:
		}
		all, err := s.Standing(ctx, "org", "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		if all["a"].Limit != all["b"].Limit {
			t.Fatalf("seen apart: %d and %d", all["a"].Limit, all["b"].Limit)
		}
	}
}
