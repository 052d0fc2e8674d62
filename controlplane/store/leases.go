package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/keeptrusts/gateway/budget"
)

// together is how many counters one transaction locks at most.
const together = 64

const (
	hearKnown = `UPDATE sessions SET seq = $4, last_seen = $5
		WHERE org_id = $1 AND session = $2 AND gateway_id = $3 AND closed_at IS NULL AND seq < $4`
	hearNew = `INSERT INTO sessions (org_id, session, gateway_id, seq, last_seen)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org_id, session) DO NOTHING`
	fence        = `SELECT gateway_id, seq, closed_at FROM sessions WHERE org_id = $1 AND session = $2`
	selectUntold = `SELECT budget, win FROM leases WHERE org_id = $1 AND session = $2 AND granted > seen ORDER BY budget, win`
)

// Leases takes one call of a gateway. budget.ErrClosed: its session is closed, or
// is another gateway's, and only its closings took effect. Whatever it returns,
// recalls are to be told to the org's watches, unless Recalls does; a need that is
// still not met brings its recall again every 100 ms.
//
// Each line of the protocol is a transaction; lines that follow one another share
// one here, where there is one writer and nobody can tell.
func (s *Store) Leases(ctx context.Context, org, gateway string, c *budget.Call) (*budget.Answer, []budget.Recall, error) {
	answer := &budget.Answer{Seq: c.Seq, Closed: []string{}, Leases: []budget.LeaseInfo{}}
	var recalls []budget.Recall
	for i := range c.Close {
		closed, told, err := s.closeSession(ctx, org, gateway, &c.Close[i])
		recalls = append(recalls, told...)
		if err != nil {
			return nil, recalls, err
		}
		if closed {
			answer.Closed = append(answer.Closed, c.Close[i].Session)
		}
	}
	s.clean(ctx)
	if slices.Contains(answer.Closed, c.Session) {
		return answer, recalls, nil // it said so itself: no news
	}
	fresh := false
	for at := 0; ; at += together {
		part := c.Leases[min(at, len(c.Leases)):min(at+together, len(c.Leases))]
		last := at+together >= len(c.Leases)
		v := visit{org: org, gateway: gateway, call: c}
		err := s.beside(ctx, func(ctx context.Context, t *Tx) error {
			v = visit{Tx: t, org: org, gateway: gateway, call: c, fresh: fresh, counters: map[place]*counter{}}
			return v.lines(ctx, part, at == 0, last)
		})
		if err != nil {
			return nil, recalls, err
		}
		recalls = append(recalls, v.recalls...)
		if fresh = v.fresh; last {
			answer.Leases = v.answer
			return answer, recalls, nil
		}
	}
}

// visit is one transaction of a call, and what it has read.
type visit struct {
	*Tx
	org, gateway string
	call         *budget.Call
	fresh        bool // nobody has heard this call or a later one: its wishes count
	foreign      bool // the session is another gateway's

	counters map[place]*counter
	order    []*counter // as they were read
	records  map[string]*Budget
	recalls  []budget.Recall
	answer   []budget.LeaseInfo
}

// lines runs what the protocol says from its second line on: of all but the last
// visit, only the facts.
func (v *visit) lines(ctx context.Context, facts []budget.Lease, first, last bool) error {
	var err error
	if first {
		err = v.hear(ctx)
	} else {
		err = v.check(ctx)
	}
	if err == nil {
		err = v.facts(ctx, facts)
	}
	if err == nil && last && v.fresh {
		if err = v.needs(ctx); err == nil {
			err = v.wants(ctx)
		}
	}
	if err == nil {
		err = v.flush(ctx)
	}
	if err == nil && last {
		err = v.tell(ctx)
	}
	return err
}

// hear notes the session as heard and says whether the call is fresh.
func (v *visit) hear(ctx context.Context) error {
	for _, q := range []string{hearKnown, hearNew} {
		n, err := v.exec(ctx, q, v.org, v.call.Session, v.gateway, v.call.Seq, micros(v.now))
		if err != nil {
			return fmt.Errorf("hear session: %w", err)
		}
		if n == 1 {
			v.fresh = true
			return nil
		}
	}
	return v.check(ctx)
}

// check is the fence: nothing of a closed session may move money any more, and no
// wish counts once a later call was heard.
func (v *visit) check(ctx context.Context) error {
	var gateway string
	var seq int64
	var closed sql.NullInt64
	if err := v.row(ctx, fence, v.org, v.call.Session).Scan(&gateway, &seq, &closed); err != nil {
		return fmt.Errorf("read session: %w", err)
	}
	v.foreign = gateway != v.gateway
	if closed.Valid || v.foreign {
		return budget.ErrClosed
	}
	v.fresh = v.fresh && seq == v.call.Seq
	return nil
}

func (v *visit) facts(ctx context.Context, list []budget.Lease) error {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b budget.Lease) int {
		return cmpPlaces(place{a.Budget, a.Window}, place{b.Budget, b.Window})
	})
	for i := range list {
		f := &list[i]
		c, err := v.find(ctx, place{f.Budget, f.Window})
		if err != nil {
			return err
		}
		// Facts never make a lease: who knows one was granted it.
		if c == nil || !c.own.exists || c.window != f.Window {
			continue
		}
		c.tell(f, v.fresh)
		c.ease(v.now)
	}
	return nil
}

// needs grants each need from all of its counters or from none, those with the
// same counters together.
func (v *visit) needs(ctx context.Context) error {
	groups := map[string][][]budget.Need{}
	var order []string
	for _, n := range v.call.Needs {
		key := counterSet(n)
		if _, ok := groups[key]; !ok {
			order = append(order, key)
		}
		groups[key] = append(groups[key], n)
	}
	for _, key := range order {
		for _, n := range groups[key] {
			if err := v.need(ctx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

func counterSet(n []budget.Need) string {
	names := make([]string, len(n))
	for i := range n {
		names[i] = n[i].Budget + "\x00" + n[i].Window
	}
	slices.Sort(names)
	return strings.Join(names, "\x01")
}

func (v *visit) need(ctx context.Context, need []budget.Need) error {
	counters := make([]*counter, 0, 8)
	amounts := make([]int64, 0, 8)
	for i := range need {
		c, err := v.open(ctx, place{need[i].Budget, need[i].Window})
		if err != nil {
			return err
		}
		if c == nil {
			return nil // nobody can grant what is not there
		}
		if at := slices.Index(counters, c); at >= 0 {
			amounts[at] += min(need[i].Amount, maxAmount-amounts[at])
			continue
		}
		counters, amounts = append(counters, c), append(amounts, need[i].Amount)
	}
	met := true
	for i, c := range counters {
		if !c.bears(amounts[i]) {
			met = false
			c.lack(amounts[i], v.now)
		}
	}
	for i, c := range counters {
		if met {
			c.grant(amounts[i])
		}
	}
	return nil
}

// wants grants what nobody waits for: while there is plenty, a share.
func (v *visit) wants(ctx context.Context) error {
	for i := range v.call.Leases {
		f := &v.call.Leases[i]
		if f.Want <= 0 {
			continue
		}
		c, err := v.open(ctx, place{f.Budget, f.Window})
		if err != nil {
			return err
		}
		if c == nil || c.odd() || c.ends <= micros(v.now) {
			continue
		}
		if err := v.sum(ctx, c); err != nil {
			return err
		}
		n := c.rest.live
		if c.own.exists {
			n++
		}
		c.grant(min(f.Want, c.left()/(2*(n+1)), maxAmount-c.own.granted))
	}
	return nil
}

// flush writes what changed, in the order of the counters.
func (v *visit) flush(ctx context.Context) error {
	slices.SortFunc(v.order, func(a, b *counter) int { return cmpPlaces(a.place, b.place) })
	for _, c := range v.order {
		if c.lacked {
			if err := v.sum(ctx, c); err != nil {
				return err
			}
		}
		if c.turned || c.lacked && c.rest.unacked > 0 && c.tellAgain(v.now) {
			v.recalls = append(v.recalls, v.announce(c))
		}
		if err := v.keep(ctx, v.org, c, v.call.Session); err != nil {
			return err
		}
	}
	return nil
}

// tell makes the answer: of every lease named, and of every one that the gateway
// may not know to be granted, since an answer may have been lost.
func (v *visit) tell(ctx context.Context) error {
	named := make([]place, 0, len(v.call.Leases))
	for i := range v.call.Leases {
		named = append(named, place{v.call.Leases[i].Budget, v.call.Leases[i].Window})
	}
	for _, n := range v.call.Needs {
		for i := range n {
			named = append(named, place{n[i].Budget, n[i].Window})
		}
	}
	untold, err := v.places(ctx, selectUntold, v.org, v.call.Session)
	if err != nil {
		return err
	}
	told := make(map[place]bool, len(named)+len(untold))
	v.answer = make([]budget.LeaseInfo, 0, len(named)+len(untold))
	for i, p := range append(named, untold...) {
		c, err := v.find(ctx, p)
		if err != nil {
			return err
		}
		if c == nil {
			if i < len(v.call.Leases) && v.call.Leases[i].Granted > 0 {
				v.answer = append(v.answer, forgotten(&v.call.Leases[i]))
			}
			continue
		}
		if told[c.place] {
			continue
		}
		told[c.place] = true
		if err := v.sum(ctx, c); err != nil {
			return err
		}
		v.answer = append(v.answer, c.info(v.now))
	}
	return nil
}

// forgotten is the answer about a lease of a window that is no longer kept: it has
// ended, and all that the gateway says is so.
func forgotten(f *budget.Lease) budget.LeaseInfo {
	return budget.LeaseInfo{
		Budget: f.Budget, Window: f.Window, Granted: f.Granted, Returned: f.Returned, Spent: f.Spent, Overrun: f.Overrun,
		Phase: f.Phase, StartsInMS: -1, EndsInMS: -1,
	}
}
