package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// tally counts answers by what they were.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (t *tally) add(word string) { t.count(word, 1) }

func (t *tally) count(word string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]int{}
	}
	t.n[word] += n
}

// merge adds what o has counted; nobody counts there any more.
func (t *tally) merge(o *tally) {
	for w, n := range o.n {
		t.count(w, n)
	}
}

func (t *tally) of(word string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[word]
}

func (t *tally) all() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.n {
		n += k
	}
	return n
}

// but counts those that are none of the words.
func (t *tally) but(words ...string) int {
	n := t.all()
	for _, w := range words {
		n -= t.of(w)
	}
	return n
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for _, w := range slices.Sorted(maps.Keys(t.n)) {
		parts = append(parts, fmt.Sprintf("%s %d", w, t.n[w]))
	}
	return strings.Join(parts, ", ")
}

// spans are durations to be summed up; the zero value is empty.
type spans []time.Duration

// at is the smallest one that a share of them does not exceed.
func (s spans) at(share float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(s)-1, int(share*float64(len(s))))]
}

func (s spans) String() string {
	return fmt.Sprintf("p50 %s, p99 %s, most %s", short(s.at(0.5)), short(s.at(0.99)), short(s.at(1)))
}

// short is a duration as a reader wants it.
func short(d time.Duration) string {
	switch a := d.Abs(); {
	case a >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case a >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
