package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/proxy"
)

// overrides are the configuration's fields that flags and environment may set.
type overrides struct {
	listen, operations, plane, data, gatewayID, url, level string

	takeOver bool // the data plane's port, from another process of this gateway
}

func runCommand() *command {
	var o overrides
	var path string
	c := newCommand("run", "", "the gateway; with a control plane of its own unless one is named")
	c.long = "A flag wins over its variable, and both over the file. KEEPTRUSTS_API_TOKEN, or the file that KEEPTRUSTS_API_TOKEN_FILE\n" +
		"names, is the runtime token for the control plane that is named; it wins over the one that the file refers to."
	configFlag(c, &path)
	c.text(&o.listen, "listen", "ADDR", "", "the data plane")
	c.text(&o.operations, "operations-listen", "ADDR", "", "metrics and probes")
	c.text(&o.plane, "control-plane-listen", "ADDR", "", "the embedded control plane")
	c.text(&o.data, "data", "DIR", "", "the data folder; one gateway a folder")
	c.text(&o.gatewayID, "gateway-id", "ID", "", "which gateway this is")
	c.text(&o.url, "api-url", "URL", "", "the control plane; absent, one is embedded")
	c.text(&o.level, "log-level", "LEVEL", "", "debug, info, warn or error")
	c.toggle(&o.takeOver, "take-over", "takes the data plane's port from a process of this gateway that runs with it too, and hands it on")
	c.run = func(ctx context.Context, p program) error {
		name, err := configPath(path)
		if err != nil {
			return err
		}
		if o.data != "" {
			if o.data, err = filepath.Abs(o.data); err != nil {
				return err
			}
		}
		cfg, err := o.load(name)
		var problems config.Problems
		if errors.As(err, &problems) {
			p.stdout = p.stderr
			return printProblems(p, err)
		}
		if err != nil {
			return err
		}
		return runGateway(ctx, p, cfg, name, &o)
	}
	return c
}

func (o *overrides) load(name string) (*config.Config, error) {
	cfg, err := config.Load(name)
	if err != nil {
		return nil, err
	}
	if err := cfg.MissingToken(); err != nil {
		return nil, err
	}
	return cfg, o.apply(cfg)
}

// apply puts what flags and environment say over a file.
func (o *overrides) apply(c *config.Config) error {
	for _, f := range []struct{ field, value, flag string }{
		{"listen", o.listen, "--listen"},
		{"operations_listen", o.operations, "--operations-listen"},
		{"control_plane.embedded.listen", o.plane, "--control-plane-listen"},
		{"data_dir", o.data, "--data"},
		{"gateway_id", o.gatewayID, "--gateway-id"},
		{"control_plane.url", o.url, "--api-url"},
		{"log.level", o.level, "--log-level"},
	} {
		if f.value == "" {
			continue
		}
		if err := c.Override(f.field, f.value); err != nil {
			return fmt.Errorf("%s: %w", f.flag, err)
		}
	}
	return nil
}

// listenFor opens the data plane's listener; with --take-over it may be another
// process's, and may be handed on.
func (o *overrides) listenFor(cfg *config.Config, log *zap.Logger) (net.Listener, *succession, error) {
	if !o.takeOver {
		ln, err := listen(cfg.Listen, "--listen")
		return ln, nil, err
	}
	s, err := newSuccession(cfg, log)
	if err != nil {
		return nil, nil, err
	}
	ln, err := s.listen(cfg.Listen)
	return ln, s, err
}

// runGateway is the wiring of `run`, in the order in which things may fail.
func runGateway(ctx context.Context, p program, cfg *config.Config, path string, o *overrides) error {
	defer tuneMemory(p.env)()
	data, err := openDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer data.close()
	log, err := openLogs(p.stderr, cfg.Log.Level)
	if err != nil {
		return err
	}
	defer log.close()
	for _, w := range cfg.Warnings() {
		log.Warn("configuration", zap.Stringer("problem", w))
	}
	registry := newRegistry()

	// Before anything that waits: a probe must be able to see why it is not ready.
	ops, opsListener, err := startOperations(cfg, registry)
	if err != nil {
		return err
	}
	defer ops.close()
	ln, next, err := o.listenFor(cfg, log.Logger)
	if err != nil {
		return err
	}
	defer next.close()
	defer ln.Close()
	log.Info("operations are listening", zap.Stringer("addr", opsListener))

	g := &gateway{
		config: cfg, path: path, override: o.apply, listener: ln, succession: next,
		operations: ops, registry: registry, log: log, hup: p.hup, instance: newInstance(), data: data,
	}
	var closePlane func()
	if cfg.ControlPlane.URL == "" {
		closePlane, err = g.embed(ctx, p, data)
	} else {
		closePlane, err = g.connect(ctx)
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	defer closePlane()
	return g.serve(ctx, func(*proxy.Server) error { return nil })
}
