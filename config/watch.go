package config

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"time"
)

// Watch compares the bytes of the file that c was loaded from, and of every secret
// file and CA bundle that it refers to, with those that were known last, first with those that c
// was loaded with: nothing that changes in between is missed. (Of a Config that comes
// from Parse, with those there are when Watch begins.) It looks at each tick of every,
// and at once on hup; it blocks until ctx ends.
//
// Changed content that holds still for an eighth of every is parsed and given to
// apply, as is whatever content there is on hup. A Config so given is new, and holds
// no override. An error, of reading, of the content or of apply, goes to failed, and
// that content is not tried again until it changes or on hup.
func (c *Config) Watch(ctx context.Context, every time.Duration, hup <-chan os.Signal, apply func(*Config) error, failed func(error)) {
	w := &watcher{path: c.file, known: c.sum, secrets: c.secrets, bundles: c.bundles, pause: every / 8}
	if w.known == (sum{}) {
		w.known = w.look().sum
	}
	reload := func(s sight) {
		w.known = s.sum
		next, err := s.config(w.path)
		if err == nil {
			err = apply(next)
		}
		if err != nil {
			failed(err)
		}
	}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-hup:
			if !open {
				hup = nil
				continue
			}
			reload(w.look())
		case <-ticks.C:
			if s, still := w.settled(ctx); still && s.sum != w.known {
				reload(s)
			}
		}
	}
}

type watcher struct {
	path    string
	known   sum
	src     []byte      // last seen, and what it refers to
	secrets []secretUse // none when it is no valid file
	bundles []bundleUse
	pause   time.Duration
}

// sum stands for the content of a file and of the files that it names.
type sum [sha256.Size]byte

// sight is what a look found.
type sight struct {
	sum sum
	src []byte
	err error
}

func (s sight) config(path string) (*Config, error) {
	if s.err != nil {
		return nil, s.err
	}
	// Truncated by a writer that stopped there, far more often than meant.
	if len(bytes.TrimSpace(s.src)) == 0 {
		return nil, Problems{{File: path, Line: 1, Message: "the file is empty: not taken for a change to the defaults"}}
	}
	c, err := Parse(path, s.src)
	if err != nil {
		return nil, err
	}
	c.sum = s.sum
	return c, nil
}

// look reads everything once.
func (w *watcher) look() sight {
	src, err := readAtMost(w.path, maxFile)
	if err != nil {
		return sight{sum: sumOf([]byte("\x00"+err.Error()), nil, nil), err: err}
	}
	if !bytes.Equal(src, w.src) {
		w.src, w.secrets, w.bundles = src, nil, nil
		if c, err := Parse(w.path, src); err == nil {
			w.secrets, w.bundles = c.secrets, c.bundles
		}
	}
	return sight{sum: sumOf(src, w.secrets, w.bundles), src: src}
}

// settled looks until two looks in a row agree, so that a file that is being written
// is left alone; still is false when it did not get there within a few.
func (w *watcher) settled(ctx context.Context) (s sight, still bool) {
	s = w.look()
	for range 6 {
		if s.sum == w.known {
			return s, true
		}
		select {
		case <-ctx.Done():
			return s, false
		case <-time.After(w.pause):
		}
		before := s.sum
		if s = w.look(); s.sum == before {
			return s, true
		}
	}
	return s, false
}

// sumOf digests src with every file that is referred to, as they are now.
func sumOf(src []byte, secrets []secretUse, bundles []bundleUse) sum {
	h := sha256.New()
	put := func(b []byte) {
		_ = binary.Write(h, binary.BigEndian, uint64(len(b)))
		_, _ = h.Write(b)
	}
	file := func(path string, limit int64) {
		b, err := readAtMost(path, limit)
		if err != nil {
			b = []byte("\x00" + err.Error())
		}
		put(b)
	}
	put(src)
	for _, s := range secrets {
		if path := s.ref.path(); path != "" {
			file(path, maxSecret)
		}
	}
	for _, b := range bundles {
		file(b.file, maxBundle)
	}
	return sum(h.Sum(nil))
}
