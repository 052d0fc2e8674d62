package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// table is every result, by load and peer, in the order of rounds.
type table struct {
	options options
	results map[string][]result
	peers   []string
}

func (t *table) add(p *peer, l *load, r result) {
	if !slices.Contains(t.peers, p.name) {
		t.peers = append(t.peers, p.name)
	}
	t.results[l.name+" "+p.name] = append(t.results[l.name+" "+p.name], r)
}

func line(l load, name string, r result) string {
	unit, first := "request", "latency"
	n := fmt.Sprintf("%7.0f req/s", r.perSecond())
	if l.stream {
		unit, first = "chunk", "first event"
		n = fmt.Sprintf("%7.0f chunks/s", float64(r.chunks)/r.elapsed.Seconds())
	}
	s := fmt.Sprintf("%-6s  %-5s  %s  %7.2f CPU µs/%s  %s p50 %s p99 %s", l.name, name, n, r.cost(l.stream), unit, first, ms(r.p50), ms(r.p99))
	if r.failed > 0 {
		s += fmt.Sprintf("  %d FAILED", r.failed)
	}
	return s
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// print shows the medians over the rounds.
func (t *table) print() {
	fmt.Println("\nmedians")
	for _, l := range t.options.loads() {
		for _, name := range t.peers {
			all := t.results[l.name+" "+name]
			middle := result{elapsed: time.Second}
			middle.requests = int64(median(all, func(r result) float64 { return r.perSecond() }))
			middle.chunks = int64(median(all, func(r result) float64 { return float64(r.chunks) / r.elapsed.Seconds() }))
			n := middle.requests
			if l.stream {
				n = middle.chunks
			}
			middle.cpu = time.Duration(median(all, func(r result) float64 { return r.cost(l.stream) }) * 1000 * float64(n))
			middle.p50 = time.Duration(median(all, func(r result) float64 { return float64(r.p50) }))
			middle.p99 = time.Duration(median(all, func(r result) float64 { return float64(r.p99) }))
			fmt.Println(line(l, name, middle))
		}
	}
}

// pairs are the ratios that are of interest. Plain is kt without budgets.
var pairs = [][2]string{{"kt", "bare"}, {"kt", "nginx"}, {"plain", "bare"}, {"kt", "plain"}}

// ratios prints CPU as a part of another peer's: the median of the rounds' own
// ratios, for neighbours in time met the same machine. It fails where there is none,
// and where -gate asks for less.
func (t *table) ratios() error {
	fmt.Println("\nratios of CPU, medians of the rounds' own")
	var errs []error
	for _, l := range t.options.loads() {
		for _, pair := range pairs {
			if !slices.Contains(t.peers, pair[0]) || !slices.Contains(t.peers, pair[1]) {
				if pair[1] == "nginx" {
					fmt.Printf("%-6s  kt/nginx     absent\n", l.name)
				}
				continue
			}
			errs = append(errs, t.ratio(&l, pair[0], pair[1]))
		}
	}
	return errors.Join(errs...)
}

func (t *table) ratio(l *load, of, to string) error {
	mine, peer := t.results[l.name+" "+of], t.results[l.name+" "+to]
	var all []float64
	for i := range min(len(mine), len(peer)) {
		all = append(all, mine[i].cost(l.stream)/peer[i].cost(l.stream))
	}
	ratio := median(all, func(x float64) float64 { return x })
	if math.IsNaN(ratio) || math.IsInf(ratio, 0) || ratio <= 0 {
		return fmt.Errorf("%s: no ratio %s/%s", l.name, of, to)
	}
	fmt.Printf("%-6s  %-11s  %.2f  (%.2f to %.2f)\n", l.name, of+"/"+to, ratio, slices.Min(all), slices.Max(all))
	limit := map[string]float64{"closed": gateRequest, "stream": gateChunk}[l.name]
	if t.options.gate && of == "kt" && to == "bare" && limit > 0 && ratio > limit {
		return fmt.Errorf("%s: kt/bare is %.2f, above %.2f", l.name, ratio, limit)
	}
	return nil
}

// answered counts all that a peer has answered, measured or not.
func (t *table) answered(name string) int64 {
	var n int64
	for key, all := range t.results {
		for _, r := range all {
			if strings.HasSuffix(key, " "+name) {
				n += r.answered
			}
		}
	}
	return n
}

// failures tells of requests that were not answered as they should.
func (t *table) failures() error {
	var errs []error
	for key, all := range t.results {
		for _, r := range all {
			if r.failed > 0 {
				errs = append(errs, fmt.Errorf("%s: %d of %d requests failed, one with: %w", key, r.failed, r.failed+r.answered, r.failure))
			}
		}
	}
	return errors.Join(errs...)
}

// median of nothing is NaN.
func median[T any](all []T, of func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, x := range all {
		values[i] = of(x)
	}
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}
