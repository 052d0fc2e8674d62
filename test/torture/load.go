package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// load is clients that ask without pause, at the gateways that are there.
type load struct {
	f      *fleet
	token  token
	name   string // of its calls
	call   func() call
	gap    time.Duration // of each client between two calls
	words  tally
	number atomic.Int64

	mu     sync.Mutex
	flying map[string]int // calls under way, by gateway
	after  func(a *answer, c *call)
}

// run puts the load on until ctx ends; calls under way end by themselves.
func (l *load) run(ctx context.Context, clients int) {
	l.flying = map[string]int{}
	quiet := context.WithoutCancel(ctx)
	together(clients, func(int) {
		a := &agent{}
		defer a.close()
		for ctx.Err() == nil {
			c := l.call()
			c.script.id = fmt.Sprintf("%s/%d", l.name, l.number.Add(1))
			g := l.f.gateways[rand.IntN(len(l.f.gateways))]
			l.move(g.name, 1)
			out := a.as(quiet, g, l.token, c)
			l.move(g.name, -1)
			l.words.add(out.word())
			if l.after != nil {
				l.after(out, &c)
			}
			gap := l.gap
			if out.status == 0 {
				gap = max(gap, 20*time.Millisecond) // nobody listens
			}
			rig.Pause(ctx, gap)
		}
	})
}

func (l *load) move(gateway string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying[gateway] += n
}

// underWay is how many calls wait for a gateway's answer.
func (l *load) underWay(gateway string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flying[gateway]
}
