package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// fuzz sends garbage that is almost sound, in heads and in bodies, and looks
// whether the gateway stands.
func fuzz(ctx context.Context, t *trial) error {
	g, key, err := withKey(ctx, t, layout{limits: "headers: 16KiB, request_body: 256KiB, header_read: 3s, body_read: 3s"})
	if err != nil {
		return err
	}
	g.up.hush()
	together(64, 64, func(int) { g.call(ctx, key, call{script: script{delay: 300 * time.Millisecond}}) }) // as many connections to the provider as may stay
	http.DefaultClient.CloseIdleConnections()
	base, err := g.state(ctx)
	if err != nil {
		return err
	}
	n := t.count(20_000, 2_000)
	seed := uint64(time.Now().UnixNano())
	heads := everyFraming(key)
	var mu sync.Mutex
	told := map[int]int{}
	began := time.Now()
	together(n, 32, func(i int) {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		input := fuzzedBody(rng, key)
		if i%2 == 0 {
			input = mutated(rng, heads[rng.IntN(len(heads))].raw, 1+rng.IntN(6))
		}
		statuses, err := g.feed(ctx, input)
		if err != nil {
			t.miss("seed %d, input %d: %v: %.300q", seed, i, err, input)
		}
		mu.Lock()
		for _, s := range statuses {
			told[s]++
		}
		mu.Unlock()
		if i%500 == 0 {
			if a := g.call(ctx, key, call{}); a.status != 200 {
				t.miss("after input %d (seed %d) an ordinary call: %v", i, seed, a)
			}
		}
	})
	panics, err := g.metric(ctx, "panics_total")
	if err != nil {
		return err
	}
	t.figure(g.child.Alive() && panics == 0 && told[500] == 0, "0", "%d fuzz inputs in heads and bodies, in %.0f s, seed %d: %.0f panics, crashes %t", n, time.Since(began).Seconds(), seed, panics, !g.child.Alive())
	t.figure(told[200] > 0 && told[400] > 0, "some of each", "answered by status: %v", told)
	odd, _, all := g.up.oddities()
	for _, r := range odd {
		t.miss("went upstream: %s: %.300q", r.odd, r.raw)
	}
	t.figure(len(odd) == 0, "0", "%d of %d calls upstream that net/http or a strict parser read otherwise", len(odd), all)
	now, took := g.back(ctx, base, 5*time.Second)
	t.figure(now.descriptors-base.descriptors <= 5 && now.goroutines-base.goroutines <= 5, "5 more, within 5 s",
		"descriptors %d before, %d after; goroutines %d before, %d after; in %.1f s", base.descriptors, now.descriptors, base.goroutines, now.goroutines, took.Seconds())
	g.sound(ctx, key)
	return nil
}

// feed sends bytes and an end, and reads what is answered until the gateway closes.
// An answer that is none, or a gateway that does not close, is an error.
func (g *gateway) feed(ctx context.Context, input string) (statuses []int, err error) {
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return nil, err
	}
	defer w.Close()
	go func() {
		_, _ = io.WriteString(w, input)
		_ = w.CloseWrite()
	}()
	_ = w.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, err := w.r.Peek(1); err != nil {
			if isTimeout(err) {
				return statuses, fmt.Errorf("the gateway neither answers nor closes")
			}
			return statuses, nil
		}
		res, err := http.ReadResponse(w.r, nil)
		if err != nil {
			if strings.HasPrefix(input, "HEAD ") || isReset(err) {
				return statuses, nil
			}
			return statuses, fmt.Errorf("an answer that is none: %w", err)
		}
		statuses = append(statuses, res.StatusCode)
		if strings.HasPrefix(input, "HEAD ") {
			return statuses, nil
		}
		b, err := io.ReadAll(bufio.NewReader(res.Body))
		if err != nil {
			return statuses, nil // cut, as it may be for a client that has ended
		}
		if res.StatusCode >= 400 && errorCode(b) == "" && res.Header.Get("X-Keeptrusts-Target") == "" {
			return statuses, fmt.Errorf("a %d of another shape: %.200q", res.StatusCode, b)
		}
	}
}

func isReset(err error) bool {
	return strings.Contains(err.Error(), "reset") || strings.Contains(err.Error(), "unexpected EOF")
}

const odd = "\r\n\r\n\t :;,\x00\x0b\x7f\xff\xc0\x80{}[]\"\\'/?#%&=.-+_0123456789abcxEXPTHhttp/1.1"

// mutated changes, puts in, takes out, repeats and moves bytes.
func mutated(rng *rand.Rand, s string, times int) string {
	b := []byte(s)
	for range times {
		if len(b) == 0 {
			return "\n"
		}
		i := rng.IntN(len(b))
		j := min(len(b), i+1+rng.IntN(1+rng.IntN(30)))
		switch rng.IntN(7) {
		case 0:
			b[i] = odd[rng.IntN(len(odd))]
		case 1:
			b = slices.Insert(b, i, odd[rng.IntN(len(odd))])
		case 2:
			b = slices.Delete(b, i, j)
		case 3:
			b = slices.Insert(b, i, slices.Clone(b[i:j])...)
		case 4:
			b[i] ^= 1 << rng.IntN(8)
		case 5:
			k := rng.IntN(len(b))
			b = slices.Insert(b, k, slices.Clone(b[i:j])...)
		case 6:
			b = slices.Insert(b, i, []byte(strings.Repeat(string(odd[rng.IntN(len(odd))]), rng.IntN(300)))...)
		}
	}
	return string(b)
}

var fuzzSeeds = []string{
	framedBody,
	`{"messages":[{"role":"user","content":"h\u00e9\n\"x\""}],"model":"cheap","stream":true,"n":2,"max_tokens":100,"temperature":-1.5e3,"stream_options":{"include_usage":true}}`,
	`{"model":"cheap","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}],"modalities":["text"],"audio":null}`,
	`{"model":"cheap","max_completion_tokens":10,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{}}},"logit_bias":{"1":-100},"stop":["a","b"],"user":"😀\ud83d\ude00","service_tier":"auto","store":false,"metadata":{"a":"b"}}`,
}

// fuzzedBody is a sound head over a body that is almost sound.
func fuzzedBody(rng *rand.Rand, key string) string {
	body := mutated(rng, fuzzSeeds[rng.IntN(len(fuzzSeeds))], rng.IntN(5))
	if rng.IntN(20) == 0 {
		n := 1 + rng.IntN(30_000)
		body = `{"model":"cheap","a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}"
	}
	head := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer %s\r\n%s", key, script{id: "fuzz"}.header())
	if rng.IntN(2) == 0 {
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	var b strings.Builder
	for rest := body; rest != ""; {
		piece := rest[:min(len(rest), 1+rng.IntN(200))]
		rest = rest[len(piece):]
		b.WriteString(frame(piece))
	}
	return head + "Transfer-Encoding: chunked\r\n\r\n" + b.String() + "0\r\n\r\n"
}
