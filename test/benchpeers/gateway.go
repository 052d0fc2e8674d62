package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	mintedTokens = 10_000
	minters      = 8
)

const gatewayConf = `gateway_id: gw_bench
listen: %[1]s
operations_listen: %[2]s
data_dir: %[3]s
control_plane:
  embedded: {listen: %[4]s}
  fresh_for: 10m # 10,000 tokens asked for again every 30 s would be measured instead
providers:
  targets:
    - id: openai-bench
      provider: openai
      base_url: http://%[5]s/v1
      secret_key_ref: {env: BENCH_PROVIDER_KEY}
models:
  - name: gpt-5.4-mini
    targets: [{id: openai-bench, model: gpt-5.4-mini}]
    context: 400000
    max_output: 128000
    price: {input: 0.25, cached_input: 0.025, output: 2.00}
limits: {lame_duck: 0s}
log: {level: info}
debug: {pprof: %[6]t}
`

// gateway is the peer that is ours, with what the others have not.
type gateway struct {
	peer
	child      *child
	operations string
	log        string // path of its log
}

// build makes the kt-gateway that is measured.
func (b *bench) build(ctx context.Context) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", b.binary(), "./cmd/kt-gateway")
	build.Dir = b.root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build kt-gateway: %w\n%s", err, out)
	}
	return nil
}

func (b *bench) binary() string { return filepath.Join(b.dir, "kt-gateway") }

// startGateway runs kt-gateway with an embedded control plane, and mints the tokens.
// Everything a deployment has is on: filters on every token, metrics, one log line a
// request; and with budgets, one of them in USD and rate limits on every token.
func startGateway(ctx context.Context, b *bench, name string, budgets int) (*gateway, error) {
	var addrs [3]string
	for i := range addrs {
		var err error
		if addrs[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(b.dir, name)
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, gatewayConf, addrs[0], addrs[1], data, addrs[2], b.mockAddr, b.pprof), 0o600); err != nil {
		return nil, err
	}
	admin := rand.Text()
	cmd := exec.Command(b.binary(), "run", "-c", conf)
	cmd.Env = append(withoutKeeptrusts(os.Environ()), "KEEPTRUSTS_ADMIN_TOKEN="+admin, "BENCH_PROVIDER_KEY="+providerKey)
	c, err := b.start(name, cmd, syscall.SIGTERM)
	if err != nil {
		return nil, err
	}
	g := &gateway{
		peer:  peer{name: name, addr: addrs[0], pids: []int{c.cmd.Process.Pid}},
		child: c, operations: addrs[1], log: c.log,
	}
	if err := c.accepts(g.addr); err != nil {
		return nil, err
	}
	if err := g.ready(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	if g.tokens, err = mint(ctx, "http://"+addrs[2], admin, budgets); err != nil {
		return nil, err
	}
	with := "without budgets or rate limits"
	if budgets > 0 {
		with = fmt.Sprintf("each with one of %d budgets in USD and rate limits", budgets)
	}
	fmt.Printf("%s: %d tokens minted in %.1f s, %s; fresh_for is 10m here, not 30s: no profile is asked for again\n",
		name, len(g.tokens), time.Since(began).Seconds(), with)
	return g, nil
}

// withoutKeeptrusts keeps the caller's settings from the gateway under test.
func withoutKeeptrusts(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, "KEEPTRUSTS_") {
			kept = append(kept, e)
		}
	}
	return kept
}

func (g *gateway) ready(ctx context.Context) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := get(ctx, "http://"+g.operations+"/readyz")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || !g.child.alive() {
			return fmt.Errorf("kt-gateway is not ready: %w\n%s", err, g.child.tail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// profile writes where the gateway's CPU goes for as long as a load settles and is
// measured.
func (g *gateway) profile(ctx context.Context, path string, seconds int) error {
	b, err := get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", g.operations, seconds+1))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
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

// mint asks for the tokens over HTTP, a few at a time.
func mint(ctx context.Context, plane, admin string, budgets int) ([]string, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: minters}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tokens := make([]string, mintedTokens)
	var all sync.WaitGroup
	for m := range minters {
		all.Go(func() {
			for i := m; i < len(tokens) && ctx.Err() == nil; i += minters {
				s, err := mintOne(ctx, client, plane, admin, profileOf(i, budgets))
				if err != nil {
					cancel(fmt.Errorf("mint a token: %w", err))
				}
				tokens[i] = s
			}
		})
	}
	all.Wait()
	return tokens, context.Cause(ctx)
}

// profileOf is what the i-th token is asked for as. Its limits are never reached.
func profileOf(i, budgets int) map[string]any {
	bindings := map[string]any{
		"providers": []string{"openai-*", "!openai-eu"},
		"models":    []string{"gpt-5.4-*", "!gpt-5.4-pro"},
	}
	if budgets > 0 {
		bindings["budgets"] = []map[string]string{{"id": fmt.Sprintf("b_bench_%d", i%budgets), "limit": "100000.00", "unit": "usd", "window": "day"}}
		bindings["rate_limits"] = map[string]int{"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000, "max_parallel_requests": 1000}
	}
	return map[string]any{"name": fmt.Sprintf("bench-%d", i), "purpose": "general", "bindings": bindings}
}

func mintOne(ctx context.Context, client *http.Client, plane, admin string, profile map[string]any) (string, error) {
	body, err := json.Marshal(profile)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, plane+"/v1/tokens", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+admin)
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusCreated || len(answer.Token) != len(placeholder) {
		return "", fmt.Errorf("status %d, a token of %d characters", res.StatusCode, len(answer.Token))
	}
	return answer.Token, nil
}

// accounted fails unless metrics and log tell of every request: a gateway that
// does less than it says would win for nothing.
func (g *gateway) accounted(ctx context.Context, requests int64) error {
	metrics, err := get(ctx, "http://"+g.operations+"/metrics")
	if err != nil {
		return err
	}
	var counted float64
	for line := range strings.Lines(string(metrics)) {
		if strings.HasPrefix(line, "keeptrusts_gateway_requests_total{") {
			var n float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
				return fmt.Errorf("read %q: %w", line, err)
			}
			counted += n
		}
	}
	g.child.end()
	log, err := os.ReadFile(g.log)
	if err != nil {
		return err
	}
	lines := int64(bytes.Count(log, []byte(`,"upstream_ms":`))) // only a data plane's line has it
	fmt.Printf("%s: %d requests answered, %.0f in the metrics, %d in the log\n", g.name, requests, counted, lines)
	if int64(counted) != requests || lines != requests {
		return fmt.Errorf("%s did not account for every request", g.name)
	}
	return nil
}
