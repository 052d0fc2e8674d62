package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// The models of the gateways' config, by what they cost. A unit is 1,000 nano-USD:
// a million tokens of "metered" are one dollar.
const (
	cent    = "cent"    // $0.01 a call
	ten     = "ten"     // $10 a call
	metered = "metered" // output alone, a unit a token
	priced  = "priced"  // input 1, output 2 and a call 1,000 units
	plain   = "plain"   // priced, by a target that tells no usage in streams
	refused = "refused" // priced, by a target where nobody listens
)

// unit is what an output token of "metered" costs, in nano-USD.
const unit = 1000

const gatewayConf = `gateway_id: %[1]s
listen: %[2]s
operations_listen: %[3]s
data_dir: %[4]s
control_plane:
  %[5]s
providers:
  targets:
    - {id: up, provider: openai, base_url: "http://%[6]s/v1"}
    - {id: plain, provider: openai, base_url: "http://%[6]s/v1", stream_usage: false}
    - {id: down, provider: openai, base_url: "http://127.0.0.1:9/v1"}
models:
  - {name: cent, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 0, output: 0, request: 0.01}}
  - {name: ten, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 0, output: 0, request: 10}}
  - {name: metered, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 0, output: 1}}
  - {name: priced, targets: [{id: up}], context: 8000, max_output: 1000, price: {input: 1, output: 2, request: 0.001}}
  - {name: plain, targets: [{id: plain}], context: 8000, max_output: 1000, price: {input: 1, output: 2, request: 0.001}}
  - {name: refused, targets: [{id: down}], context: 8000, max_output: 1000, price: {input: 1, output: 2, request: 0.001}}
limits: {first_byte: %[7]s, upstream_idle: %[7]s, lame_duck: 100ms, drain: %[8]s}
log: {level: info}
`

// fleet is a control plane with its gateways, or one gateway that has its own.
type fleet struct {
	t        *trial
	up       *upstream
	admin    *admin
	gateways []*gateway
	plane    *plane // nil: embedded
}

// gateway is one of the fleet, over all its processes.
type gateway struct {
	t         *trial
	name      string
	dir, conf string
	env       []string
	addr, ops string
	child     *rig.Process
}

// layout says what fleet a case wants.
type layout struct {
	gateways int           // 0: one, with its own control plane where that is over SQLite
	silence  time.Duration // after which an upstream is given up
	drain    time.Duration // after which streams are cut
	apart    bool          // each gateway at a replica of its own, not at the balancer
	between  func(plane string) (string, error)
}

func newFleet(ctx context.Context, t *trial, l layout) (*fleet, error) {
	if l.silence == 0 {
		l.silence = 30 * time.Second
	}
	if l.drain == 0 {
		l.drain = time.Second
	}
	up, err := newUpstream(t)
	if err != nil {
		return nil, err
	}
	f := &fleet{t: t, up: up}
	bearer := rand.Text()
	if l.gateways == 0 && t.database == onSQLite {
		return f, f.alone(ctx, bearer, l)
	}
	if f.plane, err = newPlane(ctx, t, bearer); err != nil {
		return nil, err
	}
	f.administer(f.plane.addr, bearer)
	seen := f.plane.addr
	if l.between != nil {
		if seen, err = l.between(seen); err != nil {
			return nil, err
		}
	}
	for i := range max(l.gateways, 1) {
		id := fmt.Sprintf("gw_%d", i+1)
		runtime, err := f.admin.mint(ctx, minting{gateway: id})
		if err != nil {
			return nil, fmt.Errorf("runtime token: %w", err)
		}
		if l.apart {
			seen = f.plane.replicas[i%len(f.plane.replicas)].addr
		}
		g, err := f.add(id, `{url: "http://`+seen+`", token: {secret_key_ref: {env: KEEPTRUSTS_API_TOKEN}}}`, l)
		if err != nil {
			return nil, err
		}
		g.env = []string{"KEEPTRUSTS_API_TOKEN=" + runtime.Token}
		if err := g.start(ctx); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// alone starts one gateway that has its own control plane.
func (f *fleet) alone(ctx context.Context, bearer string, l layout) error {
	addr, err := rig.FreeAddr()
	if err != nil {
		return err
	}
	f.administer(addr, bearer)
	g, err := f.add("gw_alone", "embedded: {listen: "+addr+"}", l)
	if err != nil {
		return err
	}
	g.env = []string{"KEEPTRUSTS_ADMIN_TOKEN=" + bearer}
	return g.start(ctx)
}

func (f *fleet) administer(addr, bearer string) {
	f.admin = newAdmin("http://"+addr, bearer)
	f.t.closers = append(f.t.closers, f.admin.client.CloseIdleConnections)
}

// add writes a gateway's config.
func (f *fleet) add(id, plane string, l layout) (*gateway, error) {
	g := &gateway{t: f.t, name: id, dir: f.t.path(id), conf: f.t.path(id + ".yaml")}
	var err error
	if g.addr, err = rig.FreeAddr(); err != nil {
		return nil, err
	}
	if g.ops, err = rig.FreeAddr(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return nil, err
	}
	f.gateways = append(f.gateways, g)
	text := fmt.Sprintf(gatewayConf, id, g.addr, g.ops, g.dir, plane, f.up.addr, l.silence, l.drain)
	return g, os.WriteFile(g.conf, []byte(text), 0o600)
}

func (g *gateway) start(ctx context.Context) (err error) {
	if g.child, err = g.t.start(g.name, g.env, "run", "-c", g.conf); err != nil {
		return err
	}
	return ready(ctx, g.child, "http://"+g.ops+"/readyz")
}

// ready waits until url answers 200.
func ready(ctx context.Context, c *rig.Process, url string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := get(ctx, url)
		if err == nil {
			return nil
		}
		if !c.Alive() || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", c.Name, err, c.Tail())
		}
		rig.Pause(ctx, 20*time.Millisecond)
	}
}

// knows waits until a gateway knows a token, a second at most from its minting on.
func (g *gateway) knows(ctx context.Context, t token) error {
	for {
		_, err := getAs(ctx, t.Token, "http://"+g.addr+"/v1/models")
		if err == nil {
			return nil
		}
		if time.Since(t.minted) > time.Second || ctx.Err() != nil {
			return fmt.Errorf("%s does not know a token %s after it was minted: %w", g.name, time.Since(t.minted).Round(time.Millisecond), err)
		}
		rig.Pause(ctx, 10*time.Millisecond)
	}
}

func get(ctx context.Context, url string) ([]byte, error) { return getAs(ctx, "", url) }

func getAs(ctx context.Context, bearer, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, res.StatusCode)
	}
	return b, err
}

// metric sums a metric of the gateway over its labels.
func (g *gateway) metric(ctx context.Context, name string) (float64, error) {
	b, err := get(ctx, "http://"+g.ops+"/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	found := false
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "keeptrusts_gateway_"+name)
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
		return 0, fmt.Errorf("%s has no metric %s", g.name, name)
	}
	return sum, nil
}

// held waits at most d until no gateway holds anything, and says what is left.
func (f *fleet) held(ctx context.Context, d time.Duration) (holds, open float64, err error) {
	for deadline := time.Now().Add(d); ; rig.Pause(ctx, 20*time.Millisecond) {
		holds, open = 0, 0
		for _, g := range f.gateways {
			h, err := g.metric(ctx, "budget_holds")
			if err != nil {
				return 0, 0, err
			}
			o, err := g.metric(ctx, "open_requests")
			if err != nil {
				return 0, 0, err
			}
			holds, open = holds+h, open+o
		}
		if holds+open == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return holds, open, nil
		}
	}
}

// settled waits at most d until the budgets show what they must, and returns what
// they show. Standings are visible within 3 s.
func (f *fleet) settled(ctx context.Context, d time.Duration, ok func(map[string]standing) bool) (map[string]standing, error) {
	for deadline := time.Now().Add(d); ; rig.Pause(ctx, 200*time.Millisecond) {
		all, err := f.admin.budgets(ctx)
		if err != nil || ok(all) || time.Now().After(deadline) || ctx.Err() != nil {
			return all, err
		}
	}
}
