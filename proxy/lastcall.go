package proxy

import (
	"errors"
	"io"
	"os"
	"time"
)

const (
	// lastCallFor is how long a client may take to call again after an answer whose
	// head went out before the drain, and so could not say that its connection closes.
	lastCallFor = time.Second
	// settling is how long after the last answer its connection is seen to wait again.
	settling = 50 * time.Millisecond
)

// lastCall reads the head of a request that comes over a connection on which an answer
// ended during the drain. Its client can't know: closed at once, the connection would
// be lost to it with the request that it sends meanwhile; kept, that would be refused.
// So it is served like those of the lame duck.
func (c *conn) lastCall(p []byte) (int, error) {
	s := c.s
	s.lastCalls.Add(1)
	defer func() {
		if s.lastCalls.Add(-1) == 0 {
			s.wake()
		}
	}()
	for {
		_ = c.TCPConn.SetReadDeadline(time.Now().Add(lastCallFor))
		n, err := c.TCPConn.Read(p)
		if n > 0 {
			c.spared = true
			_ = c.TCPConn.SetReadDeadline(time.Time{}) // the watcher's hold again
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || s.draining.Load() == refusing {
			return 0, io.EOF
		}
	}
}

// refuses says whether a request comes too late to be served.
func (s *Server) refuses(c *conn) bool {
	return s.draining.Load() == refusing && (c == nil || !c.spared)
}

// busy says whether a request is served, or may still come from a client that was not
// told.
func (s *Server) busy() bool { return s.open.Load() > 0 || s.lastCalls.Load() > 0 }

// emptied waits until the server is not busy.
func (s *Server) emptied(cancel <-chan struct{}, end <-chan time.Time) bool {
	for s.busy() {
		select {
		case <-s.idle:
		case <-cancel:
			return false
		case <-end:
			return false
		}
		if s.busy() {
			continue
		}
		select {
		case <-time.After(settling):
		case <-cancel:
			return !s.busy()
		}
	}
	return true
}
