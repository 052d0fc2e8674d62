package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	var der []byte
	der, a.key = a.sign(c, c)
	a.cert, _ = x509.ParseCertificate(der)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// sign makes a key and a certificate for it; parent is c itself for one that signs itself.
func (a *authority) sign(c, parent *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<60))
	by := a.key
	if c == parent {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

// of is a certificate for a name or an address, good until ends.
func (a *authority) of(host string, ends time.Time) tls.Certificate {
	a.t.Helper()
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "upstream"}, NotBefore: ends.Add(-24 * time.Hour), NotAfter: ends}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{host}
	}
	der, key := a.sign(c, a.cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// secured is a scripted upstream behind TLS.
func secured(t testing.TB, addr string, c *tls.Config, serve func(c *callee)) *upstreamScript {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	u := scriptedOn(t, tls.NewListener(ln, c), serve)
	u.url = "https://" + ln.Addr().String()
	return u
}

// port is the upstream's.
func (u *upstreamScript) port() int { return u.ln.Addr().(*net.TCPAddr).Port }

func echoing(c *callee) {
	for c.request() != "" {
		c.send(whole(200, completion))
	}
}

// trusting is plainConfig with a CA bundle.
func trusting(url, ca string) string {
	return strings.Replace(plainConfig(url), "secret_key_ref", "ca: "+ca+", secret_key_ref", 1)
}

// trust writes a bundle and returns its path.
func trust(t testing.TB, dir string, all ...*authority) string {
	t.Helper()
	var b bytes.Buffer
	for _, a := range all {
		b.Write(a.pem)
	}
	path := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhomAnUpstreamIsTrustedAs(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "another")
	soon := time.Now().Add(time.Hour)
	v4, v6 := ours.of("127.0.0.1", soon), ours.of("::1", soon)
	bundle := trust(t, t.TempDir(), ours)
	for _, tt := range []struct {
		name, addr, ca string
		cert           tls.Certificate
		newest         uint16 // version of TLS that it speaks
		want           int
	}{
		{"an authority of the bundle", "127.0.0.1:0", bundle, v4, tls.VersionTLS13, 200},
		{"an address of IPv6", "[::1]:0", bundle, v6, tls.VersionTLS13, 200},
		{"TLS 1.2", "127.0.0.1:0", bundle, v4, tls.VersionTLS12, 200},
		{"TLS 1.1", "127.0.0.1:0", bundle, v4, tls.VersionTLS11, 502},
		{"a certificate for another address", "127.0.0.1:0", bundle, v6, tls.VersionTLS13, 502},
		{"a certificate for a name", "127.0.0.1:0", bundle, ours.of("provider.test", soon), tls.VersionTLS13, 502},
		{"a certificate that has ended", "127.0.0.1:0", bundle, ours.of("127.0.0.1", time.Now().Add(-time.Minute)), tls.VersionTLS13, 502},
		{"an authority that is not in the bundle", "127.0.0.1:0", bundle, other.of("127.0.0.1", soon), tls.VersionTLS13, 502},
		{"an authority that the system does not know", "127.0.0.1:0", `""`, v4, tls.VersionTLS13, 502},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := secured(t, tt.addr, &tls.Config{Certificates: []tls.Certificate{tt.cert}, MinVersion: tls.VersionTLS10, MaxVersion: tt.newest}, echoing)
			g := start(t, trusting(u.url, tt.ca))
			r := g.do(call(g.key, plainBody))
			if r.status != tt.want || tt.want == 502 && r.problem().Code != codeUpstreamError {
				t.Errorf("%d %q, want %d", r.status, r.body, tt.want)
			}
			if n := len(u.seen()); n != 0 && tt.want != 200 {
				t.Errorf("%d calls were made of somebody who is not trusted", n)
			}
		})
	}
}

func TestABundleThatIsReloadedHoldsForTheNextCall(t *testing.T) {
	t.Parallel()
	first, second := newAuthority(t, "first"), newAuthority(t, "second")
	dir := t.TempDir()
	bundle := trust(t, dir, first)
	var cert atomic.Pointer[tls.Certificate]
	use := func(a *authority) { c := a.of("127.0.0.1", time.Now().Add(time.Hour)); cert.Store(&c) }
	use(first)
	u := secured(t, "127.0.0.1:0", &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert.Load(), nil }}, echoing)
	g := start(t, trusting(u.url, bundle))
	status := func() int { t.Helper(); return g.do(call(g.key, plainBody)).status }
	reload := func() {
		t.Helper()
		if err := g.s.Reload(g.parse(trusting(u.url, bundle))); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		reload()
		if s := status(); s != 200 {
			t.Fatalf("%d", s)
		}
	}
	if n := u.accepted(); n != 1 {
		t.Errorf("%d connections with a bundle that stayed", n)
	}
	trust(t, dir, second)
	reload()
	if s := status(); s != 502 {
		t.Errorf("an authority that was taken out: %d", s)
	}
	use(second)
	if s := status(); s != 200 {
		t.Errorf("an authority that was put in: %d", s)
	}
	old := g.s.runtime.Load()
	for name, content := range map[string]string{"empty": "", "of something else": "-----BEGIN CERTIFICATE-----\n"} {
		if err := os.WriteFile(bundle, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := g.s.Reload(g.parse(trusting(u.url, bundle))); err == nil || !strings.Contains(err.Error(), "target main: the CA bundle") || g.s.runtime.Load() != old {
			t.Errorf("a bundle %s: %v", name, err)
		}
	}
	if s := status(); s != 200 {
		t.Errorf("after bundles that can't be used: %d", s)
	}
}

func TestAClientThatLeavesEndsACallOverTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	var came, gone moments
	cert := a.of("127.0.0.1", time.Now().Add(time.Hour))
	u := secured(t, "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, func(c *callee) { leftUpstream(c, &came, &gone) })
	g := start(t, trusting(u.url, trust(t, t.TempDir(), a)))
	var wait sync.WaitGroup
	for _, l := range []leaver{
		{name: "before-headers", request: plainBody}, {name: "silent-stream", request: streamBody, reads: true},
		{name: "busy-stream", request: streamBody, reads: true}, {name: "busy-stream-rst", request: streamBody, reads: true, rst: true},
	} {
		for i := range 20 {
			wait.Go(func() {
				id := fmt.Sprintf("%s/%d", l.name, i)
				at := l.leave(g, id, i, &came)
				select {
				case when := <-gone.of(id):
					if d := when.Sub(at); d > time.Second {
						t.Errorf("%s: ended after %v", id, d)
					}
				case <-time.After(patience):
					t.Errorf("%s: the upstream call goes on", id)
				}
			})
		}
	}
	wait.Wait()
	eventually(t, "every exchange is free", func() bool { return g.s.open.Load() == 0 })
}

func TestAClientThatLeavesEndsAHandshake(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	g := start(t, plainConfig("https://"+ln.Addr().String()))
	w := g.dial()
	w.send(call(g.key, plainBody))
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := time.Now()
	_ = w.Close()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection stays: %v", err)
	}
	if d := time.Since(at); d > time.Second {
		t.Errorf("it ended after %v", d)
	}
	eventually(t, "the exchange is free", func() bool { return g.s.open.Load() == 0 })
}

// A TLS connection that is closed says goodbye first. To a peer that reads nothing
// that would take seconds, of the one goroutine that looks after all exchanges.
func TestAPeerThatReadsNothingDoesNotHoldUpAnAbort(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	cert := a.of("127.0.0.1", time.Now().Add(time.Hour))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	shaken := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil && tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake() == nil {
			shaken <- c
		}
	}()
	g := start(t, trusting("https://"+ln.Addr().String(), trust(t, t.TempDir(), a)))
	c, err := g.s.runtime.Load().upstreams["main"].dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer (<-shaken).Close()
	// As much as both ends' buffers take, so that one byte more has to wait.
	filler := make([]byte, 64<<10)
	for full := 0; full < 3; {
		_ = c.socket.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.socket.Write(filler); err == nil || n > 0 {
			full = 0
			continue
		}
		full++
	}
	_ = c.socket.SetWriteDeadline(time.Time{})
	ended := make(chan struct{})
	go func() { defer close(ended); _ = c.Close() }()
	select {
	case <-ended:
	case <-time.After(2 * time.Second): // TLS would give up after five
		t.Error("the abort waits for the peer")
	}
}
