package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// revoked is what one revocation showed over the whole fleet. Times count from the
// control plane's answer, and may be below zero; the answer waits for who confirms.
type revoked struct {
	works        time.Duration // from the token's 201 until every gateway had accepted it
	took         time.Duration // until the answer
	last, stream time.Duration // the last request that was accepted had its answer; the last stream ended
	afterTwo     int           // gateways that accepted a request sent 2 s after, or later
	unconfirmed  []string
	told, ended  int // streams that ended with the event, and that ended at all
	words        *tally
}

// revoke wants a token that is in use everywhere to be of no use within a second.
func revoke(ctx context.Context, t *trial) error {
	lanes, trials := 5, of(t, 200, 10)
	stale := of(t, 20*time.Second, 4*time.Second)
	f, err := newFleet(ctx, t, layout{gateways: t.gateways, fresh: stale / 2, stale: stale})
	if err != nil {
		return err
	}
	if err := f.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	var mu sync.Mutex
	var all []*revoked
	err = together(lanes, lanes, func(lane int) error {
		rig.Pause(ctx, time.Duration(lane)*300*time.Millisecond)
		for range trials / lanes {
			r, err := f.revokeOne(ctx)
			if err != nil {
				return err
			}
			mu.Lock()
			all = append(all, r)
			mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.judgeRevoked(all, len(f.gateways))
	return f.cutOff(ctx)
}

func (t *trial) judgeRevoked(all []*revoked, gateways int) {
	var works, took, last, sent, streams spans
	afterTwo, unconfirmed, told, ended, streamed := 0, 0, 0, 0, 0
	words := &tally{}
	for _, r := range all {
		works = append(works, r.works)
		took, last, sent, streams = append(took, r.took), append(last, r.last), append(sent, r.last+r.took), append(streams, r.stream)
		afterTwo += r.afterTwo
		if unconfirmed += len(r.unconfirmed); len(r.unconfirmed) > 0 {
			t.tell("unconfirmed: %v", r.unconfirmed)
		}
		told, ended, streamed = told+r.told, ended+r.ended, streamed+gateways
		words.merge(r.words)
	}
	what := fmt.Sprintf("%d revocations, %d gateways", len(all), gateways)
	t.figure("a token is taken by all, from its 201", "%s, asked every 100 ms", works)
	t.figure(what, "answered after %s; answers of gateways: %s", took, words)
	t.within(last.at(0.99) <= time.Second, "last accepted over the whole fleet, from the answer to revoke, p99", "≤ 1 s", "%s (%s)", short(last.at(0.99)), last)
	t.figure("the same from the call of revoke", "%s", sent)
	t.within(streams.at(0.99) <= time.Second, "last stream in flight ended, from the answer, p99", "≤ 1 s", "%s (%s)", short(streams.at(0.99)), streams)
	t.within(ended == streamed && told == ended, "streams ended, by an event token_revoked", fmt.Sprint(streamed), "%d, %d", ended, told)
	t.none(afterTwo, "gateways that accepted a request 2 s after")
	t.figure("gateways in sync that had not confirmed within 1 s", "%d of %d", unconfirmed, len(all)*gateways)
	t.none(words.but("200", "token_revoked"), "answers other than 200 and token_revoked")
}

// watcherOf asks one gateway with one token, again and again.
type watcherOf struct {
	first        chan struct{} // closed at the first accepted
	sent, at     time.Time     // of the last accepted request: when it went out, when its answer was there
	refused      time.Time     // the first refusal
	again        int           // accepted after a refusal
	words        *tally
	every, after time.Duration // between requests; once refused
}

func newWatcherOf() *watcherOf {
	return &watcherOf{first: make(chan struct{}), words: &tally{}, every: 100 * time.Millisecond, after: 250 * time.Millisecond}
}

// run asks until stop is closed. Its fields are for those who have seen it return.
func (w *watcherOf) run(g *gateway, bearer string, stop <-chan struct{}) {
	a := g.agent()
	defer a.close()
	timer := time.NewTimer(rand.N(w.every))
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		begin := time.Now()
		s := a.call(bearer)
		end := time.Now()
		if s.ok() {
			if w.sent.IsZero() {
				close(w.first)
			}
			w.sent, w.at = begin, end
			if !w.refused.IsZero() {
				w.again++
			}
		}
		// Before it is known at a gateway a new token is refused.
		if !w.sent.IsZero() {
			w.words.add(s.word())
			if !s.ok() && w.refused.IsZero() {
				w.refused = end
			}
		}
		next := w.every
		if !w.refused.IsZero() {
			next = w.after
		}
		timer.Reset(max(next-time.Since(begin), time.Millisecond))
	}
}

// revokeOne takes one token through its life, with a stream on every gateway.
func (f *fleet) revokeOne(ctx context.Context) (*revoked, error) {
	tok, err := f.admin.mint(ctx, nil)
	if err != nil {
		return nil, err
	}
	minted := time.Now()
	stop := make(chan struct{})
	var asking, streaming sync.WaitGroup
	defer asking.Wait()
	watchers, endings := make([]*watcherOf, len(f.gateways)), make([]ending, len(f.gateways))
	for i, g := range f.gateways {
		watchers[i] = newWatcherOf()
		asking.Go(func() { watchers[i].run(g, tok.Token, stop) })
	}
	var begun atomic.Int64
	for i, g := range f.gateways {
		select {
		case <-watchers[i].first:
		case <-time.After(15 * time.Second):
			close(stop)
			return nil, fmt.Errorf("%s does not take a token 15 s after it was minted", g.name)
		}
		streaming.Go(func() { endings[i] = g.agent().stream(tok.Token, func() { begun.Add(1) }) })
	}
	works := time.Since(minted)
	for deadline := time.Now().Add(3 * time.Second); begun.Load() < int64(len(f.gateways)) && time.Now().Before(deadline); {
		rig.Pause(ctx, 5*time.Millisecond)
	}
	rig.Pause(ctx, rand.N(300*time.Millisecond))
	r := &revoked{words: &tally{}, works: works}
	called := time.Now()
	answer, err := f.admin.revoke(ctx, tok.ID)
	told := time.Now()
	r.took, r.unconfirmed = told.Sub(called), answer.Unconfirmed
	if err == nil {
		rig.Pause(ctx, 2500*time.Millisecond)
	}
	close(stop)
	asking.Wait()
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { streaming.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience + 5*time.Second):
		return nil, fmt.Errorf("streams on a revoked token go on")
	}
	r.last, r.stream = -r.took, -r.took
	for i, w := range watchers {
		r.last = max(r.last, w.at.Sub(told))
		if w.sent.After(told.Add(2 * time.Second)) {
			r.afterTwo++
		}
		r.words.merge(w.words)
		if e := endings[i]; e.first.ok() {
			r.ended++
			r.stream = max(r.stream, e.at.Sub(told))
			if e.code == "token_revoked" && !e.done {
				r.told++
			} else {
				f.t.tell("a stream at %s ended %s after the answer, by %q, %v", f.gateways[i].name, short(e.at.Sub(told)), e.code, e.err)
			}
		}
	}
	return r, nil
}

// cutOff revokes a token that is in use while two gateways can't hear of it: one whose
// connections are reset, and one to which nothing passes any more.
func (f *fleet) cutOff(ctx context.Context) error {
	t, stale := f.t, f.layout.stale
	tok, err := f.admin.mint(ctx, nil)
	if err != nil {
		return err
	}
	if err := f.usable(ctx, tok); err != nil {
		return err
	}
	away := f.gateways[:2]
	stop := make(chan struct{})
	var asking sync.WaitGroup
	watchers := make([]*watcherOf, len(f.gateways))
	for i, g := range f.gateways {
		watchers[i] = newWatcherOf()
		watchers[i].after = watchers[i].every
		asking.Go(func() { watchers[i].run(g, tok.Token, stop) })
	}
	cut := time.Now()
	away[0].way.turnTo(closed)
	away[1].way.turnTo(silent)
	answer, err := f.admin.revoke(ctx, tok.ID)
	told := time.Now()
	rig.Pause(ctx, time.Until(cut.Add(stale+3*time.Second)))
	close(stop)
	asking.Wait()
	if err != nil {
		return err
	}
	slices.Sort(answer.Unconfirmed)
	want := []string{away[0].name, away[1].name}
	t.within(slices.Equal(answer.Unconfirmed, want) && answer.Confirmed == len(f.gateways)-2, "with two gateways cut off, revoke confirms and names",
		fmt.Sprintf("%d, and %s", len(f.gateways)-2, strings.Join(want, " ")), "%d, %s", answer.Confirmed, strings.Join(answer.Unconfirmed, " "))
	late := 0
	for i, g := range f.gateways {
		w := watchers[i]
		if i >= len(away) {
			if w.sent.After(told.Add(time.Second)) {
				late++
			}
			continue
		}
		how := [...]string{"connections reset", "nothing passes"}[i]
		t.within(w.sent.Sub(cut) <= stale && w.again == 0, g.name+" cut off ("+how+"): last accepted after the cut",
			fmt.Sprintf("≤ max_stale %s, and none after a refusal", stale), "%s, %d; %s", short(w.sent.Sub(cut)), w.again, w.words)
	}
	t.none(late, "other gateways that accepted a request 1 s after")
	return f.healed(ctx, away, tok)
}

// healed wants the gateways that were cut off to know what they missed.
func (f *fleet) healed(ctx context.Context, away []*gateway, tok minted) error {
	good, err := f.admin.mint(ctx, nil)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, g := range away {
		g.way.turnTo(open)
	}
	for _, g := range away {
		a := g.agent()
		defer a.close()
		var bad, ok said
		for ; time.Since(began) < 8*time.Second; rig.Pause(ctx, 50*time.Millisecond) {
			bad, ok = a.call(tok.Token), a.call(good.Token)
			if bad.ok() || bad.code == "token_revoked" && ok.ok() {
				break
			}
		}
		f.t.within(bad.code == "token_revoked" && ok.ok() && time.Since(began) <= 5*time.Second, g.name+" once it is reached again",
			"within 5 s the token is token_revoked, another is taken", "%s, %s after %s", bad.word(), ok.word(), short(time.Since(began)))
	}
	return nil
}
