package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// testcase is one way of mistreating budgets.
type testcase struct {
	name    string
	says    string
	seconds int  // that it takes in the long form, about: parts are cut by it
	short   bool // belongs to the short form too
	run     func(context.Context, *trial) error
}

func cases() []*testcase {
	return []*testcase{
		{"exact", "one gateway, a budget of 10 requests and one of $0.10 at $0.01, 200 at once, whole and streamed", 25, true, exact},
		{"fleet", "3 gateways, 400 at once, limit 1,000 and cost 10: exactly 100", 50, true, fleetEqual},
		{"fleet-wide", "the same with holds above the cost: never over, and 100 when the refused come again", 150, true, fleetWide},
		{"fleet-windows", "the same with a budget a day and one a month", 12, true, fleetWindows},
		{"fleet-nested", "the same with own, team's and org's budgets at once", 35, true, fleetNested},
		{"endings", "abnormal endings of every kind: nothing stays held, the last unit is spendable", 30, true, endings},
		{"killed", "a random gateway of 3 killed with -9 every 2 s under load", 75, false, killed},
		{"journal", "the journal cut at any byte, or damaged: never charged less than was used", 55, false, journalCut},
		{"plane-killed", "the control plane killed with -9 under load: no charge lost or doubled", 55, false, planeKilled},
		{"copies", "every lease call and settlement copied, delayed, reordered or lost", 30, false, copies},
		{"leaves", "a client leaves after k of 100 chunks", 25, false, leaves},
		{"storm", "200 agents that abort and ask again", 40, false, storm},
		{"steady", "lease calls of a gateway in the steady state", 120, false, steady},
	}
}

// choose takes the cases that are asked for, and of those the part's.
func choose(all []*testcase, o options) ([]*testcase, error) {
	if o.only != "" {
		var chosen []*testcase
		for name := range strings.SplitSeq(o.only, ",") {
			i := slices.IndexFunc(all, func(c *testcase) bool { return c.name == name })
			if i < 0 {
				return nil, fmt.Errorf("no case is called %q", name)
			}
			chosen = append(chosen, all[i])
		}
		all = chosen
	} else if o.short {
		all = slices.DeleteFunc(all, func(c *testcase) bool { return !c.short })
	}
	var i, n int
	if _, err := fmt.Sscanf(o.part+" ", "%d/%d ", &i, &n); err != nil || i < 1 || i > n {
		return nil, fmt.Errorf("-part is i/n with i from 1 to n, not %q", o.part)
	}
	return share(all, i-1, n), nil
}

// share gives the longest case left to the part that has least so far.
func share(all []*testcase, part, parts int) []*testcase {
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b *testcase) int { return b.seconds - a.seconds })
	sums := make([]int, parts)
	mine := map[*testcase]bool{}
	for _, c := range order {
		least := slices.Index(sums, slices.Min(sums))
		sums[least] += c.seconds
		mine[c] = least == part
	}
	return slices.DeleteFunc(slices.Clone(all), func(c *testcase) bool { return !mine[c] })
}

// trial is one run of one case: its folder, its processes and its verdict.
type trial struct {
	*harness
	name string
	dir  string

	mu       sync.Mutex
	children []*child
	closers  []func()
	missed   int
}

// figure prints what the case showed.
func (t *trial) figure(format string, args ...any) {
	fmt.Printf("   "+format+"\n", args...)
}

// miss prints what is not as it must be.
func (t *trial) miss(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.missed++; t.missed <= 12 {
		fmt.Printf("   NOT MET: "+format+"\n", args...)
	}
}

// must fails the case unless ok.
func (t *trial) must(ok bool, format string, args ...any) {
	if !ok {
		t.miss(format, args...)
	}
}

func (t *trial) tell(format string, args ...any) {
	if t.verbose {
		fmt.Printf("     · "+format+"\n", args...)
	}
}

// runs is how often an exact case is repeated.
func (t *trial) runs() int {
	if t.short {
		return 3
	}
	return 20
}

// close ends every process, the last first.
func (t *trial) close() {
	for _, f := range slices.Backward(t.closers) {
		f()
	}
	for _, c := range slices.Backward(t.children) {
		c.kill()
	}
	if t.missed == 0 && !t.keep {
		_ = os.RemoveAll(t.dir) // the harness removes what is left
	}
}

func (t *trial) path(name string) string { return filepath.Join(t.dir, name) }
