package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/controlplane"
)

func importCommand() *command {
	var a adminFlags
	var o output
	var file string
	var legacy []string
	c := tokenCommand("import", "", "takes tokens in from a file, by their digests; again and again without harm", &a, &o, "prints the ids alone")
	c.text(&file, "file", "FILE", "", "one JSON object a line; - is stdin")
	c.letter("f")
	c.list(&legacy, "legacy-prefix", "PREFIX", "what keys of another system open with; by default kt_ak_ and kt_gk_, as legacy_prefixes of the gateways")
	c.long = "A line is what `token create` sends, {\"name\",\"purpose\",\"bindings\",…}, with \"token\", the string, which is hashed here\n" +
		"and not sent, or its \"sha256\". A token that stands already is left as it is: same, or a conflict."
	c.run = func(ctx context.Context, p program) error {
		if file == "" {
			return misused("-f is needed: the file with one token a line, or - for stdin")
		}
		if err := o.check(); err != nil {
			return err
		}
		if len(legacy) == 0 {
			legacy = []string{"kt_ak_", "kt_gk_"}
		}
		in, size, err := openImport(p, file)
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		client, err := a.client(p)
		if err != nil {
			return err
		}
		i := &importRun{p: p, o: &o, read: &counting{r: in}, size: size, counts: map[string]int{}}
		return i.run(ctx, &a, client, legacy)
	}
	return c
}

// openImport opens the file, and gives its size; 0: not known.
func openImport(p program, name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(p.stdin), 0, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("open the file of tokens: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("open the file of tokens: %w", err)
	}
	if info.IsDir() {
		_ = f.Close()
		return nil, 0, fmt.Errorf("open the file of tokens: %s is a folder", name)
	}
	return f, info.Size(), nil
}

// counting counts what is read.
type counting struct {
	r  io.Reader
	mu sync.Mutex
	n  int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.mu.Lock()
	c.n += int64(n)
	c.mu.Unlock()
	return n, err
}

func (c *counting) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// importRun is one run of token import.
type importRun struct {
	p    program
	o    *output
	read *counting
	size int64

	mu     sync.Mutex // results come from two goroutines
	counts map[string]int
	last   int // the line of the last result
	drawn  time.Time
}

const drawEvery = 200 * time.Millisecond

func (i *importRun) run(ctx context.Context, a *adminFlags, client *controlplane.Client, legacy []string) error {
	lines := controlplane.ImportLines(i.read, legacy, i.take)
	err := client.Import(ctx, lines, i.take)
	_ = lines.Close()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.clear()
	if err != nil {
		var api *controlplane.APIError
		if !errors.As(err, &api) {
			return fmt.Errorf("the import broke off after line %d (%w): what was answered is kept, so run it again with the same file", i.last, plain(err))
		}
		return a.explain(err)
	}
	if i.o.format != "json" && !i.o.quiet {
		fmt.Fprintln(i.p.stdout, i.summary())
	}
	if i.counts[controlplane.ImportConflict]+i.counts[controlplane.ImportRefused] > 0 {
		return errSaid
	}
	return nil
}

func (i *importRun) summary() string {
	var parts []string
	for _, result := range []string{controlplane.ImportCreated, controlplane.ImportSame, controlplane.ImportConflict, controlplane.ImportRefused} {
		parts = append(parts, fmt.Sprintf("%s %d", result, i.counts[result]))
	}
	return strings.Join(parts, ", ")
}

// take prints a result as it comes.
func (i *importRun) take(r controlplane.Imported) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.counts[r.Result]++
	i.last = max(i.last, r.Line)
	switch {
	case i.o.quiet:
		if r.ID != nil {
			fmt.Fprintln(i.p.stdout, *r.ID)
		}
	case i.o.format == "json":
		raw, err := json.Marshal(r)
		if err != nil {
			panic("BUG: a result does not encode: " + err.Error())
		}
		fmt.Fprintf(i.p.stdout, "%s\n", raw)
	}
	if r.Error != nil && i.o.format != "json" {
		i.clear()
		fmt.Fprintf(i.p.stderr, "line %d: %s: %s\n", r.Line, r.Result, printable(*r.Error))
	}
	i.draw()
}

// draw shows how far it is, where a person may watch.
func (i *importRun) draw() {
	f, ok := i.p.stderr.(*os.File)
	if !ok || time.Since(i.drawn) < drawEvery || !terminal(f) {
		return
	}
	i.drawn = time.Now()
	share := ""
	if i.size > 0 {
		share = fmt.Sprintf("%3d%%  ", 100*i.read.bytes()/i.size)
	}
	fmt.Fprintf(f, "\r\033[K%s%s", share, i.summary())
}

// clear takes what was drawn away.
func (i *importRun) clear() {
	if f, ok := i.p.stderr.(*os.File); ok && !i.drawn.IsZero() {
		fmt.Fprint(f, "\r\033[K")
		i.drawn = time.Time{}
	}
}
