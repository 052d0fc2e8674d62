package store

import (
	"context"

	"github.com/keeptrusts/gateway/budget"
)

// Settle keeps who spent. A settlement that is known changes nothing.
func (s *Store) Settle(ctx context.Context, org, gateway string, list []budget.Settlement) error {
	return errNotYet
}
