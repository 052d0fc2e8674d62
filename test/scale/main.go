// Scale prints what a control plane with many tokens in PostgreSQL costs: the time
// and size of a snapshot, and how long a look-up takes.
//
//	go run ./test/scale [-tokens 1000000] [-profiles 200000]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/test/fill"
	"github.com/keeptrusts/gateway/test/postgres"
	"github.com/keeptrusts/gateway/token"
)

type options struct {
	tokens, profiles, lookups, rounds int
}

func main() {
	var o options
	flag.IntVar(&o.tokens, "tokens", 1_000_000, "how many there are")
	flag.IntVar(&o.profiles, "profiles", controlplane.DefaultProfiles, "how many profiles a snapshot has")
	flag.IntVar(&o.lookups, "lookups", 20_000, "how many tokens are looked up")
	flag.IntVar(&o.rounds, "rounds", 3, "how many snapshots are taken of each kind")
	flag.Parse()
	if err := run(context.Background(), o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	server, err := postgres.New("shared_buffers=256MB")
	if err != nil {
		return err
	}
	defer server.Stop()
	dsn, err := server.Database()
	if err != nil {
		return err
	}
	began := time.Now()
	secrets, err := fill.Tokens(ctx, dsn, fill.Options{Tokens: o.tokens, Used: o.tokens / 2, Keep: min(o.lookups, o.tokens)})
	if err != nil {
		return err
	}
	say(out, "%d tokens put in by COPY in %v", o.tokens, time.Since(began))
	p, err := start(ctx, dsn)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.snapshots(ctx, o, out); err != nil {
		return err
	}
	for _, workers := range []int{1, 16} {
		if err := p.lookups(ctx, workers, secrets, out); err != nil {
			return err
		}
	}
	return nil
}

func say(out io.Writer, format string, args ...any) {
	for i := range args {
		if d, ok := args[i].(time.Duration); ok {
			args[i] = d.Round(10 * time.Microsecond)
		}
	}
	_, _ = fmt.Fprintf(out, "scale: "+format+"\n", args...)
}

// plane is a control plane over the database, and a gateway's client of it.
type plane struct {
	store  *store.Store
	http   *http.Server
	url    string
	secret string
	client *controlplane.Client
}

func start(ctx context.Context, dsn string) (*plane, error) {
	s, err := store.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	admin := token.Mint()
	server, err := controlplane.New(controlplane.Options{Store: s, AdminToken: admin})
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &plane{store: s, url: "http://" + ln.Addr().String(), http: &http.Server{Handler: server.Handler(), ReadHeaderTimeout: time.Minute}}
	go func() { _ = p.http.Serve(ln) }()
	as := func(t token.Secret) (*controlplane.Client, error) {
		return controlplane.NewClient(controlplane.ClientOptions{URL: p.url, Token: func() (token.Secret, error) { return t, nil }})
	}
	c, err := as(admin)
	if err != nil {
		return nil, err
	}
	var minted struct {
		Token string `json:"token"`
	}
	err = c.Call(ctx, http.MethodPost, "/v1/tokens", map[string]any{
		"name": "gateway", "purpose": "gateway_runtime", "bindings": map[string]any{"gateway_id": "gw_local"},
	}, &minted)
	if err != nil {
		return nil, err
	}
	p.secret = minted.Token
	p.client, err = as(token.NewSecret(minted.Token))
	return p, err
}

func (p *plane) close() {
	_ = p.http.Close()
	_ = p.store.Close()
}

func (p *plane) snapshots(ctx context.Context, o options, out io.Writer) error {
	for _, tt := range []struct {
		name     string
		profiles int
		encoding string
	}{
		{"the index alone, as it is", 0, "identity"}, {"the index alone, packed", 0, "gzip"},
		{"all of it, as it is", o.profiles, "identity"}, {"all of it, packed", o.profiles, "gzip"},
	} {
		for range o.rounds {
			began, first := time.Now(), time.Duration(0)
			size, err := p.raw(ctx, tt.profiles, tt.encoding, func() { first = time.Since(began) })
			if err != nil {
				return fmt.Errorf("%s: %w", tt.name, err)
			}
			say(out, "snapshot, %s: %v, %.1f MB, the first byte after %v", tt.name, time.Since(began), float64(size)/1e6, first)
		}
	}
	for range o.rounds {
		watch := watchHeap()
		began, items := time.Now(), 0
		var head controlplane.SnapshotHead
		err := p.client.Snapshot(ctx, o.profiles, func(h controlplane.SnapshotHead) error {
			head = h
			return nil
		}, func(*controlplane.SnapshotItem) error {
			items++
			return nil
		})
		if err != nil {
			return err
		}
		if head.Tokens != o.tokens+1 || items != head.Tokens+min(o.profiles, head.Tokens) {
			return fmt.Errorf("a snapshot of %d items and %d tokens", items, head.Tokens)
		}
		say(out, "snapshot, taken by a gateway's client that keeps nothing: %v, heap of both sides at most %.0f MB", time.Since(began), watch())
	}
	return nil
}

// raw reads a snapshot to its end, and returns its size.
func (p *plane) raw(ctx context.Context, profiles int, encoding string, first func()) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/runtime/snapshot?profiles=%d", p.url, profiles), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+p.secret)
	req.Header.Set("Accept-Encoding", encoding)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return 0, errors.New(res.Status)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(res.Body, one); err != nil {
		return 0, err
	}
	first()
	n, err := io.Copy(io.Discard, res.Body)
	return n + 1, err
}

// watchHeap measures until it is asked: the most that the heap had, in MB.
func watchHeap() (most func() float64) {
	runtime.GC()
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapAlloc))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() float64 {
		close(stop)
		<-done
		return float64(peak.Load()) / 1e6
	}
}

func (p *plane) lookups(ctx context.Context, workers int, secrets []token.Secret, out io.Writer) error {
	took := make([]time.Duration, len(secrets))
	errs := make(chan error, workers)
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for range workers {
		all.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(secrets); i = next.Add(1) - 1 {
				at := time.Now()
				r, err := p.client.Resolve(ctx, secrets[i].Digest())
				if took[i] = time.Since(at); err == nil && r.Profile.Hint != secrets[i].Hint() {
					raw, _ := json.Marshal(r.Profile)
					err = fmt.Errorf("another token: %s", raw)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return fmt.Errorf("resolve: %w", err)
	default:
	}
	whole := time.Since(began)
	slices.Sort(took)
	say(out, "resolve over HTTP, %d of %d at once: p50 %v, p99 %v, %.0f/s", workers, len(took),
		took[len(took)/2], took[len(took)*99/100], float64(len(took))/whole.Seconds())
	return nil
}
