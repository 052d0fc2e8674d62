package proxy

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAnUpstreamThatRefusesBeforeItHasReadTheBodyIsHeard(t *testing.T) {
	t.Parallel()
	const refusal = `{"error":{"message":"too large","type":"invalid_request_error","param":null,"code":"too_large"}}`
	u := scripted(t, func(c *callee) {
		for {
			line, err := c.r.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
		}
		c.send(whole(413, refusal, "Connection: close"))
	})
	g := start(t, plainConfig(u.url))
	body := `{"model":"chat","messages":[{"role":"user","content":"` + strings.Repeat("x", 8<<20) + `"}]}`
	heard := 0
	for range 10 {
		if r := g.do(call(g.key, body)); r.status == 413 && r.body == refusal && r.header.Get("X-Keeptrusts-Target") == "main" {
			heard++
		}
	}
	if heard != 10 {
		t.Errorf("heard %d of 10", heard)
	}
}

func TestConnectionsToATargetAreUsedAgain(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			switch {
			case strings.Contains(raw, `"stream":true`):
				c.send(sseHead + chunk(event(1)) + chunk(doneEvent))
				c.send(lastChunk)
			case claimOf(raw) == "close":
				c.send(whole(200, completion)) // and closes, without a word
				return
			case claimOf(raw) == "stray":
				c.send(whole(200, completion))
				time.Sleep(20 * time.Millisecond)
				c.send(whole(408, "{}"))
			default:
				c.send(whole(200, completion))
			}
		}
	})
	g := start(t, plainConfig(u.url))
	for i := range 40 {
		body := plainBody
		if i%2 == 1 {
			body = streamBody
		}
		if r := g.do(call(g.key, body)); r.status != 200 || r.err != nil {
			t.Fatalf("%d %q %v", r.status, r.body, r.err)
		}
	}
	if n := u.accepted(); n != 1 {
		t.Errorf("40 calls took %d connections, want 1", n)
	}
	for i, name := range []string{"close", "stray"} {
		if r := g.do(call(g.key, plainBody, claimed(name))); r.status != 200 {
			t.Fatalf("%s: %d", name, r.status)
		}
		time.Sleep(trustedIdle + 50*time.Millisecond)
		if r := g.do(call(g.key, plainBody)); r.status != 200 {
			t.Errorf("the call after %s: %d %q", name, r.status, r.body)
		}
		if n := u.accepted(); n != 2+i {
			t.Errorf("after %s: %d connections, want %d", name, n, 2+i)
		}
	}
}

func TestASilentUpstreamIsGivenUpInTimeAndNotBefore(t *testing.T) {
	t.Parallel()
	const limit, pause = 500 * time.Millisecond, 300 * time.Millisecond
	const piece = 30
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			switch claimOf(raw) {
			case "late head":
				time.Sleep(pause)
				c.send(whole(200, completion))
			case "late body":
				c.send(sizedHead("application/json", len(completion)))
				for s := completion; s != ""; s = s[min(len(s), 100):] {
					time.Sleep(pause)
					c.send(s[:min(len(s), 100)])
				}
			case "late events":
				c.send(sseHead)
				for i := range 4 {
					time.Sleep(pause)
					c.send(chunk(event(i)))
				}
				c.send(chunk(doneEvent) + lastChunk)
			case "no head":
				c.gone()
				return
			case "no body":
				c.send(sizedHead("application/json", len(completion)) + completion[:piece])
				c.gone()
				return
			case "no event":
				c.send(sseHead + chunk(event(1)) + chunk(event(2)[:piece]))
				c.gone()
				return
			}
		}
	})
	g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {first_byte: 500ms, upstream_idle: 500ms, ", 1))
	patient := func(name, body, want string) {
		r := g.do(call(g.key, body, claimed(name)))
		if r.status != 200 || r.err != nil || !strings.Contains(r.body, want) {
			t.Errorf("%s: given up before its time: %d %q %v", name, r.status, r.body, r.err)
		}
	}
	given := func(name string) {
		r := g.do(call(g.key, plainBody, claimed(name)))
		if r.status != 504 || r.problem().Code != codeUpstreamTimeout {
			t.Errorf("%s: %d %q", name, r.status, r.body)
		}
	}
	var wait sync.WaitGroup
	for i := range 10 {
		wait.Go(func() {
			time.Sleep(time.Duration(i) * watchEvery / 10) // at every phase of the watcher's tick
			patient("late head", plainBody, `"usage"`)
		})
		wait.Go(func() {
			time.Sleep(time.Duration(i) * watchEvery / 10)
			patient("late events", streamBody, "[DONE]")
		})
	}
	wait.Go(func() { patient("late body", plainBody, `"usage"`) })
	wait.Go(func() { given("no head") })
	wait.Go(func() { given("no body") })
	wait.Go(func() {
		began := time.Now()
		r := g.do(call(g.key, streamBody, claimed("no event")))
		if wrong := cutBy(r, codeUpstreamTimeout, event(1)); wrong != "" || time.Since(began) < limit || time.Since(began) > limit+time.Second {
			t.Errorf("no event: %s after %v: %q", wrong, time.Since(began), r.body)
		}
	})
	wait.Wait()
}

// slowly reads a body with pauses, through a small window.
func slowly(w *wire, piece int, pause time.Duration) (int64, error) {
	_ = w.SetDeadline(time.Now().Add(6 * patience))
	res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"})
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for {
		n, err := io.CopyN(io.Discard, res.Body, int64(piece))
		total += n
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		time.Sleep(pause)
	}
}

func TestAClientThatDoesNotReadIsCutAndASlowOneIsNot(t *testing.T) {
	t.Parallel()
	filler := "data: {\"x\":\"" + strings.Repeat("y", 32<<10) + "\"}\n\n"
	const pieces = 640 // 20 MB
	large := whole(200, `{"a":"`+strings.Repeat("z", 20<<20)+`"}`)
	var came, gone moments
	u := scripted(t, func(c *callee) {
		for raw := c.request(); raw != ""; raw = c.request() {
			id := claimOf(raw)
			came.note(id)
			switch {
			case strings.Contains(id, "whole"):
				c.send(large)
			case strings.HasPrefix(id, "slow"):
				c.send(sseHead + strings.Repeat(chunk(filler), pieces) + chunk(doneEvent) + lastChunk)
			default:
				c.send(sseHead)
				for {
					if _, err := c.Write([]byte(chunk(filler))); err != nil {
						gone.note(id)
						return
					}
				}
			}
		}
	})
	g := start(t, strings.Replace(plainConfig(u.url), "limits: {", "limits: {client_idle: 2500ms, ", 1))
	var wait sync.WaitGroup
	for _, id := range []string{"stuck", "stuck http10", "slow", "slow whole"} {
		wait.Go(func() {
			w := g.dial()
			_ = w.SetReadBuffer(64 << 10)
			body := streamBody
			if strings.Contains(id, "whole") {
				body = plainBody
			}
			raw := call(g.key, body, claimed(id))
			if strings.Contains(id, "http10") {
				raw = strings.Replace(raw, "HTTP/1.1", "HTTP/1.0", 1)
			}
			w.send(raw)
			at := receive(t, id, came.of(id))
			switch {
			case strings.HasPrefix(id, "slow"):
				n, err := slowly(w, 400<<10, 80*time.Millisecond)
				if err != nil || n < 20<<20 {
					t.Errorf("%s: cut after %d bytes: %v", id, n, err)
				}
			default:
				if d := receive(t, id+" is cut", gone.of(id)).Sub(at); d < 2500*time.Millisecond || d > patience {
					t.Errorf("%s: cut after %v", id, d)
				}
			}
		})
	}
	wait.Wait()
	eventually(t, "every exchange is free", func() bool { return g.s.open.Load() == 0 })
	w := g.dial()
	_ = w.SetReadBuffer(64 << 10)
	w.send(call(g.key, plainBody, claimed("stuck whole")))
	receive(t, "the call", came.of("stuck whole"))
	before := g.s.conns.Load()
	eventually(t, "the connection of a client that does not read a whole answer is closed", func() bool { return g.s.conns.Load() < before })
	if n := g.metric("keeptrusts_gateway_client_closed_requests_total"); n != 2 {
		t.Errorf("client_closed_requests_total is %v, want 2", n)
	}
}
