package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// trouble is what befalls a control plane under load.
type trouble struct {
	name  string
	begin func()
	end   func() error // nil: the replicas that are down are started
}

// troubles are all that can befall this one, the most likely first.
func (p *plane) troubles() []trouble {
	if p.server == nil {
		return []trouble{{"the control plane killed", p.kill, nil}}
	}
	return []trouble{
		{"replica 1 killed", p.replicas[0].killed, nil},
		{"PostgreSQL stopped at once", func() { p.server.End(syscall.SIGQUIT) }, p.server.Start},
		{"replica 2 killed", p.replicas[1].killed, nil},
		{"PostgreSQL killed", p.server.Kill, p.server.Start},
		{"PostgreSQL stopped in order", func() { p.server.End(syscall.SIGINT) }, p.server.Start},
		{"both replicas killed", p.kill, nil},
		{"replica 1 frozen", func() { _ = p.replicas[0].signal(syscall.SIGSTOP) }, func() error { return p.replicas[0].signal(syscall.SIGCONT) }},
	}
}

func (r *replica) killed() { r.child.Kill() }

func (r *replica) signal(s syscall.Signal) error { return r.child.Signal(s) }

// recovery is how long a replica is given once its database is back; how long it
// takes is told.
const recovery = 20 * time.Second

// befall lets a trouble last, ends it, and waits until every replica takes changes.
func (p *plane) befall(ctx context.Context, b trouble, lasting time.Duration) error {
	p.befallen++
	p.t.tell("%s for %s", b.name, lasting.Round(time.Millisecond))
	b.begin()
	rig.Pause(ctx, lasting)
	if b.end != nil {
		if err := b.end(); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := p.start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	for _, r := range p.replicas {
		a := newAdmin("http://"+r.addr, p.admin)
		a.patience = recovery
		err := a.put(context.WithoutCancel(ctx), limits{id: "b_probe", unit: "requests", window: "total", limit: "1"})
		a.client.CloseIdleConnections()
		if err != nil {
			return fmt.Errorf("%s after: %s: %w", r.name, b.name, err)
		}
	}
	p.slowest = max(p.slowest, time.Since(began))
	return nil
}

// longest is how long a trouble lasts at most, beside a load.
const longest = time.Second

// harass lets one trouble follow another until stop is closed or ctx ends, each for
// a random time up to longest, and says how many there were.
func (p *plane) harass(ctx context.Context, stop <-chan struct{}, calm time.Duration) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	all := p.troubles()
	for i := 0; ; i++ {
		rig.Pause(ctx, calm)
		calm = 200*time.Millisecond + rand.N(2*time.Second)
		if ctx.Err() != nil {
			return i
		}
		if err := p.befall(ctx, all[i%len(all)], 100*time.Millisecond+rand.N(longest)); err != nil {
			p.t.miss("%v", err)
			return i
		}
	}
}

// troubled has 3 gateways spend a budget to its end while the control plane, or its
// database, is down for a part of the time. The refused come again: no gateway dies,
// so nothing may be lost, and nothing charged but what was used.
func troubled(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{gateways: 3})
	if err != nil {
		return err
	}
	f.admin.patience = 15 * time.Second
	all := f.plane.troubles()
	n := t.runs()
	if t.short {
		n = min(4, len(all))
	}
	words := map[string]int{}
	var rounds []*round
	charged := map[string]int64{}
	for i := range n {
		id := fmt.Sprintf("b_troubled_%d", i)
		charged[id] = 1000 * dollar
		r := &round{name: id, limits: []limits{{id: id, unit: "usd", window: "day", limit: "1000"}}, callers: 400, call: tenEach, again: true, want: 100}
		if i%2 == 1 {
			r.over = 2 * time.Second
		}
		b := all[i%len(all)]
		r.meanwhile = func() {
			rig.Pause(ctx, rand.N(100*time.Millisecond+r.over/2))
			if err := f.plane.befall(ctx, b, 50*time.Millisecond+rand.N(time.Second)); err != nil {
				t.miss("%v", err)
			}
		}
		words[b.name]++
		rounds = append(rounds, r)
	}
	for _, name := range slices.Sorted(maps.Keys(words)) {
		t.figure("%d times: %s", words[name], name)
	}
	return f.shows(ctx, "limit 1,000, cost 10, troubled", rounds, charged)
}

// warmUp is how long gateways take to lease what they need for the seconds to come.
const warmUp = 4 * time.Second

// besides runs do while the control plane is harassed, after some calm.
func (f *fleet) besides(ctx context.Context, calm time.Duration, do func()) {
	stop := make(chan struct{})
	var all sync.WaitGroup
	n := 0
	all.Go(func() { n = f.plane.harass(ctx, stop, calm) })
	do()
	close(stop)
	all.Wait()
	f.t.figure("meanwhile %d troubles of %d kinds", n, min(n, len(f.plane.troubles())))
	f.t.must(n > 0, "there was no trouble")
}

// account says what each replica did. Where nothing befell them they failed nobody.
func (p *plane) account() error {
	list, err := p.work()
	if err != nil {
		return err
	}
	var parts []string
	var errs []error
	leases := 0
	for i, w := range list {
		leases += w.leases
		name := p.replicas[i].name
		parts = append(parts, fmt.Sprintf("%s %d lease calls, %d settlements, %d failed", name, w.leases, w.settlements, w.failed))
		if w.failed > 0 && p.befallen == 0 {
			errs = append(errs, fmt.Errorf("%s failed %d calls; nothing had befallen it", name, w.failed))
		}
	}
	said := strings.Join(parts, "; ")
	if p.befallen > 0 {
		said += fmt.Sprintf("; %d troubles, changes taken at most %s after one", p.befallen, p.slowest.Round(time.Millisecond))
	}
	p.t.figure("%s", said)
	if leases == 0 {
		errs = append(errs, errors.New("no log tells of a lease call"))
	}
	return errors.Join(errs...)
}
