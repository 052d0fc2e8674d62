package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

const (
	flooder = "127.0.0.2"
	victim  = "127.0.0.3"
)

// flooding is one way of taking all that a limit gives.
type flooding struct {
	name   string
	limits string
	flood  func(ctx context.Context, g *gateway, key string)
}

// flood lets one address, and one token, take what it can of each limit while
// another goes on calling.
func flood(ctx context.Context, t *trial) error {
	for i, f := range []flooding{
		{"one address opens connections", "connections: 300, header_read: 10s, client_idle: 10s", func(ctx context.Context, g *gateway, key string) {
			g.flood(ctx, 600, func(ctx context.Context) { g.sit(ctx, "GET /v1/models HTTP/1.1\r\n") })
		}},
		{"one address sends heads of no token", "connections: 300", func(ctx context.Context, g *gateway, key string) {
			g.flood(ctx, 400, func(ctx context.Context) { g.callFrom(ctx, flooder, "", call{}) })
		}},
		{"one token sends bodies that don't end", "bodies: 8MiB, request_body: 1MiB, body_read: 20s", func(ctx context.Context, g *gateway, key string) {
			body := strings.Repeat(" ", 500_000)
			g.flood(ctx, 60, func(ctx context.Context) {
				g.sit(ctx, fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer %s\r\nContent-Length: 1000000\r\n\r\n%s", key, body))
			})
		}},
		{"one token fills the streams", "streams: 100", func(ctx context.Context, g *gateway, key string) {
			g.flood(ctx, 400, func(ctx context.Context) {
				g.callFrom(ctx, flooder, key, call{script: script{id: "flood", delay: 500 * time.Millisecond}})
			})
		}},
	} {
		g, key, err := withKey(ctx, t, layout{id: fmt.Sprintf("gw_%d", i), limits: f.limits})
		if err != nil {
			return err
		}
		other, err := g.admin.mint(ctx, minting{})
		if err != nil {
			return err
		}
		g.up.hush()
		length := time.Duration(t.count(12, 4)) * time.Second
		quiet, stop := context.WithTimeout(ctx, length/2)
		base := g.steadily(quiet, other.Token, victim, 50, 8, true)
		stop()
		load, end := context.WithTimeout(ctx, length)
		var all sync.WaitGroup
		all.Go(func() { f.flood(load, g, key) })
		rig.Pause(load, time.Second)
		under := g.steadily(load, other.Token, victim, 50, 8, true)
		end()
		all.Wait()
		failed, words := under.failures()
		t.figure(failed == 0 && under.n > 0, "0", "%s: %d calls of another, %d failed%s", f.name, under.n, failed, words)
		p99 := under.at(0.99)
		t.tell("%s: another's median %s, %s before", f.name, under.at(0.5).Round(10*time.Microsecond), base.at(0.5).Round(10*time.Microsecond))
		t.figure(p99 <= time.Second, "1 s", "%s: p99 of another %s, %s before", f.name, p99.Round(10*time.Microsecond), base.at(0.99).Round(10*time.Microsecond))
		g.sound(ctx, other.Token)
		g.child.Kill()
	}
	return nil
}

// flood runs f again and again, so many at once, until ctx ends.
func (g *gateway) flood(ctx context.Context, atOnce int, f func(context.Context)) {
	together(atOnce, atOnce, func(int) {
		for ctx.Err() == nil {
			f(ctx)
			rig.Pause(ctx, 300*time.Millisecond) // the machine is the victim's too
		}
	})
}

// sit sends what is no whole request from the flooder's address, and keeps the
// connection until it is ended.
func (g *gateway) sit(ctx context.Context, text string) {
	w, err := dial(ctx, g.addr, flooder)
	if err != nil {
		return
	}
	defer w.leave(true)
	stop := context.AfterFunc(ctx, func() { _ = w.SetDeadline(time.Now()) })
	defer stop()
	_, _ = io.WriteString(w, text)
	_, _ = io.Copy(io.Discard, w)
}
