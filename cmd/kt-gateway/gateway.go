package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/proxy"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

// authority is what knows the tokens: a control plane of this process, or one
// elsewhere. The gateway does not know which it has.
type authority interface {
	budget.Authority
	Resolve(ctx context.Context, d token.Digest) (controlplane.Resolved, error)
	Report(ctx context.Context, r record.Report) error
	Watch(ctx context.Context, since int64, each func(controlplane.Event)) error
	Snapshot(ctx context.Context, profiles int, begin func(controlplane.SnapshotHead) error, each func(*controlplane.SnapshotItem) error) error
}

// gateway is the data plane with all that it leans on, each ready made.
type gateway struct {
	config     *config.Config
	path       string                     // the file that is watched
	override   func(*config.Config) error // puts flags and environment over a file read again
	authority  authority
	standing   standing
	data       *dataDir
	listener   net.Listener // the data plane's
	succession *succession  // nil: the port is not shared
	operations *operations
	registry   *prometheus.Registry
	log        *logs
	hup        <-chan os.Signal
	instance   string

	plane  *controlplane.Server // nil: the control plane is elsewhere
	remote *remoteStanding      // nil: the control plane is this process's
}

// remoteStanding is what a gateway keeps a snapshot with, for when its control plane is away.
type remoteStanding struct {
	identity *identity
	token    func() (token.Secret, error) // the runtime token, as it is now
	stranger error                        // what answers is no control plane; nil: nothing else is there
}

// standing is the gateway's own, with its control plane.
type standing struct {
	org   func() string // "" until it is known
	ready func() error
	stale func() time.Duration // since the control plane last answered; 0: never yet, or it is this process
}

// serve runs the data plane until ctx ends and it has drained, or until it fails.
// It calls started once requests are answered.
func (g *gateway) serve(ctx context.Context, started func(*proxy.Server) error) error {
	cfg := g.config
	k, err := g.know()
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.restore(g.remote); err != nil {
		return err
	}
	records, closeRecords, err := openRecords(cfg)
	if err != nil {
		return err
	}
	defer closeRecords()
	server, err := proxy.New(proxy.Options{
		Config: cfg, Records: records, Tokens: k.cache, Org: g.standing.org, Log: g.log.Logger, Registerer: g.registry,
		Reporter: k.follower, Instance: g.instance, Build: build(), Ready: g.standing.ready, Ledger: k.ledger,
		DeletedTeams: k.teams.Deleted,
	})
	if err != nil {
		return err
	}
	g.measure(k.cache)
	k.follow(server)
	g.operations.setReady(server.Readiness)

	if !g.succession.await(ctx, informed(server.Readiness, k.cache.InSync)) {
		_ = g.listener.Close() // another process serves the port
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(g.listener) }()
	if ctx.Err() == nil {
		defer g.succession.offering(g.listener)()
	}
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	watched := make(chan struct{})
	go func() { defer close(watched); g.watch(watching, server, k.cache) }()
	defer func() { stopWatching(); <-watched }()

	g.log.Info("gateway is listening", zap.Stringer("addr", g.listener.Addr()), zap.String("gateway_id", cfg.GatewayID),
		zap.String("instance", g.instance), zap.String("config", g.path), zap.String("build", build()))
	if err := started(server); err != nil && ctx.Err() == nil {
		return err
	}
	select {
	case <-ctx.Done():
	case err := <-ended:
		if ctx.Err() == nil {
			return fmt.Errorf("serve on %s: %w", g.listener.Addr(), err)
		}
		ended <- err // for the drain
	}
	stopWatching()
	err = g.drain(server, ended)
	k.settle()
	return err
}

// drain ends the traffic; the server's last report signs this instance off. Streams cut at limits.drain are no failure:
// their callers were told.
func (g *gateway) drain(server *proxy.Server, ended <-chan error) error {
	l := g.config.Limits
	g.log.Info("draining", zap.Duration("lame_duck", l.LameDuck), zap.Duration("drain", l.Drain))
	ctx, cancel := context.WithTimeout(context.Background(), max(l.Drain, l.LameDuck)+5*time.Second)
	defer cancel()
	g.succession.retire()
	if err := server.Drain(ctx); err != nil {
		g.log.Warn("not everything ended by itself", zap.Error(err))
	}
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, net.ErrClosed) {
			g.log.Warn("the listener ended with an error", zap.Error(err))
		}
	case <-ctx.Done():
	}
	g.log.Info("ended")
	return nil
}

// measure registers what /metrics says of the standing with the control plane.
func (g *gateway) measure(cache *tokencache.Cache) {
	g.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keeptrusts_gateway_authz_staleness_seconds",
			Help: "Seconds since the control plane last vouched for what is known; 0 while the watch is in sync, when it is embedded, or when it never did.",
		}, func() float64 {
			if cache.InSync() {
				return 0
			}
			return g.standing.stale().Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keeptrusts_gateway_ready",
			Help: "Whether the gateway's identity is confirmed and its cache usable: 1 or 0.",
		}, func() float64 {
			if g.standing.ready() != nil {
				return 0
			}
			return 1
		}),
	)
}

// newInstance names this process among those that share its gateway id.
func newInstance() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return "inst_" + hex.EncodeToString(b[:])
}

// openRecords opens the file of decision records, if there is to be one.
func openRecords(cfg *config.Config) (sink record.Sink, done func(), err error) {
	if cfg.Records.Path == "" {
		return nil, func() {}, nil
	}
	f, err := record.OpenFile(cfg.Records.Path, record.Mode(cfg.Records.Mode))
	if err != nil {
		return nil, nil, fmt.Errorf("open records.path: %w", err)
	}
	return f, func() { _ = f.Close() }, nil
}
