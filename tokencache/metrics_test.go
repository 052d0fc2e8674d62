package tokencache

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// scrape gives the value of every series by its name and labels, without the prefix.
func scrape(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name, ok := strings.CutPrefix(f.GetName(), "keeptrusts_gateway_token_cache_")
			if !ok {
				t.Errorf("a metric is named %s", f.GetName())
			}
			for _, l := range m.GetLabel() {
				name += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

func TestEveryOutcomeIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prometheus.NewRegistry()
		p := &plane{}
		for i := range 100 {
			p.set(dig(i), profile(i, 1, abac.Active))
		}
		c := open(t, p, func(o *Options) { o.Registerer = r; o.Profiles = 200 })
		for name, v := range scrape(t, r) {
			if v != 0 && name != "profiles_capacity" {
				t.Errorf("%s is %v at the start", name, v)
			}
		}
		c.CountMalformed()
		get(t, c, dig(0)) // miss
		get(t, c, dig(0)) // hit
		get(t, c, dig(0))
		fails(t, c, dig(1000), token.ErrUnknown) // miss
		fails(t, c, dig(1000), token.ErrUnknown) // unknown
		release := make(chan struct{})
		p.on(held(release))
		var wg sync.WaitGroup
		for i := range 64 { // 64 misses, 63 tokens new
			wg.Go(func() { get(t, c, dig(1+i)) })
		}
		synctest.Wait()
		wg.Go(func() { get(t, c, dig(1)) }) // joined
		wg.Go(func() { get(t, c, dig(2)) })
		synctest.Wait()
		fails(t, c, dig(99), ErrOverloaded) // refused
		if n := scrape(t, r)["loads_in_flight"]; n != 64 {
			t.Errorf("%v loads in flight", n)
		}
		close(release)
		wg.Wait()
		p.on(down)
		time.Sleep(time.Minute)
		get(t, c, dig(0))                    // stale, a failed load
		fails(t, c, dig(98), ErrUnavailable) // unavailable
		c.Revoke("tok_50", 2)

		got := scrape(t, r)
		want := map[string]float64{
			`lookups_total{outcome="hit"}`: 2, `lookups_total{outcome="miss"}`: 66, `lookups_total{outcome="joined"}`: 2,
			`lookups_total{outcome="unknown"}`: 1, `lookups_total{outcome="stale"}`: 1, `lookups_total{outcome="refused"}`: 1,
			`lookups_total{outcome="unavailable"}`: 1, `lookups_total{outcome="malformed"}`: 1,
			`loads_total{result="ok"}`: 65, `loads_total{result="unknown"}`: 1, `loads_total{result="failed"}`: 1, `loads_total{result="refused"}`: 1,
			"loads_in_flight": 0, "profiles": 65, "profiles_capacity": 200, "unknown_digests": 1, "revocations": 1,
			"control_plane_away": 1, "not_admitted_total": 0, "evicted_total": 0, "index_entries": 0, "index_bytes": 0,
			`lookups_total{outcome="stopped"}`: 0,
		}
		for name, v := range want {
			if g, ok := got[name]; !ok || g != v {
				t.Errorf("%s is %v, want %v", name, g, v)
			}
		}
		for name := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("%s is not expected", name)
			}
		}
	})
}

func TestASecondCacheInOneRegistryIsRefused(t *testing.T) {
	r := prometheus.NewRegistry()
	open(t, &plane{}, func(o *Options) { o.Registerer = r })
	before := len(scrape(t, r))
	if _, err := New(Options{Profiles: 1, Loader: &plane{}, Registerer: r}); err == nil {
		t.Error("no error")
	}
	if n := len(scrape(t, r)); n != before {
		t.Errorf("%d series, there were %d", n, before)
	}
}

func TestAbsenceIsToldOnceAndSoIsItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		p := &plane{}
		p.set(dig(1), profile(1, 1, abac.Active))
		c := open(t, p, func(o *Options) { o.Log = zap.New(core) })
		p.on(down)
		for range 5 {
			fails(t, c, dig(1), ErrUnavailable)
			time.Sleep(time.Second)
		}
		p.on(nil)
		fails(t, c, dig(1), ErrUnavailable) // the probe
		synctest.Wait()
		get(t, c, dig(1))
		var got []string
		for _, l := range logs.All() {
			got = append(got, l.Message)
			for _, f := range l.Context {
				if strings.Contains(fmt.Sprint(f.Interface, f.String), dig(1).String()) {
					t.Error("the digest is in the log")
				}
			}
		}
		want := []string{
			"the control plane does not answer; what is known is served until it is too old",
			"the control plane answers again",
		}
		if !slices.Equal(got, want) {
			t.Errorf("logged %q", got)
		}
	})
}
