package main

import (
	"strings"
	"testing"
)

// The program runs, over little.
func TestLittle(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), options{tokens: 3000, profiles: 500, lookups: 50, rounds: 1}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"3000 tokens put in", "the index alone, as it is", "all of it, packed", "a gateway's client", "1 of 50 at once", "16 of 50 at once"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
