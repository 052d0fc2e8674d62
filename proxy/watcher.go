package proxy

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"
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
	clock atomic.Int64 // nanoseconds since start, as of the last look
	start time.Time
	epoll int

	mu   sync.Mutex
	root exchange // head of the list, oldest first
	byFD map[int32]*exchange

	conns connSet

	stop chan struct{}
	done chan struct{}
}

func newWatcher() (*watcher, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &watcher{
		start: time.Now(), epoll: fd, byFD: make(map[int32]*exchange),
		conns: connSet{all: make(map[*conn]struct{})},
		stop:  make(chan struct{}), done: make(chan struct{}),
	}
	w.root.next, w.root.prev = &w.root, &w.root
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
			w.look(int64(now))
			w.leavers(events)
			w.lookConns(int64(now))
		}
	}
}

// add lists an exchange that is about to wait.
func (w *watcher) add(x *exchange) {
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
	for x := w.root.next; x != &w.root; x = x.life.next {
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
		case awaitsBody:
			if idle > l.UpstreamIdle {
				x.abort(upstreamIdle)
			}
		}
	}
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
