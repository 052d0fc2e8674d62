package budget

import "context"

// Hold is what one running request has reserved. The zero value is ready.
type Hold struct{ open bool }

// Open says that it is reserved and not settled.
func (h *Hold) Open() bool { return h.open }

// Amounts is what it holds now, extensions included.
func (h *Hold) Amounts() Amounts { return Amounts{} }

// Extend reserves more on the leases of the reservation; errors as Reserve's.
func (h *Hold) Extend(ctx context.Context, more Amounts) error { return nil }

// Settle ends the hold with what was used. Only the first call counts. It never blocks on I/O.
func (h *Hold) Settle(used Amounts) {}

// Charges appends what used is charged to, observed budgets included.
func (h *Hold) Charges(b []Charge, used Amounts) []Charge { return b }
