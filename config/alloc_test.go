//go:build !race

package config

import "testing"

func TestFindDoesNotAllocate(t *testing.T) {
	c := parse(t, someModels)
	for _, name := range []string{"gpt-5-pro", "gpt-4-mini", "anything", ""} {
		if n := testing.AllocsPerRun(100, func() { _ = c.Find(name).AbacTargets() }); n != 0 {
			t.Errorf("%q: %v allocations", name, n)
		}
	}
}
