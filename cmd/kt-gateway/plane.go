package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// planeOptions are what a control plane is made of.
type planeOptions struct {
	database string // as store.Open takes it
	admin    token.Secret
	legacy   []string
	log      *zap.Logger
	registry *prometheus.Registry
	hup      <-chan os.Signal // SIGHUP, for a certificate; nil never comes
}

// plane is a control plane of this process: its store, its server, its listener.
type plane struct {
	store  *store.Store
	server *controlplane.Server
	http   *http.Server
}

// where names a database without what opens it; "" for a form that is not known.
func where(database string) string {
	if file, ok := strings.CutPrefix(database, "sqlite:"); ok && file != "" {
		return database
	}
	scheme, _, _ := strings.Cut(database, "://")
	u, err := url.Parse(database)
	if err != nil || scheme != "postgres" && scheme != "postgresql" {
		if scheme == "postgres" || scheme == "postgresql" {
			return "postgres" // opening it says what is wrong
		}
		return ""
	}
	return "postgres://" + u.Host + u.EscapedPath()
}

func openPlane(ctx context.Context, o planeOptions) (*plane, error) {
	if where(o.database) == "" {
		return nil, misused("--database: it is neither like sqlite:FILE nor like postgres://USER@HOST:PORT/NAME")
	}
	s, err := store.Open(ctx, o.database)
	if err != nil {
		return nil, err
	}
	server, err := controlplane.New(controlplane.Options{
		Store: s, AdminToken: o.admin, Log: o.log.Named("control-plane"), Registerer: o.registry, LegacyPrefixes: o.legacy,
	})
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	h := &http.Server{
		Handler:           planeHandler(server.Handler(), metricsHandler(o.registry)),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(o.log),
	}
	h.RegisterOnShutdown(server.Close) // watches do not end by themselves
	return &plane{store: s, server: server, http: h}, nil
}

// planeHandler sends /metrics, written just so, to metrics and all else to api. A
// ServeMux would redirect a path that is not canonical before anybody looked at
// its credential.
func planeHandler(api, metrics http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if read && r.URL.EscapedPath() == "/metrics" {
			metrics.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

func (p *plane) serve(ln net.Listener) error { return ignoreClosed(p.http.Serve(ln)) }

func (p *plane) close() {
	shut(p.http)
	_ = p.store.Close()
}

// ignoreClosed makes the end that was asked for no error.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// listen opens a TCP listener; its error names the flag that moves it.
func listen(addr, flag string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err == nil {
		return ln, nil
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(addr)
		return nil, takenError(fmt.Sprintf("port %s (%s) is taken by another program: stop it, or listen elsewhere with %s ADDRESS:PORT (port 0 takes a free one)", port, addr, flag))
	}
	return nil, fmt.Errorf("listen on %s (%s): %w", addr, flag, plain(err))
}

// takenError is EADDRINUSE, told so that one knows what to do.
type takenError string

func (e takenError) Error() string { return string(e) }
func (e takenError) Unwrap() error { return syscall.EADDRINUSE }
