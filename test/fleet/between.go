package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
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

// between is a proxy before the control plane that knows what gateways ask it. It
// counts look-ups, and can hold back, falsify and refuse; all else passes as it is.
type between struct {
	passing *httputil.ReverseProxy
	client  *http.Client
	plane   string

	lookups   atomic.Int64 // resolve calls that came
	wanted    atomic.Int64 // those of the expected, which are not among lookups
	underWay  atomic.Int64
	most      atomic.Int64 // of underWay
	snapshots atomic.Int64

	mu       sync.Mutex
	past     map[string]kept                            // by digest: what is answered instead of what is
	hold     func(digest string) (wait <-chan struct{}) // before an answer is passed on; nil: none is held
	ends     []chan struct{}                            // of watches under way
	expected map[string]bool                            // digests that may be looked up
	deaf     chan struct{}                              // while it is open no watch is answered; nil: they are
}

// kept is an answer of the past.
type kept struct {
	status int
	body   []byte
	delay  time.Duration
}

func newBetween(t *trial, plane string) (*between, string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	b := &between{
		plane:    "http://" + plane,
		passing:  httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: plane}),
		client:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}, Timeout: 30 * time.Second},
		expected: map[string]bool{},
	}
	b.passing.FlushInterval = -1 // the watch
	b.passing.ErrorLog = log.New(io.Discard, "", 0)
	b.passing.Transport = &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}
	server := &http.Server{Handler: b, ErrorLog: b.passing.ErrorLog, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(ln) }() // it ends with Close
	t.closers = append(t.closers, func() { server.Close(); b.client.CloseIdleConnections() })
	return b, ln.Addr().String(), nil
}

func (b *between) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/runtime/resolve"):
		b.resolve(w, r)
	case strings.HasSuffix(r.URL.Path, "/runtime/watch"):
		b.watch(w, r)
	default:
		if strings.HasSuffix(r.URL.Path, "/runtime/snapshot") {
			b.snapshots.Add(1)
		}
		b.passing.ServeHTTP(w, r)
	}
}

// withoutWatch ends the watches under way and answers none, until it is called with
// false. Nobody is refused: look-ups tell that the control plane is there.
func (b *between) withoutWatch(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !on {
		if b.deaf != nil {
			close(b.deaf)
		}
		b.deaf = nil
		return
	}
	b.deaf = make(chan struct{})
	for _, end := range b.ends {
		close(end)
	}
	b.ends = nil
}

func (b *between) watch(w http.ResponseWriter, r *http.Request) {
	end := make(chan struct{})
	b.mu.Lock()
	deaf := b.deaf
	if deaf == nil {
		b.ends = append(b.ends, end)
	}
	b.mu.Unlock()
	if deaf != nil {
		select {
		case <-deaf:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-end:
			cancel() // the proxy aborts an answer that it can't complete
		case <-ctx.Done():
		}
	}()
	b.passing.ServeHTTP(w, r.WithContext(ctx))
}

// resolve answers as it is, as it was, or late.
func (b *between) resolve(w http.ResponseWriter, r *http.Request) {
	now := b.underWay.Add(1)
	defer b.underWay.Add(-1)
	for most := b.most.Load(); now > most && !b.most.CompareAndSwap(most, now); most = b.most.Load() {
	}
	asked, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	var body struct{ SHA256 string }
	_ = json.Unmarshal(asked, &body) // the control plane says what is wrong with it
	b.mu.Lock()
	old, falsified := b.past[body.SHA256]
	hold, expected := b.hold, b.expected[body.SHA256]
	b.mu.Unlock()
	if expected {
		b.wanted.Add(1)
	} else {
		b.lookups.Add(1)
	}
	if falsified {
		rig.Pause(r.Context(), old.delay)
		answer(w, old.status, old.body)
		return
	}
	status, said, err := b.send(r, asked)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if hold != nil {
		if wait := hold(body.SHA256); wait != nil {
			select {
			case <-wait:
			case <-r.Context().Done():
			}
		}
	}
	answer(w, status, said)
}

func answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // whoever asked may be gone
}

func (b *between) send(r *http.Request, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, b.plane+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header = r.Header.Clone()
	req.Header.Del("Accept-Encoding")
	res, err := b.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	return res.StatusCode, said, err
}
