package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const framingHead = 16 << 10 // limits.headers of the scenario

// verdict is what must become of one case.
type verdict struct {
	served   []string // of each request that can be read in one way only: "" it is forwarded, else the code that it is refused with
	bodies   [][]byte // of those that are forwarded
	disputed bool     // what comes then is read otherwise by somebody, or by nobody
	short    bool     // its end does not come
	last     string   // the code that ends it; "" the connection stays open, or its client closes it
}

// judge reads a case's bytes request by request, as far as they can be read in one
// way only.
func judge(raw []byte) (v verdict) {
	for rest := raw; len(rest) > 0; {
		r, n, err := strict(rest, framingHead)
		switch {
		case err == errShort:
			v.short, v.disputed = true, true
			return v
		case err == errHuge:
			v.last, v.disputed = "headers_too_large", true
			return v
		case err == errExpect:
			v.last = "unknown_expectation"
			return v
		case err != nil || disputed(rest, r, n):
			v.last, v.disputed = "invalid_request", true
			return v
		}
		rest = rest[n:]
		code := r.code()
		if v.served = append(v.served, code); code == "" {
			v.bodies = append(v.bodies, r.body)
		}
		if c := strings.ToLower(strings.Join(r.get("Connection"), ",")); r.http10 || strings.Contains(c, "close") {
			return v
		}
	}
	return v
}

// code is what a request is refused with whose framing is sound; "" it is served.
func (r *request) code() string {
	auth := r.get("Authorization")
	switch path, _, _ := strings.Cut(r.target, "?"); {
	case len(auth) == 0 || !strings.HasPrefix(auth[0], "Bearer kt_live_"):
		return "invalid_api_key"
	case len(auth) > 1:
		return "multiple_credentials"
	case path != "/v1/chat/completions":
		return "unknown_endpoint"
	case r.method != "POST":
		return "method_not_allowed"
	case len(r.body) == 0 || !json.Valid(r.body):
		return "invalid_json"
	}
	return ""
}

// framing sends every case and compares what became of it, at the client and at
// the provider, with its verdict.
func framing(ctx context.Context, t *trial) error {
	g, err := newGateway(ctx, t, layout{limits: "headers: 16KiB, request_body: 64KiB, header_read: 3s, body_read: 3s"})
	if err != nil {
		return err
	}
	key, err := g.admin.mint(ctx, minting{})
	if err != nil {
		return err
	}
	cases := everyFraming(key.Token)
	var ambiguous, forwardedAmbiguous, wrong, served atomic.Int64
	together(len(cases), 16, func(i int) {
		c := &cases[i]
		v := judge([]byte(c.raw))
		if v.disputed {
			ambiguous.Add(1)
		}
		got := g.deliver(ctx, c.raw, i%3, &v)
		seen := slices.Concat(g.up.of(c.id), g.up.of(c.id+"-hidden"))
		if len(seen) > len(v.bodies) {
			if v.disputed {
				forwardedAmbiguous.Add(1)
			}
			t.miss("%s: %d calls went upstream, not %d", c.name, len(seen), len(v.bodies))
			return
		}
		served.Add(int64(len(seen)))
		for k, r := range seen {
			if r.req == nil || !bytes.Equal(r.req.body, v.bodies[k]) {
				forwardedAmbiguous.Add(1)
				t.miss("%s: another body went upstream", c.name)
			}
		}
		if problem := compare(v, got); problem != "" {
			wrong.Add(1)
			t.miss("%s: %s; want %q and then %q", c.name, problem, v.served, v.last)
		}
	})
	odd, strays, all := g.up.oddities()
	for _, r := range append(odd, strays...) {
		t.miss("what went upstream is nobody's, or read in two ways: %s: %q", r.odd, r.raw)
	}
	n := int64(len(cases))
	t.figure(len(cases) >= 500, "at least 500", "%d framing cases tried, %d of them ambiguous", n, ambiguous.Load())
	t.figure(ambiguous.Load() >= 500, "at least 500", "%d that a strict parser refuses, or one of %d lax ones reads otherwise", ambiguous.Load(), len(panel))
	t.figure(forwardedAmbiguous.Load() == 0, "0", "%d forwarded ambiguously", forwardedAmbiguous.Load())
	t.figure(len(odd)+len(strays) == 0, "0", "%d of %d calls that the provider got are read otherwise by net/http or by a strict parser, %d are nobody's", len(odd), all, len(strays))
	t.figure(served.Load() >= 100, "at least 100", "%d sound calls served", served.Load())
	t.figure(wrong.Load() == 0, "0", "%d answered otherwise than with one refusal, and the connection closed", wrong.Load())
	g.sound(ctx, key.Token)
	return nil
}

// delivered is what came back over a connection.
type delivered struct {
	answers []*answered
	over    bool // the gateway closed
}

// deliver sends bytes whole, in halves or one by one, and takes what is answered: it
// is patient with what is due, and waits a moment for what is not.
func (g *gateway) deliver(ctx context.Context, raw string, way int, v *verdict) (d delivered) {
	due := len(v.served)
	if v.last != "" {
		due++
	}
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return d
	}
	defer w.Close()
	go func() {
		switch {
		case way == 1:
			_, _ = io.WriteString(w, raw[:len(raw)/2])
			time.Sleep(2 * time.Millisecond) // two reads, mostly
			_, _ = io.WriteString(w, raw[len(raw)/2:])
		case way == 2 && len(raw) < 1000:
			for i := range len(raw) {
				_, _ = io.WriteString(w, raw[i:i+1])
			}
		default:
			_, _ = io.WriteString(w, raw)
		}
	}()
	method, _, _ := strings.Cut(raw, " ")
	for {
		wait := 50 * time.Millisecond
		if len(d.answers) < due {
			wait = patience
		}
		_ = w.SetReadDeadline(time.Now().Add(wait))
		if _, err := w.r.Peek(1); err != nil {
			d.over = !isTimeout(err)
			return d
		}
		_ = w.SetReadDeadline(time.Now().Add(patience))
		a := w.take(method, nil)
		if a.status == http.StatusContinue {
			continue
		}
		d.answers = append(d.answers, a)
		if a.err != nil {
			return d
		}
		if a.closes {
			d.over = w.over(10 * time.Second)
			return d
		}
	}
}

// compare says what of an exchange is not as its verdict has it.
func compare(v verdict, d delivered) string {
	for i, code := range v.served {
		switch {
		case i >= len(d.answers):
			if n := len(d.answers); n > 0 && d.answers[n-1].closes && d.answers[n-1].code != "" && d.over {
				return "" // a refusal whose body was still on its way ends the connection, and says so
			}
			return "a request was not answered: " + describe(d.answers)
		case code == "" && d.answers[i].status != 200, code != "" && d.answers[i].code != code && d.answers[i].body != "":
			return fmt.Sprintf("answered %s instead of %q", describe(d.answers[i:]), code)
		case d.answers[i].closes && i < len(d.answers)-1:
			return "an answer after the last: " + describe(d.answers)
		}
	}
	rest := d.answers[len(v.served):]
	switch {
	case v.short: // its end may still come: nothing, or a refusal
		if len(rest) > 1 || len(rest) == 1 && rest[0].status/100 != 4 {
			return "a request without an end was answered: " + describe(rest)
		}
		return ""
	case v.last == "":
		if len(rest) > 0 {
			return "an answer too many: " + describe(rest)
		}
		return ""
	case len(rest) != 1:
		return "not one refusal: " + describe(rest)
	}
	a := rest[0]
	if !a.closes || !d.over {
		return "the connection stays open after " + describe(rest)
	}
	// A head that is too large may be refused for what is wrong in its beginning.
	if a.code != v.last && (a.code != "invalid_request" || v.last != "headers_too_large") && a.body != "" {
		return "refused as " + describe(rest)
	}
	return ""
}

func describe(all []*answered) string {
	var b strings.Builder
	for _, a := range all {
		b.WriteString(a.String() + "; ")
	}
	return b.String()
}
