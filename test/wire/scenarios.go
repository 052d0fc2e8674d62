package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/keeptrusts/gateway/test/rig"
)

// scenario is one promise of the wire, put to the test.
type scenario struct {
	name    string
	says    string
	seconds int  // that it takes in the long form, about: parts are cut by it
	short   bool // belongs to the short form too
	run     func(context.Context, *trial) error
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

	mu       sync.Mutex
	children []*rig.Process
	closers  []func()
	figures  int
	missed   int
}

// figure prints one figure beside its bound, and fails the scenario where it is
// beyond it.
func (t *trial) figure(ok bool, bound, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.figures++
	verdict := "ok    "
	if !ok {
		verdict = "FAILED"
		t.missed++
	}
	fmt.Printf("   %s "+format+" (%s)\n", append(append([]any{verdict}, args...), bound)...)
}

const shown = 12 // misses that are printed; more of them say no more

// miss prints what is not as it must be.
func (t *trial) miss(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.missed++; t.missed <= shown {
		fmt.Printf("   FAILED "+format+"\n", args...)
	}
}

func (t *trial) settle() {
	if t.missed > shown {
		fmt.Printf("   FAILED and %d more\n", t.missed-shown)
	}
}

func (t *trial) tell(format string, args ...any) {
	if t.verbose {
		fmt.Printf("     · "+format+"\n", args...)
	}
}

// count is the long form's number, or the short one's.
func (t *trial) count(long, short int) int {
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
	if t.missed == 0 && !t.keep {
		_ = os.RemoveAll(t.dir) // the harness removes what is left
	}
}

func (t *trial) path(name string) string { return filepath.Join(t.dir, name) }

func scenarios() []*scenario {
	return []*scenario{
		{"framing", "requests that two parsers read in two ways, with the provider as the witness", 5, true, framing},
		{"bodies", "JSON over which parsers part; Python reads at the provider", 5, true, bodies},
		{"credentials", "tokens in every header and query that some parser would take", 5, true, credentials},
		{"headers", "both allow-lists, header by header", 5, true, headers},
		{"errors", "every error of the table: its shape, its headers, its connection; and the provider's key in its errors", 15, true, refusals},
		{"expect", "bodies that are not wanted: not asked for, not read, and their client is told", 5, true, expect},
		{"aborted", "clients that leave by FIN and RST, before a head and mid-stream, with bytes of a next request", 30, true, aborted},
		{"cut", "upstreams that die at every point of an answer; and sound answers in odd dress", 10, true, cut},
		{"fuzz", "garbage that is almost sound, in heads and bodies", 15, true, fuzz},
		{"delay", "what the gateway adds to the way of an event", 15, false, delay},
		{"memory", "as many idle streams as descriptors allow", 25, false, memory},
		{"rolling", "three gateways replaced one after the other under calls and streams", 60, false, rolling},
		{"certificate", "the control plane's certificate swapped under handshakes", 20, true, certificate},
		{"slow", "slowhttptest's slow heads, bodies and readers, 4,000 connections each, beside ordinary calls", 250, false, slow},
		{"sinks", "a log, a record sink and a control plane that fail for a minute at full rate: memory", 270, false, sinks},
		{"flood", "one address or one token takes what it can of a limit: another's calls", 90, false, flood},
		{"times", "either side late, or slow without being late; comments on a silent stream", 45, false, times},
	}
}
