package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// delay measures how long an event takes from the provider's write to the client's
// read, through the gateway and without it, in the same moments.
func delay(ctx context.Context, t *trial) error {
	up, err := newProviderApart(ctx, t)
	if err != nil {
		return err
	}
	g, key, err := withKey(ctx, t, layout{up: up})
	if err != nil {
		return err
	}
	direct := &gateway{t: t, addr: g.up.addr}
	rounds := t.count(5, 1)
	var through, beside []time.Duration
	var mu sync.Mutex
	broken := 0
	for range rounds {
		together(20, 20, func(i int) {
			to, into := g, &through
			if i%2 == 1 {
				to, into = direct, &beside
			}
			d, whole := to.paced(ctx, key)
			mu.Lock()
			defer mu.Unlock()
			*into = append(*into, d...)
			if !whole {
				broken++
			}
		})
	}
	if len(through) == 0 || len(beside) == 0 {
		t.miss("no event came: %d through the gateway, %d without it", len(through), len(beside))
		return nil
	}
	t.figure(broken == 0, "0", "%d of %d paced streams were not whole", broken, 20*rounds)
	added := func(q float64) time.Duration { return quantile(through, q) - quantile(beside, q) }
	t.figure(added(0.99) <= time.Millisecond, "1 ms", "an event is delayed by %s (p99; p50 %s): p99 %s through the gateway, %s without it, of %d events each",
		added(0.99).Round(time.Microsecond), added(0.5).Round(time.Microsecond), quantile(through, 0.99).Round(time.Microsecond), quantile(beside, 0.99).Round(time.Microsecond), len(through))
	g.sound(ctx, key)
	return nil
}

// quantile sorts d.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

// paced takes one stream of 100 events in 2 s and says how old each was.
func (g *gateway) paced(ctx context.Context, key string) (ages []time.Duration, whole bool) {
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return nil, false
	}
	defer w.Close()
	if _, err := io.WriteString(w, call{stream: true, script: script{id: "paced", do: "stream", chunks: 100, gap: 20 * time.Millisecond}}.text(key)); err != nil {
		return nil, false
	}
	a := w.take(http.MethodPost, func(line []byte) {
		now := time.Now()
		if _, rest, ok := bytes.Cut(line, []byte(`"@`)); ok {
			digits, _, _ := bytes.Cut(rest, []byte(`"`))
			if n, err := strconv.ParseInt(string(digits), 10, 64); err == nil {
				ages = append(ages, now.Sub(time.Unix(0, n)))
			}
		}
	})
	return ages, a.whole && a.done
}
