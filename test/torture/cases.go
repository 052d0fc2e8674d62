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

// testcase is one way of mistreating budgets.
type testcase struct {
	name  string
	says  string
	takes [2]int // seconds in the long form, about, over SQLite and over PostgreSQL: parts are cut by it; 0: it is not for that
	short [2]bool
	run   func(context.Context, *trial) error
}

func cases() []*testcase {
	never, small, both := [2]bool{}, [2]bool{true, false}, [2]bool{true, true}
	return []*testcase{
		{"exact", "one gateway, a budget of 10 requests and one of $0.10 at $0.01, 200 at once, whole and streamed", [2]int{25, 40}, small, exact},
		{"fleet", "3 gateways, 400 at once, limit 1,000 and cost 10: exactly 100", [2]int{50, 60}, small, fleetEqual},
		{"fleet-wide", "the same with holds above the cost: never over, and 100 when the refused come again", [2]int{150, 160}, small, fleetWide},
		{"fleet-windows", "the same with a budget a day and one a month", [2]int{12, 20}, small, fleetWindows},
		{"fleet-nested", "the same with own, team's and org's budgets at once", [2]int{35, 45}, small, fleetNested},
		{"fleet-apart", "2 gateways, each at a replica of its own, the idle money at the one where nobody calls: exactly 100", [2]int{0, 30}, never, fleetApart},
		{"troubled", "3 gateways, 400 at the limit, while the control plane or its database dies: exactly 100 in the end", [2]int{80, 120}, both, troubled},
		{"endings", "abnormal endings of every kind: nothing stays held, the last unit is spendable", [2]int{30, 60}, both, endings},
		{"killed", "a random gateway of 3 killed with -9 every 2 s under load", [2]int{75, 95}, never, killed},
		{"journal", "the journal cut at any byte, or damaged: never charged less than was used", [2]int{55, 90}, never, journalCut},
		{"plane-killed", "the control plane killed with -9 under load: no charge lost or doubled", [2]int{55, 60}, never, planeKilled},
		{"copies", "every lease call and settlement copied, delayed, reordered or lost", [2]int{30, 45}, never, copies},
		{"leaves", "a client leaves after k of 100 chunks", [2]int{25, 30}, never, leaves},
		{"storm", "200 agents that abort and ask again", [2]int{40, 45}, never, storm},
		{"steady", "lease calls of a gateway in the steady state", [2]int{120, 130}, never, steady},
	}
}

// job is a case over one database.
type job struct {
	*testcase
	database string
}

func (j job) String() string { return j.name + " (" + j.database + ")" }

func (j job) place() int { return slices.Index(databases, j.database) }

func (j job) seconds() int { return j.takes[j.place()] }

// databases are those that there are, in the order of a testcase's pairs.
var databases = []string{onSQLite, onPostgres}

// choose takes the cases that are asked for, and of those the part's.
func choose(all []*testcase, o options) ([]job, error) {
	if o.database != "" && !slices.Contains(databases, o.database) {
		return nil, fmt.Errorf("-database is sqlite or postgres, not %q", o.database)
	}
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
	}
	var jobs []job
	for i, database := range databases {
		for _, c := range all {
			if c.takes[i] > 0 && (o.database == "" || o.database == database) && (!o.short || o.only != "" || c.short[i]) {
				jobs = append(jobs, job{c, database})
			}
		}
	}
	return rig.Part(jobs, o.part, func(s job) int { return s.seconds() })
}

// trial is one run of one case: its folder, its processes and its verdict.
type trial struct {
	*harness
	name     string
	database string
	dir      string
	planes   []*plane

	mu       sync.Mutex
	children []*rig.Process
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
		c.Kill()
	}
	if t.missed == 0 && !t.keep {
		_ = os.RemoveAll(t.dir) // the harness removes what is left
	}
}

func (t *trial) path(name string) string { return filepath.Join(t.dir, name) }
