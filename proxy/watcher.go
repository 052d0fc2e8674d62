package proxy

import (
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keeptrusts/gateway/abac"
)

const (
	// watchEvery is how often the watcher looks, and how old an exchange must be
	// before its client's leaving is watched for: short ones cost no system call.
	watchEvery  = 250 * time.Millisecond
	watchedFrom = watchEvery
)

// watcher looks at the exchanges that last: clients that left, deadlines that
// passed. fasthttp tells nothing of a client that leaves, and a deadline set at
// every read costs more than one goroutine that looks at stamps.
type watcher struct {
	clock atomic.Int64           // nanoseconds since start, as of the last look
	date  atomic.Pointer[[]byte] // of now, as a Date header has it
	start time.Time
	epoll int

	mu   sync.Mutex
	root exchange // head of the list, oldest first
	byFD map[int32]*exchange
	// Tokens that changed since the last look, and between the two before it: when
	// they end now.
	ends, endsBefore map[string]int64

	conns connSet
	fault func(v any) // told of a panic

	stop chan struct{}
	done chan struct{}
}

func newWatcher(fault func(v any)) (*watcher, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &watcher{
		start: time.Now(), epoll: fd, byFD: make(map[int32]*exchange),
		conns: connSet{all: make(map[*conn]struct{})}, fault: fault,
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	w.root.next, w.root.prev = &w.root, &w.root
	w.setDate(w.start)
	go w.run()
	return w, nil
}

func (w *watcher) close() {
	close(w.stop)
	<-w.done
	_ = syscall.Close(w.epoll)
}

func (w *watcher) run() {
	defer close(w.done)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	events := make([]syscall.EpollEvent, 256)
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
			now := time.Since(w.start)
			w.clock.Store(int64(now))
			w.setDate(time.Now())
			w.contained(func() { w.look(int64(now)) })
			w.contained(func() { w.leavers(events) })
			w.contained(func() { w.lookConns(int64(now)) })
		}
	}
}

func (w *watcher) setDate(now time.Time) {
	b := fasthttp.AppendHTTPDate(nil, now)
	w.date.Store(&b)
}

// contained keeps a fault of ours from ending the process.
func (w *watcher) contained(f func()) {
	defer func() {
		if v := recover(); v != nil {
			w.fault(v)
		}
	}()
	f()
}

// add lists an exchange that is about to wait.
func (w *watcher) add(x *exchange) {
	x.life.until = x.entry.Until
	if time.Since(x.began) >= watchEvery { // its body took long: the token may have changed meanwhile
		now := time.Now()
		if e := x.s.tokens.Peek(&x.entry.Digest, now); e != nil && e.ID == x.entry.ID {
			x.life.until = e.Until
		}
		x.outlived(now.UnixNano())
	}
	w.mu.Lock()
	x.life.listed = true
	x.life.prev, x.life.next = w.root.prev, &w.root
	w.root.prev.life.next = x
	w.root.prev = x
	w.mu.Unlock()
}

// remove must be called before the exchange is freed; nothing aborts it after.
func (w *watcher) remove(x *exchange) {
	if !x.life.listed {
		return
	}
	w.mu.Lock()
	x.life.listed = false
	x.life.prev.life.next, x.life.next.life.prev = x.life.next, x.life.prev
	x.life.next, x.life.prev = nil, nil
	if fd := x.life.fd; fd >= 0 && w.byFD[int32(fd)] == x {
		delete(w.byFD, int32(fd))
		_ = syscall.EpollCtl(w.epoll, syscall.EPOLL_CTL_DEL, fd, nil) // it may be closed already
	}
	w.mu.Unlock()
}

// look checks every listed exchange's deadline and starts to watch for the
// leaving of those that last.
func (w *watcher) look(now int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clock := time.Now().UnixNano()
	for x := w.root.next; x != &w.root; x = x.life.next {
		w.lookAt(x, now, clock)
	}
	w.ends, w.endsBefore = nil, w.ends
}

// lookAt checks one exchange, which a fault of ours ends.
func (w *watcher) lookAt(x *exchange, now, clock int64) {
	defer func() {
		if v := recover(); v != nil {
			w.fault(v)
			x.abort(faulted)
		}
	}()
	w.lookToken(x, clock)
	if x.life.fd < 0 && time.Since(x.began) >= watchedFrom {
		w.watch(x)
	}
	// A stamp is up to a tick too old: nothing may be given up before its time.
	idle := time.Duration(now-x.life.since.Load()) - watchEvery
	l := &x.rt.cfg.Limits
	switch phase(x.life.doing.Load()) {
	case awaitsHead:
		if idle > l.FirstByte {
			x.abort(firstByteLate)
		}
		x.endUnread()
	case awaitsBody:
		if idle > l.UpstreamIdle {
			x.abort(upstreamIdle)
		}
	}
	if l.KeepaliveComment > 0 && x.call.Stream {
		x.wake(now, l.KeepaliveComment)
	}
}

// endUnread ends the wait for an answer's head on a connection whose upstream had ended
// it already: no event tells of that any more, but one of our own.
func (x *exchange) endUnread() {
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	if c := x.life.up; c != nil && c.socket != nil && c.socket.now.endedUnread() {
		_ = c.socket.CloseRead()
	}
}

// lookToken ends an exchange whose token ended, and then the connection of a client
// that does not even take the end.
func (w *watcher) lookToken(x *exchange, clock int64) {
	if len(w.ends)+len(w.endsBefore) > 0 {
		if until, ok := w.ends[x.entry.ID]; ok {
			x.life.until = until
		} else if until, ok := w.endsBefore[x.entry.ID]; ok {
			x.life.until = until
		}
	}
	if !x.outlived(clock) || x.client == nil {
		return
	}
	// A write that has just begun bears the stamp of the last look.
	if from := x.client.limits.writing.Load(); from != 0 && int64(time.Since(w.start))-from > int64(2*watchEvery) {
		x.client.reset()
	}
}

// outlived aborts an exchange whose token ended, and says whether it did.
func (x *exchange) outlived(clock int64) bool {
	switch {
	case x.s.tokens.Revoked(x.entry):
		x.abort(tokenRevoked)
	case clock >= x.life.until:
		x.abort(tokenExpired)
	default:
		return false
	}
	return true
}

const maxEnds = 100_000 // tokens that changed between two looks; of more the expiry is met at their next request

// TokenChanged tells what a token is now: calls that are under way on it end when
// it does. Revocations are seen in the cache.
func (s *Server) TokenChanged(p *abac.Profile) {
	until := int64(math.MaxInt64)
	if p.ExpiresAt != nil {
		_, until = abac.Compile(p).Window()
	}
	w := s.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ends == nil {
		w.ends = make(map[string]int64)
	}
	if len(w.ends) < maxEnds {
		w.ends[p.ID] = until
	}
}

// The codes with which a call ends that outlived its token; reasons of a decision too.
const (
	codeTokenRevoked = "token_revoked"
	codeTokenExpired = "token_expired"
)

// endedToken says why; told is false where the token is not the cause.
func (x *exchange) endedToken() (code, message string, told bool) {
	switch x.aborted() {
	case tokenRevoked:
		return codeTokenRevoked, "Token " + x.entry.ID + " was revoked or quarantined while the call ran. Ask your administrator for a new one.", true
	case tokenExpired:
		return codeTokenExpired, "Token " + x.entry.ID + " expired while the call ran. Ask your administrator to rotate it.", true
	}
	return "", "", false
}

// watch registers the client's socket. RDHUP is the peer's FIN; peeking instead
// would be fooled by pipelined bytes.
func (w *watcher) watch(x *exchange) {
	if x.client == nil {
		return
	}
	raw, err := x.client.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		ev := syscall.EpollEvent{Events: syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(fd)}
		if syscall.EpollCtl(w.epoll, syscall.EPOLL_CTL_ADD, int(fd), &ev) == nil {
			x.life.fd = int(fd)
			w.byFD[int32(fd)] = x
		}
	})
}

// notice looks at once whether the exchange's client has left.
func (w *watcher) notice(x *exchange) {
	w.mu.Lock()
	if x.life.fd < 0 {
		w.watch(x)
	}
	w.mu.Unlock()
	w.leavers(make([]syscall.EpollEvent, 64))
}

// leavers aborts the exchanges whose client has gone.
func (w *watcher) leavers(events []syscall.EpollEvent) {
	for {
		n, err := syscall.EpollWait(w.epoll, events, 0)
		if err == syscall.EINTR {
			continue
		}
		w.mu.Lock()
		for i := 0; i < n; i++ {
			if x := w.byFD[events[i].Fd]; x != nil {
				x.abort(clientLeft)
			}
		}
		w.mu.Unlock()
		if n < len(events) {
			return
		}
	}
}

// all aborts every listed exchange.
func (w *watcher) all(cause abortCause) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for x := w.root.next; x != &w.root; x = x.life.next {
		x.abort(cause)
	}
}
