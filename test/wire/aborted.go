package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// leaver is a client that goes, and when.
type leaver struct {
	script script
	stream bool
	events int  // that it waits for; 0: it goes before a head
	reset  bool // it goes by a RST
	behind bool // with bytes of a next request sent before
}

func leavers() []leaver {
	var all []leaver
	for _, reset := range []bool{false, true} {
		for _, behind := range []bool{false, true} {
			all = append(all,
				leaver{script: script{do: "silent"}, reset: reset, behind: behind},
				leaver{script: script{do: "silent"}, stream: true, reset: reset, behind: behind},
				leaver{script: script{do: "idle"}, stream: true, events: 1, reset: reset, behind: behind},
				leaver{script: script{do: "stream", chunks: 1000, gap: 15 * time.Millisecond}, stream: true, events: 3, reset: reset, behind: behind})
		}
	}
	return all
}

// state is what a process has open.
type state struct{ descriptors, goroutines int }

func (g *gateway) state(ctx context.Context) (s state, err error) {
	goroutines, err := g.metric(ctx, "go_goroutines")
	if err != nil {
		return s, err
	}
	s.goroutines = int(goroutines)
	s.descriptors, err = descriptors(g.child)
	return s, err
}

// back waits at most d until the process has no more than 5 open beyond what it had.
func (g *gateway) back(ctx context.Context, base state, d time.Duration) (now state, took time.Duration) {
	began := time.Now()
	settled(ctx, d, func() bool {
		http.DefaultClient.CloseIdleConnections()
		s, err := g.state(ctx)
		now, took = s, time.Since(began)
		return err == nil && s.descriptors-base.descriptors <= 5 && s.goroutines-base.goroutines <= 5
	})
	return now, took
}

// aborted has clients leave at every moment, and waits for the provider to see it.
func aborted(ctx context.Context, t *trial) error {
	g, key, err := withKey(ctx, t, layout{limits: "first_byte: 60s, upstream_idle: 60s"})
	if err != nil {
		return err
	}
	for range 50 { // so that the base has what stays: pools, connections to the provider
		g.call(ctx, key, call{})
	}
	rig.Pause(ctx, time.Second)
	http.DefaultClient.CloseIdleConnections()
	base, err := g.state(ctx)
	if err != nil {
		return err
	}
	n := t.count(10_000, 600)
	kinds := leavers()
	var mu sync.Mutex
	var late []time.Duration
	never := 0
	began := time.Now()
	together(n, 200, func(i int) {
		d, err := g.leave(ctx, key, kinds[i%len(kinds)], fmt.Sprintf("left/%d", i))
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			never++
			t.miss("%+v: %v", kinds[i%len(kinds)], err)
			return
		}
		late = append(late, d)
	})
	t.figure(never == 0, "all", "%d of %d aborted streams ended at the provider, of %d kinds, in %.0f s", n-never, n, len(kinds), time.Since(began).Seconds())
	if len(late) == 0 {
		return nil
	}
	slices.Sort(late)
	t.figure(late[len(late)-1] <= time.Second, "1 s", "from the client's leaving to the provider's: median %s, last %s", late[len(late)/2].Round(time.Millisecond), late[len(late)-1].Round(time.Millisecond))
	now, took := g.back(ctx, base, 5*time.Second)
	t.figure(now.descriptors-base.descriptors <= 5 && now.goroutines-base.goroutines <= 5, "5 more, within 5 s",
		"descriptors %d before, %d after; goroutines %d before, %d after; in %.1f s", base.descriptors, now.descriptors, base.goroutines, now.goroutines, took.Seconds())
	open, err := g.metric(ctx, "calls_open")
	if err != nil {
		return err
	}
	holds, err := g.metric(ctx, "budget_holds")
	if err != nil {
		return err
	}
	t.figure(open == 0 && holds == 0, "0", "%.0f open requests, %.0f holds", open, holds)
	g.sound(ctx, key)
	return nil
}

// leave makes a call and goes; it returns how long after that the provider's
// connection ended.
func (g *gateway) leave(ctx context.Context, key string, l leaver, id string) (time.Duration, error) {
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return 0, err
	}
	l.script.id = id
	text := call{stream: l.stream, script: l.script}.text(key)
	if l.behind {
		text += "GET /v1/models HTTP/1.1\r\nHost: gw\r\n"
	}
	if _, err := io.WriteString(w, text); err != nil {
		w.leave(true)
		return 0, err
	}
	if !settled(ctx, 10*time.Second, func() bool { return len(g.up.of(id)) > 0 }) {
		w.leave(true)
		return 0, fmt.Errorf("the call did not come to the provider")
	}
	if l.events > 0 {
		if err := w.events(l.events); err != nil {
			w.leave(true)
			return 0, err
		}
	} else {
		rig.Pause(ctx, time.Duration(rand.IntN(600))*time.Millisecond)
	}
	left := time.Now()
	w.leave(l.reset)
	r := g.up.of(id)[0]
	var ended time.Time
	settled(ctx, 5*time.Second, func() bool {
		g.up.mu.Lock()
		defer g.up.mu.Unlock()
		ended = r.ended
		return !ended.IsZero()
	})
	if ended.IsZero() {
		return 0, fmt.Errorf("the provider's call goes on")
	}
	return max(0, ended.Sub(left)), nil
}

// events reads a stream's head and so many events of it.
func (w *wire) events(n int) error {
	res, err := http.ReadResponse(w.r, nil)
	if err != nil {
		return err
	}
	if res.StatusCode != 200 {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	b := make([]byte, 4<<10)
	for seen := 0; seen < n; {
		k, err := res.Body.Read(b)
		for i := range k {
			if b[i] == '@' || b[i] == 'f' && string(b[i:min(i+5, k)]) == "first" {
				seen++
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
