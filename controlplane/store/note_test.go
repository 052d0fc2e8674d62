package store

import (
	"context"
	"testing"
	"time"
)

func TestHowFarAGatewayIsWaitsForNoChangeOnPostgreSQL(t *testing.T) {
	s := openPG(t, postgresURL(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	noted := func() error {
		return s.Note(ctx, time.Now(), func(tx *Tx) error {
			tx.Reported()
			return tx.Hear(ctx, Instance{OrgID: "org_default", GatewayID: "gw_1", ID: "inst_1", MaxStale: time.Minute})
		})
	}
	// While a change is under way: a Note that waited for it would never end.
	if err := s.Update(ctx, time.Now(), func(*Tx) error { return noted() }); err != nil {
		t.Fatal(err)
	}
	list, err := s.Instances(ctx, "org_default", time.Now())
	if err != nil || len(list) != 1 || list[0].ID != "inst_1" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestANoteTakesNoRevision(t *testing.T) {
	s := openPG(t, postgresURL(t))
	defer func() {
		if recover() == nil {
			t.Error("a change has no place in the order")
		}
	}()
	_ = s.Note(t.Context(), time.Now(), func(tx *Tx) error {
		_, err := tx.revision(t.Context(), "org_default", "tok_1", "token.created")
		return err
	})
}
