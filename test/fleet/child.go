package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// child is a process of the trial.
type child struct {
	name   string
	cmd    *exec.Cmd
	log    string // path of what it prints
	exited chan struct{}
}

// start runs a program with its output appended to a file of that name; "" drops it.
func (t *trial) start(name string, env []string, program string, args ...string) (*child, error) {
	path := t.path(name + ".log")
	if name == "" {
		path = os.DevNull
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	cmd := exec.Command(program, args...)
	cmd.Env = append(withoutKeeptrusts(os.Environ()), env...)
	cmd.Stdout, cmd.Stderr = out, out
	// A terminal's Ctrl-C is for us; and nobody outlives us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c := &child{name: name, cmd: cmd, log: path, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is of the thread that forked: this one lives as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // whoever needs it looks at alive
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	t.mu.Lock()
	t.children = append(t.children, c)
	t.mu.Unlock()
	return c, nil
}

// withoutKeeptrusts keeps the caller's settings from the processes under test.
func withoutKeeptrusts(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, "KEEPTRUSTS_") {
			kept = append(kept, e)
		}
	}
	return kept
}

func (c *child) alive() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

// kill is kill -9; it returns when the process is gone.
func (c *child) kill() {
	if c.alive() {
		_ = c.cmd.Process.Kill() // it may have ended just now
	}
	<-c.exited
}

// signal is for SIGSTOP and SIGCONT.
func (c *child) signal(s syscall.Signal) error { return c.cmd.Process.Signal(s) }

func (c *child) tail() []byte {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4096):]
}

// ready waits until url answers 200.
func (c *child) ready(ctx context.Context, url string) error {
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := get(ctx, url)
		if err == nil {
			return nil
		}
		if !c.alive() || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", c.name, err, c.tail())
		}
		pause(ctx, 20*time.Millisecond)
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

// free is an address of loopback on which nobody listens just now, below the ports that
// connections take: a process killed and started anew finds it free. It is not given twice.
func (p *ports) free() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var last error
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if p.taken[addr] {
			continue
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		if p.taken == nil {
			p.taken = map[string]bool{}
		}
		p.taken[addr] = true
		return addr, ln.Close()
	}
	return "", last
}

// pause sleeps, less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
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
