package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keeptrusts/gateway/controlplane"
)

// followerMetrics is what /metrics says of how a gateway follows its control plane.
type followerMetrics struct {
	events       *prometheus.CounterVec
	ok, failed   prometheus.Counter // snapshots
	gone         prometheus.Counter
	watches      prometheus.Counter
	at, duration prometheus.Gauge // of the last snapshot
	lag          prometheus.Histogram
}

func newFollowerMetrics(f *follower, r prometheus.Registerer) *followerMetrics {
	const prefix = "keeptrusts_gateway_"
	snapshots := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "snapshots_total",
		Help: "Snapshots that were asked of the control plane, by result: ok, or failed.",
	}, []string{"result"})
	m := &followerMetrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "watch_events_total",
			Help: "Events that came on the watch of the control plane, by kind.",
		}, []string{"event"}),
		ok: snapshots.WithLabelValues("ok"), failed: snapshots.WithLabelValues("failed"),
		gone: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "watch_gone_total",
			Help: "How often the control plane's log did not reach back to what was known here (410): each time one new snapshot is taken.",
		}),
		watches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "watch_connects_total",
			Help: "Watches of the control plane that were begun, the first one included.",
		}),
		at: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "snapshot_timestamp_seconds",
			Help: "When the last snapshot of the control plane was asked for, in Unix seconds; 0: never.",
		}),
		duration: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "snapshot_duration_seconds",
			Help: "How long the last snapshot of the control plane took.",
		}),
	}
	m.lag = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    prefix + "revocation_lag_seconds",
		Help:    "From a revocation's time in the control plane's database until it was in force here, by the clocks of both.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 15, 60, 600},
	})
	for _, kind := range []string{controlplane.KindUpsert, controlplane.KindRevoke, controlplane.KindRecall, controlplane.KindHead} {
		m.events.WithLabelValues(kind)
	}
	r.MustRegister(m.events, snapshots, m.gone, m.watches, m.at, m.duration, m.lag, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: prefix + "watch_in_sync",
		Help: "Whether the watch of the control plane is in sync: 1 or 0. While it is, all that the gateway knows is fresh.",
	}, func() float64 {
		if f.cache.InSync() {
			return 1
		}
		return 0
	}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: prefix + "watch_revision",
		Help: "The revision up to which all changes are applied; 0 before the first snapshot.",
	}, func() float64 { return float64(f.applied.Load()) }))
	return m
}

// took notes a snapshot that was taken.
func (m *followerMetrics) took(began time.Time, d time.Duration) {
	m.ok.Inc()
	m.at.Set(float64(began.UnixMilli()) / 1e3)
	m.duration.Set(d.Seconds())
}
