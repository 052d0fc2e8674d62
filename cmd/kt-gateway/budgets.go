package main

import (
	"maps"
	"slices"
	"sync"

	"github.com/keeptrusts/gateway/budget"
)

// budgets is what a gateway knows of its org's budgets: the ledger counts by them. Safe
// for concurrent use.
type budgets struct {
	ledger *budget.Ledger

	mu    sync.Mutex
	known map[string]budget.Record
}

// upsert takes what budgets are now; what is older than what is known changes nothing.
// When it returns, the ledger has it.
func (b *budgets) upsert(list ...budget.Record) {
	b.ledger.Upsert(list...)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = map[string]budget.Record{}
	}
	for _, r := range list {
		if was, ok := b.known[r.ID]; !ok || was.Revision < r.Revision {
			b.known[r.ID] = r
		}
	}
}

// list returns all that are known.
func (b *budgets) list() []budget.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.known))
}
