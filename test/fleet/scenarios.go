package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// scenario is one thing that a fleet goes through.
type scenario struct {
	name    string
	says    string
	seconds int  // that it takes in the long form, about: parts are cut by it
	short   bool // belongs to the short form too
	run     func(context.Context, *trial) error
}

func scenarios() []*scenario {
	return []*scenario{
		{"revoke", "a token in use on every gateway is revoked: until when is it taken?", 170, true, revoke},
		{"cold-race", "the first request of a cold token at the moment of its revocation", 130, true, coldRace},
		{"flood-restart", "revoked, then a flood, stale answers, kill -9 and a restart in an outage: nothing comes back", 75, true, floodRestart},
		{"watch-cut", "watches cut at random offsets during edits, a replica killed: every gateway knows what the control plane does", 150, true, watchCut},
		{"restart", "gateways started anew in an outage, from their snapshot or from what is none", 180, true, restart},
		{"million", "1,000,000 tokens in PostgreSQL, 200,000 of them hot in one gateway", 170, false, million},
		{"unknowns", "tokens that are nobody's, by the thousand a second", 140, false, unknowns},
		{"one-load", "many at once on one cold token", 20, true, oneLoad},
		{"outage", "both replicas stopped: what is served, until when, and after", 65, true, outage},
	}
}

// choose takes the scenarios that are asked for, and of those the part's.
func choose(all []*scenario, o options) ([]*scenario, error) {
	if o.only != "" {
		var chosen []*scenario
		for name := range strings.SplitSeq(o.only, ",") {
			i := slices.IndexFunc(all, func(s *scenario) bool { return s.name == name })
			if i < 0 {
				return nil, fmt.Errorf("no scenario is called %q", name)
			}
			chosen = append(chosen, all[i])
		}
		all = chosen
	} else if o.short {
		all = slices.DeleteFunc(all, func(s *scenario) bool { return !s.short })
	}
	return rig.Part(all, o.part, func(s *scenario) int { return s.seconds })
}

// trial is one run of one scenario: its folder, its processes and its verdict.
type trial struct {
	*harness
	name string
	dir  string
	out  io.Writer

	mu       sync.Mutex
	children []*rig.Process
	closers  []func()
	failed   int
}

func (t *trial) print(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, format, args...)
}

// figure prints what has no bound.
func (t *trial) figure(what, format string, args ...any) {
	t.print("          %s: %s\n", what, fmt.Sprintf(format, args...))
}

// within prints a figure beside its bound, and fails the scenario unless ok.
func (t *trial) within(ok bool, what, bound, format string, args ...any) {
	verdict := "ok    "
	if !ok {
		verdict = "FAILED"
		t.mu.Lock()
		t.failed++
		t.mu.Unlock()
	}
	t.print("   %s %s: %s (%s)\n", verdict, what, fmt.Sprintf(format, args...), bound)
}

// none is within for a count that must be 0.
func (t *trial) none(n int, what string) { t.within(n == 0, what, "0", "%d", n) }

// fail prints what keeps the scenario from its figures, or what is behind one.
func (t *trial) fail(format string, args ...any) {
	t.mu.Lock()
	t.failed++
	n := t.failed
	t.mu.Unlock()
	if n <= 12 {
		t.print("   FAILED "+format+"\n", args...)
	}
}

func (t *trial) tell(format string, args ...any) {
	if t.verbose {
		t.print("     · %s "+format+"\n", append([]any{time.Now().Format("15:04:05.000")}, args...)...)
	}
}

// of is long, or short in the short form.
func of[T any](t *trial, long, short T) T {
	if t.short {
		return short
	}
	return long
}

// close ends every process, the last first.
func (t *trial) close() {
	for _, f := range slices.Backward(t.closers) {
		f()
	}
	for _, c := range slices.Backward(t.children) {
		c.Kill()
	}
	if t.failed == 0 && !t.keep {
		_ = os.RemoveAll(t.dir) // the harness removes what is left
	}
}

func (t *trial) path(name string) string { return filepath.Join(t.dir, name) }
