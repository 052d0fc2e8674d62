package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/token"
)

// embed starts a control plane in this process and makes it the authority.
func (g *gateway) embed(ctx context.Context, p program, data *dataDir) (closePlane func(), err error) {
	admin, kept, err := data.adminToken(p.env)
	if err != nil {
		return nil, err
	}
	tellAdminToken(g.log.Logger, kept)
	ln, err := listen(g.config.ControlPlane.Embedded.Listen, "--control-plane-listen")
	if err != nil {
		return nil, err
	}
	pl, err := openPlane(ctx, planeOptions{
		database: "sqlite:" + g.config.ControlPlane.Embedded.Database, admin: admin,
		legacy: g.config.LegacyPrefixes, log: g.log.Logger, registry: g.registry,
	})
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	g.embedded(pl, ln)
	return pl.close, nil
}

// tellAdminToken says where the admin token is kept, unless the environment has it.
func tellAdminToken(log *zap.Logger, kept string) {
	if kept != "" {
		log.Info("the admin token is in a file", zap.String("path", kept))
	}
}

// embedded makes a control plane of this process the authority and serves it.
func (g *gateway) embedded(pl *plane, ln net.Listener) {
	go func() {
		if err := pl.serve(ln); err != nil {
			g.log.Error("the embedded control plane's listener ended", zap.Error(err))
		}
	}()
	g.log.Info("control plane is listening", zap.Stringer("addr", ln.Addr()))
	g.plane = pl.server
	own := pl.server.Embedded(g.config.GatewayID)
	own.Introduce(g.instance, build(), g.config.ControlPlane.MaxStale)
	g.authority = own
	g.standing = standing{
		org:   func() string { return controlplane.OrgDefault },
		ready: func() error { return nil },
		stale: func() time.Duration { return 0 },
	}
}

// connect makes a control plane elsewhere the authority. A refusal of this
// gateway's identity is its error; a silence is not.
func (g *gateway) connect(ctx context.Context) (closePlane func(), err error) {
	cp := g.config.ControlPlane
	if _, err := cp.Token.Resolve(); err != nil {
		return nil, fmt.Errorf("no runtime token for the control plane at %s: %w; without KEEPTRUSTS_API_URL, --api-url and control_plane.url the gateway embeds one", cp.URL, err)
	}
	runtimeToken := func() (token.Secret, error) {
		s, err := cp.Token.Resolve() // anew each time: a rotated token needs no restart
		return token.NewSecret(s), err
	}
	client, err := controlplane.NewClient(controlplane.ClientOptions{
		URL:   cp.URL,
		Token: runtimeToken,
		CA:    cp.CA, Insecure: cp.Insecure, Instance: g.instance, Build: build(), MaxStale: cp.MaxStale,
	})
	if err != nil {
		return nil, fmt.Errorf("the control plane at %s: %w", cp.URL, err)
	}
	id := newIdentity(&identity{
		remote: client, gatewayID: g.config.GatewayID, url: cp.URL, tokenFrom: cp.Token.String(),
		maxStale: cp.MaxStale, log: g.log.Logger, now: time.Now,
	})
	g.remote = &remoteStanding{identity: id, token: runtimeToken}
	err = id.start(ctx)
	var stranger strangerError
	switch {
	case errors.As(err, &stranger):
		g.remote.stranger = err
	case err != nil:
		return nil, err
	}
	trying, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); id.keep(trying) }()
	g.authority = id
	g.standing = standing{org: id.orgID, ready: id.ready, stale: id.stale}
	return func() { stop(); <-done }, nil
}

// startOperations serves metrics and probes.
func startOperations(cfg *config.Config, registry *prometheus.Registry) (*operations, net.Addr, error) {
	ln, err := listen(cfg.OperationsListen, "--operations-listen")
	if err != nil {
		return nil, nil, err
	}
	ops := newOperations(registry, cfg.Debug.Pprof)
	go func() { _ = ops.serve(ln) }()
	return ops, ln.Addr(), nil
}
