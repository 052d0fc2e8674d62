package tokencache

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type counter = atomic.Uint64

// metrics are plain counters, read when somebody looks: hits are counted in the
// hot set, the rest here.
type metrics struct {
	miss, joined, unknown, stale    counter
	stopped                         counter
	refused, unavailable, malformed counter
	loadOK, loadUnknown, loadFailed counter
	loadRefused, notAdmitted        counter
}

const prefix = "keeptrusts_gateway_token_cache_"

func (c *Cache) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	var done []prometheus.Collector
	for _, m := range c.collectors() {
		if err := r.Register(m); err != nil {
			for _, m := range done {
				r.Unregister(m)
			}
			return err
		}
		done = append(done, m)
	}
	return nil
}

func (c *Cache) collectors() []prometheus.Collector {
	m := &c.metrics
	all := []prometheus.Collector{
		total("not_admitted_total", "Loaded profiles that the cache did not take; more than a few: cache.profiles is too small.", "", "", m.notAdmitted.Load),
		total("evicted_total", "Profiles dropped to make room; more than a few: cache.profiles is too small.", "", "", c.hot.evicted.Load),
		gauge("loads_in_flight", "Tokens being asked for; at most 64.", func() float64 {
			c.mu.Lock()
			defer c.mu.Unlock()
			return float64(len(c.flights))
		}),
		gauge("profiles", "Profiles in the cache.", func() float64 { return float64(c.hot.len()) }),
		gauge("profiles_capacity", "Profiles that the cache has room for.", func() float64 { return float64(c.hot.set.MaxCost()) }),
		gauge("unknown_digests", "Digests remembered as nobody's.", func() float64 { return float64(c.unknown.len()) }),
		gauge("index_entries", "Tokens that the gateway knows of, by their digests.", func() float64 {
			if x := c.index.Load(); x != nil {
				return float64(x.n.Load())
			}
			return 0
		}),
		gauge("index_bytes", "Memory that the index of digests takes.", func() float64 {
			if x := c.index.Load(); x != nil {
				return float64(x.bytes())
			}
			return 0
		}),
		gauge("revocations", "Tokens known to be revoked or quarantined.", func() float64 { return float64(c.revocations.n.Load()) }),
		gauge("control_plane_away", "1 while the control plane does not answer, else 0.", func() float64 {
			if c.Away() {
				return 1
			}
			return 0
		}),
	}
	const lookups = "How look-ups ended: hit; miss (asked itself) and joined (waited for another's ask); stale (served though old); " +
		"unknown (nobody's, as the index says or is remembered); stopped (revoked or quarantined, as the index says); refused (too many being asked for); unavailable (not asked, the control plane is away); malformed (refused by its form)."
	for outcome, read := range map[string]func() uint64{
		"hit": c.hot.hits, "miss": m.miss.Load, "joined": m.joined.Load, "stale": m.stale.Load, "unknown": m.unknown.Load, "stopped": m.stopped.Load,
		"refused": m.refused.Load, "unavailable": m.unavailable.Load, "malformed": m.malformed.Load,
	} {
		all = append(all, total("lookups_total", lookups, "outcome", outcome, read))
	}
	for result, read := range map[string]func() uint64{
		"ok": m.loadOK.Load, "unknown": m.loadUnknown.Load, "failed": m.loadFailed.Load, "refused": m.loadRefused.Load,
	} {
		all = append(all, total("loads_total", "Asks of the control plane by result; refused: not asked, too many were under way.", "result", result, read))
	}
	return all
}

func total(name, help, label, value string, read func() uint64) prometheus.Collector {
	o := prometheus.CounterOpts{Name: prefix + name, Help: help}
	if label != "" {
		o.ConstLabels = prometheus.Labels{label: value}
	}
	return prometheus.NewCounterFunc(o, func() float64 { return float64(read()) })
}

func gauge(name, help string, read func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help}, read)
}
