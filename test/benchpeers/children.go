package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// bench owns what the run needs: a folder, and the processes in it.
type bench struct {
	root     string // the module's
	dir      string // temporary
	mockAddr string
	pprof    bool // the gateway serves profiles
	children []*child
}

// child is a process that bench started and ends.
type child struct {
	name   string
	cmd    *exec.Cmd
	log    string // path of what it prints
	stop   os.Signal
	exited chan struct{}
}

// start runs cmd with its output in a file.
func (b *bench) start(name string, cmd *exec.Cmd, stop os.Signal) (*child, error) {
	path := filepath.Join(b.dir, name+".log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = out, out
	// A terminal's Ctrl-C is for us: we end the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, cmd: cmd, log: path, stop: stop, exited: make(chan struct{})}
	b.children = append(b.children, c)
	go func() {
		defer close(c.exited)
		_ = cmd.Wait() // whoever needs it looks at alive
	}()
	return c, nil
}

// startSelf runs this program under another name of its table, listening on addr.
func (b *bench) startSelf(name string, args ...string) (*child, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, "", err
	}
	cmd := exec.Command(self, append([]string{name, addr}, args...)...)
	if _, err := cmd.StdinPipe(); err != nil { // its end tells the process that we are gone
		return nil, "", err
	}
	c, err := b.start(name, cmd, syscall.SIGKILL)
	if err != nil {
		return nil, "", err
	}
	return c, addr, c.accepts(addr)
}

// close ends every process, the last first, and removes the folder.
func (b *bench) close() {
	for i := len(b.children) - 1; i >= 0; i-- {
		b.children[i].end()
	}
	if err := os.RemoveAll(b.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (c *child) alive() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

func (c *child) end() {
	if !c.alive() {
		return
	}
	_ = c.cmd.Process.Signal(c.stop) // it may have ended just now
	select {
	case <-c.exited:
	case <-time.After(10 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.exited
	}
}

// accepts waits until a connection to addr is taken.
func (c *child) accepts(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if !c.alive() || errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%s does not listen: %w\n%s", c.name, err, c.tail())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *child) tail() []byte {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4096):]
}

// freeAddr is an address of loopback on which nobody listens just now.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}
