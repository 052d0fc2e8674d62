// Package postgres starts a real PostgreSQL server, for tests and the long programs.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// ErrMissing says that no PostgreSQL server is installed: a test fails with it.
var ErrMissing = errors.New("PostgreSQL's server is not installed (Debian: postgresql; make deps)")

// Server is a temporary cluster of its own, reached by a socket in its folder.
type Server struct {
	dir     string
	bin     string
	attr    *syscall.SysProcAttr
	options []string
	cmd     *exec.Cmd     // nil: it does not run
	exited  chan struct{} // closed when cmd has ended
	made    atomic.Int64
}

// New makes a cluster and starts its server; as root it runs as an
// unprivileged user, since PostgreSQL refuses root. The caller stops it.
func New(options ...string) (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kt-pg")
	if err != nil {
		return nil, err
	}
	p := &Server{dir: dir, bin: bin, attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}, options: options}
	if err := p.init(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := p.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return p, nil
}

func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", ErrMissing
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// init makes the cluster's files.
func (p *Server) init() error {
	if os.Geteuid() == 0 {
		id, err := unprivileged()
		if err != nil {
			return err
		}
		p.attr.Credential = id
		if err := os.Chown(p.dir, int(id.Uid), int(id.Gid)); err != nil {
			return err
		}
	}
	cmd := exec.Command(filepath.Join(p.bin, "initdb"), "-D", p.data(), "-U", "kt", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
	cmd.Dir, cmd.SysProcAttr = p.dir, p.attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("no unprivileged user to run PostgreSQL as")
}

func (p *Server) data() string { return filepath.Join(p.dir, "data") }

// Start starts the server, also after Kill, and waits until it answers.
func (p *Server) Start() error {
	// A killed server loses nothing without fsync; a machine would.
	args := []string{"-D", p.data(), "-k", p.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200", "-c", "shared_buffers=32MB"}
	for _, o := range p.options {
		args = append(args, "-c", o)
	}
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(filepath.Join(p.bin, "postgres"), args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = p.dir, p.attr, log, log
	if err := p.run(cmd); err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := p.ping()
		if err == nil {
			return nil
		}
		ended := false
		select {
		case <-p.exited:
			ended = true
		case <-time.After(50 * time.Millisecond):
		}
		if ended || time.Now().After(deadline) {
			said, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			p.Kill()
			return fmt.Errorf("start PostgreSQL: %w: %s", err, said)
		}
	}
}

// run starts cmd on a thread that lives as long as it: the server is ended with the
// thread that forked it, and that may be one which a caller's goroutine takes with it.
func (p *Server) run(cmd *exec.Cmd) error {
	started, exited := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(exited)
		}
	}()
	err := <-started
	if err == nil {
		p.cmd, p.exited = cmd, exited
	}
	return err
}

func (p *Server) ping() error {
	db, err := sql.Open("pgx", p.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return db.PingContext(ctx)
}

// URL names a database of the cluster.
func (p *Server) URL(database string) string {
	return (&url.URL{Scheme: "postgres", User: url.User("kt"), Path: "/" + database, RawQuery: "host=" + url.QueryEscape(p.dir)}).String()
}

// Database makes an empty database and returns its URL.
func (p *Server) Database() (string, error) { return p.make("template0") }

// Copy makes a database like the one that a URL of this server names, to which
// nobody may be connected, and returns its URL.
func (p *Server) Copy(of string) (string, error) {
	u, err := url.Parse(of)
	if err != nil {
		return "", err
	}
	return p.make(strings.TrimPrefix(u.Path, "/"))
}

func (p *Server) make(template string) (string, error) {
	db, err := sql.Open("pgx", p.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer func() { _ = db.Close() }()
	name := fmt.Sprintf("kt%d", p.made.Add(1))
	if _, err := db.Exec(`CREATE DATABASE ` + name + ` TEMPLATE ` + template); err != nil {
		return "", err
	}
	return p.URL(name), nil
}

// Kill ends the server with -9; Start brings it back.
func (p *Server) Kill() {
	if p.cmd == nil {
		return
	}
	// Its children hold the shared memory: they are ended with it.
	children := p.children()
	_ = p.cmd.Process.Kill()
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.exited
	for _, pid := range children {
		for alive(pid) {
			time.Sleep(time.Millisecond)
		}
	}
	p.cmd = nil
}

// alive says whether a process may still hold memory: one that nobody reaps does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// End asks the server to end: by SIGINT in order, its sessions aborted; by SIGQUIT
// at once, without a word to the disk. One that does not is killed. Start brings it
// back.
func (p *Server) End(how syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(how)
	select {
	case <-p.exited:
		p.cmd = nil
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

func (p *Server) children() []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.cmd.Process.Pid))
	if err != nil {
		return nil
	}
	var list []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// Stop ends the server and removes the cluster.
func (p *Server) Stop() {
	p.End(syscall.SIGINT)
	_ = os.RemoveAll(p.dir)
}
