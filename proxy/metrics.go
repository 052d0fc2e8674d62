package proxy

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keeptrusts/gateway/abac"
)

// buckets suit calls that take from a millisecond to minutes; overhead suits what
// the gateway itself adds.
var (
	buckets  = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	overhead = []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1}
)

// metrics are those of the data plane. Label values come from the config or an
// enum, never from a request.
type metrics struct {
	requests  *prometheus.CounterVec
	tokens    *prometheus.CounterVec
	decisions [abac.Allowed + 1]prometheus.Counter
	admission map[string]prometheus.Counter // the decisions of check 7, by code
	duration  prometheus.Histogram
	gateway   prometheus.Histogram
	upstream  *prometheus.HistogramVec
	misplaced prometheus.Counter
	panics    prometheus.Counter
	left      prometheus.Counter
	unmetered prometheus.Counter
	cost      *prometheus.CounterVec

	mu      sync.Mutex
	targets map[[2]string]*targetMetrics // by target and entry: kept over reloads
	refused statusCounters
}

func newMetrics(s *Server, r prometheus.Registerer) (*metrics, error) {
	const ns = "keeptrusts_gateway_"
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "requests_total",
			Help: "Requests answered, by the target's id, the model's entry and the status sent (499: the client left)."},
			[]string{"provider", "model", "status"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "tokens_total",
			Help: "Tokens that providers told in their usage."}, []string{"direction", "model"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: ns + "request_duration_seconds",
			Help: "From a request's head to its answer's last byte.", Buckets: buckets}),
		gateway: prometheus.NewHistogram(prometheus.HistogramOpts{Name: ns + "gateway_duration_seconds",
			Help: "Time that a request spent in the gateway itself before its call was sent.", Buckets: overhead}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: ns + "upstream_duration_seconds",
			Help: "From the call sent to the answer's last byte read, by the target's id.", Buckets: buckets}, []string{"provider"}),
		misplaced: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "misplaced_credentials_total",
			Help: "Runtime tokens met on the data plane, where they should never be."}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "panics_total",
			Help: "Requests that ended in a fault of the gateway's own."}),
		left: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "client_closed_requests_total",
			Help: "Requests whose client left before the answer was whole."}),
		unmetered: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "usage_missing_total",
			Help: "Answers of providers that should have told their usage and did not."}),
		cost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "cost_usd_total",
			Help: "What calls were charged by the config's prices, estimates included; for a view, never for accounts."}, []string{"model"}),
		targets: make(map[[2]string]*targetMetrics),
	}
	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "decisions_total",
		Help: "Decisions, by reason."}, []string{"reason"})
	for reason := range m.decisions {
		m.decisions[reason] = decisions.WithLabelValues(abac.Reason(reason).String())
	}
	m.admission = make(map[string]prometheus.Counter)
	for _, code := range admissionCodes {
		m.admission[code] = decisions.WithLabelValues(code)
	}
	m.refused = statusCounters{vec: m.requests}
	if r == nil {
		return m, nil
	}
	if err := registerDrops(s, r); err != nil {
		return nil, err
	}
	for _, c := range []prometheus.Collector{
		m.requests, m.tokens, m.duration, m.gateway, m.upstream, m.misplaced, m.panics, m.left, m.unmetered, m.cost, decisions,
		gaugeOf(ns+"requests_open", "Requests being served.", func() float64 { return float64(s.open.Load()) }),
		gaugeOf(ns+"open_requests", "Calls that reserved from budgets and are not settled; budget_holds, counted by the ledger, is the same.", func() float64 { return float64(s.holding.Load()) }),
		gaugeOf(ns+"calls_open", "Calls relayed to a provider now, counted against limits.streams.", func() float64 { return float64(s.streams.Load()) }),
		gaugeOf(ns+"connections_open", "Connections of clients.", func() float64 { return float64(s.conns.Load()) }),
		gaugeOf(ns+"body_bytes_held", "Bytes of request bodies held, counted against limits.bodies.", func() float64 { return float64(s.bodies.Load()) }),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// registerDrops tells what a sink that failed or stood still has lost.
func registerDrops(s *Server, r prometheus.Registerer) error {
	type dropper interface{ Dropped() uint64 }
	for _, d := range []struct {
		name, help string
		sink       any
	}{
		{"records_dropped_total", "Decision records that could not be kept.", s.records},
		{"log_lines_dropped_total", "Log lines that stderr did not take.", s.log.Core()},
	} {
		sink, ok := d.sink.(dropper)
		if !ok {
			continue
		}
		opts := prometheus.CounterOpts{Name: "keeptrusts_gateway_" + d.name, Help: d.help}
		if err := r.Register(prometheus.NewCounterFunc(opts, func() float64 { return float64(sink.Dropped()) })); err != nil {
			return err
		}
	}
	return nil
}

// admissionCodes are the reasons of check 7, and that it could not be made.
var admissionCodes = []string{codeBudgetExceeded, codeBudgetHeld, codeRateLimited, codePriceUnknown, codeContextUnknown, codeUnavailable}

// decide counts the decision about a request.
func (m *metrics) decide(x *exchange) {
	if c := m.admission[x.denied]; c != nil {
		c.Inc()
		return
	}
	m.decisions[x.reason].Inc()
}

func gaugeOf(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

// targetMetrics are the children of one target and entry, resolved once.
type targetMetrics struct {
	requests statusCounters
	input    prometheus.Counter
	output   prometheus.Counter
	cost     prometheus.Counter
	upstream prometheus.Observer
}

func (m *metrics) of(target, model string) *targetMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{target, model}
	t := m.targets[key]
	if t == nil {
		t = &targetMetrics{
			requests: statusCounters{vec: m.requests, target: target, model: model},
			input:    m.tokens.WithLabelValues("input", model),
			output:   m.tokens.WithLabelValues("output", model),
			cost:     m.cost.WithLabelValues(model),
			upstream: m.upstream.WithLabelValues(target),
		}
		m.targets[key] = t
	}
	return t
}

// statusCounters resolves a child per status once: looking one up costs more than
// counting.
type statusCounters struct {
	vec           *prometheus.CounterVec
	target, model string
	byStatus      [600]atomic.Pointer[prometheus.Counter]
}

func (c *statusCounters) inc(status int) {
	if status < 100 || status >= len(c.byStatus) {
		status = 599 // no provider may make label values
	}
	p := c.byStatus[status].Load()
	if p == nil {
		child := c.vec.WithLabelValues(c.target, c.model, strconv.Itoa(status))
		p = &child
		c.byStatus[status].Store(p)
	}
	(*p).Inc()
}
