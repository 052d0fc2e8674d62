package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// between is a proxy before the control plane. It counts the calls that concern
// money, and mistreats them when it is told to; all else passes as it is.
type between struct {
	plane   string
	passing *httputil.ReverseProxy
	client  *http.Client
	chaos   atomic.Bool
	late    sync.WaitGroup // copies still under way
	stopped context.Context

	leases, settlements      atomic.Int64 // calls of gateways
	copies, delayed, dropped atomic.Int64 // what was done to them
	unanswered               atomic.Int64
	mu                       sync.Mutex
	times                    []time.Time // of the calls for leases
}

func newBetween(t *trial, plane string) (*between, string, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, "", err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, "", err
	}
	ctx, stop := context.WithCancel(context.Background())
	b := &between{
		plane:   "http://" + plane,
		passing: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: plane}),
		client:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second},
		stopped: ctx,
	}
	b.passing.FlushInterval = -1 // the watch
	b.passing.ErrorLog = quiet()
	server := &http.Server{Handler: b, ErrorLog: quiet(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(ln) }() // it ends with Close
	t.closers = append(t.closers, func() { stop(); server.Close(); b.late.Wait(); b.client.CloseIdleConnections() })
	return b, addr, nil
}

func (b *between) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/runtime/leases"):
		b.leases.Add(1)
		b.mu.Lock()
		b.times = append(b.times, time.Now())
		b.mu.Unlock()
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/runtime/settlements"):
		b.settlements.Add(1)
	default:
		b.passing.ServeHTTP(w, r)
		return
	}
	if !b.chaos.Load() {
		b.passing.ServeHTTP(w, r)
		return
	}
	b.mistreat(w, r)
}

// mistreat sends every call again, late, once or more; and the first time it may
// come late or never, or its answer may be lost.
func (b *between) mistreat(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	for range 1 + rand.IntN(2) {
		b.copies.Add(1)
		b.later(r, body, time.Duration(rand.IntN(3000))*time.Millisecond)
	}
	fate := rand.IntN(100)
	if fate < 8 { // the call is lost: only its copies come
		b.dropped.Add(1)
		panic(http.ErrAbortHandler)
	}
	if fate < 40 {
		b.delayed.Add(1)
		rig.Pause(r.Context(), time.Duration(rand.IntN(150))*time.Millisecond)
	} else if fate < 48 { // longer than anybody waits
		b.delayed.Add(1)
		rig.Pause(b.stopped, time.Duration(300+rand.IntN(1000))*time.Millisecond)
	}
	status, answer, err := b.send(r, body)
	if err != nil || rand.IntN(100) < 8 {
		b.unanswered.Add(1)
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(answer) // whoever asked may be gone
}

func (b *between) later(r *http.Request, body []byte, d time.Duration) {
	b.late.Go(func() {
		rig.Pause(b.stopped, d)
		_, _, _ = b.send(r, body) // nobody waits for it
	})
}

func (b *between) send(r *http.Request, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(b.stopped, r.Method, b.plane+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header = r.Header.Clone()
	res, err := b.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// most is the largest number of lease calls in any second.
func (b *between) most() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	most, from := 0, 0
	for i, at := range b.times {
		for at.Sub(b.times[from]) > time.Second {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

// quiet is for servers whose peers are killed.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
