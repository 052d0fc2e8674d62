package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// nextAddress is how long one address of a host has before the next is tried
	// beside it (RFC 8305 §8).
	nextAddress = 250 * time.Millisecond
	// maxConnAge is how old a connection to an upstream gets: an address that has
	// gone from DNS is used no longer for new calls.
	maxConnAge = 2 * time.Minute
)

// dial connects, to an address that DNS gives now; ctx bounds it. What came too late,
// a name, an address or a handshake, is context.DeadlineExceeded.
func (u *upstream) dial(ctx context.Context) (*upstreamConn, error) {
	c, err := u.reach(ctx)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return nil, fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return c, err
}

func (u *upstream) reach(ctx context.Context) (*upstreamConn, error) {
	nc, err := u.connect(ctx)
	if err != nil {
		return nil, err
	}
	t, ok := nc.(*net.TCPConn)
	if !ok {
		_ = nc.Close()
		return nil, fmt.Errorf("BUG: an upstream is dialled over TCP, not over %T", nc)
	}
	s, err := newSocket(t)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	c := &upstreamConn{Conn: s, socket: s, until: time.Now().Add(maxConnAge), buf: make([]byte, upstreamBuffer)}
	if u.tls != nil {
		tc := tls.Client(s, u.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
		c.Conn = tc
	}
	return c, nil
}

// connect makes the TCP connection.
func (u *upstream) connect(ctx context.Context) (net.Conn, error) {
	if addr, err := netip.ParseAddr(u.name); err == nil {
		return (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(addr, u.port).String())
	}
	resolver := u.resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	found, err := resolver.LookupNetIP(ctx, "ip", u.name)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("the host has no address")
	}
	return race(ctx, alternate(found), u.port)
}

// alternate keeps the resolver's order, but takes the families in turn, so that a
// host of which one family is out of reach is reached by the second try.
func alternate(found []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr // the first address's, and the other
	for i, a := range found {
		a = a.Unmap()
		family := 0
		if i > 0 && a.Is4() != found[0].Unmap().Is4() {
			family = 1
		}
		families[family] = append(families[family], a)
	}
	out := make([]netip.Addr, 0, len(found))
	for i := range families[0] {
		out = append(out, families[0][i])
		if i < len(families[1]) {
			out = append(out, families[1][i])
		}
	}
	return append(out, families[1][min(len(families[0]), len(families[1])):]...)
}

// race gives each address a head start over the next and returns the first
// connection; the error is the first address's.
func race(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	type outcome struct {
		conn  net.Conn
		err   error
		first bool
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan outcome)
	begun := 0
	begin := func() {
		addr, first := netip.AddrPortFrom(addrs[begun], port).String(), begun == 0
		begun++
		go func() {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			select {
			case outcomes <- outcome{c, err, first}:
			case <-ctx.Done():
				if err == nil {
					_ = c.Close() // it came second
				}
			}
		}()
	}
	begin()
	timer := time.NewTimer(nextAddress)
	defer timer.Stop()
	var failure error
	for failed := 0; ; {
		select {
		case o := <-outcomes:
			if o.err == nil {
				return o.conn, nil
			}
			if failed++; o.first || failure == nil {
				failure = o.err
			}
			if failed == len(addrs) {
				return nil, failure
			}
			if failed < begun { // others are under way
				continue
			}
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if begun < len(addrs) {
			begin()
			timer.Reset(nextAddress)
		}
	}
}
