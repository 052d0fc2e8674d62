package budget_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// The random test of ledgers and the real authority: gateways that reserve, settle,
// extend, die and come back, over a network that loses, copies, delays and reorders.
// The invariants of the protocol are checked after every step, on the database's
// rows, on the ledgers and on what the requests truly used.
var (
	modelRuns  = flag.Int("model.runs", 4, "random worlds")
	modelSteps = flag.Int("model.steps", 60, "steps in each")
	modelSeed  = flag.Uint64("model.seed", 0, "of the first world; 0: by the clock")
)

func TestWhateverHappensTheBudgetsHold(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for i := range *modelRuns {
		s := seed + uint64(i)
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newWorld(t, s).run(*modelSteps) })
		})
		if t.Failed() {
			return
		}
	}
}

type leaseKey struct{ session, budget, window string }

type counterKey struct{ budget, window string }

// truth is what requests did with a lease, whoever knows it.
type truth struct {
	settled int64 // told to Settle
	open    int64 // forwarded, not ended
	dead    int64 // used by requests that died with their process
	spent   int64 // as the ledger last had it
	known   bool
	ceiling int64 // of the charge of a crashed session whose journal is whole; -1: none
}

type counterRow struct {
	lim, taken, overrun, phase int64
	phaseAt                    time.Time
}

type leaseRow struct {
	granted, returned, spent, overrun, acked int64
	silent                                   bool // its session is closed, or was not heard for so long that nobody waits for it
}

// moment is what a budget could bear at some instant.
type moment struct {
	at      time.Time
	phase   int64
	lim     int64
	left    int64
	young   time.Time // until then those who have not acknowledged count: the phase is so young
	idle    map[string]int64
	unacked map[string]int64
}

// sleep is since when nothing has moved on a lease with idle money.
type sleep struct {
	since                   time.Time
	granted, returned, used int64
}

type world struct {
	t   *testing.T
	p   *plane
	db  *sql.DB
	dir string

	mu      sync.Mutex
	rng     *rand.Rand
	records map[string]budget.Record
	truths  map[leaseKey]*truth
	history map[counterKey][]moment
	highest map[counterKey]int64 // limit ever
	gates   []*gate
	calm    bool // the network copies and delays a little, and loses nothing
	wild    bool // faults are on
	backup  map[string][]byte
	counts  map[string]int
	asleep  map[leaseKey]sleep // money that is idle and wanted back
	pushed  map[budget.Recall]bool
	cast    map[string]bool // sessions closed while they lived, with all charged
	trace   []string

	sea   sync.Mutex // one call at the authority at a time
	down  bool
	tasks sync.WaitGroup
}

// gate is one gateway: a folder, and the process that runs on it now.
type gate struct {
	w    *world
	id   string
	dir  string
	l    *budget.Ledger
	cut  bool // from the authority
	dead map[*budget.Ledger]bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, p: newPlane(t), dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 7)),
		truths: map[leaseKey]*truth{}, history: map[counterKey][]moment{}, highest: map[counterKey]int64{},
		records: map[string]budget.Record{}, backup: map[string][]byte{}, counts: map[string]int{}, cast: map[string]bool{}, pushed: map[budget.Recall]bool{}, asleep: map[leaseKey]sleep{}}
	var err error
	if w.db, err = sql.Open("sqlite", "file:"+w.p.path+"?_pragma=busy_timeout(5000)"); err != nil {
		t.Fatal(err)
	}
	w.db.SetMaxOpenConns(1)
	t.Cleanup(func() { w.db.Close() })
	w.calm = w.chance(0.4)
	// Somewhere before the end of an hour, and now and then of a day.
	end := time.Now().Truncate(time.Hour).Add(time.Hour)
	if w.chance(0.5) {
		end = time.Now().Truncate(24 * time.Hour).Add(24 * time.Hour)
	}
	time.Sleep(time.Until(end) - time.Duration(w.n(20_000))*time.Millisecond)
	for _, r := range []budget.Record{
		{ID: "hour", Unit: budget.USD, Window: budget.Hour, Limit: int64(200 + w.n(4000))},
		{ID: "day", Unit: budget.USD, Window: budget.Day, Limit: int64(200 + w.n(8000))},
		{ID: "total", Unit: budget.Tokens, Window: budget.Total, Limit: int64(500 + w.n(20000))},
		{ID: "count", Unit: budget.Requests, Window: budget.Hour, Limit: int64(5 + w.n(200))},
		{ID: "seen", Unit: budget.USD, Window: budget.Hour, Limit: 1, Mode: budget.Observe},
	} {
		w.p.put(r)
	}
	w.refresh()
	for i := range 2 + w.n(3) {
		g := &gate{w: w, id: fmt.Sprintf("gw_%d", i), dir: filepath.Join(w.dir, fmt.Sprint(i)), dead: map[*budget.Ledger]bool{}}
		w.gates = append(w.gates, g)
		w.start(g)
	}
	return w
}

func (w *world) n(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.Float64() < p
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.note("FAIL "+format, args...)
	w.t.Errorf(format, args...)
}

// refresh reads the records, as gateways are told them.
func (w *world) refresh() {
	list, err := w.p.store.Budgets(context.Background(), testOrg, "", 100)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range list {
		w.records[list[i].ID] = list[i].Record
	}
}

func (w *world) start(g *gate) {
	l, err := budget.Open(budget.Options{Authority: link{g}, Dir: g.dir, MaxStale: time.Minute})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	for _, r := range w.records {
		l.Upsert(r)
	}
	g.l = l
	w.mu.Unlock()
}

// link is the network between a gateway and the authority.
type link struct{ *gate }

func (n link) Settle(ctx context.Context, list []budget.Settlement) error { return nil }

func (n link) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	w := n.w
	message := *c
	message.Leases, message.Needs, message.Close = slices.Clone(c.Leases), slices.Clone(c.Needs), slices.Clone(c.Close)
	there, back, lost, copies := w.fate()
	type result struct {
		answer *budget.Answer
		err    error
	}
	done := make(chan result, 1)
	send := func(delay time.Duration, out chan<- result) {
		go func() {
			time.Sleep(delay)
			m := message
			m.Close = slices.Clone(message.Close)
			a, err := w.deliver(n.gate, &m)
			if out != nil {
				time.Sleep(back)
				out <- result{a, err}
			}
		}()
	}
	for _, delay := range copies {
		send(delay, nil)
	}
	w.mu.Lock()
	cut := n.cut
	w.mu.Unlock()
	switch {
	case cut:
		<-ctx.Done()
		return nil, ctx.Err()
	case lost == 1: // the call
	case lost == 2: // the answer
		send(there, nil)
	default:
		send(there, done)
	}
	select {
	case r := <-done:
		return r.answer, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fate is what happens to a call.
func (w *world) fate() (there, back time.Duration, lost int, copies []time.Duration) {
	ms := func(n int) time.Duration { return time.Duration(w.n(n)*1000+w.n(1000)) * time.Microsecond }
	there, back = ms(15), ms(15)
	if !w.faulty() {
		return there, back, 0, nil
	}
	for w.chance(0.2) {
		copies = append(copies, ms(4000))
	}
	if w.calm {
		if w.chance(0.3) {
			back = ms(40) // overtaken by what is pushed meanwhile
		}
		return there, back, 0, copies
	}
	if w.chance(0.1) {
		lost = 1 + w.n(2)
	}
	if w.chance(0.1) {
		there = ms(1500)
	}
	if w.chance(0.05) {
		back = ms(1500)
	}
	return there, back, lost, copies
}

func (w *world) faulty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wild
}

var errDown = errors.New("the authority is down")

// deliver is the authority taking a message.
func (w *world) deliver(g *gate, c *budget.Call) (*budget.Answer, error) {
	w.sea.Lock()
	defer w.sea.Unlock()
	if w.down {
		return nil, errDown
	}
	_, before := w.rows()
	answer, recalls, err := w.p.store.Leases(context.Background(), testOrg, g.id, c)
	counters, after := w.rows()
	granted := map[counterKey]int64{}
	for k, row := range after {
		granted[counterKey{k.budget, k.window}] += row.granted - before[k].granted
	}
	for k, row := range after {
		old := before[k]
		closes := func(one budget.Closing) bool { return one.Session == k.session }
		if slices.ContainsFunc(c.Close, closes) && row.granted-row.returned > old.granted-old.returned {
			w.fail("a closing charged %v with %+v, out was %+v", k, row, old)
		}
	}
	for k, more := range granted {
		if row := counters[k]; more > 0 && row.taken-row.overrun > row.lim {
			w.fail("invariant 1: %v: %d granted, and taken %d of %d", k, more, row.taken, row.lim)
		}
	}
	w.allOrNothing(c, granted)
	w.observe(counters, after)
	w.push(recalls)
	return answer, err
}

// allOrNothing checks that a need alone in its call was granted by all its budgets
// or by none: a denial takes nothing.
func (w *world) allOrNothing(c *budget.Call, granted map[counterKey]int64) {
	if len(c.Needs) != 1 {
		return
	}
	wanted := map[string]bool{}
	for _, f := range c.Leases {
		wanted[f.Budget] = wanted[f.Budget] || f.Want > 0
	}
	yes, no := 0, 0
	for _, n := range c.Needs[0] {
		var got int64
		for k, more := range granted {
			if k.budget == n.Budget {
				got += more
			}
		}
		switch {
		case wanted[n.Budget]:
		case got == n.Amount:
			yes++
		case got == 0:
			no++
		default:
			w.fail("invariant 8: %+v was granted %d", n, got)
		}
	}
	if yes > 0 && no > 0 {
		w.fail("invariant 8: of %+v a part was granted: %v", c.Needs[0], granted)
	}
}

func (w *world) push(recalls []budget.Recall) {
	w.mu.Lock()
	gates := w.gates
	w.mu.Unlock()
	for _, r := range recalls {
		w.mu.Lock()
		told := w.pushed[r]
		w.pushed[r] = true
		w.mu.Unlock()
		if told && w.calm {
			continue // where nothing is lost, once is enough
		}
		for _, g := range gates {
			times := 1
			if w.faulty() && !w.calm {
				times = w.n(3)
			}
			for range times {
				go func() {
					time.Sleep(time.Duration(w.n(20)) * time.Millisecond)
					w.mu.Lock()
					l := g.l
					w.mu.Unlock()
					if l != nil {
						l.Recall(r)
					}
				}()
			}
		}
	}
}

// rows reads what the authority keeps.
func (w *world) rows() (map[counterKey]counterRow, map[leaseKey]leaseRow) {
	counters, leases := map[counterKey]counterRow{}, map[leaseKey]leaseRow{}
	rows, err := w.db.Query(`SELECT budget, win, lim, taken, overrun, phase, phase_at FROM counters`)
	if err != nil {
		w.t.Fatal(err)
	}
	for rows.Next() {
		var k counterKey
		var r counterRow
		var at int64
		if err := rows.Scan(&k.budget, &k.window, &r.lim, &r.taken, &r.overrun, &r.phase, &at); err != nil {
			w.t.Fatal(err)
		}
		r.phaseAt = time.UnixMicro(at)
		counters[k] = r
	}
	rows.Close()
	rows, err = w.db.Query(`SELECT l.session, budget, win, granted, returned, spent, overrun, acked, coalesce(s.last_seen, 0) < ? OR s.closed_at IS NOT NULL
		FROM leases l LEFT JOIN sessions s ON s.session = l.session`, time.Now().Add(-10*time.Second).UnixMicro())
	if err != nil {
		w.t.Fatal(err)
	}
	for rows.Next() {
		var k leaseKey
		var r leaseRow
		if err := rows.Scan(&k.session, &k.budget, &k.window, &r.granted, &r.returned, &r.spent, &r.overrun, &r.acked, &r.silent); err != nil {
			w.t.Fatal(err)
		}
		leases[k] = r
	}
	rows.Close()
	return counters, leases
}

// observe keeps what every budget could bear now, for the denials to come.
func (w *world) observe(counters map[counterKey]counterRow, leases map[leaseKey]leaseRow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	moments := map[counterKey]*moment{}
	for k, row := range counters {
		w.highest[k] = max(w.highest[k], row.lim)
		moments[k] = &moment{at: now, phase: row.phase, lim: row.lim, left: max(0, row.lim-row.taken), young: row.phaseAt.Add(500 * time.Millisecond),
			idle: map[string]int64{}, unacked: map[string]int64{}}
	}
	for _, g := range w.gates {
		if g.l == nil {
			continue
		}
		for _, s := range g.l.States() {
			m := moments[counterKey{s.Budget, s.Window}]
			if m == nil || !s.Running {
				continue
			}
			m.idle[g.id] = s.Idle
			row := leases[leaseKey{s.Session, s.Budget, s.Window}]
			if row.acked < counters[counterKey{s.Budget, s.Window}].phase && !row.silent {
				m.unacked[g.id] = s.Idle
			}
		}
	}
	for k, m := range moments {
		w.history[k] = append(w.history[k], *m)
	}
	w.sleepers(counters, leases)
}

// sleepers checks that no money stays idle at a living gateway while others lack it.
func (w *world) sleepers(counters map[counterKey]counterRow, leases map[leaseKey]leaseRow) {
	const bound = 250*time.Millisecond + 4*41*time.Millisecond
	busy, living := map[leaseKey]int64{}, map[string]bool{}
	for _, g := range w.gates {
		if g.l == nil {
			continue
		}
		living[g.l.Session()] = true
		for _, s := range g.l.States() {
			busy[leaseKey{s.Session, s.Budget, s.Window}] = s.Spent + s.Held
		}
	}
	for k, row := range leases {
		used, known := busy[k]
		if tr := w.truths[k]; !known && tr != nil {
			used = tr.spent
		}
		if counters[counterKey{k.budget, k.window}].phase%2 == 0 || row.granted-row.returned <= used || !living[k.session] || w.cast[k.session] {
			delete(w.asleep, k)
			continue
		}
		was, now := w.asleep[k], sleep{time.Now(), row.granted, row.returned, used}
		if was.granted != now.granted || was.returned != now.returned || was.used != used {
			w.asleep[k] = now
		} else if w.calm && time.Since(was.since) > bound {
			w.t.Errorf("invariant 7: %v: %d idle for %v, and short", k, row.granted-row.returned-used, time.Since(was.since))
		}
	}
}

// justified says whether within the last 0.7 s some budget could not bear an amount.
func (w *world) justified(g *gate, id string, amount int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	since := time.Now().Add(-700 * time.Millisecond)
	now := map[string]int64{}
	if g.l != nil {
		for _, s := range g.l.States() {
			if s.Budget == id && s.Running {
				now[s.Window] = s.Idle
			}
		}
	}
	for k, list := range w.history {
		if k.budget != id {
			continue
		}
		until := time.Now()
		for i := len(list) - 1; i >= 0; i-- {
			m := list[i]
			if until.Before(since) {
				break
			}
			bears := m.left + m.idle[g.id]
			idle, ok := now[k.window]
			last := ok && i == len(list)-1 && idle < m.idle[g.id]
			if last {
				bears = m.left + idle
			}
			if until.Before(m.young) {
				for other, idle := range m.unacked {
					if other != g.id {
						bears += idle
					}
				}
			}
			if bears < amount {
				if last { // for the denials that follow from this one
					m.at, m.idle = time.Now(), map[string]int64{g.id: idle}
					w.history[k] = append(list, m)
				}
				return true
			}
			until = m.at
		}
		for _, m := range list {
			if amount > m.lim && time.Since(m.at) < 3*time.Second {
				return true
			}
		}
	}
	return false
}

// recent tells what a budget could bear in the last second.
func (w *world) recent(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for k, list := range w.history {
		for _, m := range list[max(0, len(list)-12):] {
			if k.budget == id && time.Since(m.at) < time.Second {
				fmt.Fprintf(&b, "%s %v phase %d lim %d left %d young %v idle %v unacked %v\n", m.at.Format("04:05.000"), k, m.phase, m.lim, m.left, m.young.Format("04:05.000"), m.idle, m.unacked)
			}
		}
	}
	return b.String()
}

func (w *world) run(steps int) {
	w.mu.Lock()
	w.wild = true
	w.mu.Unlock()
	for range steps {
		w.step()
		synctest.Wait()
		w.check()
		if w.t.Failed() {
			break
		}
	}
	w.rest()
	if w.t.Failed() {
		w.t.Log(strings.Join(w.trace, "\n"))
	}
	w.t.Log(w.counts)
}

func (w *world) step() {
	g := w.gates[w.n(len(w.gates))]
	switch n := w.n(100); {
	case n < 60:
		for range 1 + w.n(12) {
			w.tasks.Go(func() { w.request(g) })
		}
		time.Sleep(time.Duration(w.n(40)) * time.Millisecond)
	case n < 75:
		time.Sleep(time.Duration(w.n(600)) * time.Millisecond)
	case n < 77:
		time.Sleep(time.Duration(w.n(6000)) * time.Millisecond)
	case n < 78:
		time.Sleep(time.Duration(9000+w.n(6000)) * time.Millisecond) // longer than a session may be unheard
	case n < 83 && !w.calm:
		w.kill(g)
	case n < 86:
		w.revive(g)
	case n < 88:
		w.leave(g)
	case n < 91 && !w.calm:
		w.mu.Lock()
		g.cut = !g.cut
		w.mu.Unlock()
		w.note("%s cut: %v", g.id, g.cut)
	case n < 93 && !w.calm:
		w.restart()
	case n < 93:
		w.newcomers()
	case n < 96:
		w.relimit()
	case n < 97 && !w.calm:
		w.expel(g)
	default:
		w.copyJournal(g)
	}
}

// newcomers have two gateways meet on a budget that neither knew: what the second
// lacks may be pushed to the first before it has heard of its own lease.
func (w *world) newcomers() {
	r := budget.Record{ID: fmt.Sprintf("new%d", len(w.records)), Unit: budget.USD, Window: budget.Total, Limit: 100}
	w.p.put(r)
	w.refresh()
	type party struct {
		g *gate
		l *budget.Ledger
	}
	var here []party
	w.mu.Lock()
	for _, g := range w.gates {
		if g.l != nil {
			g.l.Upsert(w.records[r.ID])
			here = append(here, party{g, g.l})
		}
	}
	w.mu.Unlock()
	if len(here) < 2 {
		return
	}
	w.count("newcomers")
	ask := func(p party, usd int64) {
		s, err := p.l.Set([]string{r.ID}, "")
		if err != nil {
			w.t.Error(err)
			return
		}
		worst := budget.Amounts{USD: usd}
		var h budget.Hold
		begun := time.Now()
		err = p.l.Reserve(context.Background(), s, worst, &h)
		w.took(p.g, p.l, begun, []string{r.ID}, worst, err)
		if err == nil && w.admitted(p.g, p.l, &h) {
			w.settle(p.g, p.l, &h)
		}
	}
	w.tasks.Go(func() { ask(here[0], 80) })
	time.Sleep(time.Duration(1+w.n(10)) * time.Millisecond)
	w.tasks.Go(func() { ask(here[1], 50) })
	for range 50 { // also while nobody calls
		time.Sleep(20 * time.Millisecond)
		w.sea.Lock()
		w.observe(w.rows())
		w.sea.Unlock()
	}
}

// request is one from its reservation to its end.
func (w *world) request(g *gate) {
	w.mu.Lock()
	l := g.l
	w.mu.Unlock()
	if l == nil {
		return
	}
	names := []string{"hour", "day", "total", "count", "seen"}
	var ids []string
	for _, id := range names {
		if w.chance(0.5) {
			ids = append(ids, id)
		}
	}
	s, err := l.Set(ids, "")
	if err != nil {
		w.t.Error(err)
		return
	}
	worst := budget.Amounts{USD: int64(1 + w.n(100)), Tokens: int64(1 + w.n(300)), Requests: 1}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if w.chance(0.1) {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(w.n(200))*time.Millisecond)
		defer cancel()
	}
	var h budget.Hold
	begun := time.Now()
	err = l.Reserve(ctx, s, worst, &h)
	w.took(g, l, begun, ids, worst, err)
	if err != nil {
		return
	}
	if !w.admitted(g, l, &h) {
		return
	}
	for w.chance(0.3) {
		time.Sleep(time.Duration(w.n(300)) * time.Millisecond)
		if w.died(g, l, &h) {
			return
		}
		more := budget.Amounts{USD: int64(w.n(50)), Tokens: int64(w.n(100))}
		before := h.Parts()
		begun := time.Now()
		err := h.Extend(context.Background(), more)
		w.took(g, l, begun, ids, more, err)
		if err != nil {
			break
		}
		if !w.extended(g, l, &h, before) {
			return
		}
	}
	time.Sleep(time.Duration(w.n(400)) * time.Millisecond)
	if w.chance(0.05) {
		time.Sleep(time.Duration(w.n(8000)) * time.Millisecond)
	}
	w.settle(g, l, &h)
}

// took checks how a reservation ended.
func (w *world) took(g *gate, l *budget.Ledger, begun time.Time, ids []string, worst budget.Amounts, err error) {
	took := time.Since(begun)
	var d *budget.Denied
	switch {
	case err == nil:
		w.count("served")
	case errors.As(err, &d):
		w.count(fmt.Sprint("denied held=", d.Held))
		if took > 760*time.Millisecond && w.calm {
			w.fail("invariant 9: denied after %v", took)
		}
		some := func(id string) bool { return w.justified(g, id, worst.Of(w.records[id].Unit)) }
		// Whoever waited to the end for answers that were lost is denied by the last one.
		if (w.calm || took < 750*time.Millisecond) && !slices.ContainsFunc(ids, some) {
			w.fail("invariant 6: %s: %v (held %v) after %v: it could have borne it all the time\n%s", g.id, d, d.Held, took, w.recent(d.Record.ID))
		}
	case errors.Is(err, budget.ErrUnavailable):
		w.count("unavailable")
		w.mu.Lock()
		alive := g.l == l
		w.mu.Unlock()
		if w.calm && alive {
			w.fail("invariant 9: unavailable after %v on a calm network", took)
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		w.count("gone")
	default:
		w.fail("%v", err)
	}
	if took > 1010*time.Millisecond {
		w.fail("invariant 9: decided after %v: %v", took, err)
	}
}

// admitted notes what a request holds, and checks that its journal bounds it.
func (w *world) admitted(g *gate, l *budget.Ledger, h *budget.Hold) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	parts := h.Parts()
	for _, p := range parts {
		w.truth(p).open += p.Held
	}
	if g.dead[l] {
		w.die(parts)
		return false
	}
	for _, p := range parts {
		w.journalled(g, p)
	}
	return true
}

func (w *world) extended(g *gate, l *budget.Ledger, h *budget.Hold, before []budget.LeaseState) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	parts := h.Parts()
	for i, p := range parts {
		w.truth(p).open += p.Held - before[i].Held
	}
	if g.dead[l] {
		w.die(parts)
		return false
	}
	for _, p := range parts {
		w.journalled(g, p)
	}
	return true
}

func (w *world) journalled(g *gate, p budget.LeaseState) {
	if !p.Running {
		return
	}
	var forwarded int64
	for _, s := range g.l.States() {
		if s.Session == p.Session && s.Budget == p.Budget && s.Window == p.Window {
			forwarded = s.Spent + s.Held - s.Waiting
		}
	}
	list, err := budget.ReadJournal(g.dir, p.Session)
	for range 100 {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			break
		}
		list, err = budget.ReadJournal(g.dir, p.Session) // it was being written
	}
	if errors.Is(err, os.ErrNotExist) {
		return // closed meanwhile
	}
	if err != nil {
		w.t.Errorf("journal of %s: %v", p.Session, err)
		return
	}
	for _, r := range list {
		if r.Budget == p.Budget && r.Window == p.Window && r.Mark >= forwarded {
			return
		}
	}
	w.t.Errorf("forwarded %d of %s/%s beyond the journal: %+v", forwarded, p.Budget, p.Window, list)
}

func (w *world) truth(s budget.LeaseState) *truth {
	k := leaseKey{s.Session, s.Budget, s.Window}
	if w.truths[k] == nil {
		w.truths[k] = &truth{ceiling: -1}
	}
	return w.truths[k]
}

// die ends a request whose process is dead: it used some of what it held.
func (w *world) die(parts []budget.LeaseState) {
	for _, p := range parts {
		tr := w.truth(p)
		tr.open -= p.Held
		tr.dead += w.rng.Int64N(p.Held + 1)
	}
}

func (w *world) died(g *gate, l *budget.Ledger, h *budget.Hold) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !g.dead[l] {
		return false
	}
	w.die(h.Parts())
	return true
}

func (w *world) settle(g *gate, l *budget.Ledger, h *budget.Hold) {
	w.mu.Lock()
	defer w.mu.Unlock()
	parts := h.Parts()
	if g.dead[l] {
		w.die(parts)
		return
	}
	held := h.Amounts()
	part := func(n int64) int64 { return w.rng.Int64N(n + 1) }
	used := budget.Amounts{USD: part(held.USD), Tokens: part(held.Tokens), Requests: part(held.Requests)}
	switch w.rng.IntN(20) {
	case 0:
		used = budget.Amounts{}
	case 1, 2:
		used = held
	case 3:
		used = budget.Amounts{USD: held.USD + part(200), Tokens: held.Tokens + part(200), Requests: held.Requests}
	}
	for _, p := range parts {
		tr := w.truth(p)
		tr.open -= p.Held
		tr.settled += used.Of(w.records[p.Budget].Unit)
	}
	h.Settle(used)
	h.Settle(budget.Amounts{USD: 1 << 40}) // the second one is nothing
}

func (w *world) kill(g *gate) {
	w.mu.Lock()
	l := g.l
	if l == nil {
		w.mu.Unlock()
		return
	}
	g.dead[l] = true
	g.l = nil
	w.mu.Unlock()
	states := l.Kill()
	session := l.Session()
	path := filepath.Join(g.dir, session+".journal")
	b, err := os.ReadFile(path)
	if err != nil {
		w.fail("journal of %s: %v", session, err)
		return
	}
	list, err := budget.ReadJournal(g.dir, session)
	if err != nil {
		w.fail("journal of %s: %v", session, err)
	}
	marks := map[counterKey]int64{}
	for _, r := range list {
		marks[counterKey{r.Budget, r.Window}] = r.Mark
	}
	fate := w.n(10)
	switch {
	case fate < 2: // the disk is gone
		os.Remove(path)
	case fate < 5:
		b = b[:w.n(len(b)+1)]
		if err := os.WriteFile(path, b, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	w.note("%s killed, %s, fate %d", g.id, session, fate)
	w.count("killed")
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range states {
		tr := w.truth(s)
		tr.spent, tr.known = s.Spent, true
		if fate >= 5 {
			tr.ceiling = max(marks[counterKey{s.Budget, s.Window}], s.Spent)
		}
	}
}

// copyJournal is a backup being made.
func (w *world) copyJournal(g *gate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if g.l == nil {
		return
	}
	path := filepath.Join(g.dir, g.l.Session()+".journal")
	if b, err := os.ReadFile(path); err == nil && w.backup[path] == nil {
		w.backup[path] = b
	}
}

func (w *world) revive(g *gate) {
	w.mu.Lock()
	alive := g.l != nil
	if !alive && w.rng.IntN(3) == 0 {
		// Somebody puts an old journal back, of a session that was closed.
		for path, b := range w.backup {
			if filepath.Dir(path) != g.dir {
				continue
			}
			var closed sql.NullInt64
			session := strings.TrimSuffix(filepath.Base(path), ".journal")
			err := w.db.QueryRow(`SELECT closed_at FROM sessions WHERE session = ?`, session).Scan(&closed)
			if err == nil && closed.Valid {
				os.WriteFile(path, b, 0o600)
				w.counts["replayed from a backup"]++
			}
		}
	}
	w.mu.Unlock()
	if !alive {
		w.start(g)
		w.note("%s back as %s", g.id, g.l.Session())
	}
}

// leave ends a process in good order, and starts the next.
func (w *world) leave(g *gate) {
	w.mu.Lock()
	l := g.l
	w.mu.Unlock()
	if l == nil {
		return
	}
	w.tasks.Wait()
	synctest.Wait()
	states := l.States()
	w.mu.Lock()
	g.dead[l] = true
	g.l = nil
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	err := l.Close(ctx)
	w.note("%s left: %v", g.id, err)
	w.mu.Lock()
	for _, s := range states {
		tr := w.truth(s)
		tr.spent, tr.known = s.Spent, true
		if err == nil && s.Running {
			tr.ceiling = s.Spent
		}
	}
	w.mu.Unlock()
	w.start(g)
	w.note("%s is %s", g.id, g.l.Session())
}

// restart ends the authority and starts it again.
func (w *world) restart() {
	w.sea.Lock()
	w.down = true
	w.p.store.Close()
	w.sea.Unlock()
	time.Sleep(time.Duration(w.n(1500)) * time.Millisecond)
	w.sea.Lock()
	w.p.open()
	w.down = false
	w.sea.Unlock()
	w.note("authority restarted")
}

func (w *world) relimit() {
	w.sea.Lock()
	defer w.sea.Unlock()
	if w.down {
		return
	}
	ids := []string{"hour", "day", "total", "count"}
	id := ids[w.n(len(ids))]
	w.mu.Lock()
	r := w.records[id]
	w.mu.Unlock()
	var recalls []budget.Recall
	err := w.p.store.Update(context.Background(), time.Now(), func(tx *store.Tx) (err error) {
		if w.chance(0.4) {
			_, recalls, err = tx.TopUp(context.Background(), testOrg, id, r.Limit/10+1, fmt.Sprint(time.Now().UnixNano()))
			return err
		}
		r.Limit = r.Limit*int64(50+w.n(120))/100 + 1
		_, recalls, err = tx.PutBudget(context.Background(), &store.Budget{OrgID: testOrg, Record: r})
		return err
	})
	if err != nil {
		w.fail("%v", err)
	}
	w.refresh()
	w.observe(w.rows())
	w.mu.Lock()
	w.trace = append(w.trace, time.Now().Format("04:05.000 ")+fmt.Sprintf("limit of %s now %d", id, w.records[id].Limit))
	for _, g := range w.gates {
		if g.l != nil {
			g.l.Upsert(w.records[id])
		}
	}
	w.mu.Unlock()
	w.push(recalls)
}

// expel closes the session of a living gateway, as if it had been taken for dead.
func (w *world) expel(g *gate) {
	w.mu.Lock()
	l := g.l
	w.mu.Unlock()
	if l == nil {
		return
	}
	w.note("%s expelled: %s", g.id, l.Session())
	w.mu.Lock()
	w.cast[l.Session()] = true
	w.mu.Unlock()
	w.deliver(g, &budget.Call{Session: "ls_other", Seq: time.Now().UnixNano(),
		Close: []budget.Closing{{Session: l.Session(), Lost: true}}})
}

// check tests what must hold at every instant.
func (w *world) check() {
	w.sea.Lock()
	defer w.sea.Unlock()
	counters, leases := w.rows()
	w.observe(counters, leases)
	w.mu.Lock()
	defer w.mu.Unlock()
	running := map[leaseKey]bool{}
	for _, g := range w.gates {
		if g.l == nil {
			continue
		}
		for _, s := range g.l.States() {
			k := leaseKey{s.Session, s.Budget, s.Window}
			running[k] = true
			tr := w.truth(s)
			tr.spent, tr.known = s.Spent, true
			if s.Held-s.Waiting != tr.open || s.Spent+s.Overrun != tr.settled {
				w.t.Errorf("invariant 8: %s %v: held %d of which %d wait, spent %d, overrun %d; truly open %d, settled %d",
					g.id, k, s.Held, s.Waiting, s.Spent, s.Overrun, tr.open, tr.settled)
			}
			if s.Spent+s.Held-s.Waiting > s.Mark {
				w.t.Errorf("%s %v: forwarded %d beyond the mark %d", g.id, k, s.Spent+s.Held-s.Waiting, s.Mark)
			}
		}
	}
	taken := map[counterKey]int64{}
	for k, r := range leases {
		c := counterKey{k.budget, k.window}
		taken[c] += r.granted - r.returned + r.overrun
		tr := w.truths[k]
		if tr == nil {
			continue
		}
		if true := tr.spent + tr.open + tr.dead; r.granted-r.returned < true {
			w.t.Errorf("invariant 3: %v: out %d, truly spent and held %d (%+v)", k, r.granted-r.returned, true, *tr)
		}
	}
	for c, row := range counters {
		if row.taken != taken[c] {
			w.t.Errorf("invariant 2: %v: taken %d, the leases say %d", c, row.taken, taken[c])
		}
	}
	truly := map[counterKey]int64{}
	for k, tr := range w.truths {
		truly[counterKey{k.budget, k.window}] += tr.spent + tr.open + tr.dead
	}
	for c, n := range truly {
		if n > w.highest[c] {
			w.t.Errorf("invariant 4: %v: spent and held %d of %d", c, n, w.highest[c])
		}
	}
}

// rest lets everything come to an end, and checks what must hold then.
func (w *world) rest() {
	w.tasks.Wait()
	w.mu.Lock()
	w.wild = false
	for _, g := range w.gates {
		g.cut = false
	}
	w.mu.Unlock()
	for _, g := range w.gates {
		w.revive(g)
	}
	time.Sleep(10 * time.Second) // whatever is still on its way has come by then
	synctest.Wait()
	if !w.t.Failed() {
		w.check()
		w.settledDown()
	}
	for _, g := range w.gates {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := g.l.Close(ctx); err != nil {
			w.fail("close: %v", err)
		}
		cancel()
		if left, _ := filepath.Glob(filepath.Join(g.dir, "*")); len(left) > 0 && !w.t.Failed() {
			w.fail("after a clean exit %v is left", left)
		}
		w.mu.Lock()
		g.l = nil
		w.mu.Unlock()
	}
	time.Sleep(time.Second)
	if !w.t.Failed() {
		w.charged()
	}
	time.Sleep(time.Second)
}

func (w *world) settledDown() {
	_, leases := w.rows()
	for _, g := range w.gates {
		known := map[leaseKey]bool{}
		for _, s := range g.l.States() {
			known[leaseKey{s.Session, s.Budget, s.Window}] = true
		}
		for k, r := range leases {
			if k.session != g.l.Session() || known[k] {
				continue
			}
			var spent int64
			if tr := w.truths[k]; tr != nil {
				spent = tr.spent
			}
			if out := r.granted - r.returned; out != spent {
				w.fail("invariant 5: %s does not know of %v: %+v, truly spent %d", g.id, k, r, spent)
			}
		}
		if n := g.l.Waiting(); n > 0 {
			w.fail("invariant 9: %d wait at rest", n)
		}
		for _, s := range g.l.States() {
			r := leases[leaseKey{s.Session, s.Budget, s.Window}]
			if out := r.granted - r.returned; out != s.Granted-s.Returned || s.Idle != out-s.Spent || r.spent != s.Spent || r.overrun != s.Overrun {
				w.fail("invariant 5: %s: %+v, the authority says %+v", g.id, s, r)
			}
			if s.Phase%2 != 0 && s.Idle != 0 {
				w.fail("invariant 7: %s: short and idle: %+v", g.id, s)
			}
		}
	}
}

// charged checks what is left when everybody has gone, and that all of it can be spent.
func (w *world) charged() {
	if left := time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)); left < time.Minute {
		time.Sleep(left) // no window ends below
	}
	counters, leases := w.rows()
	w.mu.Lock()
	for k, tr := range w.truths {
		r, ok := leases[k]
		if !ok {
			if tr.spent+tr.dead > 0 {
				w.t.Errorf("%v: no lease, and %+v", k, *tr)
			}
			continue
		}
		out := r.granted - r.returned
		if out < tr.spent+tr.dead {
			w.t.Errorf("invariant 5: %v: charged %d, truly spent %d", k, out, tr.spent+tr.dead)
		}
		if tr.ceiling >= 0 && out > tr.ceiling && !w.cast[k.session] {
			w.t.Errorf("invariant 5: %v: charged %d, at most %d may have been spent", k, out, tr.ceiling)
		}
	}
	w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.records)) {
		r := w.records[id]
		if r.Mode == budget.Observe {
			continue
		}
		start, _ := r.Window.At(time.Now())
		row, ok := counters[counterKey{id, r.Window.Name(start)}]
		left := r.Limit
		if ok {
			left = max(0, row.lim-row.taken)
		}
		g := &gate{w: w, id: "gw_last", dir: filepath.Join(w.dir, "last"), dead: map[*budget.Ledger]bool{}}
		w.mu.Lock()
		w.gates = []*gate{g}
		w.mu.Unlock()
		w.start(g)
		var h, none budget.Hold
		s, _ := g.l.Set([]string{id}, "")
		all := budget.Amounts{USD: left, Tokens: left, Requests: left}
		if err := g.l.Reserve(context.Background(), s, all, &h); err != nil {
			w.fail("the last %d of %s can't be spent: %v", left, id, err)
		}
		if err := g.l.Reserve(context.Background(), s, budget.Amounts{USD: 1, Tokens: 1, Requests: 1}, &none); err == nil {
			w.fail("more than the last %d of %s can be spent", left, id)
		}
		h.Settle(budget.Amounts{})
		if err := g.l.Close(context.Background()); err != nil {
			w.fail("%v", err)
		}
		w.mu.Lock()
		g.l = nil
		w.mu.Unlock()
	}
}
