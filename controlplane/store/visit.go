package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/keeptrusts/gateway/budget"
)

func (v *visit) places(ctx context.Context, q string, args ...any) (list []place, err error) {
	rows, err := v.query(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var p place
		if err := rows.Scan(&p.budget, &p.window); err != nil {
			return nil, fmt.Errorf("list leases: %w", err)
		}
		list = append(list, p)
	}
	return list, rows.Err()
}

// find returns the counter that a place means, with the session's lease; nil where
// there is none.
func (v *visit) find(ctx context.Context, p place) (*counter, error) {
	if p.window == budget.WindowCurrent || p.window == budget.WindowNext {
		b, err := v.record(ctx, p.budget)
		if b == nil || err != nil {
			return nil, err
		}
		w := spanAt(b.Window, v.now)
		if p.window == budget.WindowNext {
			w = w.next()
		}
		p.window = w.name
	}
	if c := v.counters[p]; c != nil {
		return c, nil
	}
	c, err := v.counter(ctx, v.org, p, v.call.Session)
	if c != nil {
		v.add(c)
	}
	return c, err
}

func (v *visit) add(c *counter) {
	v.counters[c.place] = c
	v.order = append(v.order, c)
}

// open returns the counter that a wish means, and makes it where it is of the
// window now open, or of the next in the last second.
func (v *visit) open(ctx context.Context, p place) (*counter, error) {
	if c, err := v.find(ctx, p); c != nil || err != nil {
		return c, err
	}
	b, err := v.record(ctx, p.budget)
	if b == nil || err != nil {
		return nil, err
	}
	w := spanAt(b.Window, v.now)
	if p.window != w.name && p.window != budget.WindowCurrent {
		last := w.ends-micros(v.now) <= lastSecond.Microseconds()
		w = w.next()
		if !last || p.window != w.name && p.window != budget.WindowNext {
			return nil, nil
		}
	}
	c := newCounter(place{p.budget, w.name}, w, b.Limit)
	v.add(c)
	return c, nil
}

// record returns a budget, nil where there is none.
func (v *visit) record(ctx context.Context, id string) (*Budget, error) {
	if b, ok := v.records[id]; ok {
		return b, nil
	}
	var known *Budget
	b, err := v.Budget(ctx, v.org, id)
	if err == nil {
		known = &b
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if v.records == nil {
		v.records = map[string]*Budget{}
	}
	v.records[id] = known
	return known, nil
}

// sum reads the other leases of a counter, anew where its phase has moved.
func (v *visit) sum(ctx context.Context, c *counter) (err error) {
	if c.rest == nil || c.restPhase != c.phase {
		c.rest, err = v.others(ctx, v.org, c, v.call.Session)
		c.restPhase = c.phase
	}
	return err
}

func cmpPlaces(a, b place) int {
	if n := strings.Compare(a.budget, b.budget); n != 0 {
		return n
	}
	return strings.Compare(a.window, b.window)
}
