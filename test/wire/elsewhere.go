package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
	kt "github.com/keeptrusts/gateway/token"
)

// another is an error that needs a gateway in a state of its own.
type another struct {
	provoked
	meet func(ctx context.Context, t *trial) (*answered, error)
}

func elsewhere() []another {
	return []another{
		{provoked{code: "control_plane_unavailable", status: 503, kind: ours}, planeAway},
		{provoked{code: "draining", status: 503, kind: ours, closes: true}, drained},
		{provoked{code: "overloaded", status: 503, kind: ours}, tooManyStreams},
		{provoked{code: "overloaded", status: 503, kind: ours, closes: true}, tooManyConnections},
		{provoked{code: "overloaded", status: 503, kind: ours, closes: true}, tooManyBytes},
	}
}

// plane is a control plane of its own.
type plane struct {
	*admin
	addr  string
	child *rig.Process
}

func newPlane(ctx context.Context, t *trial) (*plane, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	p := &plane{admin: newAdmin("http://"+addr, rand.Text(), &http.Transport{MaxIdleConnsPerHost: 4}), addr: addr}
	t.closers = append(t.closers, p.client.CloseIdleConnections)
	if p.child, err = t.start("plane", []string{"KEEPTRUSTS_ADMIN_TOKEN=" + p.bearer}, "control-plane", "--database", "sqlite:"+t.path("plane.db"), "--listen", addr); err != nil {
		return nil, err
	}
	return p, ready(ctx, p.child, "http://"+addr+"/readyz")
}

// follower is the layout of a gateway of that plane.
func (p *plane) follower(ctx context.Context, id string) (layout, error) {
	runtime, err := p.mint(ctx, minting{purpose: "gateway_runtime", bindings: map[string]any{"gateway_id": id}})
	return layout{id: id, plane: `{url: "` + p.url + `", token: {secret_key_ref: {env: RUNTIME}}}`, env: []string{"RUNTIME=" + runtime.Token}}, err
}

// planeAway asks for a token that this gateway has never heard of, once it knows that
// the plane is silent.
func planeAway(ctx context.Context, t *trial) (*answered, error) {
	p, err := newPlane(ctx, t)
	if err != nil {
		return nil, err
	}
	l, err := p.follower(ctx, "gw_away")
	if err != nil {
		return nil, err
	}
	g, err := newGateway(ctx, t, l)
	if err != nil {
		return nil, err
	}
	_ = p.child.Signal(syscall.SIGSTOP)
	defer func() { _ = p.child.Signal(syscall.SIGCONT) }()
	settled(ctx, 15*time.Second, func() bool {
		in, err := g.metric(ctx, "watch_in_sync")
		return err == nil && in == 0
	})
	return g.call(ctx, kt.Mint().Reveal(), call{}), nil
}

func withKey(ctx context.Context, t *trial, l layout) (*gateway, string, error) {
	g, err := newGateway(ctx, t, l)
	if err != nil {
		return nil, "", err
	}
	key, err := g.admin.mint(ctx, minting{})
	return g, key.Token, err
}

// hold opens a call that the provider does not answer.
func (g *gateway) hold(ctx context.Context, key string, s script) (*wire, error) {
	n := len(g.up.of(s.id))
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, call{stream: s.do == "idle", script: s}.text(key)); err != nil {
		return nil, err
	}
	if !settled(ctx, 5*time.Second, func() bool { return len(g.up.of(s.id)) > n }) {
		return nil, fmt.Errorf("the call %s did not reach the provider", s.id)
	}
	return w, nil
}

// drained asks a gateway that waits for a call to end, over a connection it had.
func drained(ctx context.Context, t *trial) (*answered, error) {
	g, key, err := withKey(ctx, t, layout{id: "gw_draining", limits: "lame_duck: 0s, drain: 5s"})
	if err != nil {
		return nil, err
	}
	w, err := g.hold(ctx, key, script{id: "hold", do: "silent"})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	k := &caller{addr: g.addr}
	defer k.close()
	if a := k.ask(ctx, key, call{}); a.status != 200 {
		return a, nil
	}
	rig.Pause(ctx, 200*time.Millisecond) // the connection lies idle: a client that has just been answered is spared once
	_ = g.child.Signal(syscall.SIGTERM)
	rig.Pause(ctx, 300*time.Millisecond)
	return k.ask(ctx, key, call{}), nil
}

func tooManyStreams(ctx context.Context, t *trial) (*answered, error) {
	g, key, err := withKey(ctx, t, layout{id: "gw_streams", limits: "streams: 1"})
	if err != nil {
		return nil, err
	}
	w, err := g.hold(ctx, key, script{id: "hold", do: "silent"})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return g.call(ctx, key, call{}), nil
}

func tooManyConnections(ctx context.Context, t *trial) (*answered, error) {
	g, key, err := withKey(ctx, t, layout{id: "gw_connections", limits: "connections: 1"})
	if err != nil {
		return nil, err
	}
	w, err := g.hold(ctx, key, script{id: "hold", do: "silent"})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return g.call(ctx, key, call{}), nil
}

// tooManyBytes asks while another's body is held.
func tooManyBytes(ctx context.Context, t *trial) (*answered, error) {
	g, key, err := withKey(ctx, t, layout{id: "gw_bodies", limits: "bodies: 100KiB, request_body: 90KiB"})
	if err != nil {
		return nil, err
	}
	large := call{body: `{"model":"cheap","user":"` + string(make70k()) + `"}`, script: script{id: "hold", do: "silent"}}
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := io.WriteString(w, large.text(key)); err != nil {
		return nil, err
	}
	settled(ctx, 5*time.Second, func() bool { return len(g.up.of("hold")) > 0 })
	large.script.id = "second"
	return g.call(ctx, key, large), nil
}

func make70k() []byte {
	b := make([]byte, 70<<10)
	for i := range b {
		b[i] = 'a'
	}
	return b
}
