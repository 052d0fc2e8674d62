package budget

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Options say what a ledger works with.
type Options struct {
	Authority  Authority
	Dir        string                // of journals, made 0700 if absent; the caller holds the data folder's lock
	MaxStale   time.Duration         // leases serve at most so long without an answer
	Away       func() bool           // the control plane is known to be away; nil: never
	Log        *zap.Logger           // nil: none
	Registerer prometheus.Registerer // nil: none
}

// ErrUnavailable says that the authority did not answer and no lease bears the amount.
var ErrUnavailable = errors.New("the budgets' authority is out of reach")

// Denied says that a budget can't bear an amount.
type Denied struct {
	Held      bool   // the money is held by others (budget_held), else it is spent (budget_exceeded)
	Record    Record // of the budget that lacks
	Left      int64  // that a request could reserve now, in the record's unit
	Need      int64  // what was asked for
	ReopensIn time.Duration
}

func (d *Denied) Error() string { return "budget " + d.Record.ID + " can't bear the request" }

// Ledger holds a gateway's leases. It is safe for concurrent use.
type Ledger struct{ session string }

// Open begins a session.
func Open(o Options) (*Ledger, error) { return &Ledger{session: "ls_"}, nil }

// Session is the id of the session that the ledger runs now; another one after the
// authority closed it.
func (l *Ledger) Session() string { return l.session }

// Upsert tells what is known of budgets; an older revision than the known one is ignored.
func (l *Ledger) Upsert(records ...Record) {}

// Recall takes a recall from the watch.
func (l *Ledger) Recall(r Recall) {}

// Generation moves when a Set made earlier may be out of date.
func (l *Ledger) Generation() uint64 { return 0 }

// Reserve reserves worst in every budget of the set, or in none.
func (l *Ledger) Reserve(ctx context.Context, s *Set, worst Amounts, h *Hold) error { return nil }

// Headroom is the least of what is left, by unit; math.MaxInt64 where there is no budget.
func (l *Ledger) Headroom(s *Set) Amounts {
	return Amounts{USD: math.MaxInt64, Tokens: math.MaxInt64, Requests: math.MaxInt64}
}

// Standing is what a caller may know of a budget.
type Standing struct {
	ID        string
	Unit      Unit
	Window    Window
	Limit     int64
	Left      int64
	ReopensAt time.Time // zero: never
}

// Standings tells how the budgets of the set stand, as last known.
func (l *Ledger) Standings(s *Set) []Standing { return nil }

// AppendRemaining appends "<id>=<amount>" of the enforced budget with the smallest
// fraction left; nothing when there is none.
func (l *Ledger) AppendRemaining(b []byte, s *Set) []byte { return b }

// Spent returns a denial that is kept from a moment ago, or nil.
func (l *Ledger) Spent(s *Set, worst Amounts) *Denied { return nil }

// Close ends the session.
func (l *Ledger) Close(ctx context.Context) error { return nil }
