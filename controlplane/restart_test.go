package controlplane

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/test/postgres"
)

// goesOn watches again whenever a watch ends, as a gateway does. It returns when the
// first is live.
func goesOn(t *testing.T, c *Client) (events chan Event) {
	events = make(chan Event, 100_000)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		for at := int64(FromHead); ctx.Err() == nil; {
			_ = c.Watch(ctx, at, func(e Event) {
				at = max(at, e.Revision)
				events <- e
			})
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	waits(t, events, func(e Event) bool { return e.Kind == KindHead })
	return events
}

// TestReplicasServeAgainWhenTheDatabaseIsBack: two seconds after its server answers,
// all that a gateway and an administrator ask of either is done.
func TestReplicasServeAgainWhenTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	server, err := postgres.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	dsn, err := server.Database()
	if err != nil {
		t.Fatal(err)
	}
	a := &plane{t: t, dsn: dsn, logs: &logBuffer{}, at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	a.open()
	b := a.another()
	planes := []*plane{a, b}
	a.budget("b", "requests", "1000000")
	var watches []chan Event
	var gateways []*Client
	for i, p := range planes {
		c, _ := p.gateway([]string{"g1", "g2"}[i], "i")
		gateways, watches = append(gateways, c), append(watches, goesOn(t, c))
	}
	// Both are busy meanwhile.
	ctx, stop := context.WithCancel(context.Background())
	var served [2]atomic.Int64
	done := make(chan struct{})
	for i, c := range gateways {
		go func() {
			defer func() { done <- struct{}{} }()
			for seq := int64(1); ctx.Err() == nil; seq++ {
				if _, err := c.Leases(ctx, &budget.Call{Session: "s" + c.o.Instance + []string{"a", "b"}[i], Seq: seq, Needs: needOf("b", 1)}); err == nil {
					served[i].Add(1)
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	defer func() { stop(); <-done; <-done }()
	for _, outage := range []time.Duration{0, 1500 * time.Millisecond, 4 * time.Second} {
		server.Kill()
		time.Sleep(outage)
		if a.admin("POST", "/v1/tokens", fields{"name": "n", "purpose": "general"}).status != 503 {
			t.Error("minted without a database")
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		had := [2]int64{served[0].Load(), served[1].Load()}
		for i, p := range planes {
			id, _ := p.mint("general", nil) // the first call
			for j, events := range watches {
				waits(t, events, func(e Event) bool { return e.TokenID == id })
				if took := time.Since(back); took > 2*time.Second {
					t.Errorf("after %v: minted through %d, known at %d only %v after the server was back", outage, i, j, took)
				}
			}
		}
		for i := range served {
			for served[i].Load() == had[i] {
				time.Sleep(time.Millisecond)
				if time.Since(back) > 2*time.Second {
					t.Fatalf("after %v: replica %d does not serve leases", outage, i)
				}
			}
		}
		// Both listen again.
		for n := 0; n != 2; time.Sleep(10 * time.Millisecond) {
			if time.Since(back) > 3*time.Second {
				t.Fatalf("after %v: %d listen", outage, n)
			}
			if n, err = listening(dsn); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func waits(t *testing.T, events chan Event, until func(Event) bool) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case e := <-events:
			if until(e) {
				return
			}
		case <-late:
			t.Fatal("it is not told")
		}
	}
}
