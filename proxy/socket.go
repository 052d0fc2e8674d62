package proxy

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// socket is an upstream's TCP connection. TLS reads and writes it like any other, but
// for as long as atOnce is set neither waits.
type socket struct {
	*net.TCPConn
	now    unwaiting
	atOnce bool
}

func newSocket(c *net.TCPConn) (*socket, error) {
	s := &socket{TCPConn: c}
	return s, s.now.of(c)
}

// Read returns errWouldBlock where it would have to wait and must not.
func (s *socket) Read(p []byte) (int, error) {
	if !s.atOnce {
		return s.TCPConn.Read(p)
	}
	n, err := s.now.do(s.now.read, p)
	switch {
	case err == syscall.EAGAIN:
		return 0, errWouldBlock
	case err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: err}
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write is TLS's own while it reads, when a peer asks for new keys: one whose answer
// finds no room for so long is not waited for.
func (s *socket) Write(p []byte) (int, error) {
	if !s.atOnce {
		return s.TCPConn.Write(p)
	}
	n, err := s.now.do(s.now.write, p)
	if err != nil || n < len(p) {
		return max(n, 0), &net.OpError{Op: "write", Net: "tcp", Err: errors.Join(io.ErrShortWrite, err)}
	}
	return n, nil
}

// readNow reads what has come into the buffer, which is empty; errWouldBlock: nothing
// has.
func (c *upstreamConn) readNow() error {
	c.r, c.w = 0, 0
	c.socket.atOnce = true
	defer func() { c.socket.atOnce = false }()
	n, err := c.Conn.Read(c.buf)
	if n > 0 {
		c.w = n
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// writeNow writes what the client's socket takes without waiting, and returns how much.
// An error is the next write's.
func (c *conn) writeNow(p []byte) int {
	if c.now.raw == nil && c.now.of(c.TCPConn) != nil {
		return 0
	}
	n, _ := c.now.do(c.now.write, p)
	return max(n, 0)
}

// unwaiting reads and writes a socket without waiting, beside whoever closes it. What
// it calls is made once: a closure a call would be garbage.
type unwaiting struct {
	raw         syscall.RawConn
	read, write func(fd uintptr)

	p   []byte
	n   int
	err error
}

func (u *unwaiting) of(c *net.TCPConn) (err error) {
	if u.raw, err = c.SyscallConn(); err != nil {
		return err
	}
	u.read = func(fd uintptr) { u.n, u.err = syscall.Read(int(fd), u.p) }
	u.write = func(fd uintptr) { u.n, u.err = syscall.Write(int(fd), u.p) }
	return nil
}

func (u *unwaiting) do(call func(fd uintptr), p []byte) (int, error) {
	u.p = p
	err := u.raw.Control(call)
	for err == nil && u.err == syscall.EINTR {
		err = u.raw.Control(call)
	}
	u.p = nil
	if err != nil {
		return 0, err // closed
	}
	return u.n, u.err
}
