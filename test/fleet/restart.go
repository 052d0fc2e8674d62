package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

// restarted is what restart goes through.
type restarted struct {
	*fleet
	tokens  []minted
	revoked minted
	stopped time.Time

	banned atomic.Int64 // times that a revoked or an unknown token was accepted
}

// restart starts gateways anew in an outage: from their snapshots, and from what is none
// of theirs.
func restart(ctx context.Context, t *trial) error {
	x := &restarted{}
	var err error
	stale := of(t, 90*time.Second, 20*time.Second)
	x.fleet, err = newFleet(ctx, t, layout{
		gateways: min(t.gateways, 10), fresh: stale / 3, stale: stale,
		before: func(ctx context.Context, f *fleet) (err error) {
			x.tokens, err = f.admin.mintAll(ctx, 20)
			return err
		},
	})
	if err != nil {
		return err
	}
	if err := x.settle(ctx); err != nil {
		return err
	}
	x.stopped = time.Now()
	if err := x.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if err := x.again(ctx); err != nil {
		return err
	}
	for _, wrong := range x.wrongs() {
		if err := x.wrong(ctx, wrong); err != nil {
			return err
		}
	}
	return x.untilStale(ctx)
}

// settle waits until the snapshots on the disk have all that they must.
func (x *restarted) settle(ctx context.Context) (err error) {
	if err := x.inSync(ctx, 10*time.Second); err != nil {
		return err
	}
	if x.revoked, err = x.admin.mint(ctx, nil); err != nil {
		return err
	}
	late, err := x.admin.mint(ctx, nil)
	if err != nil {
		return err
	}
	if err := x.usable(ctx, append(slices.Clone(x.tokens), x.revoked, late)...); err != nil {
		return err
	}
	if !x.t.short { // a change is in the snapshot at most 60 s after
		x.tokens = append(x.tokens, late)
		rig.Pause(ctx, 62*time.Second)
	}
	_, err = x.admin.revoke(ctx, x.revoked.ID)
	return err
}

// again kills every gateway with -9 and starts it; it wants them to serve from their
// snapshots.
func (x *restarted) again(ctx context.Context) error {
	var mu sync.Mutex
	var readies spans
	var served, asked atomic.Int64
	others := &tally{}
	err := x.each(func(g *gateway) error { g.child.Kill(); return nil })
	if err != nil {
		return err
	}
	err = x.each(func(g *gateway) error {
		began := time.Now()
		if err := g.launch(); err != nil {
			return err
		}
		for deadline := began.Add(6 * time.Second); !g.ready(ctx) && time.Now().Before(deadline) && g.child.Alive(); {
			rig.Pause(ctx, 20*time.Millisecond)
		}
		if g.ready(ctx) {
			mu.Lock()
			readies = append(readies, time.Since(began))
			mu.Unlock()
		}
		a := g.agent()
		defer a.close()
		for _, tok := range x.tokens {
			asked.Add(1)
			if s := a.call(tok.Token); s.ok() {
				served.Add(1)
			} else {
				others.add(s.word())
			}
		}
		x.forbid(a)
		return nil
	})
	if err != nil {
		return err
	}
	x.t.within(len(readies) == len(x.gateways), "killed with -9 and started in the outage: ready", fmt.Sprint(len(x.gateways)), "%d, after %s", len(readies), readies)
	x.t.within(served.Load() == asked.Load(), "calls with cached tokens served from the snapshot", fmt.Sprint(asked.Load()), "%d (else: %s)", served.Load(), others)
	return nil
}

// forbid asks for what no gateway may serve.
func (x *restarted) forbid(a *agent) {
	for _, bad := range []string{x.revoked.Token, token.Mint().Reveal()} {
		if a.call(bad).ok() {
			x.banned.Add(1)
		}
	}
}

// wrong is a way in which what lies in a folder is not what the gateway wrote.
type wrong struct {
	name  string
	do    func(folders map[string]folder) error
	taken bool // nothing is wrong with it: that it is taken shows that the others are refused for what they are
}

// folder is what a gateway's snapshot is made of: names to contents.
type folder map[string][]byte

// kinds are the files that make up what a gateway knows after a restart.
var kinds = []string{"snapshot*", "revocations*"}

func readFolder(dir string) (folder, error) {
	all := folder{}
	for _, kind := range kinds {
		paths, err := filepath.Glob(filepath.Join(dir, kind))
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			if all[filepath.Base(p)], err = os.ReadFile(p); err != nil {
				return nil, err
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no snapshot in %s", dir)
	}
	return all, nil
}

func (f folder) write(dir string) error {
	for name, b := range f {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// clone is a copy that may be written to.
func (f folder) clone() folder {
	c := folder{}
	for name, b := range f {
		c[name] = bytes.Clone(b)
	}
	return c
}

func (x *restarted) wrongs() []wrong {
	flip := func(folders map[string]folder) error {
		for _, f := range folders {
			var names []string
			for name, b := range f {
				if len(b) > 0 {
					names = append(names, name)
				}
			}
			b := f[names[rand.IntN(len(names))]]
			b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
		}
		return nil
	}
	all := []wrong{
		{name: "a flipped byte", do: flip},
		{name: "another gateway's", do: x.swap},
		{name: "from the future", do: x.stamped(func() time.Time { return time.Now().Add(time.Minute) })},
	}
	if !x.t.short {
		all = append(all,
			wrong{name: "a flipped byte", do: flip},
			wrong{name: "a flipped byte", do: flip},
			wrong{name: "older than max_stale", do: x.stamped(func() time.Time { return time.Now().Add(-x.layout.stale) })},
			wrong{name: "the same, of just now", do: x.stamped(time.Now), taken: true})
	}
	return all
}

// stamped writes another time into every snapshot, as the gateway itself would: its first
// 64 bytes are the time, sealed and bound to the salt of what follows.
func (x *restarted) stamped(at func() time.Time) func(map[string]folder) error {
	const stampLen, magicLen, saltLen = 64, 8, 32
	return func(folders map[string]folder) error {
		for _, g := range x.gateways {
			b := folders[g.name]["snapshot"]
			if len(b) < stampLen+magicLen+saltLen {
				return fmt.Errorf("%s: a snapshot of %d bytes", g.name, len(b))
			}
			salt := b[stampLen+magicLen:][:saltLen]
			var stamp bytes.Buffer
			w, err := tokencache.Seal{Secret: token.NewSecret(g.runtime.Token), Bound: []string{"vouched 1", g.name, string(salt)}}.Writer(&stamp)
			if err != nil {
				return err
			}
			if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(at().UnixNano()))); err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
			if copy(b, stamp.Bytes()) != stampLen {
				return fmt.Errorf("a stamp of %d bytes", stamp.Len())
			}
		}
		return nil
	}
}

// swap gives every gateway the snapshot of the next.
func (x *restarted) swap(folders map[string]folder) error {
	first := folders[x.gateways[0].name]
	for i, g := range x.gateways {
		if i+1 < len(x.gateways) {
			folders[g.name] = folders[x.gateways[i+1].name]
		} else {
			folders[g.name] = first
		}
	}
	return nil
}

// wrong starts every gateway with something wrong, wants each refused, and gives back
// what was right.
func (x *restarted) wrong(ctx context.Context, w wrong) error {
	if err := x.each(func(g *gateway) error { g.child.Kill(); return nil }); err != nil {
		return err
	}
	right, bad := map[string]folder{}, map[string]folder{}
	for _, g := range x.gateways {
		f, err := readFolder(g.dir)
		if err != nil {
			return err
		}
		right[g.name], bad[g.name] = f, f.clone()
	}
	if err := w.do(bad); err != nil {
		return err
	}
	var served, ready atomic.Int64
	words := &tally{}
	err := x.each(func(g *gateway) error {
		if err := bad[g.name].write(g.dir); err != nil {
			return err
		}
		if err := g.launch(); err != nil {
			return err
		}
		a := g.agent()
		defer a.close()
		for deadline := time.Now().Add(3500 * time.Millisecond); time.Now().Before(deadline) && g.child.Alive(); rig.Pause(ctx, 50*time.Millisecond) {
			s := a.call(x.tokens[rand.IntN(len(x.tokens))].Token)
			if s.ok() {
				served.Add(1)
			}
			words.add(s.word())
			if g.ready(ctx) {
				ready.Add(1)
			}
		}
		x.forbid(a)
		g.child.Kill()
		return right[g.name].write(g.dir)
	})
	if err != nil {
		return err
	}
	if w.taken {
		x.t.within(ready.Load() > 0 && served.Load() > 0, w.name+": times ready, calls served", "> 0, > 0", "%d, %d; %s", ready.Load(), served.Load(), words)
		return nil
	}
	x.t.within(ready.Load() == 0 && served.Load() == 0 && words.but("cut") > 0, fmt.Sprintf("%s, in %d folders: times ready, calls served", w.name, len(x.gateways)), "0, 0", "%d, %d; %s",
		ready.Load(), served.Load(), words)
	return nil
}

// untilStale starts the gateways with what is right, sees how long they serve from it, and
// lets the control plane go on.
func (x *restarted) untilStale(ctx context.Context) error {
	if err := x.again(ctx); err != nil {
		return err
	}
	stale := x.layout.stale
	lasts := make(spans, len(x.gateways))
	stop := make(chan struct{})
	time.AfterFunc(time.Until(x.stopped.Add(stale*12/10+time.Second)), func() { close(stop) })
	err := x.each(func(g *gateway) error {
		a := g.agent()
		defer a.close()
		every(250*time.Millisecond, stop, func(i int) {
			begin := time.Now()
			if a.call(x.tokens[i%len(x.tokens)].Token).ok() {
				lasts[slices.Index(x.gateways, g)] = begin.Sub(x.stopped)
			}
			x.forbid(a)
		})
		return nil
	})
	if err != nil {
		return err
	}
	// The file's time may be max_stale/10 behind, and a head a second.
	low, high := stale*9/10-1200*time.Millisecond, stale*11/10
	x.t.within(lasts.at(0) >= low && lasts.at(1) <= high, "served from it until", fmt.Sprintf("%s to %s after the stop", short(low), short(high)), "%s to %s", short(lasts.at(0)), short(lasts.at(1)))
	cont := time.Now()
	if err := x.signal(syscall.SIGCONT); err != nil {
		return err
	}
	err = x.usable(ctx, x.tokens...)
	x.t.within(err == nil && time.Since(cont) <= 5*time.Second, "all served again after going on", "≤ 5 s", "%s", short(time.Since(cont)))
	x.t.none(int(x.banned.Load()), "times that a revoked or unknown token was accepted")
	return err
}
