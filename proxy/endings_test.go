package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/proxy/dialect"
)

// endingsConfig has targets that end in their own ways; main is the simulator.
func endingsConfig(url, dead, failing, telling, denying, early string) string {
	target := func(id, url string) string { return fmt.Sprintf("    - {id: %s, base_url: %q}\n", id, url+"/v1") }
	return "gateway_id: " + testGateway + "\nproviders:\n  targets:\n" +
		`    - {id: main, base_url: "` + url + `/v1", secret_key_ref: {file: target-secret}}` + "\n" +
		target("dead", dead) + target("failing", failing) + target("telling", telling) + target("denying", denying) + target("early", early) +
		`models:
  - {name: chat, targets: [{id: main}]}
  - {name: dead, targets: [{id: dead}]}
  - {name: dead-first, targets: [{id: dead}, {id: main, weight: 0}]}
  - {name: failing, targets: [{id: failing}]}
  - {name: failing-first, targets: [{id: failing}, {id: main, weight: 0}]}
  - {name: telling-first, targets: [{id: telling}, {id: main, weight: 0}]}
  - {name: failing-dead, targets: [{id: failing}, {id: dead, weight: 0}]}
  - {name: denying, targets: [{id: denying}]}
  - {name: early, targets: [{id: early}]}
limits: {first_byte: 700ms, upstream_idle: 700ms, lame_duck: 0s, drain: 5s}
`
}

// priced gives every model the price of the endings: 2 nano-USD a token in, 3 out.
func priced(yaml string) string {
	return strings.ReplaceAll(yaml, "]}\n", "], price: {input: 0.002, output: 0.003}}\n")
}

const endingLimit = 60

// ending is a call and how much it is to be charged. Tokens are input and output.
type ending struct {
	name     string
	model    string // chat where empty
	script   string // the simulator's
	stream   bool
	leave    int   // the client leaves after so many events of the stream; -1: before there is an answer
	input    int64 // -1: the bound
	least    int64 // tokens of output
	most     int64
	requests int64
	told     bool // by the provider: nothing is estimated
	status   int  // 0: 200
}

const bounded = -1

func everyEnding() []ending {
	return []ending{
		{name: "whole", input: 5, least: 11, most: 11, requests: 1, told: true, script: `"usage":{"prompt_tokens":5,"completion_tokens":11}`},
		{name: "streamed", stream: true, input: 5, least: 11, most: 11, requests: 1, told: true, script: `"usage":{"prompt_tokens":5,"completion_tokens":11}`},
		{name: "whole, without usage", input: bounded, least: 20, most: endingLimit, requests: 1, script: `"no_usage":true,"chunks":20`},
		{name: "streamed, without usage", stream: true, input: bounded, least: 20, most: endingLimit, requests: 1, script: `"no_usage":true,"chunks":20`},
		{name: "streamed in full, without usage", stream: true, input: bounded, least: endingLimit, most: endingLimit, requests: 1, script: `"no_usage":true,"chunks":60`},
		{name: "whole, nothing used", requests: 1, told: true, script: `"zero_usage":true`},
		{name: "streamed, nothing used", stream: true, requests: 1, told: true, script: `"zero_usage":true`},
		{name: "500", requests: 1, told: true, status: 500, script: `"status":500`},
		{name: "400 that tells usage", input: 7, least: 2, most: 2, requests: 1, told: true, status: 400, script: `"status":400,"body":"{\"error\":{\"message\":\"m\"},\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}"`},
		{name: "dropped", input: bounded, requests: 1, status: 502, script: `"drop":true`},
		{name: "whole, cut", input: bounded, least: 1, most: endingLimit, requests: 1, status: 502, script: `"cut_after_chunks":0,"chunks":20`},
		{name: "streamed, cut", stream: true, input: bounded, least: 8, most: endingLimit, requests: 1, script: `"cut_after_chunks":8,"chunks":20`},
		{name: "streamed, reset", stream: true, input: bounded, least: 8, most: endingLimit, requests: 1, script: `"cut_after_chunks":8,"cut":"rst","chunks":20`},
		{name: "streamed, with an error at the end", stream: true, input: bounded, least: 8, most: endingLimit, requests: 1, script: `"error_after_chunks":8,"chunks":20`},
		{name: "compressed", input: bounded, least: endingLimit, most: endingLimit, requests: 1, status: 502, script: `"gzip":true`},
		{name: "no answer in time", input: bounded, requests: 1, status: 504, script: `"delay_ms":5000`},
		{name: "streamed, silent", stream: true, input: bounded, most: 1, requests: 1, script: `"chunk_delay_ms":5000`},
		{name: "streamed, silent after the head", stream: true, input: bounded, requests: 1, script: `"first_chunk_delay_ms":5000`},
		{name: "the client leaves before the answer", leave: -1, input: bounded, least: endingLimit, most: endingLimit, requests: 1, script: `"delay_ms":600`},
		{name: "the client leaves before the stream", stream: true, leave: -1, input: bounded, least: endingLimit, most: endingLimit, requests: 1, script: `"delay_ms":600`},
		{name: "the client leaves in the stream", stream: true, leave: 10, input: bounded, least: 9, most: endingLimit, requests: 1, script: `"chunk_delay_ms":10,"chunks":50`},
		{name: "not reached", model: "dead", told: true, status: 502},
		{name: "the second was reached", model: "dead-first", input: 5, least: 11, most: 11, requests: 1, told: true, script: `"usage":{"prompt_tokens":5,"completion_tokens":11}`},
		{name: "the first failed", model: "failing-first", input: 5, least: 11, most: 11, requests: 1, told: true, script: `"usage":{"prompt_tokens":5,"completion_tokens":11}`},
		{name: "the first failed, and told usage", model: "telling-first", input: 5 + 4, least: 11 + 3, most: 11 + 3, requests: 1, told: true, script: `"usage":{"prompt_tokens":5,"completion_tokens":11}`},
		{name: "the first failed, the second was not reached", model: "failing-dead", requests: 1, told: true, status: 502},
		{name: "the only one failed", model: "failing", requests: 1, told: true, status: 503},
		{name: "streamed, nothing told before the cut", model: "early", stream: true, input: bounded, least: 3, most: endingLimit, requests: 1},
		{name: "the credential was refused", model: "denying", requests: 1, told: true, status: 502},
	}
}

func (e *ending) body() string {
	model, script, more := e.model, "", ""
	if model == "" {
		model = "chat"
	}
	if e.script != "" {
		script = `,"simulator":{` + e.script + `}`
	}
	if e.stream {
		more = `,"stream":true,"stream_options":{"include_usage":true}`
	}
	return fmt.Sprintf(`{"model":%q,"max_tokens":%d%s,"messages":[{"role":"user","content":"hello there"}]%s}`, model, endingLimit, more, script)
}

// make makes the call, and leaves it where it is to be left.
func (e *ending) make(g *gateway, key string) reply {
	w := g.dial()
	defer func() { _ = w.Close() }()
	w.send(call(key, e.body()))
	switch {
	case e.leave < 0:
		eventually(g.t, "the call is under way", func() bool { return g.s.streams.Load() == 1 })
		time.Sleep(300 * time.Millisecond) // it waits for the provider
		return reply{status: 200}
	case e.leave > 0:
		res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
		if err != nil {
			g.t.Fatal(err)
		}
		b := make([]byte, 64<<10)
		for read := ""; strings.Count(read, "data:") < e.leave; {
			n, err := res.Body.Read(b)
			if err != nil {
				g.t.Fatalf("the stream ended early: %v", err)
			}
			read += string(b[:n])
		}
		return reply{status: 200}
	}
	return w.must()
}

func inputBound(t *testing.T, body string) int64 {
	t.Helper()
	var c dialect.Call
	if p := dialect.ReadChat([]byte(body), &c); p != nil {
		t.Fatal(p.Message)
	}
	return c.Bound([]byte(body)).Input
}

// endingTargets gives the config, and which calls some provider saw, by the
// client's id.
func endingTargets(t *testing.T) (yaml string, seen func() map[string]bool) {
	url, sim := simulated(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + ln.Addr().String()
	_ = ln.Close()
	failing := answering(t, whole(503, `{"error":{"message":"busy"}}`))
	telling := answering(t, whole(503, `{"error":{"message":"busy"},"usage":{"prompt_tokens":4,"completion_tokens":3}}`))
	denying := answering(t, whole(401, `{"error":{"message":"who are you"}}`))
	early := scripted(t, func(c *callee) {
		if c.request() != "" {
			told := strings.Replace(letter(0), "}]}", `}],"usage":{"prompt_tokens":0,"completion_tokens":0}}`, 1)
			c.send(sseHead + chunk(told+told+told))
		}
	})
	return priced(endingsConfig(url, dead, failing.url, telling.url, denying.url, early.url)), func() map[string]bool {
		ids := make(map[string]bool)
		for _, r := range sim.Requests() {
			ids[r.Header.Get("X-Client-Request-Id")] = true
		}
		for _, u := range []*upstreamScript{failing, telling, denying, early} {
			for _, raw := range u.seen() {
				ids[claimOf(raw)] = true
			}
		}
		return ids
	}
}

func TestEveryEndingIsChargedOnceAndFreesItsHold(t *testing.T) {
	t.Parallel()
	yaml, _ := endingTargets(t)
	const plenty = 1_000_000_000_000
	m := funded(t, yaml,
		budget.Record{ID: "r", Unit: budget.Requests, Limit: plenty},
		budget.Record{ID: "t", Unit: budget.Tokens, Limit: plenty},
		budget.Record{ID: "u", Unit: budget.USD, Limit: plenty},
	)
	key := m.spender("r", "t", "u")
	m.do(call(key, everyEnding()[0].body())) // leases are there
	m.atRest()
	for _, e := range everyEnding() {
		t.Run(e.name, func(t *testing.T) {
			r0, t0, u0 := m.left(key, "r"), m.left(key, "t"), m.left(key, "u")
			lines := len(m.log.lines())
			r := e.make(m.gateway, key)
			if want := max(e.status, 200); r.status != want {
				t.Errorf("status %d, want %d: %s", r.status, want, r.body)
			}
			m.atRest()
			input := e.input
			if input == bounded {
				input = inputBound(t, e.body())
			}
			requests, tokens, nano := r0-m.left(key, "r"), t0-m.left(key, "t"), u0-m.left(key, "u")
			if requests != e.requests {
				t.Errorf("%d requests charged, want %d", requests, e.requests)
			}
			if tokens < input+e.least || tokens > input+max(e.most, e.least) {
				t.Errorf("%d tokens charged, want %d + %d to %d", tokens, input, e.least, e.most)
			}
			if nano < 2*input+3*e.least || nano > 2*input+3*max(e.most, e.least) {
				t.Errorf("%d nano-USD charged, want 2·%d + 3·%d to 3·%d", nano, input, e.least, e.most)
			}
			all := m.log.lines()[lines:]
			line := all[len(all)-1]
			for _, l := range all {
				if l["action"] == "execute" {
					line = l
				}
			}
			if got := line["input_tokens"].(float64) + line["output_tokens"].(float64); got != float64(tokens) {
				t.Errorf("the log says %v tokens, charged were %d", got, tokens)
			}
			if got, _ := budget.USD.Parse(line["cost"].(string)); got != nano {
				t.Errorf("the log says %v, charged were %d nano-USD", line["cost"], nano)
			}
			if estimated := line["estimated"] == true; estimated == e.told {
				t.Errorf("estimated is %v in %v", line["estimated"], line)
			}
		})
	}
}

// After a storm of endings of every kind the budget has exactly what was not
// charged, and all of it can be spent.
func TestAfterAStormOfEndingsTheLastUnitIsSpendable(t *testing.T) {
	t.Parallel()
	yaml, seen := endingTargets(t)
	const rounds = 8
	limit := int64(rounds*len(everyEnding()) + 1) // so that those that will cost nothing keep nobody off
	m := funded(t, yaml, budget.Record{ID: "r", Unit: budget.Requests, Limit: limit}, budget.Record{ID: "t", Unit: budget.Tokens, Limit: 1 << 40})
	key := m.spender("r", "t")
	var wait sync.WaitGroup
	for i := range rounds {
		for j, e := range everyEnding() {
			wait.Go(func() { e.storm(m.gateway, key, fmt.Sprintf("%d/%d", i, j)) })
		}
	}
	wait.Wait()
	ended := time.Now()
	m.atRest()
	if d := time.Since(ended); d > time.Second {
		t.Errorf("something was held for %v", d)
	}
	charged := int64(len(seen()))
	if n := m.left(key, "r"); n != limit-charged {
		t.Errorf("%d left of %d after %d were charged", n, limit, charged)
	}
	ok := everyEnding()[0]
	for i := range limit - charged {
		if r := m.do(call(key, ok.body())); r.status != 200 {
			t.Fatalf("unit %d of %d: %d %s", i+1, limit-charged, r.status, r.body)
		}
	}
	if r := m.do(call(key, ok.body())); r.status != 429 {
		t.Errorf("one more: %d", r.status)
	}
}

// storm makes the call among others.
func (e *ending) storm(g *gateway, key, id string) {
	w := g.dial()
	defer func() { _ = w.Close() }()
	w.send(call(key, e.body(), claimed(id)))
	switch {
	case e.leave < 0:
		time.Sleep(300 * time.Millisecond)
	case e.leave > 0:
		_, _ = io.ReadFull(w.r, make([]byte, 2000))
	default:
		w.must()
	}
}
