package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
	"github.com/keeptrusts/gateway/token"
)

const gatewayConf = `gateway_id: %[1]s
listen: %[2]s
operations_listen: %[3]s
data_dir: %[4]s
control_plane:
  url: http://%[5]s
  token: {secret_key_ref: {env: KEEPTRUSTS_API_TOKEN}}
  fresh_for: %[6]s
  max_stale: %[7]s
cache: {profiles: %[8]d}
providers:
  targets:
    - {id: up, provider: openai, base_url: "http://%[9]s/v1"}
models:
  - {name: m, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 0, output: 0}}
  - {name: other, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 0, output: 0}}
limits: {lame_duck: 100ms, drain: 1s}
log: {level: info}
debug: {pprof: true}
`

// fleet is two replicas of a control plane over one database, and the gateways.
type fleet struct {
	t        *trial
	layout   layout
	up       *provider
	admin    *admin
	database string
	planes   [2]*plane
	balancer string
	between  *between // nil: none
	gateways []*gateway
}

// plane is a replica, over all its processes.
type plane struct {
	name, addr string
	child      *rig.Process
}

// gateway is one of the fleet, over all its processes.
type gateway struct {
	t         *trial
	name      string
	runtime   minted // its own token
	dir, conf string
	addr, ops string
	way       *relay // to its control plane
	child     *rig.Process
	quiet     bool
}

// layout says what fleet a scenario wants.
type layout struct {
	gateways     int
	fresh, stale time.Duration // fresh_for and max_stale
	profiles     []int         // cache.profiles of each gateway, in turn; none: 200,000
	between      bool          // all ask through a proxy that counts and mistreats
	quiet        bool          // what gateways log is not kept
	// before is run once the control plane serves and no gateway has begun.
	before func(ctx context.Context, f *fleet) error
}

// newFleet starts everything and waits until every gateway is ready.
func newFleet(ctx context.Context, t *trial, l layout) (*fleet, error) {
	if len(l.profiles) == 0 {
		l.profiles = []int{200_000}
	}
	f := &fleet{t: t, layout: l}
	var err error
	if f.database, err = t.pg.Database(); err != nil {
		return nil, err
	}
	if f.up, err = newProvider(t); err != nil {
		return nil, err
	}
	f.admin = newAdmin("", rand.Text())
	t.closers = append(t.closers, f.admin.client.CloseIdleConnections)
	for i := range f.planes {
		p := &plane{name: fmt.Sprintf("plane_%d", i+1)}
		if p.addr, err = f.t.ports.free(); err != nil {
			return nil, err
		}
		f.planes[i] = p
	}
	// Both at once: they migrate one empty database.
	if err := together(len(f.planes), len(f.planes), func(i int) error { return f.startPlane(ctx, f.planes[i]) }); err != nil {
		return nil, err
	}
	if err := f.startBalancer(ctx); err != nil {
		return nil, err
	}
	f.admin.url = "http://" + f.balancer
	plane := f.balancer
	if l.between {
		if f.between, plane, err = newBetween(t, f.balancer); err != nil {
			return nil, err
		}
	}
	for i := range l.gateways {
		g, err := f.add(ctx, fmt.Sprintf("gw_%d", i+1), plane)
		if err != nil {
			return nil, err
		}
		f.gateways = append(f.gateways, g)
	}
	if l.before != nil {
		if err := l.before(ctx, f); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if err := f.each(func(g *gateway) error { return g.start(ctx) }); err != nil {
		return nil, err
	}
	t.tell("%d gateways started in %.1f s", len(f.gateways), time.Since(began).Seconds())
	return f, nil
}

func (f *fleet) startPlane(ctx context.Context, p *plane) (err error) {
	p.child, err = f.t.start(p.name, []string{"KEEPTRUSTS_ADMIN_TOKEN=" + f.admin.bearer, "KEEPTRUSTS_DATABASE=" + f.database},
		f.t.binary, "control-plane", "--listen", p.addr)
	if err != nil {
		return err
	}
	return ready(ctx, p.child, "http://"+p.addr+"/readyz")
}

// add makes a gateway's token, way and configuration; it is not started.
func (f *fleet) add(ctx context.Context, id, plane string) (*gateway, error) {
	g := &gateway{t: f.t, name: id, dir: f.t.path(id), conf: f.t.path(id + ".yaml"), quiet: f.layout.quiet}
	var err error
	if g.addr, err = f.t.ports.free(); err != nil {
		return nil, err
	}
	if g.ops, err = f.t.ports.free(); err != nil {
		return nil, err
	}
	if g.way, err = newRelay(f.t, plane); err != nil {
		return nil, err
	}
	g.runtime, err = f.admin.mint(ctx, map[string]any{"name": id, "purpose": "gateway_runtime", "bindings": map[string]any{"gateway_id": id}})
	if err != nil {
		return nil, fmt.Errorf("runtime token: %w", err)
	}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return nil, err
	}
	l := f.layout
	text := fmt.Sprintf(gatewayConf, id, g.addr, g.ops, g.dir, g.way.addr(), l.fresh, l.stale, l.profiles[len(f.gateways)%len(l.profiles)], f.up.addr)
	return g, os.WriteFile(g.conf, []byte(text), 0o600)
}

// each runs fn for every gateway, some at once.
func (f *fleet) each(fn func(g *gateway) error) error {
	return together(len(f.gateways), 16, func(i int) error { return fn(f.gateways[i]) })
}

// launch starts the process and does not wait for it.
func (g *gateway) launch() (err error) {
	log := g.name
	if g.quiet {
		log = ""
	}
	g.child, err = g.t.start(log, []string{"KEEPTRUSTS_API_TOKEN=" + g.runtime.Token}, g.t.binary, "run", "-c", g.conf)
	return err
}

func (g *gateway) start(ctx context.Context) error {
	if err := g.launch(); err != nil {
		return err
	}
	return ready(ctx, g.child, "http://"+g.ops+"/readyz")
}

// ready says what /readyz answers.
func (g *gateway) ready(ctx context.Context) bool {
	_, err := get(ctx, "http://"+g.ops+"/readyz")
	return err == nil
}

func (g *gateway) agent() *agent { return &agent{addr: g.addr} }

// metric sums a metric of the gateway over those of its labels that hold all of with.
func (g *gateway) metric(ctx context.Context, name string, with ...string) (float64, error) {
	n, err := metric(ctx, "http://"+g.ops+"/metrics", name, with...)
	if err != nil {
		err = fmt.Errorf("%s: %w", g.name, err)
	}
	return n, err
}

func metric(ctx context.Context, url, name string, with ...string) (float64, error) {
	b, err := get(ctx, url)
	if err != nil {
		return 0, err
	}
	var sum float64
	found := false
lines:
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		found = true
		for _, w := range with {
			if !strings.Contains(rest, w) {
				continue lines
			}
		}
		var n float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
			return 0, fmt.Errorf("read %q: %w", line, err)
		}
		sum += n
	}
	if !found {
		return 0, fmt.Errorf("no metric %s", name)
	}
	return sum, nil
}

// signal stops both replicas, or lets them go on.
func (f *fleet) signal(s syscall.Signal) error {
	return errors.Join(f.planes[0].child.Signal(s), f.planes[1].child.Signal(s))
}

// usable waits until a token is taken on every gateway: it is in effect, and in use.
func (f *fleet) usable(ctx context.Context, tokens ...minted) error {
	return f.each(func(g *gateway) error {
		a := g.agent()
		defer a.close()
		for _, tok := range tokens {
			for deadline := time.Now().Add(5 * time.Second); ; rig.Pause(ctx, 20*time.Millisecond) {
				s := a.call(tok.Token)
				if s.ok() {
					break
				}
				if time.Now().After(deadline) || ctx.Err() != nil {
					return fmt.Errorf("%s does not take %s: %s (%v)", g.name, tok.ID, s.word(), s.err)
				}
			}
		}
		return nil
	})
}

// inSync waits until every gateway's watch is.
func (f *fleet) inSync(ctx context.Context, within time.Duration) error {
	deadline := time.Now().Add(within)
	return f.each(func(g *gateway) error {
		for {
			n, err := g.metric(ctx, "keeptrusts_gateway_watch_in_sync")
			if err == nil && n == 1 {
				return nil
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				return fmt.Errorf("%s is not in sync: %w", g.name, err)
			}
			rig.Pause(ctx, 50*time.Millisecond)
		}
	})
}

// lookUp asks what a token is, as a gateway does but through the balancer alone.
func (f *fleet) lookUp(ctx context.Context, g *gateway, d token.Digest) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.admin.url+"/v1/runtime/resolve", strings.NewReader(`{"sha256":"`+d.String()+`"}`))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+g.runtime.Token)
	req.Header.Set("Content-Type", "application/json")
	res, err := f.admin.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = &refusedError{"resolve", res.StatusCode, body}
	}
	return res.StatusCode, body, err
}
