package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// start runs a program with its output appended to a file of that name; "" drops it.
func (t *trial) start(name string, env []string, program string, args ...string) (*rig.Process, error) {
	path := t.path(name + ".log")
	if name == "" {
		path = os.DevNull
	}
	cmd := exec.Command(program, args...)
	cmd.Env = rig.Environ(env...)
	c, err := rig.Start(name, path, cmd)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.children = append(t.children, c)
	t.mu.Unlock()
	return c, nil
}

// ready waits until url answers 200.
func ready(ctx context.Context, c *rig.Process, url string) error {
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := get(ctx, url)
		if err == nil {
			return nil
		}
		if !c.Alive() || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", c.Name, err, c.Tail())
		}
		rig.Pause(ctx, 20*time.Millisecond)
	}
}

// prober asks operations listeners: it waits for none that hangs.
var prober = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 10 * time.Second}}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := prober.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, res.StatusCode)
	}
	return b, err
}

// ports hands out addresses; the zero value has handed out none.
type ports struct {
	mu    sync.Mutex
	taken map[string]bool
}

// free is an address of loopback for a process of ours. It is not given twice.
func (p *ports) free() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		addr, err := rig.FreeAddr()
		if err != nil || !p.taken[addr] {
			if p.taken == nil {
				p.taken = map[string]bool{}
			}
			p.taken[addr] = true
			return addr, err
		}
	}
}

// together runs f for 0 to n-1, at most so many at once, and returns the first error.
func together(n, atOnce int, f func(i int) error) error {
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	errs := make(chan error, n)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := f(i); err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}
