package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
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

// start runs the binary under test.
func (t *trial) start(name string, env []string, args ...string) (*child, error) {
	cmd := exec.Command(t.binary, args...)
	cmd.Env = append(withoutKeeptrusts(os.Environ()), env...)
	return t.spawn(name, cmd)
}

// spawn starts a command with its output appended to a file.
func (t *trial) spawn(name string, cmd *exec.Cmd) (*child, error) {
	path := t.path(name + ".log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
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

func (c *child) tail() []byte {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4096):]
}

// freeAddr is an address of loopback on which nobody listens just now, below the
// ports that connections take: a process killed and started anew finds it free.
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
