package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
	"github.com/keeptrusts/gateway/token"
)

// served is what one gateway did in an outage.
type served struct {
	calls     []sample
	ready     []sample
	forbidden int // requests accepted that should not be
	what      string
	others    tally
}

// sample is one request: when it went out and was answered, and whether it was accepted.
type sample struct {
	sent, at time.Time
	ok       bool
	word     string
}

// bad is a token of which no request may be accepted, from a moment on.
type bad struct {
	minted
	name string
	body string    // of its call
	from time.Time // zero: always
}

// outage stops both replicas under load and lets them go on.
func outage(ctx context.Context, t *trial) error {
	stale := of(t, 30*time.Second, 4*time.Second)
	after := of(t, 10*time.Second, 4*time.Second)
	f, err := newFleet(ctx, t, layout{gateways: t.gateways, fresh: stale / 3, stale: stale})
	if err != nil {
		return err
	}
	good, err := f.admin.mint(ctx, nil)
	if err != nil {
		return err
	}
	lead := 4 * time.Second // until the outage
	ends := time.Now().Add(lead + stale/2)
	bads, err := f.bads(ctx, ends)
	if err != nil {
		return err
	}
	if err := f.usable(ctx, good); err != nil {
		return err
	}
	if err := f.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	all := make([]*served, len(f.gateways))
	for i, g := range f.gateways {
		all[i] = &served{}
		asking.Go(func() { all[i].run(ctx, g, of(t, 250*time.Millisecond, 50*time.Millisecond), good, bads, stop) })
	}
	rig.Pause(ctx, time.Until(ends.Add(-stale/2)))
	stopped := time.Now()
	if err := f.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	t.tell("stopped")
	rig.Pause(ctx, stale+after)
	cont := time.Now()
	err = f.signal(syscall.SIGCONT)
	t.tell("going on")
	rig.Pause(ctx, 8*time.Second)
	close(stop)
	asking.Wait()
	if err != nil {
		return err
	}
	t.judgeOutage(f, all, window{stopped, cont, stale})
	return nil
}

// bads makes tokens that must not be served.
func (f *fleet) bads(ctx context.Context, ends time.Time) ([]bad, error) {
	make := func(more map[string]any, then string) (m minted, err error) {
		if m, err = f.admin.mint(ctx, more); err != nil {
			return m, err
		}
		if err := f.usable(ctx, m); err != nil {
			return m, err
		}
		if then != "" {
			err = f.admin.ask(ctx, "POST", "/v1/tokens/"+m.ID+"/"+then, nil, nil)
		}
		return m, err
	}
	revoked, err := make(nil, "revoke")
	if err != nil {
		return nil, err
	}
	held, err := make(nil, "quarantine")
	if err != nil {
		return nil, err
	}
	expiring, err := make(map[string]any{"expires_at": ends.UTC().Format(time.RFC3339Nano)}, "")
	if err != nil {
		return nil, err
	}
	narrow, err := make(map[string]any{"bindings": map[string]any{"models": []string{"m"}}}, "")
	if err != nil {
		return nil, err
	}
	elsewhere, err := f.admin.mint(ctx, map[string]any{"bindings": map[string]any{"gateway_id": "gw_elsewhere"}})
	if err != nil {
		return nil, err
	}
	const other = `{"model":"other","messages":[{"role":"user","content":"hello"}]}`
	return []bad{
		{revoked, "revoked", callBody, time.Time{}},
		{held, "quarantined", callBody, time.Time{}},
		{expiring, "expired", callBody, ends},
		{narrow, "a model not granted", other, time.Time{}},
		{elsewhere, "bound to another gateway", callBody, time.Time{}},
		{minted{ID: "none", Token: token.Mint().Reveal()}, "unknown", callBody, time.Time{}},
		{f.gateways[0].runtime, "a gateway's own", callBody, time.Time{}},
	}, nil
}

// run asks until stop is closed: with the good token, with one of the bad ones each
// time, and for readiness. None waits for the others. What was served last is known to
// the gap between two requests: the shorter max_stale, the shorter that must be.
func (s *served) run(ctx context.Context, g *gateway, gap time.Duration, good minted, bads []bad, stop <-chan struct{}) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		a := g.agent()
		defer a.close()
		every(gap, stop, func(int) {
			begin := time.Now()
			said := a.call(good.Token)
			s.calls = append(s.calls, sample{begin, time.Now(), said.ok(), said.word()})
		})
	})
	all.Go(func() {
		every(gap, stop, func(int) {
			begin := time.Now()
			ok := g.ready(ctx)
			s.ready = append(s.ready, sample{begin, time.Now(), ok, ""})
		})
	})
	a := g.agent()
	defer a.close()
	every(gap, stop, func(i int) {
		bad := bads[i%len(bads)]
		begin := time.Now()
		said := a.post(bad.Token, bad.body)
		s.others.add(bad.name + " " + said.word())
		if said.ok() && begin.After(bad.from) {
			s.forbidden++
			s.what = bad.name
		}
	})
}

// every runs f so often until stop is closed.
func every(gap time.Duration, stop <-chan struct{}, f func(i int)) {
	pause := time.NewTimer(rand.N(gap))
	defer pause.Stop()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-pause.C:
		}
		begin := time.Now()
		f(i)
		pause.Reset(max(gap-time.Since(begin), time.Millisecond))
	}
}

// window is when the outage was.
type window struct {
	stopped, cont time.Time
	stale         time.Duration
}

// judged is what the samples of one kind say of an outage.
type judged struct {
	last, first time.Duration // the last accepted, the first refused, since the stop
	after       int           // accepted later than a refusal, in the outage
	early       int           // refused before the outage
	back        time.Duration // since the going on, from where all are accepted
	waits       spans         // of the answers, from 4 s in the outage on
	words       tally
}

func (w window) judge(samples []sample) *judged {
	var j judged
	for _, s := range samples {
		switch {
		case s.at.Before(w.stopped):
			if !s.ok {
				j.early++
			}
		case s.sent.Before(w.cont):
			if s.sent.After(w.stopped.Add(4 * time.Second)) {
				j.waits = append(j.waits, s.at.Sub(s.sent))
			}
			if s.ok {
				if j.last = s.sent.Sub(w.stopped); j.first > 0 {
					j.after++
				}
			} else if j.words.add(s.word); j.first == 0 {
				j.first = s.sent.Sub(w.stopped)
			}
		case !s.ok:
			j.back = s.at.Sub(w.cont)
		}
	}
	return &j
}

func (t *trial) judgeOutage(f *fleet, all []*served, w window) {
	// The last word before the stop may be a second old: a short max_stale feels it.
	low, high := min(w.stale*9/10, w.stale-1200*time.Millisecond), w.stale*11/10
	for _, kind := range []struct {
		name    string
		samples func(*served) []sample
	}{
		{"calls with a cached token", func(s *served) []sample { return s.calls }},
		{"/readyz", func(s *served) []sample { return s.ready }},
	} {
		var lasts, firsts, backs, waits spans
		early, after := 0, 0
		words := &tally{}
		for _, s := range all {
			j := w.judge(kind.samples(s))
			lasts, firsts, backs, waits = append(lasts, j.last), append(firsts, j.first), append(backs, j.back), append(waits, j.waits...)
			early, after = early+j.early, after+j.after
			words.merge(&j.words)
		}
		bound := fmt.Sprintf("max_stale %s ±10%%: %s to %s", w.stale, short(low), short(high))
		t.within(lasts.at(0) >= low && lasts.at(1) <= high, kind.name+": last accepted after the stop, over the fleet", bound, "%s to %s", short(lasts.at(0)), short(lasts.at(1)))
		t.within(firsts.at(0) >= low && firsts.at(1) <= high, kind.name+": first refused", bound, "%s to %s", short(firsts.at(0)), short(firsts.at(1)))
		t.none(early+after, kind.name+": refused before the outage, or accepted again in it")
		t.within(backs.at(1) <= 5*time.Second, kind.name+": all accepted again after going on", "≤ 5 s", "%s (%s)", short(backs.at(1)), backs)
		if kind.name != "/readyz" {
			t.none(words.but("control_plane_unavailable"), kind.name+": refused otherwise than as control_plane_unavailable ("+words.String()+")")
			t.within(waits.at(0.99) < 250*time.Millisecond, kind.name+": answered in the outage once it is known, p99", "nobody waits: < 250 ms", "%s", short(waits.at(0.99)))
		}
	}
	forbidden, what := 0, ""
	others := &tally{}
	for _, s := range all {
		if forbidden += s.forbidden; s.forbidden > 0 {
			what = s.what
		}
		others.merge(&s.others)
	}
	t.none(forbidden, "requests allowed that should not be"+suffix(what))
	t.tell("%s", others)
}

func suffix(what string) string {
	if what == "" {
		return ""
	}
	return " (one: " + what + ")"
}
