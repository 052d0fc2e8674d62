package proxy

import (
	"bytes"
	"testing"
)

func TestEveryControlCharacterIsSeenWhereverItStands(t *testing.T) {
	t.Parallel()
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				v := bytes.Repeat([]byte{'x'}, n)
				v[at] = byte(c)
				if want := c < ' ' && c != '\t' || c == 0x7f; hasControl(v) != want {
					t.Fatalf("%q: %v", v, !want)
				}
			}
		}
	}
}
