package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Garbage trades memory for CPU: the less often it is collected the less that costs, and
// what lives in a gateway is mostly profiles that stay. Where little lives a multiple of
// it is little; where much does it would be a flood's to take, for next to no CPU.
const (
	garbageLeast = 100      // % of what lives
	garbageMost  = 400      // %
	garbageRoom  = 32 << 20 // bytes, between the two
)

// garbagePercent says how much garbage may be, in % of so many bytes that live.
func garbagePercent(live uint64) int {
	if live == 0 {
		return garbageMost
	}
	return int(min(max(garbageRoom*100/live, garbageLeast), garbageMost))
}

// paceGarbage sets the percentage, and again after each collection where it would be
// another. It is the runtime's for good, as the percentage is.
func paceGarbage() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	set := 0
	var pace func(*cycle)
	pace = func(*cycle) {
		metrics.Read(live)
		if p := garbagePercent(live[0].Value.Uint64()); p < set*9/10 || p > set*11/10 {
			set = p
			debug.SetGCPercent(p)
		}
		runtime.SetFinalizer(&cycle{}, pace) // the next collection finds it
	}
	pace(nil)
}

// cycle is garbage from its beginning; it is not so small that it would share its place.
type cycle struct{ _ [64]byte }

// A little garbage a request takes minutes to fill the room that it has, and all that
// time the process grows as if it leaked. While that is much of what lives, it is
// collected before.
const (
	garbageEvery = 10 * time.Second
	garbageSeen  = 2 << 20   // bytes of it that are worth a collection
	garbageSmall = 128 << 20 // bytes that live: of more than that nobody sees it
)

// sweepGarbage collects now and then until ctx ends.
func sweepGarbage(ctx context.Context) {
	tick := time.NewTicker(garbageEvery)
	defer tick.Stop()
	heap := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(heap)
		if worthSweeping(heap[0].Value.Uint64(), heap[1].Value.Uint64()) {
			runtime.GC()
		}
	}
}

// worthSweeping judges by the bytes that lived at the last collection and those that
// there are now.
func worthSweeping(live, all uint64) bool { return live < garbageSmall && all > live+garbageSeen }
