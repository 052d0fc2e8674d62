package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/record"
)

// spread reports what of a list took in the middle, and all but one in a hundred.
func spread(b *testing.B, what string, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	for name, at := range map[string]int{"p50": len(took) / 2, "p99": (len(took)*99 + 99) / 100} {
		b.ReportMetric(float64(took[min(at, len(took)-1)].Microseconds())/1000, what+"-"+name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// confirms has a gateway watch, from when it returns, and report what it applied.
func confirms(ctx context.Context, c *Client, told func()) {
	live := make(chan struct{})
	go func() {
		first := true
		_ = c.Watch(ctx, FromHead, func(e Event) {
			if first {
				first = false
				close(live)
			}
			if e.Kind == KindRevoke {
				told()
				_ = c.Report(ctx, record.Report{Instance: "i", MaxStale: time.Hour, Revision: e.Revision})
			}
		})
	}()
	<-live
}

// BenchmarkReplicas is how long it takes from a call through one replica until a
// watch of another has told of it, and until revoke is answered when a gateway that
// watches and reports through the other has confirmed: 200 times each.
//
//	go test ./controlplane -run '^$' -bench Replicas -benchtime 200x
func BenchmarkReplicas(b *testing.B) {
	for _, quiet := range []bool{false, true} {
		name := map[bool]string{false: "notified", true: "by the poll"}[quiet]
		b.Run(name+"/revoked", func(b *testing.B) {
			one, other := replicas(b, quiet)
			told := make(chan time.Time, 1)
			near, _ := one.gateway("gw_near", "i")
			far, _ := other.gateway("gw_far", "i")
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			confirms(ctx, near, func() {}) // a replica listens while it has a watch
			confirms(ctx, far, func() { told <- time.Now() })
			var reached, answered []time.Duration
			for b.Loop() {
				id, _ := one.mint("general", nil)
				began := time.Now()
				one.must(http.StatusOK, "POST", "/v1/tokens/"+id+"/revoke", nil)
				answered = append(answered, time.Since(began))
				time.Sleep(time.Duration(len(answered)%10) * 30 * time.Millisecond) // anywhere between two polls
				reached = append(reached, (<-told).Sub(began))
			}
			spread(b, "told", reached)
			spread(b, "answered", answered)
		})
		b.Run(name+"/recalled", func(b *testing.B) {
			one, other := replicas(b, quiet)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			told := make(chan time.Time, 1000)
			live := make(chan struct{})
			go func() {
				first := true
				_ = other.server.Embedded("gw_1").Watch(ctx, FromHead, func(e Event) {
					if first {
						first = false
						close(live)
					}
					if e.Recall != nil {
						told <- time.Now()
					}
				})
			}()
			<-live
			holder, asker := other.server.Embedded("gw_1"), one.server.Embedded("gw_2")
			var reached []time.Duration
			for n := int64(1); b.Loop(); n++ {
				id := fmt.Sprint("b", n)
				one.budget(id, "requests", "1")
				if _, err := holder.Leases(ctx, &budget.Call{Session: "h", Seq: n, Needs: needOf(id, 1)}); err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				if _, err := asker.Leases(ctx, &budget.Call{Session: "a", Seq: n, Needs: needOf(id, 1)}); err != nil {
					b.Fatal(err)
				}
				reached = append(reached, (<-told).Sub(began))
				time.Sleep(time.Duration(n%10) * 30 * time.Millisecond) // anywhere between two polls
			}
			spread(b, "told", reached)
		})
	}
}
