package proxy

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// nameServer is a DNS server on loopback that says of every name what the test says.
type nameServer struct {
	t    testing.TB
	conn net.PacketConn

	mu    sync.Mutex
	addrs []netip.Addr
	asked int
}

func newNameServer(t testing.TB, addrs ...string) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{t: t, conn: conn}
	n.say(addrs...)
	done := make(chan struct{})
	go func() { defer close(done); n.serve() }()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return n
}

func (n *nameServer) say(addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs = nil
	for _, a := range addrs {
		n.addrs = append(n.addrs, netip.MustParseAddr(a))
	}
}

// resolver asks this server alone.
func (n *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", n.conn.LocalAddr().String())
	}}
}

func (n *nameServer) serve() {
	b := make([]byte, 1500)
	for {
		k, from, err := n.conn.ReadFrom(b)
		if err != nil {
			return
		}
		if answer := n.answer(b[:k]); answer != nil {
			_, _ = n.conn.WriteTo(answer, from)
		}
	}
}

// answer is RFC 1035, as little of it as A and AAAA need.
func (n *nameServer) answer(q []byte) []byte {
	const header, a, aaaa = 12, 1, 28
	at := header
	for at < len(q) && q[at] != 0 {
		at += 1 + int(q[at])
	}
	if at+5 > len(q) {
		return nil
	}
	end := at + 5
	kind := binary.BigEndian.Uint16(q[at+1:])
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	out := append([]byte(nil), q[:2]...)
	out = append(out, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	out = append(out, q[header:end]...)
	count := uint16(0)
	for _, addr := range n.addrs {
		if kind == a && addr.Is4() || kind == aaaa && addr.Is6() {
			out = append(out, 0xc0, header, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(addr.BitLen()/8))
			out = append(out, addr.AsSlice()...)
			count++
		}
	}
	binary.BigEndian.PutUint16(out[6:], count)
	return out
}

// named runs a gateway whose one target is a name that the server resolves.
func named(t *testing.T, n *nameServer, yaml string) (*gateway, *upstream) {
	t.Helper()
	g := start(t, yaml)
	up := g.s.runtime.Load().upstreams["main"]
	up.resolver = n.resolver()
	return g, up
}

// host opens an upstream on another address of loopback, but on the same port.
func host(t *testing.T, addr string, port int, answer string) *upstreamScript {
	t.Helper()
	var ln net.Listener
	eventually(t, "a port that others use just now", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", net.JoinHostPort(addr, fmt.Sprint(port)))
		if err == nil && port == 0 { // one that is free on the other address too
			var other net.Listener
			if other, err = net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", ln.Addr().(*net.TCPAddr).Port)); err == nil {
				_ = other.Close()
			} else {
				_ = ln.Close()
			}
		}
		return err == nil
	})
	return scriptedOn(t, ln, func(c *callee) {
		for c.request() != "" {
			c.send(whole(200, strings.Replace(completion, `"hi"`, `"`+answer+`"`, 1)))
		}
	})
}

func (g *gateway) content() string {
	g.t.Helper()
	r := g.do(call(g.key, plainBody))
	_, after, _ := strings.Cut(r.body, `"content":"`)
	content, _, _ := strings.Cut(after, `"`)
	if r.status != 200 {
		return fmt.Sprintf("%d %s", r.status, r.problem().Code)
	}
	return content
}

func TestAChangeOfDNSIsFollowed(t *testing.T) {
	t.Parallel()
	first := host(t, "127.0.0.1", 0, "first")
	host(t, "127.0.0.2", first.port(), "second")
	dns := newNameServer(t, "127.0.0.1")
	g, up := named(t, dns, plainConfig(fmt.Sprintf("http://provider.test:%d", first.port())))
	for range 3 {
		if got := g.content(); got != "first" {
			t.Fatalf("before: %s", got)
		}
	}
	if n := first.accepted(); n != 1 {
		t.Errorf("%d connections, want 1 that is kept", n)
	}
	dns.say("127.0.0.2")
	if got := g.content(); got != "first" {
		t.Errorf("on the connection that is kept: %s", got)
	}
	eventually(t, "the connection lies idle", func() bool { up.mu.Lock(); defer up.mu.Unlock(); return len(up.idle) == 1 })
	up.mu.Lock()
	bound := up.idle[0].until
	up.idle[0].until = time.Now().Add(-time.Millisecond)
	up.mu.Unlock()
	if left := time.Until(bound); left > maxConnAge || left <= maxConnAge-time.Minute {
		t.Errorf("it would have been used for %v more", left)
	}
	if got := g.content(); got != "second" {
		t.Errorf("once it is too old: %s", got)
	}
	dns.say()
	up.mu.Lock()
	for _, c := range up.idle {
		c.until = time.Now().Add(-time.Millisecond)
	}
	up.mu.Unlock()
	if got := g.content(); got != "502 upstream_error" {
		t.Errorf("a name without an address: %s", got)
	}
}

// A connection that grew old while it was used does not lie idle after.
func TestAnOldConnectionIsNotKept(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	up := g.s.runtime.Load().upstreams["main"]
	c, err := up.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	up.release(c, c.until)
	if up.takeIdle(c.until) != c {
		t.Error("one of the greatest age was not kept")
	}
	up.release(c, c.until.Add(1))
	if len(up.idle) != 0 {
		t.Error("one that is too old was kept")
	}
}

func TestEveryAddressOfAHostIsTried(t *testing.T) {
	t.Parallel()
	u := host(t, "127.0.0.1", 0, "v4")
	host(t, "::1", u.port(), "v6")
	deaf := blackhole(t, "127.0.0.9", u.port())
	for _, tt := range []struct {
		name  string
		addrs []string
		want  []string // one of them
	}{
		{"one address", []string{"127.0.0.1"}, []string{"v4"}},
		{"IPv6 alone", []string{"::1"}, []string{"v6"}},
		{"both families", []string{"::1", "127.0.0.1"}, []string{"v4", "v6"}},
		{"the first refuses", []string{"127.0.0.8", "127.0.0.1"}, []string{"v4"}},
		{"two refuse", []string{"127.0.0.8", "127.0.0.7", "127.0.0.1"}, []string{"v4"}},
		{"the first does not answer", []string{deaf, "127.0.0.1"}, []string{"v4"}},
		{"one does not answer, one refuses", []string{deaf, "127.0.0.8", "127.0.0.1"}, []string{"v4"}},
		{"one family is out of reach", []string{deaf, "127.0.0.8", "::1"}, []string{"v6"}},
		{"all refuse", []string{"127.0.0.8", "127.0.0.7"}, []string{"502 upstream_error"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, _ := named(t, newNameServer(t, tt.addrs...), plainConfig(fmt.Sprintf("http://provider.test:%d", u.port())))
			if got := g.content(); !slices.Contains(tt.want, got) {
				t.Errorf("%s, want %v", got, tt.want)
			}
		})
	}
}

// blackhole is an address that answers no connection: its queue is full.
func blackhole(t *testing.T, addr string, port int) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	to := &syscall.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(addr).As4()}
	if err := errors.Join(syscall.Bind(fd, to), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	full := false
	for range 8 {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, fmt.Sprint(port)), 300*time.Millisecond)
		var ne net.Error
		if full = errors.As(err, &ne) && ne.Timeout(); full {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	if !full {
		t.Fatal("it answers all the same")
	}
	return addr
}

func TestADialIsLateOrCancelledWhileNobodyAnswers(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	deaf, deafer := blackhole(t, "127.0.0.10", u.port()), blackhole(t, "127.0.0.11", u.port())
	mute, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tt := range []struct{ name, base string }{
		{"an address", fmt.Sprintf("http://%s:%d", deaf, u.port())},
		{"a name", fmt.Sprintf("http://provider.test:%d", u.port())},
		{"a handshake", "https://" + mute.Addr().String()},
	} {
		_, up := named(t, newNameServer(t, deaf, deafer), plainConfig(tt.base))
		late, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		if c, err := up.dial(late); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, %v", tt.name, c, err)
		}
		if c, err := up.dial(ended); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, cancelled: %v, %v", tt.name, c, err)
		}
	}
}

func TestTheFamiliesTakeTurns(t *testing.T) {
	for give, want := range map[string]string{
		"":                        "",
		"1.1.1.1":                 "1.1.1.1",
		"::1 ::2 1.1.1.1":         "::1 1.1.1.1 ::2",
		"1.1.1.1 1.1.1.2 ::1 ::2": "1.1.1.1 ::1 1.1.1.2 ::2",
		"1.1.1.1 ::1 ::2 ::3":     "1.1.1.1 ::1 ::2 ::3",
		"::1 ::2 ::3":             "::1 ::2 ::3",
		"::ffff:1.1.1.1 1.1.1.2":  "1.1.1.1 1.1.1.2",
	} {
		var addrs []netip.Addr
		for _, a := range strings.Fields(give) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		var got []string
		for _, a := range alternate(addrs) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", give, got, want)
		}
	}
}

func TestAnUpstreamIsToldTheNameThatItIsCalledBy(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	cert := a.of("provider.test", time.Now().Add(time.Hour))
	told := make(chan string, 1)
	u := secured(t, "127.0.0.1:0", &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		select {
		case told <- h.ServerName:
		default:
		}
		return &cert, nil
	}}, echoing)
	base := fmt.Sprintf("provider.test:%d", u.port())
	g, _ := named(t, newNameServer(t, "127.0.0.1"), trusting("https://"+base, trust(t, t.TempDir(), a)))
	if got := g.content(); got != "hi" {
		t.Fatal(got)
	}
	if name := receive(t, "a look-up", told); name != "provider.test" {
		t.Errorf("SNI %q", name)
	}
	_, h, _ := parts(u.seen()[0])
	if got := strings.Join(h["host"], "|"); got != base {
		t.Errorf("Host %q", got)
	}
}
