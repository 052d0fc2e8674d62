package main

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// operations is the second listener: metrics and probes, apart from the traffic.
// It serves from the first moment, so that a gateway that is not ready can say why.
type operations struct {
	server   *http.Server
	ready    atomic.Pointer[func() error] // nil: still starting
	profiles atomic.Bool                  // whether /debug/pprof/ is open
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func newOperations(r *prometheus.Registry, profiles bool) *operations {
	o := &operations{}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(r))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { probe(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { probe(w, o.readiness()) })
	o.profiles.Store(profiles)
	mux.HandleFunc("/debug/pprof/", func(w http.ResponseWriter, r *http.Request) {
		if !o.profiles.Load() {
			http.NotFound(w, r)
			return
		}
		profile(w, r)
	})
	o.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	return o
}

// profile serves net/http/pprof, but not through the default mux that it registers with.
func profile(w http.ResponseWriter, r *http.Request) {
	switch strings.TrimPrefix(r.URL.Path, "/debug/pprof/") {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r)
	}
}

func metricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{Registry: r})
}

func (o *operations) serve(ln net.Listener) error { return ignoreClosed(o.server.Serve(ln)) }

func (o *operations) setReady(ready func() error) { o.ready.Store(&ready) }

func (o *operations) readiness() error {
	if f := o.ready.Load(); f != nil {
		return (*f)()
	}
	return errStarting
}

// close ends it, at once for probes in flight: they have a next time.
func (o *operations) close() { _ = o.server.Close() }

func probe(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(err.Error() + "\n"))
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// shut ends a server: what is under way gets two seconds.
func shut(s *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if s.Shutdown(ctx) != nil {
		_ = s.Close()
	}
}
