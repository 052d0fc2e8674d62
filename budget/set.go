package budget

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Set is the budgets that one request is reserved in. It is immutable and may be
// shared; limits and modes are read when it is used.
type Set struct {
	ledger   *Ledger
	accounts []*account
}

// UnknownError says that a budget named is not known.
type UnknownError struct{ ID string }

func (e *UnknownError) Error() string { return "budget " + e.ID + " is not known here" }

// Set returns the budgets named and those that apply to the team or to the org;
// *UnknownError when one that is named is not known. Keep it until Generation moves,
// read before.
func (l *Ledger) Set(ids []string, team string) (*Set, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &Set{ledger: l}
	for _, id := range ids {
		a := l.accounts[id]
		if a == nil || a.record() == nil {
			return nil, &UnknownError{ID: id}
		}
		if !slices.Contains(s.accounts, a) {
			s.accounts = append(s.accounts, a)
		}
	}
	named := len(s.accounts)
	for _, a := range l.accounts {
		r := a.record()
		if r == nil || !(r.AppliesTo.Org || r.AppliesTo.TeamID != "" && r.AppliesTo.TeamID == team) {
			continue
		}
		if !slices.Contains(s.accounts[:named], a) {
			s.accounts = append(s.accounts, a)
		}
	}
	slices.SortFunc(s.accounts[named:], func(a, b *account) int { return cmp.Compare(a.id, b.id) })
	return s, nil
}

// Empty says that there is no budget at all, observed ones included.
func (s *Set) Empty() bool { return s == nil || len(s.accounts) == 0 }

// Enforces says that an enforced budget of this unit is in it.
func (s *Set) Enforces(u Unit) bool {
	if s == nil {
		return false
	}
	for _, a := range s.accounts {
		if r := a.record(); r.Unit == u && r.Mode != Observe {
			return true
		}
	}
	return false
}

// remains is what a request could reserve of a budget, and its limit, as last known.
func (a *account) remains(now time.Duration) (left, limit int64) {
	r := a.record()
	le := a.serving(now)
	if le == nil || le.infoSeq == 0 {
		return r.Limit, r.Limit
	}
	return add(max(0, le.left), max(0, le.idle())), le.limit
}

// Headroom is the least of what is left, this gateway's idle money included, over
// the enforced budgets of each unit, as last known; math.MaxInt64 where there is none.
func (l *Ledger) Headroom(s *Set) Amounts {
	room := Amounts{USD: math.MaxInt64, Tokens: math.MaxInt64, Requests: math.MaxInt64}
	if s.Empty() {
		return room
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, a := range s.accounts {
		if !a.enforced() {
			continue
		}
		left, _ := a.remains(now)
		switch a.record().Unit {
		case USD:
			room.USD = min(room.USD, left)
		case Tokens:
			room.Tokens = min(room.Tokens, left)
		case Requests:
			room.Requests = min(room.Requests, left)
		}
	}
	return room
}

// Standing is what a caller may know of a budget. Amounts are in Unit. Left is what
// could be reserved here as last known, the limit while nothing is known.
type Standing struct {
	ID        string
	Unit      Unit
	Window    Window
	Limit     int64
	Left      int64
	ReopensAt time.Time // zero: never
}

// Standings tells how the budgets of the set stand, observed ones included.
func (l *Ledger) Standings(s *Set) []Standing {
	if s.Empty() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now, wall := l.now(), time.Now()
	list := make([]Standing, 0, len(s.accounts))
	for _, a := range s.accounts {
		r := a.record()
		left, limit := a.remains(now)
		_, end := r.Window.At(wall)
		if le := a.serving(now); le != nil && le.ends < never {
			end = wall.Add(le.ends - now).UTC()
		}
		list = append(list, Standing{ID: r.ID, Unit: r.Unit, Window: r.Window, Limit: limit, Left: left, ReopensAt: end})
	}
	return list
}

// AppendRemaining appends "<id>=<amount>" of the enforced budget with the smallest
// fraction left; nothing when there is none.
func (l *Ledger) AppendRemaining(b []byte, s *Set) []byte {
	if s.Empty() {
		return b
	}
	l.mu.Lock()
	now := l.now()
	var least *account
	var most int64
	fraction := math.Inf(1)
	for _, a := range s.accounts {
		if !a.enforced() {
			continue
		}
		left, limit := a.remains(now)
		// Only the choice is by float: of a limit of 0 nothing is left.
		f := float64(left) / float64(max(1, limit))
		if f < fraction {
			least, most, fraction = a, left, f
		}
	}
	l.mu.Unlock()
	if least == nil {
		return b
	}
	b = append(append(b, least.id...), '=')
	return least.record().Unit.Append(b, most)
}
