// Command torture mistreats budgets that are held by real binaries: gateways and a
// control plane, one process over SQLite or two replicas over PostgreSQL, in front of
// a provider that knows what it was truly used for. Each case prints its figures; a figure that is not what it must be fails the
// run. It is what `make torture-budgets` runs.
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

	"github.com/keeptrusts/gateway/test/postgres"
	"github.com/keeptrusts/gateway/test/rig"
)

func main() { os.Exit(run()) }

// options are what the command line says.
type options struct {
	part     string
	only     string
	database string
	short    bool
	list     bool
	keep     bool
	verbose  bool
	binary   string
}

func run() int {
	var o options
	f := flag.NewFlagSet("torture", flag.ContinueOnError)
	f.StringVar(&o.part, "part", "1/1", "i/n: the i-th of n shares of the cases")
	f.StringVar(&o.only, "only", "", "cases to run, by name, with commas")
	f.StringVar(&o.database, "database", "", "sqlite or postgres; by default both")
	f.BoolVar(&o.short, "short", false, "few runs and few endings, and of PostgreSQL a small share: what make test runs")
	f.BoolVar(&o.list, "list", false, "list the cases of the part")
	f.BoolVar(&o.keep, "keep", false, "keep the folder of logs and data")
	f.BoolVar(&o.verbose, "v", false, "tell what is going on")
	f.StringVar(&o.binary, "binary", "", "kt-gateway to torture; by default it is built")
	if err := f.Parse(os.Args[1:]); err != nil {
		return 2
	}
	chosen, err := choose(cases(), o)
	if err != nil || f.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "torture:", errors.Join(err, unknown(f.Args())))
		return 2
	}
	if o.list {
		for _, c := range chosen {
			fmt.Printf("%-24s ≈ %3d s  %s\n", c, c.seconds(), c.says)
		}
		return 0
	}
	if err := torture(o, chosen); err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
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

// torture runs the cases one after the other, each with processes of its own.
func torture(o options, chosen []job) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h, err := newHarness(ctx, o)
	if err != nil {
		return err
	}
	defer h.close()
	var failed []string
	began := time.Now()
	for _, c := range chosen {
		if !h.once(ctx, c) {
			failed = append(failed, c.String())
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	fmt.Printf("%d of %d cases hold, in %.0f s\n", len(chosen)-len(failed), len(chosen), time.Since(began).Seconds())
	if len(failed) > 0 {
		h.keep = true
		return fmt.Errorf("not met: %s (logs and data in %s)", strings.Join(failed, ", "), h.dir)
	}
	return nil
}

// harness is what all cases share: a folder, a binary, and PostgreSQL's server.
type harness struct {
	options
	dir    string
	binary string
	keep   bool
	server *postgres.Server // nil: nobody has needed it
}

func newHarness(ctx context.Context, o options) (*harness, error) {
	dir, err := os.MkdirTemp("", "torture")
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

// cluster is PostgreSQL's server, in which each trial has a database of its own.
func (h *harness) cluster() (server *postgres.Server, err error) {
	if h.server == nil {
		h.server, err = postgres.New()
	}
	return h.server, err
}

func (h *harness) close() {
	if h.server != nil {
		h.server.Stop()
	}
	if h.keep {
		fmt.Println("kept:", h.dir)
		return
	}
	if err := os.RemoveAll(h.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// once runs one case and says whether every figure of it is met.
func (h *harness) once(ctx context.Context, c job) bool {
	began := time.Now()
	fmt.Printf("── %s: %s\n", c, c.says)
	t := &trial{harness: h, name: c.name, database: c.database, dir: filepath.Join(h.dir, c.name+"-"+c.database)}
	defer t.close()
	ctx, cancel := context.WithTimeout(ctx, max(4*time.Duration(c.seconds())*time.Second, 2*time.Minute))
	defer cancel()
	err := os.Mkdir(t.dir, 0o700)
	if err == nil {
		err = c.run(ctx, t)
	}
	for _, p := range t.planes {
		err = errors.Join(err, p.account())
	}
	if err != nil {
		t.miss("%v", err)
	}
	verdict := "met"
	if t.missed > 0 {
		verdict = "NOT MET"
	}
	fmt.Printf("   %s, %.0f s\n", verdict, time.Since(began).Seconds())
	return t.missed == 0
}
