package proxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
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
	case n <= 0:
		return 0, cameNot(err)
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

// ask writes p and reads the first of what comes back into the buffer, which is empty.
// It waits for that without looking first whether it is there: what p asks for can't be.
// Its error is the write's; what else went wrong, the next read tells. That the upstream
// had ended before, without an end of what it reads, is the watcher's to see.
func (c *upstreamConn) ask(p []byte) error {
	s := c.socket
	if s == nil || c.Conn != net.Conn(s) {
		_, err := c.Write(p)
		return err
	}
	u := &s.now
	if u.ask == nil {
		u.ask = u.asks
	}
	u.out, u.p, u.n = p, c.buf, 0
	u.unread.Store(waitsUnread)
	_ = u.raw.Read(u.ask)
	u.unread.Store(notUnread)
	rest := u.out
	u.out, u.p = nil, nil
	if len(rest) > 0 { // it has to wait, or can't be written at all
		_, err := c.Write(rest)
		return err
	}
	c.r, c.w = 0, max(u.n, 0)
	return nil
}

// asks is ask with the descriptor; false: wait.
func (u *unwaiting) asks(fd uintptr) (done bool) {
	if len(u.out) > 0 {
		n, err := syscall.Write(int(fd), u.out)
		u.out = u.out[max(n, 0):]
		return err != nil || len(u.out) > 0
	}
	u.n, u.err = readFD(int(fd), u.p)
	return u.err != syscall.EAGAIN
}

func readFD(fd int, p []byte) (n int, err error) {
	for {
		if n, err = syscall.Read(fd, p); err != syscall.EINTR {
			return n, err
		}
	}
}

// cameNot is what a read that brought nothing says.
func cameNot(err error) error {
	if err != nil {
		return &net.OpError{Op: "read", Net: "tcp", Err: err}
	}
	return io.EOF
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

// unwaiting reads and writes a socket without waiting, beside whoever closes it. What
// it calls is made once: a closure a call would be garbage.
type unwaiting struct {
	raw         syscall.RawConn
	read, write func(fd uintptr)

	p   []byte
	n   int
	err error

	ask func(fd uintptr) bool // asks
	out []byte                // what it is to write still

	unread atomic.Int32 // an unreadState
}

// unreadState says whether something is waited for, maybe without having looked first
// whether it is there. Bytes that come tell of themselves then; an end that came in one
// event with what was read before, or sooner, does not.
type unreadState = int32

const (
	notUnread   unreadState = iota
	waitsUnread             // since the watcher last looked
	seenUnread              // since before that
	peekedUnread
)

// of may be called again.
func (u *unwaiting) of(c *net.TCPConn) (err error) {
	if u.raw != nil {
		return nil
	}
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

// endedUnread looks, once a wait that has lasted for two looks of the watcher's, whether
// the peer's end lies unread.
func (u *unwaiting) endedUnread() bool {
	switch u.unread.Load() {
	case waitsUnread:
		u.unread.CompareAndSwap(waitsUnread, seenUnread)
	case seenUnread:
		if u.unread.CompareAndSwap(seenUnread, peekedUnread) {
			n, err := u.peek()
			return n == 0 && err == nil
		}
	}
	return false
}

// peek looks what a read would bring, without waiting.
func (u *unwaiting) peek() (n int, err error) {
	closed := u.raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	if closed != nil {
		return 0, closed
	}
	return n, err
}
