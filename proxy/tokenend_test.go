package proxy

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// tokenEnds are the ways in which a token ends while calls run on it.
var tokenEnds = []struct {
	name string
	code string
	mint func(*abac.Profile) // as the calls find it
	end  func(g *gateway, p *abac.Profile)
}{
	{"revoked", "token_revoked", func(*abac.Profile) {}, func(g *gateway, p *abac.Profile) { g.cache.Revoke(p.ID, 2) }},
	{"rotated", "token_expired", func(*abac.Profile) {}, func(g *gateway, p *abac.Profile) {
		now := time.Now()
		p.Revision, p.ExpiresAt = 2, &now
		g.s.TokenChanged(p)
	}},
	{"expired", "token_expired", func(p *abac.Profile) {
		soon := time.Now().Add(500 * time.Millisecond)
		p.ExpiresAt = &soon
	}, func(_ *gateway, p *abac.Profile) { time.Sleep(time.Until(*p.ExpiresAt)) }},
}

// beginning sends a call and hands its answer over when one comes.
func (w *wire) beginning(raw string) <-chan reply {
	w.send(raw)
	c := make(chan reply, 1)
	go func() {
		if res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"}); err == nil {
			b, _ := io.ReadAll(res.Body)
			c <- reply{status: res.StatusCode, body: string(b)}
		}
	}()
	return c
}

func TestWhatRunsOnATokenEndsWithIt(t *testing.T) {
	t.Parallel()
	for _, tt := range tokenEnds {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := holding(t, nil)
			g := start(t, plainConfig(u.url))
			var profile abac.Profile
			key := g.mint(func(p *abac.Profile) { tt.mint(p); profile = *p })
			var wait sync.WaitGroup
			var over [4]time.Time
			wait.Go(func() {
				r := g.do(call(key, streamBody, claimed("endless")))
				over[0] = time.Now()
				if wrong := cutBy(r, tt.code, event(1)); wrong != "" {
					t.Errorf("a stream: %s", wrong)
				}
			})
			wait.Go(func() {
				r := g.do(strings.Replace(call(key, streamBody, claimed("endless")), "HTTP/1.1", "HTTP/1.0", 1))
				over[1] = time.Now()
				r.err = errCut // an HTTP/1.0 body has no end but the connection's
				if wrong := cutBy(r, tt.code, event(1)); wrong != "" {
					t.Errorf("a stream in HTTP/1.0: %s", wrong)
				}
			})
			wait.Go(func() {
				r := g.do(call(key, plainBody, claimed("silent")))
				over[2] = time.Now()
				if r.status != 401 || r.problem().Code != tt.code || r.header.Get("WWW-Authenticate") != "Bearer" {
					t.Errorf("a call without an answer: %d %q", r.status, r.body)
				}
			})
			other := g.dial().beginning(call(g.key, plainBody, claimed("silent")))
			eventually(t, "four calls are open", func() bool { return g.s.streams.Load() == 4 })
			tt.end(g, &profile)
			ended := time.Now()
			wait.Wait()
			for i, at := range over[:3] {
				if d := at.Sub(ended); d > time.Second {
					t.Errorf("call %d ended %v after its token", i, d)
				}
			}
			select {
			case r := <-other:
				t.Errorf("another token's call ended too: %d %s", r.status, r.body)
			case <-time.After(2 * watchEvery):
			}
		})
	}
}

func TestOnlyAClientThatTakesNothingIsCutWithoutAWord(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		began time.Duration // of the write under way, ago by its stamp
		cut   bool
	}{
		{"has just begun", watchEvery + watchEvery/10, false}, // its stamp is of the last look, and this one may be late
		{"lasts", 3 * watchEvery, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := holding(t, nil)
			g := start(t, plainConfig(u.url))
			var profile abac.Profile
			key := g.mint(func(p *abac.Profile) { profile = *p })
			g.dial().beginning(call(key, plainBody, claimed("silent")))
			w := g.s.watcher
			eventually(t, "the call is listed", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.root.next != &w.root })
			w.mu.Lock()
			defer w.mu.Unlock()
			g.cache.Revoke(profile.ID, 2)
			x := w.root.next
			x.client.limits.writing.Store(int64(time.Since(w.start) - tt.began))
			w.lookToken(x, time.Now().UnixNano())
			cut := func() bool { return x.client.SetNoDelay(true) != nil }
			if tt.cut {
				eventually(t, "the connection is cut", cut)
			} else if time.Sleep(20 * time.Millisecond); cut() {
				t.Error("the connection is cut")
			}
		})
	}
}

func TestATokenThatLastsLongerIsNotCutAtItsOldEnd(t *testing.T) {
	t.Parallel()
	u := holding(t, nil)
	g := start(t, plainConfig(u.url))
	soon := time.Now().Add(700 * time.Millisecond)
	var profile abac.Profile
	key := g.mint(func(p *abac.Profile) { p.ExpiresAt = &soon; profile = *p })
	done := g.dial().beginning(call(key, plainBody, claimed("silent")))
	eventually(t, "the call is open", func() bool { return g.s.streams.Load() == 1 })
	profile.ExpiresAt = nil
	g.s.TokenChanged(&profile)
	select {
	case r := <-done:
		t.Errorf("ended: %d %s", r.status, r.body)
	case <-time.After(time.Until(soon) + 3*watchEvery):
	}
}

// Its body came slowly: the token ended between the door and the relay.
func TestACallWhoseTokenEndsWhileItsBodyComesIsNotForwarded(t *testing.T) {
	t.Parallel()
	for _, tt := range tokenEnds[:2] {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := answering(t, whole(200, completion))
			g := start(t, plainConfig(u.url))
			var profile abac.Profile
			long := strings.Replace(plainBody, "hello", strings.Repeat("hello ", 4000), 1) // more than is read with the head
			key := g.mint(func(p *abac.Profile) { profile = *p })
			w := g.dial()
			raw := call(key, long)
			w.send(raw[:len(raw)-10])
			eventually(t, "the request is open", func() bool { return g.s.open.Load() == 1 })
			time.Sleep(100 * time.Millisecond) // it has been identified
			tt.end(g, &profile)
			if tt.code == "token_expired" {
				g.tokens.put(token.Sum([]byte(key)), &profile)
				g.cache.Upsert(token.Sum([]byte(key)), &profile)
			}
			time.Sleep(4 * watchEvery)
			w.send(raw[len(raw)-10:])
			if r := w.must(); r.status != 401 || r.problem().Code != tt.code {
				t.Errorf("%d %s", r.status, r.body)
			}
			if n := len(u.seen()); n != 0 {
				t.Errorf("%d calls were forwarded", n)
			}
		})
	}
}

func TestAClientThatReadsNothingDoesNotKeepItsStream(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		c.request()
		c.send(sseHead)
		for {
			if _, err := io.WriteString(c.Conn, chunk(strings.Repeat(event(1), 500))); err != nil {
				return
			}
		}
	})
	g := start(t, plainConfig(u.url))
	w := g.dial()
	_ = w.SetReadBuffer(4 << 10)
	w.send(call(g.key, streamBody))
	if _, err := http.ReadResponse(bufio.NewReaderSize(w.r, 16), &http.Request{Method: "POST"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // all buffers are full
	g.cache.Revoke("tok_"+token.Sum([]byte(g.key)).String()[:12], 2)
	began := time.Now()
	eventually(t, "the stream has ended", func() bool { return g.s.open.Load() == 0 })
	if d := time.Since(began); d > time.Second {
		t.Errorf("it ended after %v", d)
	}
}
