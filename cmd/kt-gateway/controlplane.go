package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/config"
)

const defaultPlaneListen = "127.0.0.1:41004"

func controlPlaneCommand() *command {
	var database, data, addr, cert, key, level string
	c := newCommand("control-plane", "", "the control plane alone, for gateways elsewhere")
	c.long = "It needs KEEPTRUSTS_ADMIN_TOKEN (at least 24 characters), or KEEPTRUSTS_ADMIN_TOKEN_FILE. Any number of them serve\n" +
		"one PostgreSQL database; a URL with a password belongs into KEEPTRUSTS_DATABASE, or the file that KEEPTRUSTS_DATABASE_FILE names."
	c.text(&database, "database", "DSN", "", "sqlite:FILE, or postgres://USER@HOST:PORT/NAME; by default kt-gateway.db in --data")
	c.text(&data, "data", "DIR", ".", "where the database is when --database does not say")
	c.text(&addr, "listen", "ADDR", defaultPlaneListen, "by default "+defaultPlaneListen)
	c.text(&cert, "tls-cert", "FILE", "", "certificate and what it is signed by, for https; read again when it changes")
	c.text(&key, "tls-key", "FILE", "", "its key; both are in force once they belong together")
	c.text(&level, "log-level", "LEVEL", "info", "debug, info, warn or error")
	c.run = func(ctx context.Context, p program) error {
		if (cert == "") != (key == "") {
			return misused("--tls-cert and --tls-key go together")
		}
		admin, err := adminTokenFromEnv(p.env)
		if err != nil {
			return err
		}
		if admin.Empty() {
			return errors.New("no admin token: set KEEPTRUSTS_ADMIN_TOKEN (at least 24 characters), or KEEPTRUSTS_ADMIN_TOKEN_FILE to a file that holds it")
		}
		if file, _ := p.env("KEEPTRUSTS_DATABASE_FILE"); database == "" && file != "" {
			text, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("KEEPTRUSTS_DATABASE_FILE: %w", err)
			}
			database = strings.TrimSpace(string(text))
		}
		if database == "" {
			database = "sqlite:" + filepath.Join(data, "kt-gateway.db")
		}
		log, err := openLogs(p.stderr, level)
		if err != nil {
			return err
		}
		defer log.close()
		return serveControlPlane(ctx, addr, certificate{cert, key}, planeOptions{
			database: database, admin: admin, legacy: config.Default().LegacyPrefixes, log: log.Logger, registry: newRegistry(), hup: p.hup,
		})
	}
	return c
}

func serveControlPlane(ctx context.Context, addr string, files certificate, o planeOptions) error {
	ln, err := listen(addr, "--listen")
	if err != nil {
		return err
	}
	defer ln.Close()
	serve := (*plane).serve
	if files.cert != "" {
		tls, err := openPair(files, o.log, o.registry)
		if err != nil {
			return err
		}
		watching, stop := context.WithCancel(context.Background())
		watched := make(chan struct{})
		go func() { defer close(watched); tls.watch(watching, certificateEvery, o.hup) }()
		defer func() { stop(); <-watched }()
		serve = func(p *plane, ln net.Listener) error {
			p.http.TLSConfig = tls.config()
			return ignoreClosed(p.http.ServeTLS(ln, "", ""))
		}
	}
	pl, err := openPlane(ctx, o)
	if err != nil {
		return err
	}
	defer pl.close()
	ended := make(chan error, 1)
	go func() { ended <- serve(pl, ln) }()
	url := baseURL(ln.Addr().String())
	if files.cert != "" {
		url = "https" + url[len("http"):]
	} else if !loopback(ln.Addr()) {
		o.log.Warn("listening beyond loopback without TLS: tokens and profiles pass in the clear")
	}
	o.log.Info("control plane is listening", zap.String("url", url), zap.Stringer("addr", ln.Addr()), zap.String("database", where(o.database)))
	select {
	case <-ctx.Done():
		o.log.Info("control plane ends")
		return nil
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	}
}

func loopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
