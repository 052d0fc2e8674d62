package main

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// harm is what befalls a journal between a crash and the next start.
type harm struct {
	file string
	cut  int64 // to so many bytes
	flip int64 // a bit of this byte; -1: none
}

// journalCut kills a gateway with its own control plane under load, and starts it
// again and again from what was left, each time with another harm done.
func journalCut(ctx context.Context, t *trial) error {
	f, err := newFleet(ctx, t, layout{})
	if err != nil {
		return err
	}
	ids := []string{"b_one", "b_two", "b_three"}
	var tokens []token
	for _, id := range ids {
		if err := f.admin.put(ctx, limits{id: id, unit: "usd", window: "total", limit: "10"}); err != nil {
			return err
		}
		minted, err := f.admin.mint(ctx, minting{budgets: []string{id}})
		if err != nil {
			return err
		}
		tokens = append(tokens, minted)
	}
	loading, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	for i, m := range tokens {
		l := &load{f: f, token: m, name: ids[i], call: mixed, gap: 10 * time.Millisecond}
		all.Go(func() { l.run(loading, 6) })
	}
	rig.Pause(ctx, 4*time.Second)
	g := f.gateways[0]
	g.child.Kill()
	stop()
	all.Wait()
	truth := map[string]int64{}
	for _, id := range ids {
		truth[id] = f.up.sum(id + "/").output
	}
	left := t.path("left")
	if err := os.Rename(g.dir, left); err != nil {
		return err
	}
	each := 50
	if f.plane != nil { // whose database is laid before them each time, too
		f.plane.kill()
		each = 20
	}
	harms, size, err := harmsTo(left, each)
	if err != nil {
		return err
	}
	return f.replay(ctx, left, harms, size, truth)
}

// harmsTo lists what is done: cuts at a sample of bytes, each of the first 200 among
// them if there is time, flips, no harm, and no file.
func harmsTo(dir string, each int) (harms []harm, size int64, err error) {
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(filepath.Base(path), "ls_") {
			rel, relErr := filepath.Rel(dir, path)
			files = append(files, rel)
			return relErr
		}
		return err
	})
	if err != nil || len(files) != 1 {
		return nil, 0, fmt.Errorf("%d journals in %s, want 1: %w", len(files), dir, err)
	}
	info, err := os.Stat(filepath.Join(dir, files[0]))
	if err != nil {
		return nil, 0, err
	}
	size = info.Size()
	harms = append(harms, harm{files[0], size, -1}, harm{files[0], 0, -1}, harm{files[0], -1, -1}, harm{files[0], size - 1, -1})
	for range each {
		harms = append(harms, harm{files[0], rand.Int64N(size), -1}, harm{files[0], rand.Int64N(min(size, 200)), -1}, harm{files[0], size, rand.Int64N(size)})
	}
	return harms, size, nil
}

func (f *fleet) replay(ctx context.Context, left string, harms []harm, size int64, truth map[string]int64) error {
	g := f.gateways[0]
	var over []int64
	under := 0
	before := ""
	if f.plane != nil {
		before = f.plane.database
	}
	for i, h := range harms {
		if err := os.CopyFS(g.dir, os.DirFS(left)); err != nil {
			return err
		}
		if err := h.do(g.dir); err != nil {
			return err
		}
		if f.plane != nil {
			if err := f.plane.back(ctx, before); err != nil {
				return err
			}
		}
		if err := g.start(ctx); err != nil {
			return fmt.Errorf("harm %d, %+v: %w", i, h, err)
		}
		wait := 6 * time.Second
		if h.cut < 0 {
			wait = ttl + 5*time.Second // nobody can close that session: it counts once it is silent
		}
		all, err := f.settled(ctx, wait, func(all map[string]standing) bool {
			for id, n := range truth {
				if all[id].settled < n*unit || all[id].held != 0 {
					return false
				}
			}
			return true
		})
		if err != nil {
			return err
		}
		for id, n := range truth {
			s := all[id]
			over = append(over, s.settled/unit-n)
			if s.settled < n*unit || s.held != 0 {
				under++
				f.t.miss("%+v of %d bytes: %s: %s; the upstream recorded %d", h, size, id, s, n*unit)
			}
		}
		g.child.Kill()
		if f.plane != nil {
			f.plane.kill()
		}
		if err := os.RemoveAll(g.dir); err != nil {
			return err
		}
	}
	slices.Sort(over)
	f.t.figure("%d harms to a journal of %d bytes: %d budgets charged less than was used; charged beyond it: %d to %d units, median %d",
		len(harms), size, under, over[0], over[len(over)-1], over[len(over)/2])
	return nil
}

func (h harm) do(dir string) error {
	path := filepath.Join(dir, h.file)
	if h.cut < 0 {
		return os.Remove(path)
	}
	if err := os.Truncate(path, h.cut); err != nil {
		return err
	}
	if h.flip < 0 {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[h.flip] ^= 1 << rand.IntN(8)
	return os.WriteFile(path, b, 0o600)
}

func mkdir(dir string) error { return os.Mkdir(dir, 0o700) }
