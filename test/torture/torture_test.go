package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

func TestEveryCaseIsInExactlyOnePart(t *testing.T) {
	for n := 1; n <= 20; n++ {
		seen := map[string]int{}
		for i := range n {
			mine, err := choose(cases(), options{part: fmt.Sprintf("%d/%d", i+1, n)})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range mine {
				seen[c.String()]++
			}
		}
		for _, c := range cases() {
			for i, database := range databases {
				if j := (job{c, database}); seen[j.String()] != min(c.takes[i], 1) {
					t.Errorf("of %d parts, %d have %s", n, seen[j.String()], j)
				}
			}
		}
	}
}

func TestAPartOfFourFitsIntoEightMinutes(t *testing.T) {
	for i := range 4 {
		mine, err := choose(cases(), options{part: fmt.Sprintf("%d/4", i+1)})
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, c := range mine {
			sum += c.seconds()
		}
		if sum > 8*60 || sum == 0 {
			t.Errorf("part %d/4: %d s", i+1, sum)
		}
	}
}

func TestOneDatabaseIsChosenOrBothAre(t *testing.T) {
	for _, tc := range []struct {
		give options
		want string
	}{
		{options{only: "exact,storm"}, "exact (sqlite) storm (sqlite) exact (postgres) storm (postgres)"},
		{options{only: "exact,storm", database: onPostgres}, "exact (postgres) storm (postgres)"},
		{options{only: "storm", database: onSQLite, short: true}, "storm (sqlite)"},
		{options{database: onPostgres, short: true}, "troubled (postgres) endings (postgres)"},
	} {
		tc.give.part = "1/1"
		mine, err := choose(cases(), tc.give)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, j := range mine {
			names = append(names, j.String())
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%+v: %s; want %s", tc.give, got, tc.want)
		}
	}
}

func TestWrongPartsAndCasesAreRefused(t *testing.T) {
	for _, o := range []options{{part: "0/1"}, {part: "2/1"}, {part: "1"}, {part: "1/2/3"}, {part: "x/y"}, {part: "1/1", only: "nothing"}, {part: "1/1", database: "oracle"}} {
		if chosen, err := choose(cases(), o); err == nil {
			t.Errorf("%+v: %d cases", o, len(chosen))
		}
	}
}

// provider is the scripted upstream, asked without a gateway between.
func provider(t *testing.T) *upstream {
	mine := &trial{harness: &harness{}, dir: t.TempDir()}
	t.Cleanup(mine.close)
	u, err := newUpstream(mine)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestTheProviderDoesWhatItsScriptSaysAndKnowsWhatItBills(t *testing.T) {
	u := provider(t)
	for _, tc := range []struct {
		name   string
		give   call
		word   string
		chunks int
		billed served
	}{
		{"whole", call{leaving: stays, script: script{do: "whole", input: 3, output: 7}}, "200", 0, served{calls: 1, input: 3, output: 7}},
		{"limited", call{limit: 5, leaving: stays, script: script{do: "whole", output: 7}}, "200", 0, served{calls: 1, output: 5, limit: 5}},
		{"stream", call{stream: true, usage: true, leaving: stays, script: script{do: "stream", input: 3, output: 7}}, "200", 7, served{calls: 1, input: 3, output: 7}},
		{"usage of zero", call{stream: true, leaving: stays, script: script{do: "stream", input: 3, output: 7, usage: "zero"}}, "200", 7, served{calls: 1}},
		{"error", call{leaving: stays, script: script{do: "error", status: 500, usage: "none", input: 3}}, "500", 0, served{calls: 1}},
		{"error with usage", call{leaving: stays, script: script{do: "error", status: 400, input: 3, output: 1}}, "400", 0, served{calls: 1, input: 3, output: 1}},
		{"stream cut", call{stream: true, leaving: stays, script: script{do: "cut", output: 7, at: 4}}, "cut", 4, served{calls: 1, output: 4}},
		{"answer cut", call{leaving: stays, script: script{do: "cut", output: 70, reset: true}}, "cut", 0, served{calls: 1, output: 70}},
		{"no answer", call{leaving: stays, script: script{do: "empty", output: 7}}, "cut", 0, served{calls: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &agent{}
			defer a.close()
			c := tc.give
			c.script.id = tc.name
			out := a.ask(t.Context(), u.addr, "kt_live_x", c)
			if out.word() != tc.word || out.chunks != tc.chunks {
				t.Errorf("told %v", out)
			}
			if got := u.of(tc.name); got != tc.billed {
				t.Errorf("billed %+v, want %+v", got, tc.billed)
			}
		})
	}
}

func TestAClientLeavesWhereItIsToldTo(t *testing.T) {
	u := provider(t)
	for _, tc := range []struct {
		name   string
		give   leaving
		chunks int
	}{
		{"before the head by FIN", leaving{after: time.Millisecond}, 0},
		{"before the head by RST", leaving{reset: true}, 0},
		{"after 3 chunks", leaving{when: 3}, 3},
		{"after 3 chunks by RST", leaving{when: 3, reset: true}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &agent{}
			out := a.ask(t.Context(), u.addr, "kt_live_x", call{stream: true, leaving: tc.give, script: script{id: tc.name, do: "stream", delay: 20 * time.Millisecond, output: 1000, gap: time.Millisecond}})
			if !out.left || out.chunks != tc.chunks || a.conn != nil {
				t.Errorf("%v, left %t", out, out.left)
			}
		})
	}
}

// counting is a control plane that keeps what it was sent.
type counting struct {
	mu   sync.Mutex
	seen map[string]int
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[r.URL.Path+" "+string(b)]++
	fmt.Fprint(w, "{}")
}

func TestEveryCallAboutMoneyArrivesAtLeastTwiceAndNoOtherDoes(t *testing.T) {
	plane := &counting{seen: map[string]int{}}
	server := httptest.NewServer(plane)
	defer server.Close()
	mine := &trial{harness: &harness{}}
	b, addr, err := newBetween(mine, strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	b.chaos.Store(true)
	paths := []string{"/v1/runtime/leases", "/v1/runtime/settlements", "/v1/runtime/report"}
	together(60, func(i int) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+paths[i%3], strings.NewReader(fmt.Sprint(i)))
		if err != nil {
			t.Error(err)
			return
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
		}
	})
	b.late.Wait()
	once := 0
	for call, n := range plane.seen {
		money := !strings.HasPrefix(call, "/v1/runtime/report")
		if money && n == 1 {
			once++ // the first was lost, and one copy came
		}
		if !money && n != 1 {
			t.Errorf("%s: %d times", call, n)
		}
	}
	if len(plane.seen) != 60 || once > 15 {
		t.Errorf("%d of 60 calls came, %d of 40 about money once", len(plane.seen), once)
	}
	for _, f := range mine.closers {
		f()
	}
}

func TestPortsTakenAreNotThoseOfConnections(t *testing.T) {
	for range 20 {
		addr, err := rig.FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil || len(port) != 5 || port >= "32768" {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
