// Command wire shows that the data plane can't be fooled, hung or emptied: it puts
// the real binary between a client and a provider that both misbehave byte by byte,
// and prints a figure for each promise, with its bound. A figure beyond its bound
// fails the run. It is what `make wire` runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

func main() { os.Exit(run()) }

// options are what the command line says.
type options struct {
	part    string
	only    string
	short   bool
	list    bool
	keep    bool
	verbose bool
	binary  string
}

func run() int {
	var o options
	f := flag.NewFlagSet("wire", flag.ContinueOnError)
	f.StringVar(&o.part, "part", "1/1", "i/n: the i-th of n shares of the scenarios")
	f.StringVar(&o.only, "only", "", "scenarios to run, by name, with commas")
	f.BoolVar(&o.short, "short", false, "the quick scenarios, and less of each: what make test runs")
	f.BoolVar(&o.list, "list", false, "list the scenarios of the part")
	f.BoolVar(&o.keep, "keep", false, "keep the folder of logs and data")
	f.BoolVar(&o.verbose, "v", false, "tell what is going on")
	f.StringVar(&o.binary, "binary", "", "kt-gateway to try; by default it is built")
	provider := f.String("provide", "", "be the provider, on this address: what a scenario starts by itself")
	if err := f.Parse(os.Args[1:]); err != nil {
		return 2
	}
	if *provider != "" {
		fmt.Fprintln(os.Stderr, "wire:", provide(*provider))
		return 1
	}
	chosen, err := choose(scenarios(), o)
	if err != nil || f.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "wire:", errors.Join(err, unknown(f.Args())))
		return 2
	}
	if o.list {
		for _, s := range chosen {
			fmt.Printf("%-12s ≈ %3d s  %s\n", s.name, s.seconds, s.says)
		}
		return 0
	}
	if err := all(o, chosen); err != nil {
		fmt.Fprintln(os.Stderr, "wire:", err)
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

// all runs the scenarios one after the other, each with processes of its own.
func all(o options, chosen []*scenario) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h, err := newHarness(ctx, o)
	if err != nil {
		return err
	}
	defer h.close()
	var failed []string
	began := time.Now()
	for _, s := range chosen {
		if !h.once(ctx, s) {
			failed = append(failed, s.name)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	fmt.Printf("%d of %d scenarios hold, in %.0f s\n", len(chosen)-len(failed), len(chosen), time.Since(began).Seconds())
	if len(failed) > 0 {
		h.keep = true
		return fmt.Errorf("failed: %s (logs and data in %s)", strings.Join(failed, ", "), h.dir)
	}
	return nil
}

// harness is what all scenarios share: a folder and a binary.
type harness struct {
	options
	dir    string
	binary string
	keep   bool
}

func newHarness(ctx context.Context, o options) (*harness, error) {
	dir, err := os.MkdirTemp("", "wire")
	if err != nil {
		return nil, err
	}
	h := &harness{options: o, dir: dir, binary: o.binary, keep: o.keep}
	if h.binary != "" {
		return h, nil
	}
	if h.binary, err = rig.Build(ctx, dir); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *harness) close() {
	if h.keep {
		fmt.Println("kept:", h.dir)
		return
	}
	if err := os.RemoveAll(h.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// once runs one scenario and says whether every figure of it is within its bound.
func (h *harness) once(ctx context.Context, s *scenario) bool {
	began := time.Now()
	fmt.Printf("── %s: %s\n", s.name, s.says)
	t := &trial{harness: h, name: s.name, dir: filepath.Join(h.dir, s.name)}
	defer t.close()
	ctx, cancel := context.WithTimeout(ctx, max(3*time.Duration(s.seconds)*time.Second, 2*time.Minute))
	defer cancel()
	err := os.Mkdir(t.dir, 0o700)
	if err == nil {
		err = s.run(ctx, t)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && t.figures == 0 {
		err = errors.New("it showed nothing")
	}
	if err != nil {
		t.miss("%v", err)
	}
	t.settle()
	fmt.Printf("   %.0f s\n", time.Since(began).Seconds())
	return t.missed == 0
}
