package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGarbageHasItsRoomAndNoMoreThanItNeeds(t *testing.T) {
	const mb = 1 << 20
	for _, tc := range []struct {
		live uint64
		want int
	}{
		{0, 400}, {1, 400}, {8 * mb, 400}, {16 * mb, 200}, {20 * mb, 160}, {32 * mb, 100}, {500 * mb, 100},
	} {
		if got := garbagePercent(tc.live); got != tc.want {
			t.Errorf("%d MB: %d %%, want %d", tc.live/mb, got, tc.want)
		}
	}
}

func TestGarbageIsPacedByWhatLives(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	paceGarbage()
	percent := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	hold := make([]byte, 100<<20)
	for deadline := time.Now().Add(10 * time.Second); percent() != garbageLeast; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("with 100 MB: %d %%", percent())
		}
		runtime.GC()
	}
	runtime.KeepAlive(hold)
	for deadline := time.Now().Add(10 * time.Second); percent() <= garbageLeast; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("with next to nothing: %d %%", percent())
		}
		runtime.GC()
	}
}

func TestLittleGarbageIsSweptWhereItIsMuchOfWhatLives(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		live, all uint64
		want      bool
	}{
		{20 << 20, 20 << 20, false},
		{20 << 20, 21 << 20, false},
		{20 << 20, 23 << 20, true},
		{20 << 20, 10 << 20, false}, // in the middle of a collection
		{200 << 20, 230 << 20, false},
	} {
		if got := worthSweeping(tt.live, tt.all); got != tt.want {
			t.Errorf("%d of %d: %v", tt.live, tt.all, got)
		}
	}
}
