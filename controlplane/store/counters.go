package store

import (
	"context"
	"time"
)

// Standing is what a budget's current window has come to, in the budget's unit.
type Standing struct {
	Settled      int64 // charged for good, what silent sessions hold included
	Held         int64 // reserved by requests under way
	Leased       int64 // in gateways' hands, and idle
	Left         int64
	Overrun      int64      // the part of Settled that went beyond its holds
	Limit        int64      // with the window's top-ups
	Unattributed int64      // the part of Settled that no settlement told of: crashes, or not told yet
	Unpriced     int64      // requests of unknown price, which count 0; of observed budgets
	ReopensAt    *time.Time // nil: never
}

// Standing returns where these budgets of an org stand now, by id; those that do
// not exist are absent.
func (s *Store) Standing(ctx context.Context, org string, ids ...string) (map[string]Standing, error) {
	return nil, errNotYet
}
