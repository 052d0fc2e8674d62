package proxy

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// cut is an answer that stops before its end.
type cut struct {
	name   string
	sent   string // what the upstream sends before it closes
	stream bool   // the client gets a stream with what came before
	passed string // the events before the error event
}

func chunkedHead(contentType string) string {
	return "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\nTransfer-Encoding: chunked\r\n\r\n"
}

func sizedHead(contentType string, n int) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", contentType, n)
}

func cuts() []cut {
	one := event(1)
	half := one[:len(one)/2]
	sse := "text/event-stream; charset=utf-8"
	return []cut{
		{name: "before the head"},
		{name: "inside the status line", sent: "HTTP/1.1 20"},
		{name: "inside the head", sent: "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConte"},
		{name: "after 1xx", sent: "HTTP/1.1 100 Continue\r\n\r\n"},
		{name: "before a body with a length", sent: sizedHead("application/json", len(completion))},
		{name: "inside a body with a length", sent: sizedHead("application/json", len(completion)) + completion[:40]},
		{name: "one byte before the length", sent: sizedHead("application/json", len(completion)) + completion[:len(completion)-1]},
		{name: "before the first chunk", sent: chunkedHead("application/json")},
		{name: "inside a chunk", sent: chunkedHead("application/json") + "ff\r\n" + completion[:40]},
		{name: "inside a chunk's size", sent: chunkedHead("application/json") + chunk(completion) + "f"},
		{name: "before the last chunk", sent: chunkedHead("application/json") + chunk(completion)},
		{name: "inside the last chunk", sent: chunkedHead("application/json") + chunk(completion) + "0\r\n"},
		{name: "inside the trailer", sent: chunkedHead("application/json") + chunk(completion) + "0\r\nX-T: 1\r\n"},

		{name: "stream before its first event", stream: true, sent: chunkedHead(sse)},
		{name: "stream between events", stream: true, sent: chunkedHead(sse) + chunk(one), passed: one},
		{name: "stream inside an event", stream: true, sent: chunkedHead(sse) + chunk(one) + chunk(half), passed: one},
		{name: "stream inside a chunk", stream: true, sent: chunkedHead(sse) + chunk(one) + "ff\r\n" + half, passed: one},
		{name: "stream inside a chunk's size", stream: true, sent: chunkedHead(sse) + chunk(one) + "f", passed: one},
		{name: "stream after a chunk's data", stream: true, sent: chunkedHead(sse) + strings.TrimSuffix(chunk(one), "\r\n"), passed: one},
		{name: "stream inside the last chunk", stream: true, sent: chunkedHead(sse) + chunk(one) + "0\r\n", passed: one},
		{name: "stream with a length", stream: true, sent: sizedHead(sse, 9999) + one + half, passed: one},
		{name: "stream inside a character", stream: true, sent: chunkedHead(sse) + chunk(one) + "ff\r\n" + one[:strings.Index(one, "–")+1], passed: one},
	}
}

func TestAnAnswerThatIsCutNeverEndsCleanly(t *testing.T) {
	t.Parallel()
	const each = 6
	all := cuts()
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = "" {
			var i, rst, n int
			if _, err := fmt.Sscanf(claimOf(raw), "%d/%d/%d", &i, &rst, &n); err != nil {
				return
			}
			if n%2 == 0 {
				c.send(all[i].sent)
			} else { // head and body in two packets
				head, rest, _ := strings.Cut(all[i].sent, "\r\n\r\n")
				if rest != "" {
					c.send(head + "\r\n\r\n")
					time.Sleep(5 * time.Millisecond)
					c.send(rest)
				} else {
					c.send(all[i].sent)
				}
			}
			if rst == 1 {
				_ = c.Conn.(*net.TCPConn).SetLinger(0)
			}
		}
	})
	g := start(t, plainConfig(u.url))
	var cutShort, total atomic.Int64
	var wait sync.WaitGroup
	for i, c := range all {
		wait.Go(func() {
			for n := range 2 * each {
				total.Add(1)
				body := plainBody
				if c.stream {
					body = streamBody
				}
				r := g.do(call(g.key, body, claimed(fmt.Sprintf("%d/%d/%d", i, n%2, n/2))))
				if wrong := c.judge(r); wrong != "" {
					t.Errorf("cut %s (rst %v): %s\n%d %q %v", c.name, n%2 == 1, wrong, r.status, r.body, r.err)
					return
				}
				cutShort.Add(1)
			}
		})
	}
	wait.Wait()
	t.Logf("%d of %d cut answers were told as cut", cutShort.Load(), total.Load())
	eventually(t, "every exchange is free", func() bool { return g.s.open.Load() == 0 })
}

// judge says what is wrong with the answer to a cut; "" nothing.
func (c *cut) judge(r reply) string {
	if !c.stream {
		if p := r.problem(); r.status != 502 || p.Code != codeUpstreamError || p.Type != kindAPI {
			return "want 502 upstream_error"
		}
		if r.header.Get("X-Keeptrusts-Target") != "" || r.header.Get("X-Request-Id") == "" {
			return "the headers of a refusal"
		}
		return ""
	}
	if r.status != 200 {
		return "want 200"
	}
	return cutBy(r, codeUpstreamError, c.passed)
}

// cutBy says what is wrong with a stream that should end, behind the events in
// passed, with an error event and no clean end.
func cutBy(r reply, code, passed string) string {
	if r.err == nil {
		return "the body ends cleanly"
	}
	rest, ok := strings.CutPrefix(r.body, passed)
	if !ok {
		return "the events before the cut did not pass as they came"
	}
	data, ok := strings.CutPrefix(rest, "data: ")
	if !ok || !strings.HasSuffix(data, "\n\n") || strings.Count(data, "\n") != 2 {
		return "no single error event at an event's boundary"
	}
	var e struct {
		Error     struct{ Message, Type, Code string } `json:"error"`
		RequestID string                               `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return "the error event is no JSON: " + err.Error()
	}
	if e.Error.Code != code || e.Error.Type != rowByCode[code].kind || e.Error.Message == "" || e.RequestID != r.header.Get("X-Request-Id") {
		return "the error event's content, want " + code
	}
	return ""
}

func TestMalformedFramingOfAnUpstreamIsNeverPassedOnAsWhole(t *testing.T) {
	t.Parallel()
	tails := map[string]string{
		"no digits":          "zz\r\nhello\r\n",
		"a sign":             "+5\r\nhello\r\n",
		"minus":              "-5\r\nhello\r\n",
		"hexadecimal prefix": "0x5\r\nhello\r\n",
		"an empty size":      "\r\n",
		"bare LF":            "5\nhello\n",
		"too short":          "5\r\nhelloooo\r\n0\r\n\r\n",
		"CR CR":              "5\r\r\nhello\r\n",
		"size overflow":      "10000000000000005\r\nhello\r\n0\r\n\r\n",
		"enormous":           "ffffffffffffffff\r\nhello\r\n",
		"endless extension":  "5;" + strings.Repeat("x", 70_000) + "\r\nhello\r\n0\r\n\r\n",
		"endless trailer":    "0\r\n" + strings.Repeat("X: y\r\n", 20_000) + "\r\n",
	}
	heads := map[string]string{
		"two lengths":           "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
		"length beside chunked": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"chunked beside length": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"another coding":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"a negative length":     "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
		"a length list":         "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}",
		"switching protocols":   "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
		"1xx without end":       strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 50),
		"a folded header":       "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
		"no version":            "200 OK\r\n\r\n",
		"HTTP/2":                "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"a status of 2 digits":  "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\n{}",
		"an endless head":       "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Filler: yyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", 4000) + "\r\n",
	}
	raw := make(map[string]string)
	for name, tail := range tails {
		raw["whole: "+name] = chunkedHead("application/json") + chunk(completion) + tail
		raw["stream: "+name] = sseHead + chunk(event(1)) + tail
	}
	for name, head := range heads {
		raw["head: "+name] = head
	}
	var gone moments
	u := scripted(t, func(c *callee) {
		if r := c.request(); r != "" {
			c.send(raw[claimOf(r)])
			c.gone()
			gone.note(claimOf(r))
		}
	})
	g := start(t, plainConfig(u.url))
	for name := range raw {
		body := plainBody
		if strings.HasPrefix(name, "stream") {
			body = streamBody
		}
		r := g.do(call(g.key, body, claimed(name)))
		select {
		case <-gone.of(name):
		case <-time.After(time.Second): // the collector may close what leaks, but later
			t.Errorf("%s: the upstream's connection stays open", name)
		}
		if r.status == 502 && r.problem().Code == codeUpstreamError && r.header.Get("X-Keeptrusts-Target") == "" {
			continue
		}
		if r.status == 200 && strings.HasPrefix(name, "stream") && cutBy(r, codeUpstreamError, event(1)) == "" {
			continue
		}
		t.Errorf("%s: %d %v %q %v", name, r.status, r.header, r.body, r.err)
	}
}

func TestWholeAnswersPassInEveryFraming(t *testing.T) {
	t.Parallel()
	big := `{"id":"x","choices":[{"message":{"content":"` + strings.Repeat("0123456789abcdé\\n", 20<<20/17) + `"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}`
	chunks := func(s string) string {
		var b strings.Builder
		b.WriteString(chunkedHead("application/json"))
		for n := 1; s != ""; n = min(3*n, 70_001) {
			n = min(n, len(s))
			b.WriteString(chunk(s[:n]))
			s = s[n:]
		}
		return b.String() + lastChunk
	}
	closing := func(version, s string) string {
		return "HTTP/1." + version + " 200 OK\r\nContent-Type: application/json\r\n\r\n" + s
	}
	tests := map[string]struct{ raw, want string }{
		"with a length":            {whole(200, completion), completion},
		"after 100 and 103":        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole(200, completion), completion},
		"in chunks":                {chunks(completion), completion},
		"with extensions":          {chunkedHead("application/json") + fmt.Sprintf("%X;a=b\r\n%s\r\n0;c\r\nX-Trailer: 1\r\n\r\n", len(completion), completion), completion},
		"until close":              {closing("1", completion), completion},
		"HTTP/1.0":                 {closing("0", completion), completion},
		"an empty body":            {whole(200, ""), ""},
		"204":                      {"HTTP/1.1 204 No Content\r\n\r\n", ""},
		"20 MB in chunks":          {chunks(big), big},
		"20 MB until close":        {closing("1", big), big},
		"no reason phrase":         {strings.Replace(whole(200, completion), "200 OK", "200 ", 1), completion},
		"no space after status":    {strings.Replace(whole(200, completion), "200 OK", "200", 1), completion},
		"a length that is shorter": {sizedHead("application/json", 10) + completion, completion[:10]},
	}
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			answer := tests[claimOf(raw)].raw
			c.send(answer)
			if !strings.Contains(answer, "Content-Length") && !strings.Contains(answer, "chunked") && !strings.Contains(answer, "204") {
				return
			}
		}
	})
	g := start(t, plainConfig(u.url))
	for name, test := range tests {
		r := g.do(call(g.key, plainBody, claimed(name)))
		if r.err != nil || r.status/100 != 2 || sha256.Sum256([]byte(r.body)) != sha256.Sum256([]byte(test.want)) {
			t.Errorf("%s: %d, %d bytes (%v), want %d", name, r.status, len(r.body), r.err, len(test.want))
		}
		before := u.accepted()
		// What was left over must not become the next call's answer.
		if r := g.do(call(g.key, plainBody, claimed("with a length"))); r.status != 200 || r.body != completion {
			t.Errorf("the call after %q: %d %.100q", name, r.status, r.body)
		}
		if fresh := u.accepted() > before; name == "a length that is shorter" && !fresh {
			t.Errorf("%s: a connection with bytes left on it was used again", name)
		}
	}
}

// fasthttp closes a body twice where it can: the second time would end whatever
// request the exchange serves by then.
func TestTheEndOfAStreamIsToldOnce(t *testing.T) {
	if _, ok := any(&stream{}).(fasthttp.ReadCloserWithError); ok {
		t.Error("a stream has a second way to be closed")
	}
}

func TestStreamsPassByteForByteWhateverTheirPieces(t *testing.T) {
	t.Parallel()
	crlf := strings.NewReplacer("\n", "\r\n")
	events := event(1) + ": a comment\n\n" + event(2) + "event: x\nid: 7\ndata: {\"a\":\ndata: 1}\n\n" + event(3)
	usage := `data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}` + "\n\n"
	long := strings.Repeat(event(5), 5000)
	bodies := map[string]string{
		"LF": events + usage + doneEvent, "CRLF": crlf.Replace(events + usage + doneEvent),
		"no DONE": events, "no last empty line": events + "data: [DONE]", "long": long + usage + doneEvent,
		"a large event": "data: {\"b64\":\"" + strings.Repeat("A", 3<<20) + "\"}\n\n" + usage + doneEvent,
	}
	ways := map[string]func(c *callee, s string){
		"at once": func(c *callee, s string) { c.send(sseHead + chunk(s) + lastChunk) },
		"byte by byte": func(c *callee, s string) {
			if len(s) > 10_000 {
				c.send(sseHead + chunk(s) + lastChunk)
				return
			}
			c.send(sseHead)
			raw := chunk(s[:100]) + chunk(s[100:]) + lastChunk
			for i := range len(raw) {
				c.send(raw[i : i+1])
			}
		},
		"a chunk a byte": func(c *callee, s string) {
			var b strings.Builder
			for i := range min(len(s), 100_000) {
				b.WriteString(chunk(s[i : i+1]))
			}
			if len(s) > 100_000 {
				b.WriteString(chunk(s[100_000:]))
			}
			c.send(sseHead + b.String() + lastChunk)
		},
		"an event a read": func(c *callee, s string) {
			c.send(sseHead)
			for s != "" {
				n := len(s)
				if i := strings.Index(s, "\n\n"); i >= 0 && n < 10_000 {
					n = i + 2
				}
				c.send(chunk(s[:n]))
				s = s[n:]
				time.Sleep(3 * time.Millisecond)
			}
			c.send(lastChunk)
		},
		"with a length": func(c *callee, s string) { c.send(sizedHead("text/event-stream", len(s)) + s) },
		"until close": func(c *callee, s string) {
			c.send("HTTP/1.0 200 OK\r\nContent-Type: Text/Event-Stream\r\n\r\n" + s)
			_ = c.Close()
		},
	}
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			body, way, _ := strings.Cut(claimOf(raw), "/")
			ways[way](c, bodies[body])
		}
	})
	g := start(t, plainConfig(u.url))
	for name, body := range bodies {
		for way := range ways {
			raw := call(g.key, streamBody, claimed(name+"/"+way))
			r := g.do(raw)
			if r.err != nil || r.status != 200 || r.body != body || r.header.Get("Cache-Control") != "no-cache" {
				t.Errorf("%s %s: %d, %d bytes (%v), want %d", name, way, r.status, len(r.body), r.err, len(body))
			}
			// An HTTP/1.0 client knows no chunks: the connection's end is the body's.
			r = g.do(strings.Replace(raw, "HTTP/1.1", "HTTP/1.0", 1))
			if r.err != nil || r.status != 200 || r.body != body || r.length != -1 || !r.close || r.header.Get("Transfer-Encoding") != "" {
				t.Errorf("HTTP/1.0, %s %s: %d, %d bytes (%v), close %v", name, way, r.status, len(r.body), r.err, r.close)
			}
		}
	}
	want := float64(2 * len(ways) * 7 * (len(bodies) - 2))
	eventually(t, "the usage of every stream that told it", func() bool {
		return g.metric("keeptrusts_gateway_tokens_total", "direction=output") == want
	})
}

// An event like the one before it passes in the provider's own framing.
func TestAChunkWithNothingToReadPassesAsItIs(t *testing.T) {
	t.Parallel()
	next := make(chan bool)
	u := scripted(t, func(c *callee) {
		for c.request() != "" {
			c.send(sseHead)
			for i := range 3 {
				c.send("00" + chunk(event(i)))
				<-next
			}
			c.send(lastChunk)
		}
	})
	g := start(t, plainConfig(u.url))
	w := g.dial()
	w.send(call(g.key, streamBody))
	got := ""
	for i := range 3 {
		for b := make([]byte, 4<<10); !strings.Contains(got, event(i)); {
			n, err := w.r.Read(b)
			if err != nil {
				t.Fatalf("%v after %q", err, got)
			}
			got += string(b[:n])
		}
		give(t, "the next event", next, true)
	}
	if !strings.HasSuffix(got, "00"+chunk(event(2))) {
		t.Errorf("ends with %q", got[len(got)-min(len(got), 300):])
	}
	if !strings.Contains(got, chunk(event(0))) || strings.Contains(got, "00"+chunk(event(0))) {
		t.Errorf("the first, which was read, is %q", got)
	}
}

// What looks like a chunk and lies inside one is payload.
func TestAChunkInsideAChunkIsPayload(t *testing.T) {
	t.Parallel()
	inner := chunk(event(2))
	u := scripted(t, func(c *callee) {
		for c.request() != "" {
			c.send(sseHead + chunk(event(0)))
			for _, piece := range []string{fmt.Sprintf("%x\r\n", len(event(1))+len(inner)) + event(1), inner, "\r\n", chunk(event(3)), lastChunk} {
				time.Sleep(20 * time.Millisecond)
				c.send(piece)
			}
		}
	})
	g := start(t, plainConfig(u.url))
	if r := g.do(call(g.key, streamBody)); r.err != nil || r.body != event(0)+event(1)+inner+event(3) {
		t.Errorf("%v %q", r.err, r.body)
	}
}

func TestUsageThatNobodyAskedForIsTakenOut(t *testing.T) {
	t.Parallel()
	url, _ := simulated(t)
	g := start(t, plainConfig(url))
	for _, script := range []string{`{}`, `{"split_utf8":true,"content":"déjà 😀 vu –"}`, `{"crlf":true}`, `{"comment":true}`, `{"chunks":5000}`} {
		body := strings.Replace(streamBody, `"stream_options":{"include_usage":true}`, `"simulator":`+script, 1)
		r := g.do(call(g.key, body))
		if r.err != nil || r.status != 200 || !strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, `"choices":[],`) {
			t.Errorf("%s: %d %v %.300q", script, r.status, r.err, r.body)
		}
		if g.line(r.header.Get("X-Request-Id"))["output_tokens"] == nil {
			t.Errorf("%s: no usage was metered", script)
		}
	}
}

func TestACompressedAnswerThatNobodyAskedForIsRefused(t *testing.T) {
	t.Parallel()
	url, sim := simulated(t)
	_ = sim
	g := start(t, plainConfig(url))
	for _, stream := range []string{"false", "true"} {
		r := g.do(call(g.key, `{"model":"chat","stream":`+stream+`,"messages":[{"role":"user","content":"x"}],"simulator":{"gzip":true}}`, "Accept-Encoding: gzip"))
		if r.status != 502 || r.problem().Code != codeUpstreamError || r.header.Get("X-Keeptrusts-Target") != "" {
			t.Errorf("stream %s: %d %v %q", stream, r.status, r.header, r.body)
		}
	}
}
