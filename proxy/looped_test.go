package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	goruntime "runtime"
	"sync/atomic"
	"syscall"
	"testing"
)

// pair is a connection of the upstream leg and its peer.
func pair(t *testing.T) (*upstreamConn, *net.TCPConn) {
	t.Helper()
	tc, peer := tcpPair(t)
	s, err := newSocket(tc)
	if err != nil {
		t.Fatal(err)
	}
	return &upstreamConn{Conn: s, socket: s, buf: make([]byte, upstreamBuffer)}, peer
}

// lone is a stream that has a connection and nothing else, which is all that a wait needs.
func lone(t *testing.T) (*stream, *upstreamConn, *net.TCPConn) {
	t.Helper()
	c, peer := pair(t)
	client, _ := tcpPair(t)
	t.Cleanup(func() { _ = c.Close() }) // closing the client waits for whoever waits in a loop
	x := &exchange{client: &conn{TCPConn: client}}
	x.life.up, x.stream.x = c, x
	return &x.stream, c, peer
}

// inLoop waits until a stream waits on the connection.
func (c *upstreamConn) inLoop(t *testing.T) {
	t.Helper()
	eventually(t, "a wait", func() bool { c.looped.mu.Lock(); defer c.looped.mu.Unlock(); return c.looped.waits })
}

// loopsOf are loops that end with the test.
func loopsOf(t *testing.T) *eventLoops {
	ls := &eventLoops{clock: new(atomic.Int64), fault: func(v any) { t.Errorf("a fault: %v", v) }}
	t.Cleanup(ls.close)
	return ls
}

func TestAnInterruptHoldsForTheNextWait(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	s, c, peer := lone(t)
	c.interrupt()
	if err := ls.wait(s); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a wait that was interrupted before it began: %v", err)
	}
	if err := c.resume(); err != nil {
		t.Error(err)
	}
	ended := make(chan error, 1)
	wait := func() { ended <- ls.wait(s) }
	go wait()
	c.inLoop(t)
	c.interrupt()
	if err := receive(t, "the end of a wait", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a wait that is interrupted: %v", err)
	}
	if err := c.resume(); err != nil {
		t.Error(err)
	}
	_, _ = peer.Write([]byte("x"))
	eventually(t, "a byte", func() bool {
		go wait()
		err := receive(t, "the end of a wait", ended)
		return err == nil && c.w == 1
	})
	go wait()
	c.inLoop(t)
	_ = c.Close()
	if err := receive(t, "the end of a wait", ended); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a wait whose connection is closed: %v", err)
	}
	if err := ls.wait(s); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a wait on a closed connection: %v", err)
	}
}

// The kernel gives a closed descriptor's number to the next that is opened.
func TestWhoLeavesALoopTakesNobodyElseOut(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	one, _ := pair(t)
	two, _ := pair(t)
	for _, c := range []*upstreamConn{one, two} {
		if err := ls.enter(c); err != nil {
			t.Fatal(err)
		}
	}
	one.looped.fd = two.looped.fd // as if it had been closed, and its number were the other's
	_ = one.Close()
	ls.leave(one)
	loop := two.looped.loop
	if loop.byFD[two.looped.fd] != &two.looped || loop.streams != 1 {
		t.Errorf("%p is there, %d streams", loop.byFD[two.looped.fd], loop.streams)
	}
	ls.leave(two)
	ls.leave(two)
	if loop.byFD[two.looped.fd] != nil || two.looped.loop != nil || loop.streams != 0 {
		t.Errorf("%d streams after the last has left", loop.streams)
	}
}

func TestStreamsFillOneLoopBeforeTheNext(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	for i := range loopStreams {
		if ls.take() == nil || len(ls.all) != 1 {
			t.Fatalf("%d loops for %d streams", len(ls.all), i+1)
		}
	}
	most := goruntime.GOMAXPROCS(0)
	for range (most + 1) * loopStreams {
		ls.take()
	}
	if len(ls.all) != most {
		t.Errorf("%d loops for %d processors", len(ls.all), most)
	}
	least, all := 1<<30, 0
	for _, l := range ls.all {
		least, all = min(least, l.streams), all+l.streams
	}
	if all != (most+2)*loopStreams || least < all/most-1 {
		t.Errorf("%d streams, %d in the loop that has least", all, least)
	}
	ls.close()
	if ls.take() != nil {
		t.Error("a stream enters after the end")
	}
}

// TLS writes where a peer asks for new keys, and a peer may take nothing.
func TestASocketAtOnceNeverWaits(t *testing.T) {
	t.Parallel()
	c, peer := pair(t)
	s := c.socket
	if _, err := io.WriteString(peer, "some"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	eventually(t, "what was sent", func() bool {
		s.atOnce = true
		n, err := s.Read(b)
		return err == nil && string(b[:n]) == "some"
	})
	if n, err := s.Read(b); n != 0 || err != errWouldBlock {
		t.Errorf("a read of nothing: %d %v", n, err)
	}
	var sent int64
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for range 100 {
		n, err := s.Write(piece)
		if sent += int64(n); err != nil {
			if !errors.Is(err, io.ErrShortWrite) {
				t.Error(err)
			}
			break
		}
	}
	if sent == 0 || sent == 100<<20 {
		t.Errorf("%d bytes were written to a peer that takes none", sent)
	}
	go func() { _, _ = io.CopyN(io.Discard, peer, sent); _ = peer.Close() }()
	eventually(t, "the end", func() bool { _, err := s.Read(b); return err == io.EOF })
	_ = c.Close()
	if _, err := s.Read(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read of what is closed: %v", err)
	}
}

func TestALoopThatIsClosedGivesItsStreamsBack(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	s, c, peer := lone(t)
	ended := make(chan error, 1)
	go func() { ended <- ls.wait(s) }()
	c.inLoop(t)
	ls.close()
	if err := receive(t, "the end of a wait", ended); err != nil {
		t.Errorf("the wait ends with %v", err)
	}
	if err := ls.wait(s); err != errNoLoop {
		t.Errorf("one registered still: %v", err)
	}
	ls.leave(c)
	if err := ls.wait(s); err != errNoLoop {
		t.Errorf("one that would enter: %v", err)
	}
	_, _ = peer.Write([]byte("x"))
	eventually(t, "a byte", func() bool { return ls.wait(s) == nil })
}

// panickingRead is a connection whose next read panics.
type panickingRead struct{ net.Conn }

func (panickingRead) Read([]byte) (int, error) { panic("in a read") }

func TestWhatFailsInAWaitLocksNothing(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	closed, _ := pair(t)
	_ = closed.Close()
	if err := ls.enter(closed); err != errNoLoop {
		t.Errorf("a closed connection enters: %v", err)
	}
	if ls.all[0].streams != 0 || closed.looped.loop != nil {
		t.Errorf("%d streams are counted", ls.all[0].streams)
	}
	s, c, _ := lone(t)
	tcp := c.Conn
	c.Conn = panickingRead{tcp}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = ls.wait(s)
	}()
	c.Conn = tcp
	if err := ls.enter(c); err != nil {
		t.Errorf("after it: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	ls.leave(c)
}

// Whoever waits in a loop holds its client's descriptor: closed meanwhile, its number
// could be another connection's when the loop next writes to it.
func TestAClientThatIsClosedKeepsItsDescriptorWhileItsStreamWaits(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	s, c, _ := lone(t)
	ended := make(chan error, 1)
	go func() { ended <- ls.wait(s) }()
	c.inLoop(t)
	inode := func() (uint64, error) {
		var stat syscall.Stat_t
		err := syscall.Fstat(c.looped.client, &stat)
		return stat.Ino, err
	}
	before, err := inode()
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.x.client.TCPConn.Close() }()
	eventually(t, "the close", func() bool { return s.x.client.SetNoDelay(true) != nil })
	if after, err := inode(); err != nil || after != before {
		t.Errorf("descriptor %d is of %d, then of %d: %v", c.looped.client, before, after, err)
	}
	_ = c.Close()
	if err := receive(t, "the end of a wait", ended); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the wait ends with %v", err)
	}
	if err := receive(t, "the close", closed); err != nil {
		t.Error(err)
	}
}

// A close takes a connection out of its loop before it gives the descriptor up, and what
// waits next may not bring it back.
func TestWhatIsBeingClosedIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	ls := loopsOf(t)
	s, c, _ := lone(t)
	c.looped.closed = true // and its socket is not closed yet
	if err := ls.wait(s); err != net.ErrClosed {
		t.Errorf("a wait: %v", err)
	}
	_, other, _ := lone(t)
	if _ = other.Close(); !other.looped.closed {
		t.Error("a close is not noted")
	}
}
