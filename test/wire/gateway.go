package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// targetSecret is the provider's key: no client may ever see it.
const targetSecret = "sk-wire-upstream-0123456789abcdef"

// The models of the gateway's configuration. A token may be bound to "cheap" alone.
const (
	cheap  = "cheap"
	dear   = "dear"
	nobody = "nobody" // its target listens nowhere
)

const gatewayConf = `gateway_id: %[1]s
listen: %[2]s
operations_listen: %[3]s
data_dir: %[4]s
legacy_prefixes: [kt_ak_]
control_plane: %[5]s
providers:
  targets:
    - {id: up, provider: openai, base_url: "http://%[6]s/v1", secret_key_ref: {env: UPSTREAM_KEY}}
    - {id: down, provider: openai, base_url: "http://127.0.0.1:9/v1"}
    - {id: router, provider: openrouter, base_url: "http://%[6]s/v1", secret_key_ref: {env: UPSTREAM_KEY}}
    - {id: walled, provider: openai, base_url: "http://%[6]s/v1", teams: [platform]}
models:
  - {name: cheap, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 0.01, output: 0.01}}
  - {name: dear, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 1000, output: 1000}}
  - {name: nobody, targets: [{id: down}], context: 8000, max_output: 1000, price: {input: 0.01, output: 0.01}}
  - {name: routed, targets: [{id: router}], context: 8000, max_output: 1000, price: {input: 0.01, output: 0.01}}
  - {name: walled, targets: [{id: walled}], context: 8000, max_output: 1000}
  - {name: unpriced, targets: [{id: up}], max_output: 1000}
  - {name: unbound, targets: [{id: up}], max_output: 1000, price: {input: 1, output: 1}}
limits: {%[7]s}
debug: {pprof: true}
%[8]s
`

// layout says what gateway a scenario wants, beyond the plain one.
type layout struct {
	id     string
	limits string // the YAML between the braces; "" the defaults
	more   string // of the YAML's top level
	plane  string // control_plane, "" embedded
	env    []string
	args   []string
	out    *os.File // of what the process prints; nil: a file
	up     *provider
	addr   string // where it listens; "" anywhere
	data   string // its folder's name; "" its id
	name   string // of the process; "" its id
}

// gateway is a running one.
type gateway struct {
	t         *trial
	up        *provider
	admin     *admin // of its own control plane; nil: it has none
	child     *rig.Process
	addr, ops string
	conf      string
}

// newGateway starts one and waits until it is ready.
func newGateway(ctx context.Context, t *trial, l layout) (g *gateway, err error) {
	g, err = prepare(t, &l)
	if err != nil {
		return nil, err
	}
	args := append([]string{"run", "-c", g.conf}, l.args...)
	if l.out != nil {
		g.child, err = t.startTo(l.name, "", l.out, l.env, args...)
	} else {
		g.child, err = t.start(l.name, l.env, args...)
	}
	if err != nil {
		return nil, err
	}
	return g, ready(ctx, g.child, "http://"+g.ops+"/readyz")
}

// prepare writes a gateway's folder and file.
func prepare(t *trial, l *layout) (g *gateway, err error) {
	g = &gateway{t: t, up: l.up}
	if g.up == nil {
		if g.up, err = newProvider(t); err != nil {
			return nil, err
		}
	}
	if l.id == "" {
		l.id = "gw_wire"
	}
	if l.name == "" {
		l.name = l.id
	}
	if l.data == "" {
		l.data = l.name
	}
	if g.addr = l.addr; g.addr == "" {
		if g.addr, err = rig.FreeAddr(); err != nil {
			return nil, err
		}
	}
	if g.ops, err = rig.FreeAddr(); err != nil {
		return nil, err
	}
	l.env = append(l.env, "UPSTREAM_KEY="+targetSecret)
	if l.plane == "" {
		plane, err := rig.FreeAddr()
		if err != nil {
			return nil, err
		}
		g.admin = newAdmin("http://"+plane, rand.Text(), &http.Transport{MaxIdleConnsPerHost: 4})
		t.closers = append(t.closers, g.admin.client.CloseIdleConnections)
		l.plane = "{embedded: {listen: " + plane + "}}"
		l.env = append(l.env, "KEEPTRUSTS_ADMIN_TOKEN="+g.admin.bearer)
	}
	dir := t.path(l.data)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	g.conf = t.path(l.name + ".yaml")
	text := fmt.Sprintf(gatewayConf, l.id, g.addr, g.ops, dir, l.plane, g.up.addr, l.limits, l.more)
	return g, os.WriteFile(g.conf, []byte(text), 0o600)
}

// metric sums a metric of the gateway over its labels; names without our prefix
// are the runtime's.
func (g *gateway) metric(ctx context.Context, name string) (float64, error) {
	b, err := get(ctx, http.DefaultClient, "http://"+g.ops+"/metrics")
	if err != nil {
		return 0, err
	}
	if !strings.HasPrefix(name, "go_") {
		name = "keeptrusts_gateway_" + name
	}
	var sum float64
	found := false
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		var n float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
			return 0, fmt.Errorf("read %q: %w", line, err)
		}
		sum, found = sum+n, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}

// sound fails the scenario where the gateway died, panicked, or no longer answers
// an ordinary call. Each scenario ends with it.
func (g *gateway) sound(ctx context.Context, bearer string) {
	t := g.t
	if !g.child.Alive() {
		t.miss("the gateway ended: %v\n%s", g.child.Err(), g.child.Tail())
		return
	}
	panics, err := g.metric(ctx, "panics_total")
	if err != nil || panics != 0 {
		t.miss("%.0f panics (%v)\n%s", panics, err, g.child.Tail())
	}
	a := g.call(ctx, bearer, call{})
	if a.status != http.StatusOK || !a.whole {
		t.miss("an ordinary call afterwards: %v", a)
	}
}

// settled waits at most d until a condition holds.
func settled(ctx context.Context, d time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(d); ; rig.Pause(ctx, 20*time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return false
		}
	}
}
