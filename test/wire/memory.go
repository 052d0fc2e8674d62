package main

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// memory holds as many idle streams as descriptors allow, and weighs the process.
func memory(ctx context.Context, t *trial) error {
	g, key, err := withKey(ctx, t, layout{limits: "upstream_idle: 10m, first_byte: 10m"})
	if err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	n := min(9000, (int(limit.Cur)-1000)/2) // each has two ends here, and two there
	for range 200 {
		g.call(ctx, key, call{})
	}
	g.up.hush()
	rig.Pause(ctx, 500*time.Millisecond)
	http.DefaultClient.CloseIdleConnections()
	base, err := g.state(ctx)
	if err != nil {
		return err
	}
	before, err := g.child.Resident()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var all []*wire
	var open atomic.Int64
	together(n, 100, func(int) {
		w, err := dial(ctx, g.addr, "")
		if err != nil {
			t.miss("%v", err)
			return
		}
		mu.Lock()
		all = append(all, w)
		mu.Unlock()
		if _, err := io.WriteString(w, call{stream: true, script: script{id: "idle", do: "idle"}}.text(key)); err != nil {
			t.miss("%v", err)
			return
		}
		if err := w.events(1); err != nil {
			t.miss("%v", err)
			return
		}
		open.Add(1)
	})
	rig.Pause(ctx, 3*time.Second)
	after, err := g.child.Resident()
	if err != nil {
		return err
	}
	held, err := g.metric(ctx, "calls_open")
	if err != nil {
		return err
	}
	t.figure(int(open.Load()) == n && int(held) == n, "all", "%d of %d idle streams are open, with a limit of %d descriptors", int(held), n, limit.Cur)
	each := float64(after-before) / float64(n) / 1024
	t.figure(each < 64, "printed; 64 KiB", "%.1f KiB of resident memory a stream: %d MiB before, %d MiB with all", each, before>>20, after>>20)
	for _, w := range all {
		w.leave(false)
	}
	now, took := g.back(ctx, base, 5*time.Second)
	t.figure(now.descriptors-base.descriptors <= 5 && now.goroutines-base.goroutines <= 5, "5 more, within 5 s",
		"all left at once: descriptors %d before, %d after; goroutines %d before, %d after; in %.1f s", base.descriptors, now.descriptors, base.goroutines, now.goroutines, took.Seconds())
	g.sound(ctx, key)
	return nil
}
