package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/config"
)

const (
	takeOverPatience = 2 * time.Second        // for each step of the two processes' talk
	takeOverRetry    = 250 * time.Millisecond // until the name is free to offer the port under
	takeOverInSync   = 5 * time.Second        // a newcomer that is ready waits for its control plane
	readyEvery       = 50 * time.Millisecond
	servingLine      = "serving\n"
)

// succession moves the data plane's port from one process to the next without a
// moment in which nobody has it. The newcomer asks for it over a socket named after
// the address, and is sent the listening socket itself: both then take connections
// from one queue, so that none is reset when the older closes its end. (Two sockets
// with SO_REUSEPORT have a queue each, and a closing one resets what waits in it.)
// A port goes only to a process of the same user, for the same gateway id and
// control plane.
type succession struct {
	claim claim
	log   *zap.Logger

	before *net.UnixConn // to the process that the port is from; nil: from nobody
	left   chan struct{} // closed when that process is gone; nil: from nobody

	mu       sync.Mutex
	listener net.Listener  // what is offered
	after    *net.UnixConn // to the process that got it; nil: none has
	serving  bool          // it takes connections
	retired  bool          // this one takes none more as soon as the next does
}

// claim is what two processes that share a port must agree on.
type claim struct {
	GatewayID    string `json:"gateway_id"`
	ControlPlane string `json:"control_plane"`
}

// handover is the answer to a claim; with an empty Refused it carries the socket.
type handover struct {
	Refused string `json:"refused,omitempty"`
}

// newSuccession fails for a gateway whose tokens no other process knows.
func newSuccession(cfg *config.Config, log *zap.Logger) (*succession, error) {
	if cfg.ControlPlane.URL == "" {
		return nil, misused("--take-over wants a control plane that both gateways ask (control_plane.url): an embedded one is in one process's data folder")
	}
	return &succession{claim: claim{cfg.GatewayID, cfg.ControlPlane.URL}, log: log}, nil
}

// listen opens the data plane's listener, or takes it over from whoever has it.
func (s *succession) listen(addr string) (net.Listener, error) {
	// Between two processes that offer it, the port has a moment without an offer.
	for end := time.Now().Add(takeOverPatience); ; time.Sleep(takeOverRetry / 2) {
		ln, err := listen(addr, "--listen")
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return ln, err
		}
		tcp, resolveErr := net.ResolveTCPAddr("tcp", addr)
		if resolveErr != nil {
			return nil, err
		}
		c, dialErr := net.DialUnix("unix", nil, offerName(tcp))
		switch {
		case dialErr == nil:
			return s.take(c, addr)
		case time.Now().After(end):
			return nil, fmt.Errorf("%w; --take-over takes a port only from a kt-gateway that was started with it too", err)
		}
	}
}

// take gets the port from the process at the other end of c.
func (s *succession) take(c *net.UnixConn, addr string) (net.Listener, error) {
	ln, err := s.ask(c)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("take over %s: %w", addr, err)
	}
	s.before, s.left = c, make(chan struct{})
	go func() {
		defer close(s.left)
		_, _ = c.Read(make([]byte, 1)) // nothing is sent: it returns when either end is closed
	}()
	s.log.Info("takes the port over once it is ready", zap.Stringer("addr", ln.Addr()), zap.Int("from_process", peer(c).pid))
	return ln, nil
}

// offerName is the abstract socket that an address is handed over by.
func offerName(a *net.TCPAddr) *net.UnixAddr {
	host := ""
	if len(a.IP) > 0 && !a.IP.IsUnspecified() { // all of these listen everywhere
		host = a.IP.String()
	}
	return &net.UnixAddr{Name: fmt.Sprintf("@kt-gateway/%s/%d", host, a.Port), Net: "unix"}
}

// ask makes the claim and receives the socket.
func (s *succession) ask(c *net.UnixConn) (net.Listener, error) {
	if p := peer(c); p.uid != os.Getuid() {
		return nil, fmt.Errorf("process %d, which has it, is another user's", p.pid)
	}
	_ = c.SetDeadline(time.Now().Add(takeOverPatience))
	if err := json.NewEncoder(c).Encode(s.claim); err != nil {
		return nil, fmt.Errorf("ask for it: %w", err)
	}
	text, rights := make([]byte, 4<<10), make([]byte, syscall.CmsgSpace(4))
	n, rn, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, fmt.Errorf("no answer from process %d, which has it: %w", peer(c).pid, err)
	}
	var answer handover
	if err := json.Unmarshal(text[:n], &answer); err != nil {
		return nil, fmt.Errorf("process %d, which has it, answers in no form that is known", peer(c).pid)
	}
	if answer.Refused != "" {
		return nil, errors.New(answer.Refused)
	}
	_ = c.SetDeadline(time.Time{})
	return received(rights[:rn])
}

// received makes a listener of the socket that came.
func received(rights []byte) (net.Listener, error) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return nil, errors.New("no socket came with the answer")
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no socket came with the answer")
	}
	f := os.NewFile(uintptr(fds[0]), "data plane")
	defer f.Close() // FileListener has a copy
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("what came is no listening socket: %w", err)
	}
	return ln, nil
}

// await returns true when a port that was taken over is to be served: this gateway
// is ready, or nobody else serves it any more. Until then the other does.
func (s *succession) await(ctx context.Context, ready func() error) bool {
	if s == nil || s.before == nil {
		return true
	}
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for ready() != nil {
		select {
		case <-ctx.Done():
			return false
		case <-s.left:
			return true
		case <-tick.C:
		}
	}
	return true
}

// informed is ready for a newcomer. One that serves from a saved snapshot knows less
// than the process before, and has no money to spend: it is not in a hurry.
func informed(ready func() error, inSync func() bool) func() error {
	by := time.Now().Add(takeOverInSync)
	return func() error {
		err := ready()
		if err == nil && !inSync() && time.Now().Before(by) {
			return errStarting
		}
		return err
	}
}

// close tells the process that the port is from that this one has left.
func (s *succession) close() {
	if s != nil && s.before != nil {
		_ = s.before.Close()
		<-s.left
	}
}

// offering runs offer until done is called.
func (s *succession) offering(ln net.Listener) (done func()) {
	if s == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.offer(ctx, ln) }()
	return func() { cancel(); <-ended }
}

// offer tells the process before that the port is served, and hands it to the next
// that asks, until ctx ends.
func (s *succession) offer(ctx context.Context, ln net.Listener) {
	if s.before != nil {
		_, _ = s.before.Write([]byte(servingLine))
	}
	s.mu.Lock()
	s.listener = ln
	s.mu.Unlock()
	var talks sync.WaitGroup
	defer talks.Wait()
	for ctx.Err() == nil {
		if !s.following() {
			if door, err := net.ListenUnix("unix", offerName(ln.Addr().(*net.TCPAddr))); err == nil {
				s.receive(ctx, door, &talks)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(takeOverRetry):
		}
	}
}

// receive answers who asks, until the port is served by another, or ctx ends.
func (s *succession) receive(ctx context.Context, door *net.UnixListener, talks *sync.WaitGroup) {
	stop := context.AfterFunc(ctx, func() { _ = door.Close() })
	defer stop()
	defer door.Close()
	for {
		c, err := door.AcceptUnix()
		if err != nil {
			return
		}
		talks.Go(func() {
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			defer c.Close()
			s.talk(c, func() { _ = door.Close() })
		})
	}
}

// talk hands the port to one process and returns when that process is gone.
func (s *succession) talk(c *net.UnixConn, done func()) {
	_ = c.SetDeadline(time.Now().Add(takeOverPatience))
	in := bufio.NewReaderSize(c, 4<<10)
	line, err := in.ReadSlice('\n')
	var want claim
	if err != nil || json.Unmarshal(line, &want) != nil {
		return
	}
	who := peer(c)
	refused := s.admit(c, who, want)
	text, _ := json.Marshal(handover{refused})
	if refused != "" {
		_, _ = c.Write(text)
		return
	}
	defer s.ended(c)
	if err := s.send(c, text); err != nil {
		s.log.Warn("the port could not be handed over", zap.Int("to_process", who.pid), zap.Error(err))
		return
	}
	_ = c.SetDeadline(time.Time{})
	if line, err := in.ReadString('\n'); err != nil || line != servingLine {
		return
	}
	s.log.Info("the port is served by another process too: end this one with SIGTERM", zap.Int("process", who.pid))
	s.succeeded()
	done() // the other offers it from now on
	_, _ = in.ReadByte()
}

// admit says why a process does not get the port; "": it does.
func (s *succession) admit(c *net.UnixConn, who credentials, want claim) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case who.uid != os.Getuid():
		return fmt.Sprintf("process %d, which has it, is another user's", os.Getpid())
	case want != s.claim:
		return fmt.Sprintf("process %d, which has it, is gateway %s of %s, not %s of %s: listen elsewhere with --listen ADDRESS:PORT",
			os.Getpid(), s.claim.GatewayID, s.claim.ControlPlane, want.GatewayID, want.ControlPlane)
	case s.after != nil:
		return fmt.Sprintf("process %d is taking it over already", peer(s.after).pid)
	}
	s.after = c
	return ""
}

// send passes the listening socket with the answer.
func (s *succession) send(c *net.UnixConn, text []byte) error {
	tcp, ok := s.listener.(*net.TCPListener)
	if !ok {
		return fmt.Errorf("it is %T, no TCP socket", s.listener)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	// Not File: it would make the socket, which both share, block.
	err = raw.Control(func(fd uintptr) { _, _, sent = c.WriteMsgUnix(text, syscall.UnixRights(int(fd)), nil) })
	return errors.Join(err, sent)
}

// following says whether another process has the port too.
func (s *succession) following() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.after != nil
}

func (s *succession) succeeded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = true
	s.release()
}

// ended is called when the process after is gone: the port is offered again.
func (s *succession) ended(c *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.after == c {
		s.after, s.serving = nil, false
	}
}

// retire lets the next process have all new connections, now or once it serves.
func (s *succession) retire() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	s.release()
}

// release closes this process's end of the port where another takes connections.
func (s *succession) release() {
	if s.retired && s.serving {
		_ = s.listener.Close()
	}
}

// credentials are whose process is at the other end, as the kernel tells.
type credentials struct{ pid, uid int }

func peer(c *net.UnixConn) credentials {
	unknown := credentials{0, -1}
	raw, err := c.SyscallConn()
	if err != nil {
		return unknown
	}
	err = raw.Control(func(fd uintptr) {
		if u, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			unknown = credentials{int(u.Pid), int(u.Uid)}
		}
	})
	if err != nil {
		return credentials{0, -1}
	}
	return unknown
}
