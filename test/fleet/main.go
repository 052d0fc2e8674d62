// Command fleet runs a fleet of real binaries: two control-plane replicas on a
// PostgreSQL of their own, behind nginx as a TCP balancer, and as many gateways as
// it is told to. Each scenario prints its figures, each with its bound; one that is
// not within it fails the run. It is what `make fleet` runs.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/postgres"
	"github.com/keeptrusts/gateway/test/rig"
)

func main() { os.Exit(run()) }

// options are what the command line says.
type options struct {
	part     string
	only     string
	gateways int
	short    bool
	list     bool
	keep     bool
	verbose  bool
	binary   string
}

func run() int {
	var o options
	f := flag.NewFlagSet("fleet", flag.ContinueOnError)
	f.StringVar(&o.part, "part", "1/1", "i/n: the i-th of n shares of the scenarios")
	f.StringVar(&o.only, "only", "", "scenarios to run, by name, with commas")
	f.IntVar(&o.gateways, "gateways", 50, "how many gateways the machine carries")
	f.BoolVar(&o.short, "short", false, "3 gateways and small counts: what make test runs")
	f.BoolVar(&o.list, "list", false, "list the scenarios of the part")
	f.BoolVar(&o.keep, "keep", false, "keep the folder of logs and data")
	f.BoolVar(&o.verbose, "v", false, "tell what is going on")
	f.StringVar(&o.binary, "binary", "", "kt-gateway to run; by default it is built")
	if err := f.Parse(os.Args[1:]); err != nil {
		return 2
	}
	if o.short {
		o.gateways = 3
	}
	chosen, err := choose(scenarios(), o)
	if err == nil && o.gateways < 3 {
		err = errors.New("-gateways: a fleet is of 3 at least")
	}
	if err != nil || f.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "fleet:", errors.Join(err, unknown(f.Args())))
		return 2
	}
	if o.list {
		for _, s := range chosen {
			fmt.Printf("%-14s ≈ %3d s  %s\n", s.name, s.seconds, s.says)
		}
		return 0
	}
	if err := play(o, chosen); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		return 1
	}
	return 0
}

func unknown(args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("unknown arguments: %s", strings.Join(args, " "))
}

// play runs the scenarios, each with a fleet of its own: one after the other, and in the
// short form two at a time.
func play(o options, chosen []*scenario) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h, err := newHarness(ctx, o)
	if err != nil {
		return err
	}
	defer h.close()
	lanes := 1
	if o.short {
		lanes = 2
	}
	var mu sync.Mutex
	var failed []string
	began := time.Now()
	_ = together(len(chosen), lanes, func(i int) error {
		if ctx.Err() != nil {
			return nil
		}
		if t := h.once(ctx, chosen[i], lanes > 1); t.failed > 0 {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, chosen[i].name)
		}
		return nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fmt.Printf("%d of %d scenarios hold, in %.0f s\n", len(chosen)-len(failed), len(chosen), time.Since(began).Seconds())
	if len(failed) > 0 {
		h.keep = true
		return fmt.Errorf("FAILED: %s (logs and data in %s)", strings.Join(failed, ", "), h.dir)
	}
	return nil
}

// harness is what all scenarios share: a folder, a binary and a PostgreSQL server.
type harness struct {
	options
	dir    string
	binary string
	nginx  nginx
	pg     *postgres.Server
	ports  ports
	keep   bool
}

func newHarness(ctx context.Context, o options) (*harness, error) {
	balancer, err := findNginx()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		return nil, err
	}
	h := &harness{options: o, dir: dir, binary: o.binary, nginx: balancer, keep: o.keep}
	if h.binary == "" {
		if h.binary, err = rig.Build(ctx, dir); err != nil {
			h.close()
			return nil, err
		}
	}
	if h.pg, err = postgres.New("shared_buffers=512MB", "max_wal_size=4GB"); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *harness) close() {
	if h.pg != nil {
		h.pg.Stop()
	}
	if h.keep {
		fmt.Println("kept:", h.dir)
		return
	}
	if err := os.RemoveAll(h.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// once runs one scenario. What it prints comes as it happens, or in one piece at its end.
func (h *harness) once(ctx context.Context, s *scenario, whole bool) *trial {
	began := time.Now()
	t := &trial{harness: h, name: s.name, dir: filepath.Join(h.dir, s.name), out: os.Stdout}
	if whole {
		var b bytes.Buffer
		t.out = &b
		defer func() { _, _ = os.Stdout.Write(b.Bytes()) }()
	}
	defer t.close()
	t.print("── %s: %s\n", s.name, s.says)
	ctx, cancel := context.WithTimeout(ctx, max(4*time.Duration(s.seconds)*time.Second, 2*time.Minute))
	defer cancel()
	err := os.Mkdir(t.dir, 0o700)
	if err == nil {
		err = s.run(ctx, t)
	}
	if err != nil {
		t.fail("%v", err)
	}
	verdict := "ok"
	if t.failed > 0 {
		verdict = "FAILED"
	}
	t.print("   %s in %.0f s\n", verdict, time.Since(began).Seconds())
	return t
}
