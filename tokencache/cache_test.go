package tokencache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// plane is a control plane for tests: profiles by digest, and what happens to an
// ask before it is answered.
type plane struct {
	mu       sync.Mutex
	profiles map[token.Digest]*abac.Profile
	before   func(ctx context.Context, d token.Digest) error // nil: answer at once
	after    func(d token.Digest)                            // the answer is fixed, not yet given
	asked    atomic.Int64
}

func (p *plane) Load(ctx context.Context, d token.Digest) (*abac.Profile, error) {
	p.asked.Add(1)
	p.mu.Lock()
	before, after := p.before, p.after
	p.mu.Unlock()
	if before != nil {
		if err := before(ctx, d); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	got := p.profiles[d]
	p.mu.Unlock()
	if after != nil {
		after(d)
	}
	if got == nil {
		return nil, fmt.Errorf("resolve: %w", token.ErrUnknown)
	}
	copied := *got
	return &copied, nil
}

func (p *plane) set(d token.Digest, profile *abac.Profile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.profiles == nil {
		p.profiles = map[token.Digest]*abac.Profile{}
	}
	if profile == nil {
		delete(p.profiles, d)
		return
	}
	p.profiles[d] = profile
}

func (p *plane) on(before func(context.Context, token.Digest) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = before
}

var errDown = errors.New("connection refused")

func down(context.Context, token.Digest) error { return errDown }

func hang(ctx context.Context, _ token.Digest) error {
	<-ctx.Done()
	return ctx.Err()
}

// held keeps asks waiting until release is closed.
func held(release chan struct{}) func(context.Context, token.Digest) error {
	return func(ctx context.Context, _ token.Digest) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dig is the digest of the n-th token; no two share a word of it.
func dig(n int) token.Digest {
	return token.Sum(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

func profile(n int, revision int64, status abac.Status) *abac.Profile {
	return &abac.Profile{
		ID: fmt.Sprintf("tok_%d", n), Name: "test", OrgID: "org_default", Purpose: abac.General,
		PrincipalType: abac.PrincipalAPIToken, Status: status, Revision: revision,
	}
}

func open(t testing.TB, p *plane, change func(*Options)) *Cache {
	t.Helper()
	o := Options{Profiles: 1000, FreshFor: 30 * time.Second, MaxStale: 10 * time.Minute, Loader: p, GatewayID: "gw"}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func status(e *Entry) abac.Status { return e.Policy.Profile().Status }

// get is a Get that must succeed.
func get(t testing.TB, c *Cache, d token.Digest) *Entry {
	t.Helper()
	e, err := c.Get(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if e.Digest != d {
		t.Fatalf("got the entry of %v for %v", e.Digest, d)
	}
	return e
}

// fails is a Get that must fail so.
func fails(t testing.TB, c *Cache, d token.Digest, want error) {
	t.Helper()
	if e, err := c.Get(t.Context(), d); !errors.Is(err, want) {
		t.Fatalf("got %v, %v, want %v", e, err, want)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	good := Options{Profiles: 1, FreshFor: time.Second, MaxStale: time.Second, Loader: &plane{}}
	for name, spoil := range map[string]func(*Options){
		"no loader":             func(o *Options) { o.Loader = nil },
		"no room":               func(o *Options) { o.Profiles = 0 },
		"negative freshness":    func(o *Options) { o.FreshFor = -1 },
		"stale less than fresh": func(o *Options) { o.MaxStale = o.FreshFor - 1 },
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			spoil(&o)
			if c, err := New(o); err == nil {
				c.Close()
				t.Error("no error")
			}
		})
	}
}

func TestAProfileIsLoadedOnce(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 7, abac.Active))
	c := open(t, p, nil)
	first := get(t, c, dig(1))
	if first.ID != "tok_1" || first.Revision != 7 {
		t.Errorf("got %s at %d", first.ID, first.Revision)
	}
	for range 100 {
		if get(t, c, dig(1)) != first {
			t.Fatal("another entry")
		}
	}
	if n := p.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if n := c.hot.hits(); n != 100 {
		t.Errorf("counted %d hits", n)
	}
}

func TestRevokeStopsACachedProfileAtOnce(t *testing.T) {
	p := &plane{}
	p.set(dig(1), profile(1, 7, abac.Active))
	c := open(t, p, nil)
	get(t, c, dig(1))
	p.set(dig(1), profile(1, 8, abac.Revoked))
	c.Revoke("tok_1", 8)
	if e := get(t, c, dig(1)); status(e) != abac.Revoked || e.Revision != 8 {
		t.Errorf("got %s at %d", status(e), e.Revision)
	}
}
