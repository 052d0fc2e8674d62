package controlplane

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
)

// strict reads an object of a gateway's call strictly. Only its first problem
// counts: all that is read after it is zero.
type strict struct {
	o    object
	path string
	err  *error
}

func strictly(o object, err *error, keys ...string) strict {
	return strict{path: "", o: o, err: err}.only(keys...)
}

func (f strict) only(keys ...string) strict {
	if *f.err == nil {
		*f.err = known(f.o, f.path, keys...)
	}
	return f
}

func (f strict) fail(key, format string, args ...any) {
	if *f.err == nil {
		*f.err = refuse("invalid_value", "%s "+format+".", append([]any{key}, args...)...).at(join(f.path, key))
	}
}

// number takes a whole number from least on; absent is 0.
func (f strict) number(key string, least int64) int64 {
	v, ok := f.o[key]
	if !ok && least <= 0 || *f.err != nil {
		return 0
	}
	text, _ := v.(json.Number)
	// Never through a float64: it would round above 2^53.
	n, err := strconv.ParseInt(text.String(), 10, 64)
	if err != nil || n < least {
		f.fail(key, "must be a whole number from %d to 9223372036854775807", least)
		return 0
	}
	return n
}

func (f strict) boolean(key string) bool {
	v, ok := f.o[key]
	b, is := v.(bool)
	if ok && !is {
		f.fail(key, "must be true or false")
	}
	return b
}

// text takes a string of at most so many bytes; absent is "".
func (f strict) text(key string, most int) string {
	v, ok := f.o[key]
	s, is := v.(string)
	if ok && !is || len(s) > most {
		f.fail(key, "must be a string of at most %d bytes", most)
		return ""
	}
	return s
}

// id takes an id that must be there.
func (f strict) id(key string) string {
	s := f.text(key, abac.MaxIDLen)
	if *f.err == nil && !abac.ValidID(s) {
		f.fail(key, "must have 1 to %d characters out of A-Z a-z 0-9 . _ : -", abac.MaxIDLen)
	}
	return s
}

// each runs g over the objects of a list, of at most so many; absent or null is empty.
func (f strict) each(key string, most int, g func(strict)) {
	for i, v := range f.list(key, most) {
		o, ok := v.(object)
		if !ok {
			f.fail(key, "must hold objects")
		}
		if *f.err != nil {
			return
		}
		g(strict{o: o, path: fmt.Sprintf("%s[%d]", join(f.path, key), i), err: f.err})
	}
}

func (f strict) list(key string, most int) []any {
	v := f.o[key]
	list, is := v.([]any)
	if v != nil && !is || len(list) > most {
		f.fail(key, "must be a list of at most %d", most)
		return nil
	}
	return list
}

// window takes a window's name.
func (f strict) window() string { return f.id("window") }

func readCall(o object) (*budget.Call, error) {
	var err error
	f := strictly(o, &err, "session", "seq", "leases", "needs", "close")
	c := &budget.Call{Session: f.id("session"), Seq: f.number("seq", 1)}
	named := map[[2]string]bool{}
	f.each("leases", maxLeases, func(f strict) {
		l := readLease(f)
		if at := [2]string{l.Budget, l.Window}; named[at] {
			f.fail("window", "stands twice with this budget")
		} else {
			named[at] = true
		}
		c.Leases = append(c.Leases, l)
	})
	for i, v := range f.list("needs", maxNeeds) {
		inner := strict{o: object{"needs": v}, err: &err}
		need := readNeed(inner)
		if err != nil {
			return nil, inNeed(err, i)
		}
		c.Needs = append(c.Needs, need)
	}
	f.each("close", maxClosings, func(f strict) { c.Close = append(c.Close, readClosing(f)) })
	return c, err
}

func readLease(f strict) budget.Lease {
	f.only("budget", "window", "granted", "returned", "spent", "held", "overrun", "phase", "want")
	l := budget.Lease{
		Budget: f.id("budget"), Window: f.window(),
		Granted: f.number("granted", 0), Returned: f.number("returned", 0), Spent: f.number("spent", 0), Held: f.number("held", 0),
		Overrun: f.number("overrun", 0), Phase: f.number("phase", 0), Want: f.number("want", 0),
	}
	facts := l
	facts.Budget, facts.Window, facts.Want = "", "", 0
	if (l.Window == budget.WindowCurrent || l.Window == budget.WindowNext) && facts != (budget.Lease{}) {
		f.fail("window", "must be the lease's own, unless all that is told of it is a want")
	}
	return l
}

// readNeed reads one entry of needs.
func readNeed(f strict) []budget.Need {
	var need []budget.Need
	f.each("needs", maxParts, func(f strict) {
		f.only("budget", "window", "amount")
		n := budget.Need{Budget: f.id("budget"), Window: f.window(), Amount: f.number("amount", 0)}
		if n.Window == budget.WindowNext {
			f.fail("window", "must not be next: a need is of a request that is there")
		}
		for _, other := range need {
			if other.Budget == n.Budget && other.Window == n.Window {
				f.fail("window", "stands twice with this budget")
			}
		}
		need = append(need, n)
	})
	if len(need) == 0 {
		f.fail("needs", "must be lists of at least one need")
	}
	return need
}

// inNeed puts the place of the entry into the path of its problem.
func inNeed(err error, i int) error {
	if p, ok := err.(*problem); ok { //nolint:errorlint // it is ours, as it was made
		p.param = fmt.Sprintf("needs[%d]%s", i, p.param[min(len("needs"), len(p.param)):])
	}
	return err
}

func readClosing(f strict) budget.Closing {
	f.only("session", "leases", "lost")
	// Any name that a file can have: what can't be closed would be asked for ever.
	c := budget.Closing{Session: f.text("session", maxText), Lost: f.boolean("lost")}
	if c.Session == "" {
		f.fail("session", "must not be empty")
	}
	f.each("leases", maxMarks, func(f strict) {
		f.only("budget", "window", "mark", "overrun")
		c.Leases = append(c.Leases, budget.ClosedLease{
			Budget: f.id("budget"), Window: f.window(), Mark: f.number("mark", 0), Overrun: f.number("overrun", 0),
		})
	})
	return c
}

func readSettlements(o object) ([]budget.Settlement, error) {
	var err error
	var list []budget.Settlement
	f := strictly(o, &err, "settlements")
	f.each("settlements", maxSettlements, func(f strict) { list = append(list, readSettlement(f)) })
	return list, err
}

func readSettlement(f strict) budget.Settlement {
	f.only("id", "at", "token_id", "team_id", "model", "target", "requests", "input", "cached_input", "cache_write", "output",
		"reasoning", "audio_input", "audio_output", "cost", "unpriced", "estimated", "budgets")
	n := budget.Settlement{
		ID: f.id("id"), At: f.time("at"), TokenID: f.id("token_id"), TeamID: f.text("team_id", maxText),
		Model: f.text("model", maxText), Target: f.text("target", maxText), Requests: f.number("requests", 0),
		Input: f.number("input", 0), CachedInput: f.number("cached_input", 0), CacheWrite: f.number("cache_write", 0),
		Output: f.number("output", 0), Reasoning: f.number("reasoning", 0),
		AudioInput: f.number("audio_input", 0), AudioOutput: f.number("audio_output", 0),
		Cost: f.number("cost", 0), Unpriced: f.boolean("unpriced"), Estimated: f.boolean("estimated"),
	}
	f.each("budgets", maxParts, func(f strict) {
		f.only("budget", "window", "amount")
		n.Budgets = append(n.Budgets, budget.Charge{Budget: f.id("budget"), Window: f.text("window", abac.MaxIDLen), Amount: f.number("amount", 0)})
	})
	return n
}

// time takes a time that must be there.
func (f strict) time(key string) time.Time {
	if *f.err != nil {
		return time.Time{}
	}
	t, err := instant(f.o, key)
	if err != nil || t == nil || t.Year() < 1970 {
		f.fail(key, `must be a time in RFC 3339 from 1970 on, such as "2026-11-24T00:00:00Z"`)
		return time.Time{}
	}
	return *t
}
