package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// tally is what a load met.
type tally struct {
	mu     sync.Mutex
	took   []time.Duration // of answers that were whole
	failed map[string]int  // by what was wrong
	n      int
}

func (t *tally) add(a *answered) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	if a.status == 200 && a.whole && a.code == "" {
		t.took = append(t.took, a.elapsed)
		return
	}
	if t.failed == nil {
		t.failed = map[string]int{}
	}
	word := fmt.Sprintf("%d %s", a.status, a.code)
	if a.err != nil {
		word += " " + a.err.Error()
		if i := strings.Index(word, "->"); i > 0 { // without the ports, which all differ
			word = word[:i]
		}
	}
	t.failed[word]++
}

func (t *tally) failures() (n int, words string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, word := range slices.Sorted(maps.Keys(t.failed)) {
		n += t.failed[word]
		words += fmt.Sprintf("; %d × %s", t.failed[word], word)
	}
	return n, words
}

// at gives a quantile of how long the answers took.
func (t *tally) at(q float64) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return quantile(t.took, q)
}

// atRate calls f so often a second until ctx ends, by so many workers; what they
// can't keep up with is not made up for.
func atRate(ctx context.Context, perSecond, workers int, f func(worker int)) {
	tick := time.NewTicker(time.Second / time.Duration(max(perSecond/10, 1)))
	defer tick.Stop()
	due := make(chan struct{}, perSecond)
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() {
			for range due {
				f(i)
			}
		})
	}
	per := max(perSecond/max(perSecond/10, 1), 1)
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			for range per {
				select {
				case due <- struct{}{}:
				default:
				}
			}
		case <-ctx.Done():
		}
	}
	close(due)
	all.Wait()
}

// steadily is ordinary calls at a rate, each over a connection of its own where
// fresh is set, until ctx ends.
func (g *gateway) steadily(ctx context.Context, key, from string, perSecond, workers int, fresh bool) *tally {
	t := &tally{}
	callers := make([]*caller, workers)
	for i := range callers {
		callers[i] = &caller{addr: g.addr, from: from}
	}
	quiet := context.WithoutCancel(ctx)
	atRate(ctx, perSecond, workers, func(i int) {
		t.add(callers[i].ask(quiet, key, call{script: script{id: "steady"}}))
		if fresh {
			callers[i].close()
		}
	})
	for _, k := range callers {
		k.close()
	}
	return t
}
