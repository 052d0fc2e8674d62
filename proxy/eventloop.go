package proxy

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	goruntime "runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A stream is a read, a write and a wait for each of its events. Where each waits on a
// goroutine of its own, the scheduler costs as much as the write. So streams that only
// pass what comes wait in an event loop: one goroutine, which an epoll instance of its
// own wakes, reads and writes for all that are ready. Whatever could wait or ends a
// stream is left to the stream's own goroutine, which sleeps in eventLoops.wait
// meanwhile. See docs/decisions/0009-event-loop.md.

const (
	// loopStreams is how many streams a loop has before the next loop is begun: one
	// loop for few streams wakes least, several for many use all processors.
	loopStreams = 256
	// readsInARow bounds what one stream takes of its loop at a time.
	readsInARow = 4

	edgeTriggered = 1 << 31 // EPOLLET, which package syscall has as a negative number
)

// eventLoops are the loops of a server, at most one a processor. Safe for concurrent
// use.
type eventLoops struct {
	mu    sync.Mutex
	all   []*eventLoop
	over  bool
	done  sync.WaitGroup
	clock *atomic.Int64 // the watcher's
	fault func(v any)   // told of a loop that ended
}

type eventLoop struct {
	clock   *atomic.Int64
	streams int      // under eventLoops.mu
	epoll   *os.File // itself pollable, so that the loop waits as any goroutine does
	raw     syscall.RawConn

	mu   sync.Mutex
	byFD []*looped // index: the descriptor
	over bool      // nobody serves it any more
}

// looped is a connection's place in a loop, and what its stream's goroutine and the
// loop tell each other. The zero value is in none.
type looped struct {
	mu          sync.Mutex
	waits       bool // in the loop; else the stream is its own goroutine's
	interrupted bool // its next wait ends at once
	closed      bool // or is about to be: its descriptor may be another's
	plain       bool // without TLS: it is read by its descriptor
	s           *stream
	c           *upstreamConn // whose place it is
	loop        *eventLoop
	fd          int
	client      int        // the client's descriptor, held by whoever waits
	back        chan error // ends the wait; has room for one
	fault       any        // a panic of the loop's, to be the goroutine's
}

var (
	errWouldBlock error = wouldBlock{}
	errNoLoop           = errors.New("the stream can't wait in an event loop")
)

// wouldBlock says that a read without waiting found nothing. To TLS it is a net.Error
// that passes, after which it goes on where it was.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing has come" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// loops says whether the stream may wait in a loop: it only passes what comes, and
// nothing lies unread.
func (s *stream) loops() bool {
	if !s.pumps {
		return false
	}
	c := s.x.life.up
	return s.limit == math.MaxInt64 && c.r == c.w && c.socket != nil && s.x.client != nil
}

// wait reads once more from the upstream, after the loop has passed whatever it could;
// that it read nothing more is no error. errNoLoop: use fill.
func (ls *eventLoops) wait(s *stream) (err error) {
	c := s.x.client
	if c.now.of(c.TCPConn) != nil {
		return errNoLoop
	}
	// All the time it holds the client's descriptor, so that the loop may write to it
	// without asking net, which costs as much as half a write.
	if c.now.raw.Control(func(fd uintptr) { err = ls.waitHolding(s, int(fd)) }) != nil {
		return errNoLoop
	}
	return err
}

func (ls *eventLoops) waitHolding(s *stream, client int) error {
	c := s.x.life.up
	l := &c.looped
	l.c, l.client = c, client
	if err := ls.begin(s); err != errWouldBlock {
		return err
	}
	err := <-l.back
	l.s = nil
	if v := l.fault; v != nil {
		l.fault = nil
		panic(v)
	}
	return err
}

// begin reads what has come, or begins to wait: errWouldBlock.
func (ls *eventLoops) begin(s *stream) error {
	c := s.x.life.up
	l := &c.looped
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return net.ErrClosed
	case l.interrupted:
		return os.ErrDeadlineExceeded
	}
	if err := c.readNow(); err != errWouldBlock {
		return err
	}
	if l.loop == nil {
		if err := ls.enter(c); err != nil {
			return err
		}
	}
	if l.loop.ended() {
		return errNoLoop
	}
	l.s, l.waits = s, true // what came meanwhile is an event
	return errWouldBlock
}

// enter registers a connection with a loop.
func (ls *eventLoops) enter(c *upstreamConn) error {
	l := &c.looped
	if l.loop = ls.take(); l.loop == nil {
		return errNoLoop
	}
	if l.back == nil {
		l.back = make(chan error, 1)
	}
	var failed error
	err := c.socket.now.raw.Control(func(fd uintptr) {
		l.fd, l.plain = int(fd), c.Conn == net.Conn(c.socket)
		l.loop.put(l.fd, l)
		failed = l.loop.control(syscall.EPOLL_CTL_ADD, l.fd)
	})
	if err != nil || failed != nil {
		ls.leave(c)
		return errNoLoop
	}
	return nil
}

// leave takes a connection out of its loop. Its goroutine has it.
func (ls *eventLoops) leave(c *upstreamConn) {
	l := &c.looped
	loop := l.loop
	if loop == nil {
		return
	}
	l.loop = nil
	// A descriptor that was closed may be another's by now; the kernel forgot it then.
	_ = c.socket.now.raw.Control(func(fd uintptr) {
		_ = loop.control(syscall.EPOLL_CTL_DEL, int(fd))
	})
	loop.remove(l)
	ls.mu.Lock()
	loop.streams--
	ls.mu.Unlock()
}

func (l *eventLoop) put(fd int, one *looped) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := fd + 1; n > len(l.byFD) {
		l.byFD = slices.Grow(l.byFD, n-len(l.byFD))[:n]
	}
	l.byFD[fd] = one
}

func (l *eventLoop) remove(one *looped) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.fd < len(l.byFD) && l.byFD[one.fd] == one {
		l.byFD[one.fd] = nil
	}
}

func (l *eventLoop) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// control adds a descriptor to the epoll instance, or takes it out. Urgent data, which
// HTTP has not, would part a read; of what HTTP has, a read takes all.
func (l *eventLoop) control(op, fd int) (err error) {
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLPRI | syscall.EPOLLRDHUP | edgeTriggered, Fd: int32(fd)}
	if closed := l.raw.Control(func(epoll uintptr) { err = syscall.EpollCtl(int(epoll), op, fd, &ev) }); closed != nil {
		return closed
	}
	return err
}

// take counts one more stream in the loop that it may enter; nil: there is none.
func (ls *eventLoops) take() *eventLoop {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.over {
		return nil
	}
	var least *eventLoop
	for _, l := range ls.all {
		if l.streams < loopStreams {
			l.streams++
			return l
		}
		if least == nil || l.streams < least.streams {
			least = l
		}
	}
	if len(ls.all) < goruntime.GOMAXPROCS(0) {
		if l, err := newEventLoop(); err == nil {
			l.clock = ls.clock
			ls.all = append(ls.all, l)
			ls.done.Go(func() { ls.run(l) })
			least = l
		}
	}
	if least != nil {
		least.streams++
	}
	return least
}

// close ends the loops. Streams that waited in one go on without.
func (ls *eventLoops) close() {
	ls.mu.Lock()
	ls.over = true
	all := ls.all
	ls.mu.Unlock()
	for _, l := range all {
		_ = l.epoll.Close()
	}
	ls.done.Wait()
}

func newEventLoop() (*eventLoop, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	l := &eventLoop{epoll: os.NewFile(uintptr(fd), "epoll")}
	if l.raw, err = l.epoll.SyscallConn(); err != nil {
		_ = l.epoll.Close()
		return nil, err
	}
	return l, nil
}

// run serves a loop until close.
func (ls *eventLoops) run(l *eventLoop) {
	err := l.serve()
	l.mu.Lock()
	l.over = true
	waited := slices.Clone(l.byFD)
	l.mu.Unlock()
	for _, one := range waited {
		if one != nil {
			one.mu.Lock()
			one.land(nil)
			one.mu.Unlock()
		}
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !ls.over {
		ls.all = slices.DeleteFunc(ls.all, func(other *eventLoop) bool { return other == l })
		ls.fault(fmt.Sprintf("BUG: an event loop ended: %v", err))
	}
}

// serve returns when the epoll instance is closed.
func (l *eventLoop) serve() error {
	type turn struct {
		l    *looped
		ends bool
	}
	events := make([]syscall.EpollEvent, 128)
	ready := make([]turn, 0, len(events))
	return l.raw.Read(func(fd uintptr) bool {
		for {
			n, _ := syscall.EpollWait(int(fd), events, 0)
			l.mu.Lock()
			for i := range max(n, 0) {
				if one := l.byFD[events[i].Fd]; one != nil {
					ready = append(ready, turn{one, events[i].Events&^syscall.EPOLLIN != 0})
				}
			}
			l.mu.Unlock()
			for _, t := range ready {
				t.l.event(t.ends)
			}
			clear(ready) // a connection must not live on by it
			ready = ready[:0]
			if n < len(events) {
				return false // what comes from here on wakes us
			}
		}
	})
}

// event passes what has come; ends says that the upstream has closed too, of which no
// further event tells. An event that was another connection's, whose descriptor this one
// has now, finds nothing.
func (l *looped) event(ends bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.waits {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			l.fault = faultElsewhere{v, debug.Stack()}
			l.land(nil)
		}
	}()
	s, c := l.s, l.c
	for range readsInARow {
		if err := l.read(c); err != nil {
			if err != errWouldBlock {
				l.land(err)
			}
			return
		}
		more := ends || c.w == len(c.buf) || !l.plain // TLS may hold more
		now := l.loop.clock.Load()
		if !l.passNow(now) {
			l.land(nil)
			return
		}
		s.x.life.since.Store(now)
		if !more {
			return // what comes from here on is another event
		}
	}
	l.land(nil) // others wait
}

// read is readNow. Nobody closes a connection that waits without landing it first, so
// its descriptor is its own: asking net for it costs as much as half a read.
func (l *looped) read(c *upstreamConn) error {
	if !l.plain {
		return c.readNow()
	}
	n, err := readFD(l.fd, c.buf)
	switch {
	case err == syscall.EAGAIN:
		return errWouldBlock
	case n <= 0:
		return cameNot(err)
	}
	c.r, c.w = 0, n
	return nil
}

// land gives the stream back to its goroutine; under the lock.
func (l *looped) land(err error) {
	if l.waits {
		l.waits = false
		l.back <- err
	}
}

// passNow hands on what was read if that takes no wait. Else it leaves what has to be
// done, and returns false.
func (l *looped) passNow(now int64) bool {
	s := l.s
	b, fault := s.next(l.c)
	if len(b) > 0 {
		s.heard = now
		n, _ := syscall.Write(l.client, b) // an error is the next write's
		b = b[max(n, 0):]
		if len(b) == 0 && fault == nil && !s.ended {
			return true
		}
	} else if fault == nil && !s.ended && !s.commentDue() {
		return true
	}
	s.rest = rest{waits: true, bytes: b, fault: fault}
	return false
}

// rest is what a loop left to be done of what it read.
type rest struct {
	waits bool
	bytes []byte // to be written
	fault error
}

// interrupt ends the read that waits, or the next that would, with
// os.ErrDeadlineExceeded, until resume. Safe for concurrent use.
func (c *upstreamConn) interrupt() {
	_ = c.SetReadDeadline(time.Unix(1, 0))
	c.looped.mu.Lock()
	c.looped.interrupted = true
	c.looped.land(os.ErrDeadlineExceeded)
	c.looped.mu.Unlock()
}

func (c *upstreamConn) resume() error {
	c.looped.mu.Lock()
	c.looped.interrupted = false
	c.looped.mu.Unlock()
	return c.SetReadDeadline(time.Time{})
}
