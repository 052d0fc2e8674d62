package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/proxy"
	"github.com/keeptrusts/gateway/proxy/simulator"
	"github.com/keeptrusts/gateway/token"
)

const devConfigFile = "dev.yaml"

// devFlags are the flags of dev.
type devFlags struct {
	json                     bool
	data                     string
	upstream, upstreamKeyEnv string
	listen, operations       string
	plane, gatewayID         string
}

func devCommand() *command {
	var f devFlags
	c := newCommand("dev", "", "gateway, control plane and a simulated provider in one; no key, no file needed")
	c.long = "It mints a token for each profile and prints them with a call to paste. Ctrl-C ends it."
	c.toggle(&f.json, "json", "prints one line of JSON instead, as soon as all is ready")
	c.text(&f.data, "data", "DIR", "", "keeps its state there; otherwise it is gone at the end")
	c.text(&f.upstream, "upstream", "URL", "", "an OpenAI-compatible server in the simulator's place; openai is the real one, with OPENAI_API_KEY")
	c.text(&f.upstreamKeyEnv, "upstream-key-env", "NAME", "", "the variable that holds the upstream's key")
	c.text(&f.listen, "listen", "ADDR", "127.0.0.1:41002", "the data plane, by default 127.0.0.1:41002; port 0 takes a free one")
	c.text(&f.operations, "operations-listen", "ADDR", defaultOperations, "metrics and probes, by default "+defaultOperations)
	c.text(&f.plane, "control-plane-listen", "ADDR", defaultPlaneListen, "the control plane, by default "+defaultPlaneListen)
	c.text(&f.gatewayID, "gateway-id", "ID", "gw_local", "by default gw_local")
	c.run = func(ctx context.Context, p program) error { return f.run(ctx, p) }
	return c
}

func (f *devFlags) run(ctx context.Context, p program) error {
	up, err := f.resolveUpstream(p.env)
	if err != nil {
		return err
	}
	defer tuneMemory(p.env)()
	data, done, err := f.openData()
	if err != nil {
		return err
	}
	defer done()
	admin, kept, err := data.adminToken(p.env)
	if err != nil {
		return err
	}
	log, err := openLogs(p.stderr, "info")
	if err != nil {
		return err
	}
	defer log.close()
	tellAdminToken(log.Logger, kept)

	// All listeners first: the file that is written next holds their real ports.
	l, err := f.open()
	if err != nil {
		return err
	}
	defer l.close()
	if up.simulated() {
		stop, err := up.simulate(data)
		if err != nil {
			return err
		}
		defer stop()
	}
	path := data.file(devConfigFile)
	if err := writeWhole(path, up.config(f.gatewayID, l)); err != nil {
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	registry := newRegistry()
	pl, err := openPlane(ctx, planeOptions{
		database: "sqlite:" + cfg.ControlPlane.Embedded.Database, admin: admin,
		legacy: cfg.LegacyPrefixes, log: log.Logger, registry: registry,
	})
	if err != nil {
		return err
	}
	defer pl.close()
	ops := newOperations(registry, cfg.Debug.Pprof)
	defer ops.close()
	go func() { _ = ops.serve(l.operations) }()
	g := &gateway{
		config: cfg, path: path, override: func(*config.Config) error { return nil }, listener: l.gateway,
		operations: ops, registry: registry, log: log, hup: p.hup, instance: newInstance(), data: data,
	}
	g.embedded(pl, l.plane)

	return g.serve(ctx, func(s *proxy.Server) error {
		if err := s.Readiness(); err != nil {
			return err
		}
		r := devReady{
			Gateway: baseURL(l.gateway.Addr().String()), Operations: baseURL(l.operations.Addr().String()),
			ControlPlane: baseURL(l.plane.Addr().String()), AdminToken: admin.Reveal(), Models: []string{devModel, devDearModel},
			config: path, kept: f.data != "", target: up.id, gatewayID: cfg.GatewayID,
		}
		tokens, err := mintDev(ctx, data, devPlane{url: r.ControlPlane, admin: admin, target: up.id, gatewayID: cfg.GatewayID})
		if err != nil {
			return err
		}
		r.Tokens = *tokens
		return r.print(p, f.json)
	})
}

// openData opens --data, or a temporary folder that done removes.
func (f *devFlags) openData() (data *dataDir, done func(), err error) {
	dir := f.data
	if dir == "" {
		if dir, err = os.MkdirTemp("", "kt-gateway-dev-"); err != nil {
			return nil, nil, fmt.Errorf("make a temporary folder: %w", err)
		}
	}
	if data, err = openDataDir(dir); err != nil {
		return nil, nil, err
	}
	return data, func() {
		if f.data == "" {
			_ = os.RemoveAll(data.path)
		}
		data.close()
	}, nil
}

// devListeners are the three sockets of dev.
type devListeners struct{ gateway, operations, plane net.Listener }

func (f *devFlags) open() (l devListeners, err error) {
	for _, s := range []struct {
		ln         *net.Listener
		addr, flag string
	}{
		{&l.gateway, f.listen, "--listen"},
		{&l.operations, f.operations, "--operations-listen"},
		{&l.plane, f.plane, "--control-plane-listen"},
	} {
		if *s.ln, err = listen(s.addr, s.flag); err != nil {
			l.close()
			return l, err
		}
	}
	return l, nil
}

func (l devListeners) close() {
	for _, ln := range []net.Listener{l.gateway, l.operations, l.plane} {
		if ln != nil {
			_ = ln.Close()
		}
	}
}

// simulate starts the provider that needs no key but the one in a file of data.
func (u *upstream) simulate(data *dataDir) (stop func(), err error) {
	key := token.NewSecret("sk-simulated-" + token.Mint().Reveal()[len(token.Prefix):])
	if err := writeSecret(data.file(simulatorKeyFile), key); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the simulated provider: %w", err)
	}
	s := &http.Server{Handler: simulator.New(simulator.Options{APIKey: key.Reveal()}), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(ln) }()
	u.url = baseURL(ln.Addr().String()) + "/v1"
	u.keyFile = simulatorKeyFile
	return func() { _ = s.Close() }, nil
}

// devPlane is where dev's tokens are minted, and for what.
type devPlane struct {
	url               string
	admin             token.Secret
	target, gatewayID string
}

func (d devPlane) client() (*controlplane.Client, error) {
	return controlplane.NewClient(controlplane.ClientOptions{
		URL: d.url, Token: func() (token.Secret, error) { return d.admin, nil }, Insecure: true, Build: build(),
	})
}
