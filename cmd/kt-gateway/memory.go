package main

import (
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
)

// tuneMemory sets the collector for a proxy, unless GOGC and GOMEMLIMIT do, until stop
// is called.
func tuneMemory(env func(string) (string, bool)) (stop func()) {
	stop = func() {}
	if _, ok := env("GOGC"); !ok {
		paceGarbage()
		ctx, cancel := context.WithCancel(context.Background())
		var swept sync.WaitGroup
		swept.Go(func() { sweepGarbage(ctx) })
		stop = func() { cancel(); swept.Wait() }
	}
	limitMemory(env)
	return stop
}

func limitMemory(env func(string) (string, bool)) {
	if _, ok := env("GOMEMLIMIT"); ok {
		return
	}
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// "max", and version 1's nearly 2^63, mean that there is no limit.
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err == nil && n > 0 && n < 1<<50 {
			debug.SetMemoryLimit(n / 10 * 9)
		}
		return
	}
}
