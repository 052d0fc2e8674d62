package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

// letter is a chunk of one token.
func letter(choice int) string {
	return fmt.Sprintf(`data: {"id":"chatcmpl-7","object":"chat.completion.chunk","created":1767225600,"model":"other","choices":[{"index":%d,"delta":{"content":"a"},"finish_reason":null}]}`+"\n\n", choice)
}

// tail is what ends a stream whose budget bears no more.
func tail(id string, input, output int64, usage bool, choices ...int) string {
	head := `data: {"id":"chatcmpl-7","object":"chat.completion.chunk","created":1767225600,"model":"other","choices":[`
	var ends []string
	for _, c := range choices {
		ends = append(ends, fmt.Sprintf(`{"index":%d,"delta":{},"logprobs":null,"finish_reason":"length"}`, c))
	}
	s := head + strings.Join(ends, ",") + "]"
	if usage {
		s += `,"usage":null`
	}
	s += "}\n\n"
	if usage {
		s += head + fmt.Sprintf(`],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}}}`+"\n\n", input, output, input+output)
	}
	return s + ": keeptrusts budget_exceeded " + id + "\n\n" + doneEvent
}

// deaf is an upstream whose streams have n letters whatever they were asked for,
// in pieces of so many bytes; gone is told when the gateway closed a connection.
func deaf(t *testing.T, n, piece int, gone chan<- struct{}) *upstreamScript {
	return scripted(t, func(c *callee) {
		if c.request() == "" {
			return
		}
		all := strings.Repeat(letter(0), n)
		c.send(sseHead)
		for len(all) > 0 {
			cut := min(piece, len(all))
			c.send(chunk(all[:cut]))
			all = all[cut:]
			if cut == len(letter(0)) {
				time.Sleep(3 * time.Millisecond) // so that it is read alone
			}
		}
		if gone != nil {
			c.gone()
			gone <- struct{}{}
			return
		}
		c.send(chunk(`data: {"id":"chatcmpl-7","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":`+fmt.Sprint(n)+`}}`+"\n\n") + chunk(doneEvent) + lastChunk)
	})
}

func TestAStreamThatOutgrowsItsBudgetEndsWholeByProtocol(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		unit    budget.Unit
		version string
		usage   bool
		piece   int
	}{
		{"tokens", budget.Tokens, "HTTP/1.1", true, 1 << 20},
		{"tokens, without usage", budget.Tokens, "HTTP/1.1", false, 1 << 20},
		{"tokens, in small pieces", budget.Tokens, "HTTP/1.1", true, 7},
		{"tokens, an event a read", budget.Tokens, "HTTP/1.1", true, len(letter(0))},
		{"usd", budget.USD, "HTTP/1.1", true, 500},
		{"HTTP/1.0", budget.Tokens, "HTTP/1.0", true, 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gone := make(chan struct{}, 1)
			u := deaf(t, 40, tt.piece, gone)
			body := `{"model":"chat","max_tokens":5,"stream":true,"messages":[]}`
			if tt.usage {
				body = strings.Replace(body, `true,`, `true,"stream_options":{"include_usage":true},`, 1)
			}
			input := inputBound(t, body)
			limit := input + 5
			if tt.unit == budget.USD {
				limit = 2*input + 3*5
			}
			yaml := strings.Replace(plainConfig(u.url), "{input: 1, cached_input: 0.5, output: 2}", "{input: 0.002, output: 0.003}", 1)
			if !tt.usage {
				yaml = strings.Replace(yaml, `/v1", `, `/v1", stream_usage: false, `, 1)
			}
			m := funded(t, yaml, budget.Record{ID: "b", Unit: tt.unit, Limit: limit})
			key := m.spender("b")
			r := m.do(strings.Replace(call(key, body), "HTTP/1.1", tt.version, 1))
			want := strings.Repeat(letter(0), 5) + tail("b", input, 5, tt.usage, 0)
			if r.status != 200 || r.err != nil || r.body != want {
				t.Errorf("%d %v\n%s\nwant\n%s", r.status, r.err, r.body, want)
			}
			select {
			case <-gone:
			case <-time.After(patience):
				t.Error("the upstream's stream goes on")
			}
			l := m.line(r.header.Get("X-Request-Id"))
			if l["code"] != codeBudgetExceeded || l["status"] != 200.0 || l["output_tokens"] != 5.0 || l["estimated"] != true {
				t.Errorf("logged as %v", l)
			}
			m.atRest()
			if n := m.left(key, "b"); n != 0 {
				t.Errorf("%d left, want 0", n)
			}
			if n := m.metric("keeptrusts_gateway_budget_overrun_total"); n != 0 {
				t.Errorf("an overrun of %v", n)
			}
		})
	}
}

func TestAStreamThatOutgrowsItsHoldGoesOnWhereTheBudgetBearsIt(t *testing.T) {
	t.Parallel()
	for _, piece := range []int{1 << 20, 300, 11} {
		u := deaf(t, 400, piece, nil)
		m := funded(t, plainConfig(u.url), budget.Record{ID: "b", Unit: budget.Tokens, Limit: 10_000})
		key := m.spender("b")
		r := m.do(call(key, `{"model":"chat","max_tokens":5,"stream":true,"stream_options":{"include_usage":true},"messages":[]}`))
		if n := strings.Count(r.body, `"content":"a"`); r.err != nil || n != 400 || !strings.HasSuffix(r.body, doneEvent) {
			t.Errorf("pieces of %d: %d letters of 400, %v", piece, n, r.err)
		}
		m.atRest()
		if n := m.left(key, "b"); n != 10_000-409 {
			t.Errorf("pieces of %d: %d left, want %d", piece, n, 10_000-409)
		}
	}
}

// A stream takes what is left to its last token before it ends.
func TestAnExtensionTakesWhatIsLeft(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{}, 1)
	u := deaf(t, 400, 300, gone)
	body := `{"model":"chat","max_tokens":5,"stream":true,"messages":[]}`
	m := funded(t, plainConfig(u.url), budget.Record{ID: "b", Unit: budget.Tokens, Limit: inputBound(t, body) + 123})
	key := m.spender("b")
	r := m.do(call(key, body))
	if n := strings.Count(r.body, `"content":"a"`); r.err != nil || n != 123 || !strings.HasSuffix(r.body, ": keeptrusts budget_exceeded b\n\n"+doneEvent) {
		t.Errorf("%d letters, want 123: %v", n, r.err)
	}
	m.atRest()
	if n := m.left(key, "b"); n != 0 {
		t.Errorf("%d left", n)
	}
}

func TestAClientThatLeavesAStreamIsChargedWhatCame(t *testing.T) {
	t.Parallel()
	url, sim := simulated(t)
	const limit = 300
	m := funded(t, priced(plainConfig(url)), budget.Record{ID: "t", Unit: budget.Tokens, Limit: 1 << 50})
	key := m.spender("t")
	m.do(call(key, plainBody))
	m.atRest()
	const trials = 60
	for i := range trials {
		k := i * 100 / trials
		body := fmt.Sprintf(`{"model":"chat","max_tokens":%d,"stream":true,"messages":[{"role":"user","content":"hello there"}],"simulator":{"chunks":100,"chunk_delay_ms":%d}}`, limit, i%3)
		before := m.left(key, "t")
		calls := len(sim.Requests())
		w := m.dial()
		w.send(call(key, body))
		res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 32<<10)
		for got := ""; strings.Count(got, `"content":"`) < k; {
			n, err := res.Body.Read(b)
			got += string(b[:n])
			if err != nil {
				break
			}
		}
		if i%2 == 0 {
			_ = w.SetLinger(0)
		}
		_ = w.Close()
		m.atRest()
		eventually(t, "the provider has ended", func() bool { return sim.Open() == 0 })
		billed := sim.Requests()[calls].Billed
		charged := before - m.left(key, "t")
		if input := inputBound(t, body); charged < billed.Prompt+billed.Completion || charged > input+limit {
			t.Errorf("left at %d: charged %d, the provider %+v, the hold was %d + %d", k, charged, billed, input, limit)
		}
	}
}

// stalled is an upstream that sends letters, stalls, and goes on once it is told to;
// with none to send first it stalls before its head.
func stalled(t *testing.T, first, more int, on <-chan struct{}) *upstreamScript {
	return scripted(t, func(c *callee) {
		for c.request() != "" {
			if first > 0 {
				c.send(sseHead + chunk(strings.Repeat(letter(0), first)))
			}
			select {
			case <-on:
			case <-time.After(patience):
			}
			if first == 0 {
				c.send(sseHead + chunk(strings.Repeat(letter(0), more)))
			} else {
				c.send(chunk(strings.Repeat(letter(0), more)))
			}
			c.send(chunk(doneEvent) + lastChunk)
		}
	})
}

// What an extension waits for must not outlive its call.
func TestACallThatEndsWhileItAsksForMoreIsSettledOnce(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	on := make(chan struct{})
	u := stalled(t, 33, 100, on)
	body := `{"model":"chat","max_tokens":40,"stream":true,"messages":[]}`
	limit := inputBound(t, body) + 40
	m := fundedBy(t, plainConfig(u.url), func(a budget.Authority, _ *Options) budget.Authority {
		return &gate{Authority: a, closed: &closed}
	}, budget.Record{ID: "b", Unit: budget.Tokens, Limit: limit})
	key := m.spender("b")
	w := m.dial()
	w.send(call(key, body))
	res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	closed.Store(true) // more is asked for since the 33rd, and not answered
	got := ""
	b := make([]byte, 32<<10)
	for strings.Count(got, `"content":"a"`) < 33 {
		n, err := res.Body.Read(b)
		if got += string(b[:n]); err != nil {
			t.Fatalf("%v %q", err, got)
		}
	}
	_ = w.Close()
	m.atRest()
	closed.Store(false) // what was refused more is on its way back
	const underWay = 3  // that the provider may have sent
	eventually(t, "what did not come is left", func() bool { return m.left(key, "b") == 40-33-underWay })
	close(on)
}

func TestAStreamThatOutgrowsItsHoldWhileTheControlPlaneIsAwayEndsWithAnError(t *testing.T) {
	t.Parallel()
	for _, first := range []int{10, 0} { // the second is told as a refusal: nothing was sent yet
		var closed atomic.Bool
		on := make(chan struct{})
		u := stalled(t, first, 100, on)
		body := `{"model":"chat","max_tokens":20,"stream":true,"messages":[]}`
		m := fundedBy(t, plainConfig(u.url), func(a budget.Authority, _ *Options) budget.Authority {
			return &gate{Authority: a, closed: &closed, once: true}
		}, budget.Record{ID: "b", Unit: budget.Tokens, Limit: 100_000})
		key := m.spender("b")
		w := m.dial()
		w.send(call(key, body))
		if first == 0 {
			eventually(t, "the call is under way", func() bool { return len(u.seen()) == 1 })
		} else if _, err := w.r.Peek(1); err != nil { // what came first must not be read with the rest
			t.Fatal(err)
		}
		close(on)
		r := w.must()
		if first > 0 {
			if wrong := cutBy(r, codeUnavailable, strings.Repeat(letter(0), 20)); wrong != "" {
				t.Errorf("%s: %d letters, then %.300q", wrong, strings.Count(r.body, letter(0)), r.body[max(0, len(r.body)-300):])
			}
		} else if r.status != 503 || r.problem().Code != codeUnavailable {
			t.Errorf("%d %q", r.status, r.body)
		}
		m.atRest()
		closed.Store(false)
	}
}
