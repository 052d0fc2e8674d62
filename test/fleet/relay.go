package main

import (
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The ways of a relay.
const (
	open   = iota
	closed // connections are reset, and new ones too
	silent // nothing passes and nobody is told; what was under way arrives once it is open again
)

// relay is the way of one gateway to its control plane, on which it can be cut off.
type relay struct {
	ln net.Listener
	to string

	mu    sync.Mutex
	way   int
	turn  chan struct{} // closed when the way changes
	conns map[net.Conn]struct{}

	left atomic.Int64 // bytes to the gateway until the next cut
	cuts atomic.Int64 // that came so
}

func newRelay(t *trial, to string) (*relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{ln: ln, to: to, turn: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	r.left.Store(math.MaxInt64)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go r.serve(conn)
		}
	}()
	t.closers = append(t.closers, func() { ln.Close(); r.turnTo(closed) })
	return r, nil
}

func (r *relay) addr() string { return r.ln.Addr().String() }

// turnTo changes the way.
func (r *relay) turnTo(way int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.way = way
	close(r.turn)
	r.turn = make(chan struct{})
	if way == closed {
		r.resetAll()
	}
}

// cutAfter resets all connections once so many more bytes have come from the control
// plane. It takes effect once.
func (r *relay) cutAfter(bytes int64) { r.left.Store(bytes) }

// resetAll resets every connection; mu is held.
func (r *relay) resetAll() {
	for c := range r.conns {
		reset(c)
	}
	clear(r.conns)
}

func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// passes waits until the way is open; false: it is closed.
func (r *relay) passes() bool {
	for {
		r.mu.Lock()
		way, turn := r.way, r.turn
		r.mu.Unlock()
		switch way {
		case open:
			return true
		case closed:
			return false
		}
		<-turn
	}
}

func (r *relay) serve(conn net.Conn) {
	if !r.passes() {
		reset(conn)
		return
	}
	plane, err := net.DialTimeout("tcp", r.to, 2*time.Second)
	if err != nil {
		reset(conn)
		return
	}
	r.mu.Lock()
	if r.way == closed {
		r.mu.Unlock()
		reset(conn)
		reset(plane)
		return
	}
	r.conns[conn], r.conns[plane] = struct{}{}, struct{}{}
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.pass(plane, conn, nil) })
	both.Go(func() { r.pass(conn, plane, &r.left) })
	both.Wait()
	r.mu.Lock()
	delete(r.conns, conn)
	delete(r.conns, plane)
	r.mu.Unlock()
	_ = conn.Close()
	_ = plane.Close()
}

// pass copies from one to the other until either ends.
func (r *relay) pass(to, from net.Conn, left *atomic.Int64) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !r.passes() {
			return
		}
		if left != nil && n > 0 && left.Load() != math.MaxInt64 {
			if rest := left.Add(-int64(n)); rest <= 0 && rest > -int64(n) {
				left.Store(math.MaxInt64)
				r.cuts.Add(1)
				_, _ = to.Write(buf[:n+int(rest)]) // up to the offset
				r.mu.Lock()
				r.resetAll()
				r.mu.Unlock()
				return
			}
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			if err == io.EOF {
				_ = to.(*net.TCPConn).CloseWrite()
			} else {
				reset(to)
			}
			return
		}
	}
}
