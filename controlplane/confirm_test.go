package controlplane

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/record"
)

// follows makes a gateway's process that watches, and reports what it applied so
// long after a revocation; below 0: never.
func (p *plane) follows(t *testing.T, gateway, instance string, after time.Duration) {
	t.Helper()
	c, _ := p.gateway(gateway, instance)
	live := make(chan struct{})
	told := false
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		_ = c.Watch(ctx, FromHead, func(e Event) {
			if e.Kind == KindHead && !told {
				told = true
				close(live)
			}
			if e.Kind == KindRevoke && after >= 0 {
				time.Sleep(after)
				_ = c.Report(ctx, record.Report{Instance: instance, MaxStale: time.Hour, Revision: e.Revision})
			}
		})
	}()
	select {
	case <-live:
	case <-time.After(5 * time.Second):
		t.Fatal("the watch does not begin")
	}
}

func TestStoppingATokenWaitsForThoseWhoWatchAndNamesTheOthers(t *testing.T) {
	t.Parallel()
	const never = -1
	for _, tt := range []struct {
		name        string
		follow      map[string]time.Duration // by gateway/instance
		silent      []string                 // that reported once, and do not watch
		confirmed   float64
		unconfirmed []string
		least, most time.Duration
	}{
		{"nobody", nil, nil, 0, nil, 0, 300 * time.Millisecond},
		{"all watch and report", map[string]time.Duration{"g1/a": 0, "g1/b": 0, "g2/a": 100 * time.Millisecond}, nil, 3, nil, 100 * time.Millisecond, 700 * time.Millisecond},
		{"none watches", nil, []string{"g2/a", "g1/a", "g1/b"}, 0, []string{"g1", "g2"}, 0, 300 * time.Millisecond},
		{"one watches and does not report", map[string]time.Duration{"g1/a": 0, "g2/a": never}, nil, 1, []string{"g2"}, 700 * time.Millisecond, time.Second},
		{"one process of two has not", map[string]time.Duration{"g1/a": 0}, []string{"g1/b"}, 1, []string{"g1"}, 0, 500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			for name, after := range tt.follow {
				p.follows(t, name[:2], name[3:], after)
			}
			for _, name := range tt.silent {
				c, _ := p.gateway(name[:2], name[3:])
				if err := c.Report(context.Background(), record.Report{Instance: name[3:], MaxStale: time.Hour}); err != nil {
					t.Fatal(err)
				}
			}
			for i, method := range []string{"POST /quarantine", "POST /revoke", "DELETE "} {
				id, _ := p.mint("general", nil)
				verb, path, _ := strings.Cut(method, " ")
				began := time.Now()
				a := p.must(200, verb, "/v1/tokens/"+id+path, nil)
				took := time.Since(began)
				if fmt.Sprint(a.body["unconfirmed"]) != fmt.Sprint(tt.unconfirmed) || a.body["unconfirmed"] == nil || a.body["confirmed"] != tt.confirmed {
					t.Errorf("%s: confirmed %v, unconfirmed %v; want %v, %v", method, a.body["confirmed"], a.body["unconfirmed"], tt.confirmed, tt.unconfirmed)
				}
				if took < tt.least || took > tt.most {
					t.Errorf("%s took %v, want %v to %v", method, took, tt.least, tt.most)
				}
				if i == 1 { // again: nothing changes, and what is applied is known
					again := p.must(200, verb, "/v1/tokens/"+id+path, nil)
					if again.body["confirmed"] != tt.confirmed || again.body["revision"] != a.body["revision"] {
						t.Errorf("again: %v", again.body)
					}
				}
			}
		})
	}
}

func TestAnInstanceThatCameAfterwardsIsNotWaitedFor(t *testing.T) {
	p := newPlane(t)
	p.follows(t, "g1", "a", 300*time.Millisecond)
	id, _ := p.mint("general", nil)
	go func() {
		time.Sleep(100 * time.Millisecond)
		c, _ := p.gateway("g2", "late")
		_ = c.Report(context.Background(), record.Report{Instance: "late", MaxStale: time.Hour})
	}()
	a := p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	if a.body["confirmed"] != 1.0 || len(a.body["unconfirmed"].([]any)) != 0 {
		t.Errorf("confirmed %v, unconfirmed %v", a.body["confirmed"], a.body["unconfirmed"])
	}
}
