package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/token"
)

const (
	dialTimeout     = 10 * time.Second
	maxIdleConns    = 1024             // a target
	maxIdleAge      = 90 * time.Second // providers close theirs at about 60 to 120 s
	trustedIdle     = 100 * time.Millisecond
	upstreamBuffer  = 16 << 10
	maxUpstreamHead = 64 << 10
	maxInterim      = 10 // 1xx answers before the one that counts
)

var (
	errUpstreamHead   = errors.New("the upstream's answer has a malformed head")
	errUpstreamClosed = errors.New("the upstream closed the connection before it answered")
)

// upstream is one target, ready to be called: its address, its credential, and
// the connections that lie idle. Safe for concurrent use.
type upstream struct {
	id          string
	idBytes     []byte
	name        string // of its host, or an address, to dial
	port        uint16
	host        string // the Host header
	path        string // of the base URL, without a trailing slash
	secret      token.Secret
	headers     string   // configured ones, as header lines
	names       []string // theirs: a client's of the same name is not passed on
	tls         *tls.Config
	roots       *x509.CertPool // nil: the system's
	resolver    *net.Resolver  // nil: the system's
	streamUsage bool
	outputLimit string        // the field that limits output
	source      config.Target // what it was made from; a reload with the same keeps the connections

	mu      sync.Mutex
	idle    []*upstreamConn // the last used is last
	retired bool
}

// newUpstream compiles a target. It resolves the secret and reads the CA bundle now.
func newUpstream(t *config.Target) (*upstream, error) {
	u, err := url.Parse(t.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("target %s: base_url: %w", t.ID, err)
	}
	up := &upstream{
		id: t.ID, idBytes: []byte(t.ID), host: u.Host, path: strings.TrimSuffix(u.EscapedPath(), "/"),
		streamUsage: t.StreamUsage, outputLimit: t.OutputLimit, source: *t,
	}
	up.name, up.port = u.Hostname(), 80
	if u.Scheme == "https" {
		if up.roots, err = t.Roots(); err != nil {
			return nil, fmt.Errorf("target %s: %w", t.ID, err)
		}
		up.port = 443
		up.tls = &tls.Config{
			ServerName: up.name, RootCAs: up.roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(16),
		}
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("target %s: base_url: the port is no number up to 65535", t.ID)
		}
		up.port = uint16(n)
	}
	if t.Secret != nil {
		s, err := t.Secret.Resolve()
		if err != nil {
			return nil, fmt.Errorf("target %s: %w", t.ID, err)
		}
		up.secret = token.NewSecret(s)
	}
	var h strings.Builder
	for k, v := range t.Headers {
		h.WriteString(k + ": " + v + "\r\n")
		up.names = append(up.names, k)
	}
	up.headers = h.String()
	return up, nil
}

// upstreamConn is a connection to a target and what was read from it and not yet
// used. It belongs to one exchange at a time.
type upstreamConn struct {
	net.Conn         // TLS where the target has it
	socket   *socket // nil only where a test has it so
	looped   looped
	buf      []byte // buf[r:w] is unread
	r, w     int
	idle     time.Time // since when it lies idle
	until    time.Time // taken for no call after this; zero: no bound
}

// Close cuts the connection at once. TLS would say goodbye first, and wait for a peer
// that does not read, which whoever aborts an exchange can't.
func (c *upstreamConn) Close() error {
	if c.socket == nil {
		return c.Conn.Close()
	}
	c.looped.mu.Lock()
	c.looped.closed = true
	c.looped.land(net.ErrClosed)
	c.looped.mu.Unlock()
	return c.socket.Close()
}

// aged says whether its address may no longer be what DNS gives.
func (c *upstreamConn) aged(now time.Time) bool { return !c.until.IsZero() && now.After(c.until) }

// takeIdle returns a connection that lies idle and is known alive; nil: there is
// none. A POST is never sent twice, so a connection that died in the pool must be
// found out before the request is written.
func (u *upstream) takeIdle(now time.Time) *upstreamConn {
	for {
		u.mu.Lock()
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			return nil
		}
		c := u.idle[n-1]
		u.idle[n-1] = nil
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if age := now.Sub(c.idle); !c.aged(now) && (age < trustedIdle || age < maxIdleAge && c.alive()) {
			return c
		}
		_ = c.Conn.Close()
	}
}

// same says whether a target stayed what it was over a reload.
func (u *upstream) same(v *upstream) bool {
	return u.secret.Digest() == v.secret.Digest() && u.roots.Equal(v.roots) && reflect.DeepEqual(u.source, v.source)
}

// release gives back a connection whose answer was read to its end.
func (u *upstream) release(c *upstreamConn, now time.Time) {
	if c.aged(now) {
		_ = c.Conn.Close()
		return
	}
	if c.r != c.w { // bytes that nobody asked for
		_ = c.Close()
		return
	}
	c.r, c.w, c.idle = 0, 0, now
	if cap(c.buf) > upstreamBuffer {
		c.buf = make([]byte, upstreamBuffer)
	}
	u.mu.Lock()
	if u.retired || len(u.idle) >= maxIdleConns {
		u.mu.Unlock()
		_ = c.Close()
		return
	}
	u.idle = append(u.idle, c)
	u.mu.Unlock()
}

// retire closes what lies idle and what will be given back.
func (u *upstream) retire() {
	u.mu.Lock()
	idle := u.idle
	u.idle, u.retired = nil, true
	u.mu.Unlock()
	for _, c := range idle {
		_ = c.Conn.Close()
	}
}

// alive looks whether the peer has closed, or sent what it should not have.
func (c *upstreamConn) alive() bool {
	if c.socket == nil {
		return false
	}
	_, err := c.socket.now.peek()
	return err == syscall.EAGAIN
}

// fill reads once more from the upstream into the buffer.
func (c *upstreamConn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(c.buf) {
		if c.r > 0 {
			c.w = copy(c.buf, c.buf[c.r:c.w])
			c.r = 0
		} else {
			if len(c.buf) >= maxUpstreamHead {
				return errUpstreamHead
			}
			b := make([]byte, 2*len(c.buf))
			copy(b, c.buf)
			c.buf = b
		}
	}
	n, err := c.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}
