package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	providerKey = "sk-bench-0000000000000000000000000000000000000000"
	// placeholder has a token's length: every peer is sent as many bytes.
	placeholder = "kt_live_0000000000000000000000000000000000000000000000000"

	settle = time.Second      // of load before a measurement
	stall  = 15 * time.Second // of silence, and an answer has failed
)

// peer is a proxy under load.
type peer struct {
	name   string
	addr   string
	pids   []int
	tokens []string // one at random a request
}

// load is one way of asking.
type load struct {
	name   string
	conns  int
	rate   int // requests a second over all connections; 0: as fast as they are answered
	stream bool
	count  int // requests in all, tokens in turn; 0: until stopped
}

// result is what one load showed of one peer.
type result struct {
	requests int64 // within the measurement
	chunks   int64
	elapsed  time.Duration
	cpu      time.Duration
	p50, p99 time.Duration // of a whole answer, or until a stream's first event

	answered int64 // in all
	failed   int64
	failure  error // one of them
}

func (r *result) perSecond() float64 { return float64(r.requests) / r.elapsed.Seconds() }

// cost is CPU in µs a request, or a chunk.
func (r *result) cost(stream bool) float64 {
	n := r.requests
	if stream {
		n = r.chunks
	}
	return float64(r.cpu.Nanoseconds()) / 1000 / float64(n)
}

// caller is one connection that asks, one request after the other.
type caller struct {
	load   *load
	peer   *peer
	number int
	shared *control

	head    []byte
	tokenAt int
	answer  reader
	renew   time.Time // when the connection's deadline is to be moved

	requests, chunks atomic.Int64
	failed           int64
	failure          error
	latencies        []time.Duration
}

type control struct {
	stop, measure atomic.Bool
	start         time.Time
}

func newCaller(p *peer, l *load, number int, shared *control) *caller {
	body := `{"model":"gpt-5.4-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"What is the same for everyone?"}],"temperature":0.2}`
	if l.stream {
		body = `{"model":"gpt-5.4-mini","stream":true,` + body[len(`{"model":"gpt-5.4-mini",`):]
	}
	before := "POST /v1/chat/completions HTTP/1.1\r\nHost: " + p.addr + "\r\nAuthorization: Bearer "
	head := fmt.Sprintf("%s%s\r\nContent-Type: application/json\r\nAccept: application/json\r\nUser-Agent: bench/1\r\nContent-Length: %d\r\n\r\n%s",
		before, placeholder, len(body), body)
	return &caller{load: l, peer: p, number: number, shared: shared, head: []byte(head), tokenAt: len(before)}
}

// run asks until it is stopped.
func (c *caller) run() {
	defer func() {
		if c.answer.conn != nil {
			c.answer.conn.Close()
		}
	}()
	if c.load.stream { // evenly over the time that a stream takes
		time.Sleep(streamChunks * streamInterval * time.Duration(c.number) / time.Duration(c.load.conns))
	}
	for i := c.number; !c.shared.stop.Load(); i += c.load.conns {
		token := c.peer.tokens[rand.IntN(len(c.peer.tokens))]
		if c.load.count > 0 {
			if i >= c.load.count {
				return
			}
			token = c.peer.tokens[i%len(c.peer.tokens)]
		}
		if c.load.rate > 0 {
			time.Sleep(time.Until(c.shared.start.Add(time.Duration(i) * time.Second / time.Duration(c.load.rate))))
		}
		copy(c.head[c.tokenAt:], token)
		if err := c.ask(); err != nil {
			c.failed++
			c.failure = err
			if c.answer.conn != nil {
				c.answer.conn.Close()
				c.answer.conn = nil
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func (c *caller) ask() error {
	r := &c.answer
	if r.conn == nil {
		conn, err := net.Dial("tcp", c.peer.addr)
		if err != nil {
			return err
		}
		r.conn, r.from, r.to = conn, 0, 0
		c.renew = time.Time{}
	}
	begin := time.Now()
	if begin.After(c.renew) { // a timer set for each would be most of what we cost
		c.renew = begin.Add(stall)
		if err := r.conn.SetDeadline(begin.Add(2 * stall)); err != nil {
			return err
		}
	}
	if _, err := r.conn.Write(c.head); err != nil {
		return err
	}
	if err := r.head(); err != nil {
		return err
	}
	var latency time.Duration
	for end, events := false, 0; !end; {
		var err error
		if end, err = r.more(); err != nil {
			return err
		}
		c.chunks.Add(int64(r.events - events))
		if events == 0 {
			latency = time.Since(begin)
		}
		events = r.events
	}
	want := len(wholeAnswer)
	if c.load.stream {
		want = streamBytes
	} else {
		latency = time.Since(begin)
	}
	if r.body != want || c.load.stream && r.events != streamEvents {
		return fmt.Errorf("an answer of %d bytes and %d events, want %d bytes", r.body, r.events, want)
	}
	c.requests.Add(1)
	if c.shared.measure.Load() {
		c.latencies = append(c.latencies, latency)
	}
	return nil
}

// measure puts a load on a peer for d, after it has settled.
func measure(p *peer, l *load, d time.Duration) (result, error) {
	shared := &control{start: time.Now()}
	callers := make([]*caller, l.conns)
	var all sync.WaitGroup
	for i := range callers {
		callers[i] = newCaller(p, l, i, shared)
		all.Go(callers[i].run)
	}
	count := func() (requests, chunks int64) {
		for _, c := range callers {
			requests += c.requests.Load()
			chunks += c.chunks.Load()
		}
		return requests, chunks
	}
	var res result
	if l.count == 0 {
		time.Sleep(settle)
		if l.stream {
			time.Sleep(streamChunks * streamInterval)
		}
		shared.measure.Store(true)
		begin := time.Now()
		cpu, err := cpuOf(p.pids)
		requests, chunks := count()
		time.Sleep(d)
		if err == nil {
			var after time.Duration
			after, err = cpuOf(p.pids)
			res.cpu = after - cpu
		}
		res.requests, res.chunks = count()
		res.requests -= requests
		res.chunks -= chunks
		res.elapsed = time.Since(begin)
		shared.measure.Store(false)
		shared.stop.Store(true)
		if err != nil {
			all.Wait()
			return res, err
		}
	}
	all.Wait() // streams end by themselves: none is cut
	var latencies []time.Duration
	for _, c := range callers {
		latencies = append(latencies, c.latencies...)
		res.answered += c.requests.Load()
		res.failed += c.failed
		if c.failure != nil {
			res.failure = c.failure
		}
	}
	slices.Sort(latencies)
	if n := len(latencies); n > 0 {
		res.p50, res.p99 = latencies[n/2], latencies[n*99/100]
	}
	return res, nil
}
