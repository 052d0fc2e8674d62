package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/test/rig"
)

func TestEveryScenarioIsInExactlyOnePart(t *testing.T) {
	for n := 1; n <= 20; n++ {
		seen := map[string]int{}
		for i := range n {
			mine, err := choose(scenarios(), options{part: fmt.Sprintf("%d/%d", i+1, n)})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range mine {
				seen[s.name]++
			}
		}
		for _, s := range scenarios() {
			if seen[s.name] != 1 {
				t.Errorf("of %d parts, %d have %s", n, seen[s.name], s.name)
			}
		}
	}
}

func TestAPartOfThreeFitsIntoEightMinutes(t *testing.T) {
	for i := range 3 {
		sum := 0
		mine, err := choose(scenarios(), options{part: fmt.Sprintf("%d/3", i+1)})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range mine {
			sum += s.seconds
		}
		if sum > 7*60 {
			t.Errorf("part %d/3: %d s", i+1, sum)
		}
	}
}

func TestWrongPartsAndScenariosAreRefused(t *testing.T) {
	for _, o := range []options{{part: "0/1"}, {part: "2/1"}, {part: "1"}, {part: "1/2/3"}, {part: "x/y"}, {part: "1/1", only: "nothing"}} {
		if chosen, err := choose(scenarios(), o); err == nil {
			t.Errorf("%+v: %d scenarios", o, len(chosen))
		}
	}
}

func TestTheVerdictOnFramings(t *testing.T) {
	ok := "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer kt_live_x\r\n"
	for _, tt := range []struct {
		name, give string
		want       verdict
	}{
		{"sound", ok + "Content-Length: 2\r\n\r\n{}", verdict{served: []string{""}}},
		{"sound chunks", ok + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", verdict{served: []string{""}}},
		{"both", ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", verdict{disputed: true, last: "invalid_request"}},
		{"a second that is bad", ok + "Content-Length: 2\r\n\r\n{}X", verdict{served: []string{""}, disputed: true, short: true}},
		{"bare LF", strings.Replace(ok, "a\r\n", "a\n", 1) + "Content-Length: 2\r\n\r\n{}", verdict{disputed: true, last: "invalid_request"}},
		{"fold", ok + "X: 1\r\n 2\r\nContent-Length: 2\r\n\r\n{}", verdict{disputed: true, last: "invalid_request"}},
		{"underscore", ok + "Content_Length: 2\r\n\r\n{}", verdict{disputed: true, last: "invalid_request"}},
		{"extension", ok + "Transfer-Encoding: chunked\r\n\r\n2;a\r\n{}\r\n0\r\n\r\n", verdict{disputed: true, last: "invalid_request"}},
		{"another path", strings.Replace(ok, "chat", "chats", 1) + "\r\n", verdict{served: []string{"unknown_endpoint"}}},
		{"expectation", ok + "Expect: x\r\nContent-Length: 2\r\n\r\n{}", verdict{last: "unknown_expectation"}},
		{"too large", ok + "X: " + strings.Repeat("a", framingHead) + "\r\n\r\n", verdict{disputed: true, last: "headers_too_large"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := judge([]byte(tt.give))
			got.bodies = nil
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Each parser of the panel is there because it reads something in a way of its own.
func TestThePanelDisagrees(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\n"
	for _, raw := range []string{
		head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nhello", head + "Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
		head + "Content_Length: 5\r\n\r\nhello", head + "Content-Length : 5\r\n\r\nhello", head + "X: a\nContent-Length: 5\r\n\r\nhello", head + "X: a\rContent-Length: 5\r\n\r\nhello",
		head + "Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", head + "Content-Length: \r\n 5\r\n\r\nhello", head + "Content-Length: 0x5\r\n\r\nhello", head + "Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\n\r\n100000005\r\nhello\r\n0\r\n\r\n",
	} {
		readings := map[string]int{}
		for i := range panel {
			r, n, ok := panel[i].read([]byte(raw))
			word := fmt.Sprint(n, ok)
			if r != nil {
				word += string(r.body)
			}
			readings[word]++
		}
		if len(readings) < 2 {
			t.Errorf("%q is read in one way: %v", raw, readings)
		}
	}
}

// provided is the scripted upstream, asked without a gateway between.
func provided(t *testing.T) (*provider, *gateway) {
	mine := &trial{harness: &harness{}, dir: t.TempDir()}
	t.Cleanup(mine.close)
	p, err := newProvider(mine)
	if err != nil {
		t.Fatal(err)
	}
	return p, &gateway{t: mine, addr: p.addr, up: p}
}

func TestTheProviderDoesWhatItsScriptSays(t *testing.T) {
	p, g := provided(t)
	for _, tt := range []struct {
		name  string
		give  script
		check func(a *answered) bool
	}{
		{"whole", script{size: 100}, func(a *answered) bool { return a.status == 200 && a.whole && len(a.body) > 100 }},
		{"status", script{status: 429}, func(a *answered) bool { return a.status == 429 && a.whole }},
		{"stream", script{do: "stream", chunks: 3}, func(a *answered) bool { return a.events == 4 && a.done && a.whole }},
		{"raw and FIN", script{do: "raw", raw: streamHead + frame(chunk("x"))}, func(a *answered) bool { return a.events == 1 && !a.done && !a.whole }},
		{"raw and RST", script{do: "raw", raw: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", reset: true}, func(a *answered) bool { return !a.whole }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.give.id = tt.name
			a := g.call(t.Context(), "x", call{script: tt.give})
			if !tt.check(a) {
				t.Errorf("%v", a)
			}
			if got := p.of(tt.name); len(got) != 1 || got[0].odd != "" || got[0].req.get("Authorization")[0] != "Bearer x" {
				t.Errorf("witnessed %d", len(got))
			}
		})
	}
}

func TestTheProviderSeesWhatIsOdd(t *testing.T) {
	p, _ := provided(t)
	for i, raw := range []string{"GET / HTTP/1.1\nHost: a\n\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"} {
		w, err := dial(t.Context(), p.addr, "")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(w, raw)
		_ = w.take("GET", nil)
		w.Close()
		if odd, strays, _ := p.oddities(); len(odd)+len(strays) != i+1 {
			t.Errorf("%q is not odd", raw)
		}
	}
}

func TestAFigureBeyondItsBoundFails(t *testing.T) {
	mine := &trial{harness: &harness{}}
	mine.figure(true, "0", "%d", 0)
	if mine.missed != 0 || mine.figures != 1 {
		t.Errorf("%+v", mine)
	}
	mine.figure(false, "0", "%d", 1)
	if mine.missed != 1 {
		t.Errorf("%+v", mine)
	}
	h := &harness{dir: t.TempDir(), options: options{keep: true}}
	for name, run := range map[string]func(context.Context, *trial) error{
		"shows nothing": func(context.Context, *trial) error { return nil },
		"fails":         func(context.Context, *trial) error { return http.ErrAbortHandler },
		"misses":        func(_ context.Context, t *trial) error { t.figure(true, "", ""); t.miss("x"); return nil },
	} {
		if h.once(t.Context(), &scenario{name: name, run: run}) {
			t.Errorf("a scenario that %s holds", name)
		}
	}
}

func TestDriftTellsALeakFromBreath(t *testing.T) {
	var flat, leak []int64
	for i := range int64(30) {
		flat = append(flat, 1000+i%2*200)
		leak = append(leak, 1000+i*5)
	}
	if before, after, spread := drift(flat); after/before > 1.05 || after/before < 0.95 || spread < 5 {
		t.Errorf("flat: from %v to %v, spread %v", before, after, spread)
	}
	if before, after, _ := drift(leak); after/before < 1.05 {
		t.Errorf("a leak: from %v to %v", before, after)
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
