// Package budget holds budgets: money and quotas as integers. A request reserves
// its worst case in every budget that concerns it, all or nothing, and settles
// what it used when it ends, however it ends.
//
// A gateway spends from leases: money that the control plane has already taken off
// a budget, so that an admission far from the limit asks nobody. Between the two
// only totals that rise are told, so that any message may come late, twice or
// never; what a process may have spent before it died is bounded by its journal.
// Rate limits stand beside: they are of one token at one gateway, and local.
package budget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Unit is what a budget counts. Every amount is an int64 in it.
type Unit string

// The units there are.
const (
	USD      Unit = "usd"      // in nano-USD
	Tokens   Unit = "tokens"   // input and output, as the provider counts
	Requests Unit = "requests" // that reached an upstream
)

// Mode says whether a budget denies.
type Mode string

// The modes there are.
const (
	Enforce Mode = "enforce"
	Observe Mode = "observe" // counts, never denies, is never leased
)

// AppliesTo names the tokens that a budget reaches without being named by them.
type AppliesTo struct {
	TeamID string `json:"team_id,omitempty"`
	Org    bool   `json:"org,omitempty"`
}

// Record is a budget of an org, as gateways are told it.
type Record struct {
	ID        string
	Unit      Unit
	Window    Window
	Limit     int64 // in Unit, at least 0
	Mode      Mode
	AppliesTo AppliesTo // zero: only tokens that name it
	Revision  int64     // of its last change
}

type wireRecord struct {
	ID        string     `json:"id"`
	Unit      Unit       `json:"unit"`
	Window    Window     `json:"window"`
	Limit     string     `json:"limit"`
	Mode      Mode       `json:"mode"`
	AppliesTo *AppliesTo `json:"applies_to"`
	Revision  int64      `json:"revision"`
}

// MarshalJSON writes the limit as a decimal string in the unit.
func (r Record) MarshalJSON() ([]byte, error) {
	w := wireRecord{ID: r.ID, Unit: r.Unit, Window: r.Window, Limit: r.Unit.Format(r.Limit), Mode: r.Mode, Revision: r.Revision}
	if r.AppliesTo != (AppliesTo{}) {
		w.AppliesTo = &r.AppliesTo
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON writes, and refuses what it can't count by.
func (r *Record) UnmarshalJSON(b []byte) error {
	var w wireRecord
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	limit, err := w.Unit.Parse(w.Limit)
	if err != nil {
		return fmt.Errorf("budget %s: limit: %w", w.ID, err)
	}
	switch {
	case w.ID == "":
		return errors.New("a budget without an id")
	case !w.Window.Valid():
		return fmt.Errorf("budget %s: unknown window", w.ID)
	case w.Mode != Enforce && w.Mode != Observe:
		return fmt.Errorf("budget %s: unknown mode", w.ID)
	}
	*r = Record{ID: w.ID, Unit: w.Unit, Window: w.Window, Limit: limit, Mode: w.Mode, Revision: w.Revision}
	if w.AppliesTo != nil {
		r.AppliesTo = *w.AppliesTo
	}
	return nil
}

const nanoDigits = 9

// ErrAmount says that a text is no amount of its unit.
var ErrAmount = errors.New("not an amount")

// Parse reads a decimal from 0 on: of USD with at most 9 digits before the point
// and 9 behind it, of tokens and requests a whole number of at most 18 digits.
func (u Unit) Parse(s string) (int64, error) {
	whole, fraction, point := strings.Cut(s, ".")
	if !digits(whole) || point && !digits(fraction) {
		return 0, fmt.Errorf("%w: it must be a decimal from 0 on, such as 5.00", ErrAmount)
	}
	whole = strings.TrimLeft(whole, "0")
	switch u {
	case USD:
		if len(whole) > 9 || len(fraction) > nanoDigits {
			return 0, fmt.Errorf("%w: it must have at most 9 digits before the point and 9 behind it", ErrAmount)
		}
		whole += fraction + strings.Repeat("0", nanoDigits-len(fraction))
	case Tokens, Requests:
		if point || len(whole) > 18 {
			return 0, fmt.Errorf("%w: it must be a whole number of at most 18 digits", ErrAmount)
		}
	default:
		return 0, fmt.Errorf("%w: unknown unit; allowed: usd, tokens, requests", ErrAmount)
	}
	if whole == "" {
		return 0, nil
	}
	return strconv.ParseInt(whole, 10, 64)
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

// Format writes an amount as an exact decimal: 1500000000 nano-USD is 1.5.
func (u Unit) Format(n int64) string { return string(u.Append(nil, n)) }

// Append appends what Format gives.
func (u Unit) Append(b []byte, n int64) []byte {
	if u != USD {
		return strconv.AppendInt(b, n, 10)
	}
	v := uint64(n)
	if n < 0 {
		b = append(b, '-')
		v = -v
	}
	b = strconv.AppendUint(b, v/1e9, 10)
	fraction := v % 1e9
	if fraction == 0 {
		return b
	}
	b = append(b, '.')
	for unit := uint64(1e8); fraction > 0; unit /= 10 {
		b = append(b, byte('0'+fraction/unit))
		fraction %= unit
	}
	return b
}

// Amounts is what one request takes of each unit.
type Amounts struct{ USD, Tokens, Requests int64 }

// Of returns the amount in a unit.
func (a Amounts) Of(u Unit) int64 {
	switch u {
	case USD:
		return a.USD
	case Tokens:
		return a.Tokens
	case Requests:
		return a.Requests
	}
	return math.MaxInt64 // an unknown unit is never borne
}

// Call is one call of a gateway to the authority: everything in one.
type Call struct {
	Session string    `json:"session"`
	Seq     int64     `json:"seq"`
	Leases  []Lease   `json:"leases,omitempty"`
	Needs   [][]Need  `json:"needs,omitempty"`
	Close   []Closing `json:"close,omitempty"`
}

// Lease is what a gateway tells of a lease, in totals that only rise, and what it
// wants: Want is a top-up that nobody waits for. Window may be WindowNext with a
// want alone.
type Lease struct {
	Budget   string `json:"budget"`
	Window   string `json:"window"`
	Granted  int64  `json:"granted"` // that the gateway knows
	Returned int64  `json:"returned"`
	Spent    int64  `json:"spent"`
	Held     int64  `json:"held"`
	Overrun  int64  `json:"overrun"`
	Phase    int64  `json:"phase"` // that it acted on
	Want     int64  `json:"want,omitempty"`
}

// Need is a part of what one waiting request needs. Window may be WindowCurrent.
type Need struct {
	Budget string `json:"budget"`
	Window string `json:"window"`
	Amount int64  `json:"amount"`
}

// Closing ends a session, the caller's own or an earlier one of its folder's.
type Closing struct {
	Session string        `json:"session"`
	Leases  []ClosedLease `json:"leases"`
	Lost    bool          `json:"lost"` // its journal is: everything out is charged
}

// ClosedLease is what the journal knows of one lease.
type ClosedLease struct {
	Budget  string `json:"budget"`
	Window  string `json:"window"`
	Mark    int64  `json:"mark"`
	Overrun int64  `json:"overrun"`
}

// Answer is the authority's.
type Answer struct {
	Seq    int64       `json:"seq"`
	Closed []string    `json:"closed"`
	Leases []LeaseInfo `json:"leases"`
}

// LeaseInfo is the authority's state of a lease and of its counter.
type LeaseInfo struct {
	Budget     string `json:"budget"`
	Window     string `json:"window"`
	Granted    int64  `json:"granted"`
	Returned   int64  `json:"returned"`
	Spent      int64  `json:"spent"`
	Overrun    int64  `json:"overrun"`
	Phase      int64  `json:"phase"`
	Limit      int64  `json:"lim"`
	Left       int64  `json:"left"`
	Settled    int64  `json:"settled"`
	Gone       bool   `json:"gone"`
	StartsInMS int64  `json:"starts_in_ms"`
	EndsInMS   int64  `json:"ends_in_ms"` // math.MaxInt64/2 where the window never ends
}

// The names of windows that a gateway may use before it knows the real one.
const (
	WindowCurrent = "current"
	WindowNext    = "next"
)

// Recall wants idle money back (odd phase), or tells that the limit or the window
// changed.
type Recall struct {
	Budget string `json:"budget"`
	Window string `json:"window"`
	Phase  int64  `json:"phase"`
}

// Settlement tells who spent. It never charges.
type Settlement struct {
	ID      string    `json:"id"` // of the record; the same one twice counts once
	At      time.Time `json:"at"` // when it was admitted
	TokenID string    `json:"token_id"`
	TeamID  string    `json:"team_id,omitempty"`
	Model   string    `json:"model"`
	Target  string    `json:"target"`

	Requests int64 `json:"requests"` // that reached an upstream; above 1 for a sum of several
	// Disjoint parts, in tokens.
	Input       int64 `json:"input,omitempty"`
	CachedInput int64 `json:"cached_input,omitempty"`
	CacheWrite  int64 `json:"cache_write,omitempty"`
	Output      int64 `json:"output,omitempty"`
	Reasoning   int64 `json:"reasoning,omitempty"`
	AudioInput  int64 `json:"audio_input,omitempty"`
	AudioOutput int64 `json:"audio_output,omitempty"`

	Cost      int64    `json:"cost"`                // nano-USD
	Unpriced  bool     `json:"unpriced,omitempty"`  // a part has no price: it counts 0
	Estimated bool     `json:"estimated,omitempty"` // the provider told no usage
	Budgets   []Charge `json:"budgets,omitempty"`   // every budget of the request, observed ones too
}

// Charge is what one budget was charged with. Window is "" for an observed budget:
// the authority takes that of At.
type Charge struct {
	Budget string `json:"budget"`
	Window string `json:"window,omitempty"`
	Amount int64  `json:"amount"`
}

// Authority is the control plane as a gateway's ledger sees it. Both methods MUST
// be safe for concurrent use and return soon after ctx ends.
type Authority interface {
	// Leases makes one call. ErrClosed: the session is closed and nothing of the
	// call took effect but its closings. Any other error: nobody knows what did.
	Leases(ctx context.Context, c *Call) (*Answer, error)
	// Settle tells who spent. A nil error: all of it is kept.
	Settle(ctx context.Context, list []Settlement) error
}

// ErrClosed says that the authority has closed the session.
var ErrClosed = errors.New("the session is closed")
