package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// sink is something that the gateway writes to or asks, and how it fails.
type sink struct {
	name  string
	start func(ctx context.Context, t *trial) (g *gateway, key string, fail func(), err error)
}

// sinks lets each fail for a minute under as many calls as go.
func sinks(ctx context.Context, t *trial) error {
	for _, s := range []sink{
		{"a log that nobody reads", unreadLog},
		{"a record sink that blocks", unreadRecords},
		{"a record sink that fails", fullRecords},
		{"a control plane that is silent", silentPlane},
	} {
		g, key, fail, err := s.start(ctx, t)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := g.withFailing(ctx, s.name, key, fail); err != nil {
			return err
		}
		g.child.Kill()
	}
	return nil
}

// withFailing measures calls and memory while a sink fails.
func (g *gateway) withFailing(ctx context.Context, name, key string, fail func()) error {
	t := g.t
	g.up.hush()
	length := t.count(60, 10)
	warm, stop := context.WithTimeout(ctx, 3*time.Second)
	before := g.closed(warm, key)
	stop()
	fail()
	load, end := context.WithTimeout(ctx, time.Duration(length)*time.Second)
	defer end()
	var sizes []int64
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for load.Err() == nil {
			if n, err := g.child.Resident(); err == nil {
				sizes = append(sizes, n)
			}
			rig.Pause(load, time.Second)
		}
	}()
	under := g.closed(load, key)
	<-watched
	failed, words := under.failures()
	was := float64(before.n) / 3
	rate := float64(len(under.took)) / float64(length)
	t.figure(failed == 0 && rate >= was/3, "0 failed", "%s for %d s: %.0f calls a second, %.0f before; %d failed%s", name, length, rate, was, failed, words)
	t.tell("%s: resident KiB each second: %v", name, kibis(sizes))
	before10, after10, spread := drift(sizes[len(sizes)/2:])
	off := (after10/before10 - 1) * 100
	t.figure(off <= 5 && off >= -5, "±5%", "%s: memory moved by %+.1f%% over the last %d s, from %.1f to %.1f MiB (a sample was off by up to %.1f%%)", name, off, len(sizes)-len(sizes)/2, before10/(1<<20), after10/(1<<20), spread)
	return nil
}

// drift compares the mean of the first third of sizes with that of the last: a heap
// breathes, a leak does not come back. The spread is how far one lies from the mean of
// all, in percent.
func drift(sizes []int64) (before, after, spread float64) {
	third := max(len(sizes)/3, 1)
	mean := func(s []int64) (m float64) {
		for _, n := range s {
			m += float64(n) / float64(len(s))
		}
		return m
	}
	all := mean(sizes)
	for _, n := range sizes {
		spread = max(spread, math.Abs(float64(n)/all-1)*100)
	}
	return mean(sizes[:third]), mean(sizes[len(sizes)-third:]), spread
}

func kibis(sizes []int64) (all []int64) {
	for _, n := range sizes {
		all = append(all, n>>10)
	}
	return all
}

// closed is calls without pause by 8 callers until ctx ends.
func (g *gateway) closed(ctx context.Context, key string) *tally {
	t := &tally{}
	quiet := context.WithoutCancel(ctx)
	together(8, 8, func(int) {
		k := &caller{addr: g.addr}
		defer k.close()
		for ctx.Err() == nil {
			a := k.ask(quiet, key, call{script: script{id: "call"}})
			t.add(a)
			if a.status != 200 {
				rig.Pause(ctx, time.Millisecond)
			}
		}
	})
	return t
}

// unreadLog gives the process a pipe for its log, and stops reading it.
func unreadLog(ctx context.Context, t *trial) (*gateway, string, func(), error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", nil, err
	}
	var once sync.Mutex
	stopped := false
	go func() {
		b := make([]byte, 64<<10)
		for {
			once.Lock()
			s := stopped
			once.Unlock()
			if s {
				return
			}
			if _, err := r.Read(b); err != nil {
				return
			}
		}
	}()
	g, key, err := withKey(ctx, t, layout{id: "gw_log", out: w})
	w.Close()
	t.closers = append(t.closers, func() { r.Close() })
	return g, key, func() { once.Lock(); stopped = true; once.Unlock() }, err
}

// unreadRecords gives it a FIFO, and stops reading it.
func unreadRecords(ctx context.Context, t *trial) (*gateway, string, func(), error) {
	path := t.path("records.fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, "", nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, "", nil, err
	}
	t.closers = append(t.closers, func() { f.Close() })
	g, key, err := withKey(ctx, t, layout{id: "gw_fifo", more: "records: {path: " + path + "}"})
	return g, key, func() {}, err
}

func fullRecords(ctx context.Context, t *trial) (*gateway, string, func(), error) {
	g, key, err := withKey(ctx, t, layout{id: "gw_full", more: "records: {path: /dev/full}"})
	return g, key, func() {}, err
}

// silentPlane stops the control plane's process.
func silentPlane(ctx context.Context, t *trial) (*gateway, string, func(), error) {
	p, err := newPlane(ctx, t)
	if err != nil {
		return nil, "", nil, err
	}
	l, err := p.follower(ctx, "gw_silent")
	if err != nil {
		return nil, "", nil, err
	}
	g, err := newGateway(ctx, t, l)
	if err != nil {
		return nil, "", nil, err
	}
	key, err := p.mint(ctx, minting{})
	return g, key.Token, func() { _ = p.child.Signal(syscall.SIGSTOP) }, err
}
