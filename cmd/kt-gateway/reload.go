package main

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy"
	"github.com/keeptrusts/gateway/tokencache"
)

const watchEvery = 2 * time.Second

// reloads is what /metrics says of the configuration.
type reloads struct {
	successful, at prometheus.Gauge
	total          prometheus.Counter
}

func newReloads(r prometheus.Registerer) *reloads {
	m := &reloads{
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keeptrusts_gateway_config_last_reload_successful",
			Help: "Whether the last configuration that was read, at the start or later, is in force: 1 or 0.",
		}),
		at: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keeptrusts_gateway_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration in force was read, in Unix seconds.",
		}),
		total: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keeptrusts_gateway_config_reloads_total",
			Help: "How often a configuration was read again, whatever came of it.",
		}),
	}
	r.MustRegister(m.successful, m.at, m.total)
	m.inForce()
	return m
}

func (m *reloads) inForce() {
	m.successful.Set(1)
	m.at.SetToCurrentTime()
}

// watch puts changed configurations into force until ctx ends: all of one, or
// nothing of it.
func (g *gateway) watch(ctx context.Context, server *proxy.Server, cache *tokencache.Cache) {
	m := newReloads(g.registry)
	failed := func(err error) {
		m.total.Inc()
		m.successful.Set(0)
		var problems config.Problems
		if errors.As(err, &problems) {
			for _, p := range problems {
				g.log.Error("configuration problem", zap.Stringer("problem", p))
			}
		}
		g.log.Error("the configuration was not reloaded: the one before stays in force", zap.String("config", g.path), zap.Error(err))
	}
	apply := func(next *config.Config) error {
		err := g.override(next)
		if err == nil && next.Records != g.config.Records {
			err = errors.New("records can't change while the gateway runs; restart it")
		}
		if err == nil {
			err = server.Reload(next)
		}
		if err == nil {
			err = g.log.setLevel(next.Log.Level)
		}
		if err != nil {
			return err
		}
		if g.plane != nil {
			g.plane.SetLegacyPrefixes(next.LegacyPrefixes)
		}
		cache.Resize(next.Cache.Profiles)
		g.operations.profiles.Store(next.Debug.Pprof)
		m.total.Inc()
		m.inForce()
		g.log.Info("the configuration was reloaded", zap.String("config", g.path))
		return nil
	}
	g.config.Watch(ctx, watchEvery, g.hup, apply, failed)
}
