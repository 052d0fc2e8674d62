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
	cmd     *exec.Cmd
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
	p.cmd = exec.Command(filepath.Join(p.bin, "postgres"), args...)
	p.cmd.Dir, p.cmd.SysProcAttr, p.cmd.Stdout, p.cmd.Stderr = p.dir, p.attr, log, log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := p.ping()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			p.Kill()
			return fmt.Errorf("start PostgreSQL: %w: %s", err, said)
		}
	}
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
func (p *Server) Database() (string, error) {
	db, err := sql.Open("pgx", p.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer func() { _ = db.Close() }()
	name := fmt.Sprintf("kt%d", p.made.Add(1))
	if _, err := db.Exec(`CREATE DATABASE ` + name + ` TEMPLATE template0`); err != nil {
		return "", err
	}
	return p.URL(name), nil
}

// Kill ends the server with -9; Start brings it back.
func (p *Server) Kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	// Its children hold the shared memory: they are ended with it.
	children := p.children()
	_ = p.cmd.Process.Kill()
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = p.cmd.Wait()
	p.cmd = nil
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
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(syscall.SIGINT)
		done := make(chan struct{})
		go func() { defer close(done); _ = p.cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			p.Kill()
		}
	}
	_ = os.RemoveAll(p.dir)
}
