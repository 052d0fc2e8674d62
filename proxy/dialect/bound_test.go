package dialect

import (
	"fmt"
	"testing"
)

func BenchmarkBound(b *testing.B) {
	for _, n := range []int{300, 100_000} {
		body := chatBody(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var c Call
			if ReadChat(body, &c) != nil {
				b.Fatal("refused")
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if c.Bound(body).Input == 0 {
					b.Fatal("no bound")
				}
			}
		})
	}
}
