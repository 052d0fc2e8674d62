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
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is a process of the trial.
type child struct {
	name   string
	cmd    *exec.Cmd
	log    string // path of what it prints
	exited chan struct{}
	err    error // of its end; read after exited
}

// start runs the binary with its output appended to a file.
func (t *trial) start(name string, env []string, args ...string) (*child, error) {
	path := t.path(name + ".log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	return t.startTo(name, path, out, env, args...)
}

// startTo runs the binary with its output to a file of the caller's.
func (t *trial) startTo(name, log string, out *os.File, env []string, args ...string) (*child, error) {
	cmd := exec.Command(t.binary, args...)
	cmd.Env = append(withoutKeeptrusts(os.Environ()), env...)
	cmd.Stdout, cmd.Stderr = out, out
	return t.launch(name, log, cmd)
}

// launch starts any program as a child of the trial.
func (t *trial) launch(name, log string, cmd *exec.Cmd) (*child, error) {
	// A terminal's Ctrl-C is for us; and nobody outlives us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c := &child{name: name, cmd: cmd, log: log, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is of the thread that forked: this one lives as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
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

// terminate asks the process to end and says how it did.
func (c *child) terminate(patience time.Duration) error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	select {
	case <-c.exited:
		return c.err
	case <-time.After(patience):
		c.kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM", c.name, patience)
	}
}

// tail is the end of what the process printed.
func (c *child) tail() []byte {
	if c.log == "" {
		return nil
	}
	b, err := os.ReadFile(c.log)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4096):]
}

// descriptors are how many files and sockets the process has open.
func (c *child) descriptors() (int, error) {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.cmd.Process.Pid))
	return len(all), err
}

// resident is the memory of the process in bytes.
func (c *child) resident() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no VmRSS", c.name)
}

// ready waits until url answers 200.
func (c *child) ready(ctx context.Context, url string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := get(ctx, http.DefaultClient, url)
		if err == nil {
			return nil
		}
		if !c.alive() || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", c.name, err, c.tail())
		}
		pause(ctx, 20*time.Millisecond)
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
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

// freeAddr is an address of loopback on which nobody listens just now, below the
// ports that connections take: a process that ended and starts anew finds it free.
func freeAddr() (string, error) {
	var last error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(15000))
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return addr, ln.Close()
		}
		last = err
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
