package rig

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestThePartsOfAWorkAreAllOfItOnce(t *testing.T) {
	t.Parallel()
	all := []int{170, 130, 75, 150, 180, 170, 140, 20, 65}
	for n := 1; n <= 12; n++ {
		var seen []int
		for i := range n {
			mine, err := Part(all, fmt.Sprintf("%d/%d", i+1, n), func(s int) int { return s })
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, mine...)
		}
		slices.Sort(seen)
		if want := slices.Sorted(slices.Values(all)); !slices.Equal(seen, want) {
			t.Errorf("of %d parts: %v", n, seen)
		}
	}
	for _, part := range []string{"0/1", "2/1", "1", "1/2/3", "x/y", ""} {
		if _, err := Part(all, part, func(s int) int { return s }); err == nil {
			t.Errorf("%q is taken", part)
		}
	}
}

func TestAProcessIsEndedAndSaysHow(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start("one", log, exec.Command("sh", "-c", "echo hello; exec sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := p.Resident(); !p.Alive() || p.Err() != nil || err != nil || n <= 0 {
		t.Errorf("alive %v, %v, %d bytes, %v", p.Alive(), p.Err(), n, err)
	}
	for end := time.Now().Add(10 * time.Second); string(p.Tail()) != "hello\n" && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := p.Terminate(10 * time.Second); err == nil || p.Alive() || p.Err() == nil || string(p.Tail()) != "hello\n" {
		t.Errorf("%v, alive %v, %q", err, p.Alive(), p.Tail())
	}
	deaf, err := Start("deaf", log, exec.Command("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); string(deaf.Tail()) != "hello\ndeaf\n" && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := deaf.Terminate(50 * time.Millisecond); err == nil || deaf.Alive() {
		t.Errorf("%v, alive %v", err, deaf.Alive())
	}
	_ = deaf.Signal(syscall.SIGCONT) // to nobody
}

func TestAnAddressIsGivenOnce(t *testing.T) {
	given := map[string]bool{}
	for range 3000 {
		addr, err := FreeAddr()
		if err != nil || given[addr] {
			t.Fatalf("%s, given before: %v, %v", addr, given[addr], err)
		}
		given[addr] = true
	}
}
