package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

//go:embed read.py
var readPy string

// python is a server's reader of JSON, as a process.
type python struct {
	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
}

func newPython(t *trial) (*python, error) {
	cmd := exec.Command("python3", "-c", readPy)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("python3 is needed as the second reader: %w", err)
	}
	t.closers = append(t.closers, func() { in.Close(); _ = cmd.Wait() })
	return &python{in: in, out: bufio.NewReader(out)}, nil
}

// named is what Python finds in a body.
type named struct {
	Model, Others []string
	Stream, Error string
}

func (p *python) read(body []byte) (n named, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := io.WriteString(p.in, hex.EncodeToString(body)+"\n"); err != nil {
		return n, err
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(line, &n)
}

// bodies sends every body over which parsers part, with a token that may use one
// model alone, and has Python read what the provider got.
func bodies(ctx context.Context, t *trial) error {
	g, err := newGateway(ctx, t, layout{limits: "request_body: 8MiB"})
	if err != nil {
		return err
	}
	granted := []string{cheap, routed}
	key, err := g.admin.mint(ctx, minting{bindings: map[string]any{"models": granted}})
	if err != nil {
		return err
	}
	py, err := newPython(t)
	if err != nil {
		return err
	}
	cases := everyBody()
	var forwarded, outside, differ, dangerous, wrong atomic.Int64
	together(len(cases), 8, func(i int) {
		c := &cases[i]
		id := fmt.Sprintf("body/%d", i)
		a := g.call(ctx, key.Token, call{body: c.body, script: script{id: id}})
		read, err := py.read([]byte(c.body))
		if err != nil {
			t.miss("python: %v", err)
			return
		}
		if slices.ContainsFunc(slices.Concat(read.Model, read.Others), func(n string) bool { return !slices.Contains(granted, n) }) {
			dangerous.Add(1)
		}
		seen := g.up.of(id)
		if c.sound != (len(seen) > 0) && (c.sound || c.refused) || len(seen) > 1 || (len(seen) == 0) != (a.code != "") {
			wrong.Add(1)
			t.miss("%.160q: %d calls upstream, %v", c.body, len(seen), a)
		}
		for _, r := range seen {
			forwarded.Add(1)
			got, err := py.read(r.req.body)
			if err != nil {
				t.miss("python: %v", err)
				return
			}
			all := got.Model
			if strings.Contains(c.body, routed) { // its provider reads more than one field
				all = slices.Concat(got.Model, got.Others)
			}
			if len(got.Model) != 1 || slices.ContainsFunc(all, func(n string) bool { return !slices.Contains(granted, n) }) {
				outside.Add(1)
				t.miss("%.160q went upstream, where Python reads %+v", r.req.body, got)
			}
			if n, ok := readByGo(r.req.body); !ok || len(got.Model) == 1 && n != got.Model[0] {
				differ.Add(1)
				t.miss("%.160q went upstream, where Go reads %q and Python %+v", r.req.body, n, got)
			}
		}
	})
	t.figure(len(cases) >= 500, "at least 500", "%d body cases; in %d of them Python reads a model outside the profile", len(cases), dangerous.Load())
	t.figure(outside.Load() == 0, "0", "%d of %d forwarded where it does so at the provider", outside.Load(), forwarded.Load())
	t.figure(differ.Load() == 0, "0", "%d forwarded that Go's encoding/json and Python read differently", differ.Load())
	t.figure(wrong.Load() == 0 && forwarded.Load() >= 80, "0, and at least 80", "%d sound bodies refused, or unsound ones served; %d served", wrong.Load(), forwarded.Load())
	g.sound(ctx, key.Token)
	return nil
}

// readByGo reads as a server in Go would: fields match in any case.
func readByGo(body []byte) (model string, ok bool) {
	var v struct{ Model string }
	d := json.NewDecoder(bytes.NewReader(body))
	if d.Decode(&v) != nil {
		return "", false
	}
	_, err := d.Token()
	return v.Model, err == io.EOF
}
