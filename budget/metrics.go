package budget

import (
	"github.com/prometheus/client_golang/prometheus"
)

const metricPrefix = "keeptrusts_gateway_"

// metrics are read when somebody looks; what they count is under the ledger's lock.
type metrics struct{ lost uint64 }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metricPrefix+name, help, labels, nil)
}

// The unit of an amount is that of its budget: usd in dollars, else whole.
var (
	descLeft     = describe("budget_left", "What could be reserved here as last known, in the budget's unit (usd, tokens or requests).", "budget")
	descHeld     = describe("budget_held", "What running requests of this gateway hold, in the budget's unit.", "budget")
	descDenied   = describe("budget_denied_total", "Requests that a budget did not bear: spent (budget_exceeded), or held by others (budget_held).", "budget", "reason")
	descOverrun  = describe("budget_overrun_total", "What was used above its hold and charged beyond the lease, in the budget's unit.", "budget")
	descHolds    = describe("budget_holds", "Holds that are open: as many as requests that have reserved and not ended.")
	descCalls    = describe("lease_calls_total", "Lease calls: answered, missed (no answer in time, or an error), or refused (the session was closed).", "result")
	descLost     = describe("journal_lost_total", "Lease journals found damaged at the start: all that their sessions had leased is charged.")
	descPending  = describe("settlements_pending", "Settlements that the control plane has not kept yet.")
	descDropped  = describe("settlements_dropped_total", "Settlements dropped because too many were pending: usage is not told, budgets are charged all the same.")
	descriptions = []*prometheus.Desc{descLeft, descHeld, descDenied, descOverrun, descHolds, descCalls, descLost, descPending, descDropped}
)

// collector is the ledger as Prometheus sees it. Budgets come from records, never
// from a request.
type collector struct{ *Ledger }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	l := c.Ledger
	l.mu.Lock()
	var list []prometheus.Metric
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		list = append(list, prometheus.MustNewConstMetric(d, kind, v, labels...))
	}
	now := l.now()
	held := map[*account]int64{}
	for _, s := range append(l.retired[:len(l.retired):len(l.retired)], l.session) {
		if s == nil {
			continue
		}
		for _, le := range s.leases {
			held[le.account] += le.held
		}
	}
	for _, a := range l.accounts {
		r := a.record()
		if r == nil {
			continue
		}
		if a.enforced() {
			left, _ := a.remains(now)
			put(descLeft, prometheus.GaugeValue, r.Unit.display(left), a.id)
		}
		put(descHeld, prometheus.GaugeValue, r.Unit.display(held[a]), a.id)
		put(descDenied, prometheus.CounterValue, float64(a.exceeded), a.id, "budget_exceeded")
		put(descDenied, prometheus.CounterValue, float64(a.heldUp), a.id, "budget_held")
		put(descOverrun, prometheus.CounterValue, r.Unit.display(a.overrun), a.id)
	}
	put(descHolds, prometheus.GaugeValue, float64(l.opened))
	put(descCalls, prometheus.CounterValue, float64(l.pace.answered), "answered")
	put(descCalls, prometheus.CounterValue, float64(l.pace.missed), "missed")
	put(descCalls, prometheus.CounterValue, float64(l.pace.refused), "refused")
	put(descLost, prometheus.CounterValue, float64(l.metrics.lost))
	l.mu.Unlock()
	l.outbox.mu.Lock()
	put(descPending, prometheus.GaugeValue, float64(l.outbox.pending()))
	put(descDropped, prometheus.CounterValue, float64(l.outbox.dropped))
	l.outbox.mu.Unlock()
	for _, m := range list {
		ch <- m
	}
}

// display is for eyes and graphs only.
func (u Unit) display(n int64) float64 {
	if u == USD {
		return float64(n) / 1e9
	}
	return float64(n)
}

func (l *Ledger) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	return r.Register(collector{l})
}

func (l *Ledger) unregister(r prometheus.Registerer) {
	if r != nil {
		r.Unregister(collector{l})
	}
}
