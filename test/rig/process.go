// Package rig is what the long programs of make stand on: the binary that they try,
// its processes, addresses for them, and how the work is cut into parts.
package rig

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a program that was started. Safe for concurrent use.
type Process struct {
	Name   string
	Log    string // path of what it prints; "": nobody knows
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of its end; read after exited
}

// Start starts cmd. Unless the caller has set them, its outputs are appended to log.
func Start(name, log string, cmd *exec.Cmd) (*Process, error) {
	if cmd.Stdout == nil && cmd.Stderr == nil {
		out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		defer out.Close() // the process has its own
		cmd.Stdout, cmd.Stderr = out, out
	}
	// A terminal's Ctrl-C is for us; and nobody outlives us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: name, Log: log, cmd: cmd, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is of the thread that forked: this one lives as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// Environ is the environment without the caller's settings of what is tried, and more.
func Environ(more ...string) []string {
	var kept []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "KEEPTRUSTS_") {
			kept = append(kept, e)
		}
	}
	return append(kept, more...)
}

// PID is the process's id, also when it has ended.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal; it may have ended just now.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Alive says whether the process has not ended.
func (p *Process) Alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Err is how the process ended; nil while it has not.
func (p *Process) Err() error {
	if p.Alive() {
		return nil
	}
	return p.err
}

// Resident is the memory that the process has, in bytes.
func (p *Process) Resident() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID()))
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	return pages * int64(os.Getpagesize()), nil
}

// Kill is kill -9; it returns when the process is gone.
func (p *Process) Kill() {
	if p.Alive() {
		_ = p.cmd.Process.Kill() // it may have ended just now
	}
	<-p.exited
}

// Terminate asks the process to end and says how it did.
func (p *Process) Terminate(patience time.Duration) error {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return p.err
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM", p.Name, patience)
	}
}

// Tail is the end of what the process printed, at most 4 KiB.
func (p *Process) Tail() []byte {
	if p.Log == "" {
		return nil
	}
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4096):]
}

// Build makes the kt-gateway of the module around into dir and gives its path.
func Build(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	binary := filepath.Join(dir, "kt-gateway")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/kt-gateway")
	build.Dir = filepath.Dir(strings.TrimSpace(string(out)))
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kt-gateway: %w\n%s", err, out)
	}
	return binary, nil
}

var taken sync.Map // addresses that FreeAddr has given

// FreeAddr is an address of loopback on which nobody listens just now, below the
// ports that connections take: a process killed and started anew finds it free. It is
// given once: whoever was given it may not listen yet.
func FreeAddr() (string, error) {
	var last error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if _, given := taken.LoadOrStore(addr, true); given {
			continue
		}
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return addr, ln.Close()
		}
		last = err
	}
	return "", last
}

// Pause sleeps, less when ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
