// Command benchpeers weighs kt-gateway against nginx and a bare fasthttp proxy:
// each its own process on loopback in front of the same mock provider, in
// interleaved rounds, each by the kernel's clock of its process. It is what
// `make bench-peers` runs; no test, for no figure here is the same twice.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// What -gate asks of kt-gateway, as a part of what the bare proxy needs.
const (
	gateRequest = 1.30
	gateChunk   = 0.90
)

type options struct {
	seconds, rounds, conns, streams, rate, budgets int
	only, profile, budget                          string
	gate                                           bool
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) > 1 && (args[0] == "mock" || args[0] == "bare") {
		return report(serve(args))
	}
	var o options
	f := flag.NewFlagSet("benchpeers", flag.ContinueOnError)
	f.IntVar(&o.seconds, "seconds", 4, "of one measurement")
	f.IntVar(&o.rounds, "rounds", 5, "of every load on every peer")
	f.IntVar(&o.conns, "conns", 64, "connections that ask one request after the other")
	f.IntVar(&o.streams, "streams", 200, "at a time")
	f.IntVar(&o.rate, "rate", 2000, "requests a second of the paced load")
	f.StringVar(&o.only, "only", "", "request or stream: one kind of load")
	f.StringVar(&o.budget, "budget", "both", "on, off or both: whether kt-gateway's tokens have a budget in USD and rate limits; with both, a second one without is the peer \"plain\"")
	f.IntVar(&o.budgets, "budgets", 1000, fmt.Sprintf("that the %d tokens share evenly", mintedTokens))
	f.StringVar(&o.profile, "profile", "", "a folder for CPU profiles of kt-gateway under each load, taken after the rounds")
	f.BoolVar(&o.gate, "gate", false, fmt.Sprintf("fail above %.2f of the bare proxy's CPU a request, and %.2f a chunk", gateRequest, gateChunk))
	if err := f.Parse(args); err != nil {
		return 2
	}
	if !slices.Contains([]string{"on", "off", "both"}, o.budget) || f.NArg() > 0 || o.only != "" && o.only != "request" && o.only != "stream" || min(o.seconds, o.rounds, o.conns, o.streams, o.rate, o.budgets) < 1 {
		f.Usage()
		return 2
	}
	return report(compare(o))
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchpeers:", err)
		return 1
	}
	return 0
}

// serve is this program as the mock or the bare proxy. It ends with its parent.
func serve(args []string) error {
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if args[0] == "bare" {
		if len(args) != 3 {
			return errors.New("bare wants the provider's address")
		}
		return bare(ln, args[2])
	}
	return mock(ln)
}

// compare runs everything, and ends what it started whatever happens.
func compare(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	peers, gateways, err := b.startPeers(ctx, o)
	if err != nil {
		return err
	}
	t := &table{options: o, results: map[string][]result{}}
	if err := t.fill(ctx, peers); err != nil {
		return err
	}
	t.print()
	err = t.ratios()
	if o.profile != "" {
		err = errors.Join(err, t.profile(ctx, gateways[0]))
	}
	err = errors.Join(err, t.failures())
	for _, g := range gateways {
		err = errors.Join(err, g.accounted(ctx, t.answered(g.name)))
	}
	return err
}

func newBench(o options) (*bench, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	dir, err := os.MkdirTemp("", "benchpeers")
	if err != nil {
		return nil, err
	}
	return &bench{root: root, dir: dir, pprof: o.profile != ""}, nil
}

// startPeers starts all that is compared; the gateways are among the peers, kt first.
func (b *bench) startPeers(ctx context.Context, o options) ([]*peer, []*gateway, error) {
	var err error
	if _, b.mockAddr, err = b.startSelf("mock"); err != nil {
		return nil, nil, err
	}
	var peers []*peer
	nginx, err := startNginx(b)
	if err != nil {
		return nil, nil, err
	}
	if nginx == nil {
		fmt.Println("nginx: absent (no such program in PATH; Debian's package is nginx-light)")
	} else {
		peers = append(peers, nginx)
	}
	c, addr, err := b.startSelf("bare", b.mockAddr)
	if err != nil {
		return nil, nil, err
	}
	peers = append(peers, &peer{name: "bare", addr: addr, pids: []int{c.cmd.Process.Pid}, tokens: []string{placeholder}})
	if err := b.build(ctx); err != nil {
		return nil, nil, err
	}
	budgets := o.budgets
	if o.budget == "off" {
		budgets = 0
	}
	kt, err := startGateway(ctx, b, "kt", budgets)
	if err != nil {
		return nil, nil, err
	}
	gateways := []*gateway{kt}
	peers = append(peers, &kt.peer)
	if o.budget == "both" {
		without, err := startGateway(ctx, b, "plain", 0)
		if err != nil {
			return nil, nil, err
		}
		gateways = append(gateways, without)
		peers = append(peers, &without.peer)
	}
	return peers, gateways, nil
}

func (o *options) loads() []load {
	var all []load
	if o.only != "stream" {
		all = append(all, load{name: "closed", conns: o.conns}, load{name: "paced", conns: o.conns, rate: o.rate})
	}
	if o.only != "request" {
		all = append(all, load{name: "stream", conns: o.streams, stream: true})
	}
	return all
}

// profile puts each load on kt once more and has it say where its CPU goes.
func (t *table) profile(ctx context.Context, kt *gateway) error {
	for _, l := range t.options.loads() {
		taken := make(chan error, 1)
		go func() {
			taken <- kt.profile(ctx, filepath.Join(t.options.profile, "kt-"+l.name+".pprof"), t.options.seconds)
		}()
		r, err := measure(&kt.peer, &l, time.Duration(t.options.seconds)*time.Second)
		t.add(&kt.peer, &load{name: "profile"}, r)
		if err := errors.Join(err, <-taken); err != nil {
			return fmt.Errorf("profile: %w", err)
		}
	}
	return nil
}

// fill measures every load on every peer, round after round, so that whatever
// the machine does beside us meets all of them.
func (t *table) fill(ctx context.Context, peers []*peer) error {
	for _, p := range peers {
		warm := &load{name: "warm", conns: 16, count: max(2000, len(p.tokens))}
		r, err := measure(p, warm, 0)
		if err != nil {
			return err
		}
		t.add(p, warm, r)
	}
	for round := range t.options.rounds {
		for _, l := range t.options.loads() {
			for _, p := range peers {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				r, err := measure(p, &l, time.Duration(t.options.seconds)*time.Second)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				t.add(p, &l, r)
				fmt.Printf("round %d  %s\n", round+1, line(l, p.name, r))
			}
		}
	}
	return nil
}
