package proxy

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/proxy/dialect"
)

// listener wraps each connection and refuses those beyond limits.connections in
// the table's shape.
type listener struct {
	net.Listener
	s *Server
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tc, ok := nc.(*net.TCPConn)
		if !ok {
			_ = nc.Close()
			return nil, fmt.Errorf("BUG: the data plane listens on TCP, not on %T", nc)
		}
		limits := &l.s.runtime.Load().cfg.Limits
		c := &conn{TCPConn: tc, s: l.s, maxHead: int(limits.Headers)}
		c.limits.first = true
		if a, ok := tc.RemoteAddr().(*net.TCPAddr); ok {
			c.remote, c.limits.slot = a.IP.String(), addressSlot(a.IP)
		}
		if !l.s.conns.take(c.limits.slot, 1, int64(limits.Connections)) {
			if l.s.away.Add(1) <= maxTurnedAway {
				go l.s.turnAway(tc)
			} else {
				l.s.away.Add(-1)
				_ = tc.Close()
			}
			continue
		}
		l.s.watcher.addConn(c)
		return c, nil
	}
}

// Close may be called again, and after its owner has closed the socket.
func (l *listener) Close() error {
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// turnAway answers a connection that is one too many.
func (s *Server) turnAway(c *net.TCPConn) {
	defer func() {
		if v := recover(); v != nil {
			s.faulted(v)
		}
		_ = c.Close()
		s.away.Add(-1)
	}()
	f := refuse(codeOverloaded, "The gateway has as many connections as it may; try again.")
	var x exchange
	x.newID()
	body := dialect.AppendError(nil, dialect.Error{Message: f.message, Type: f.row.kind, Code: f.row.code})
	b := append([]byte("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\nX-Request-Id: "+x.requestID()+"\r\nContent-Length: "), strconv.Itoa(len(body))...)
	b = append(append(b, crlfcrlf...), body...)
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(b)
	s.metrics.refused.inc(f.row.status)
	s.log.Warn("connection refused", zap.String("request_id", string(x.id[:])), zap.String("code", f.row.code), zap.String("client", c.RemoteAddr().String()))
	linger(c, lingerFor)
}

// bounds are a connection's limits. Those in time are kept as stamps that the watcher
// looks at: setting a timer of the runtime at every read and write costs more.
type bounds struct {
	slot    uint32       // in which its address is counted
	first   bool         // nothing was waited for yet
	waits   wait         // what read is for; its own goroutine's
	lingers atomic.Bool  // part of a request that was answered is still to come
	read    atomic.Int64 // the watcher's clock by which a read must have come; 0: none
	expired atomic.Bool  // the socket's own read deadline was set to the past
	writing atomic.Int64 // the watcher's clock when the write under way began; 0: none
}

// wait is what a connection's next read waits for.
type wait uint8

const (
	notWaiting wait = iota // since the last request was read whole
	forRequest
	forHead // the rest of one
	forBody
)

// await begins the limit of what is waited for, with the watcher's precision and by the
// config of now. It is one limit for all reads of a kind: a head or a body that comes
// byte by byte has no more time. fasthttp sets none: its clocks cost more.
func (c *conn) await() error {
	within, l, w := time.Duration(0), &c.s.runtime.Load().cfg.Limits, forRequest
	switch {
	case c.state == connBody || c.state == connChunked:
		w, within = forBody, l.BodyRead
	case c.limits.first || c.began() || c.blank:
		w, within = forHead, l.HeaderRead
	default:
		within = l.ClientIdle
	}
	if w == c.limits.waits {
		return nil
	}
	c.limits.waits, c.limits.first = w, false
	c.limits.read.Store(c.s.watcher.clock.Load() + int64(watchEvery+within)) // the clock is a tick old at most
	if c.limits.expired.Swap(false) {
		return c.TCPConn.SetReadDeadline(time.Time{})
	}
	return nil
}

// writePiece is how much a client has limits.client_idle to take.
const writePiece = 256 << 10

// Write lets the watcher see how long it takes, piece by piece: a client that
// takes a large answer slowly is not idle.
func (c *conn) Write(p []byte) (n int, err error) {
	for {
		piece := p[n:min(len(p), n+writePiece)]
		c.limits.writing.Store(c.s.watcher.clock.Load() + 1)
		m, err := c.TCPConn.Write(piece)
		c.limits.writing.Store(0)
		if n += m; err != nil || n == len(p) {
			return n, err
		}
	}
}

// Close may be called by fasthttp, by the watcher, and by both.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.limits.lingers.Load() {
			c.limits.read.Store(0)
			linger(c.TCPConn, lingerFor)
		}
		c.s.watcher.removeConn(c)
		c.s.conns.give(c.limits.slot, 1)
	})
	if x := c.short.served.Swap(nil); x != nil { // fasthttp broke off before it took the call
		x.drop()
		x.close(codeClientLeft)
	}
	return c.TCPConn.Close()
}

// reset closes a connection over what its client did not take, which would keep the
// socket. Closing waits for whoever holds the descriptor, and the watcher must not.
func (c *conn) reset() {
	_ = c.TCPConn.SetLinger(0)
	go func() { _ = c.TCPConn.Close() }()
}

// began says whether any byte of the next request has come.
func (c *conn) began() bool { return len(c.head) > 0 || c.state != connHead }

// connSet is every open connection of a client.
type connSet struct {
	mu  sync.Mutex
	all map[*conn]struct{}
}

func (w *watcher) addConn(c *conn) {
	w.conns.mu.Lock()
	w.conns.all[c] = struct{}{}
	w.conns.mu.Unlock()
}

func (w *watcher) removeConn(c *conn) {
	w.conns.mu.Lock()
	delete(w.conns.all, c)
	w.conns.mu.Unlock()
}

// hangUp ends the waits for another call. fasthttp, which has seen none of those that
// took the shortcut, takes a young connection for one whose first is still to come.
func (w *watcher) hangUp() {
	w.conns.mu.Lock()
	defer w.conns.mu.Unlock()
	for c := range w.conns.all {
		if c.now.unread.Load() != notUnread {
			_ = c.TCPConn.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// lookConns ends reads and writes that did not move in time.
func (w *watcher) lookConns(now int64) {
	w.conns.mu.Lock()
	defer w.conns.mu.Unlock()
	for c := range w.conns.all {
		if by := c.limits.read.Load(); by != 0 && (now > by || c.now.endedUnread()) && !c.limits.expired.Load() {
			c.limits.expired.Store(true)
			_ = c.TCPConn.SetReadDeadline(time.Unix(1, 0))
			if c.limits.read.Load() != by { // another wait has begun meanwhile
				c.limits.expired.Store(false)
				_ = c.TCPConn.SetReadDeadline(time.Time{})
			}
		}
		idle := c.s.runtime.Load().cfg.Limits.ClientIdle
		if from := c.limits.writing.Load(); from != 0 && now-from > int64(idle+watchEvery) {
			c.reset()
		}
	}
}
