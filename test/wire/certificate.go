package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// authority is a CA of the trial.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "wire CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, err
}

// issue writes a certificate for loopback and its key over two files, one after the
// other, as certbot and Kubernetes' neighbours do.
func (a *authority) issue(serial int64, cert, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	time.Sleep(time.Duration(serial%5) * 300 * time.Millisecond) // the two don't match meanwhile
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600)
}

// certificate swaps the control plane's certificate again and again while clients
// shake hands without pause and a gateway follows.
func certificate(ctx context.Context, t *trial) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	cert, key, bundle := t.path("cert.pem"), t.path("key.pem"), t.path("ca.pem")
	if err := ca.issue(100, cert, key); err != nil {
		return err
	}
	if err := os.WriteFile(bundle, ca.pem, 0o600); err != nil {
		return err
	}
	p, roots, err := tlsPlane(ctx, t, ca, cert, key)
	if err != nil {
		return err
	}
	l, err := p.follower(ctx, "gw_tls")
	if err != nil {
		return err
	}
	l.plane = l.plane[:len(l.plane)-1] + `, ca: "` + bundle + `"}`
	g, err := newGateway(ctx, t, l)
	if err != nil {
		return err
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	var shaken, failed atomic.Int64
	var mu sync.Mutex
	met := map[string]bool{}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for load.Err() == nil {
				serial, err := handshake(p.addr, roots)
				if shaken.Add(1); err != nil {
					failed.Add(1)
					t.miss("handshake: %v", err)
				}
				mu.Lock()
				met[serial] = true
				mu.Unlock()
			}
		})
	}
	swaps := t.count(6, 3)
	for i := range swaps {
		rig.Pause(ctx, time.Second)
		serial := int64(101 + i)
		if err := ca.issue(serial, cert, key); err != nil {
			return err
		}
		served := settled(ctx, 10*time.Second, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return met[fmt.Sprint(serial)]
		})
		if !served {
			t.miss("certificate %d is not served 10 s after it was written", serial)
		}
	}
	stop()
	all.Wait()
	t.figure(failed.Load() == 0, "0", "%d of %d handshakes failed over %d swaps of the certificate", failed.Load(), shaken.Load(), swaps)
	t.figure(len(met) == swaps+1, "all", "%d certificates met of %d", len(met), swaps+1)
	if _, err := tls.Dial("tcp", p.addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}); err == nil {
		t.miss("TLS 1.1 is taken")
	}
	tok, err := p.mint(ctx, minting{})
	if err != nil {
		return err
	}
	ok := settled(ctx, time.Second, func() bool { return g.call(ctx, tok.Token, call{}).status == 200 })
	t.figure(ok, "1 s", "a token minted after the swaps is served by a gateway that follows: %t", ok)
	g.sound(ctx, tok.Token)
	return nil
}

// tlsPlane is a control plane with a certificate from files.
func tlsPlane(ctx context.Context, t *trial, ca *authority, cert, key string) (*plane, *x509.CertPool, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	rt := &http.Transport{MaxIdleConnsPerHost: 4, TLSClientConfig: &tls.Config{RootCAs: roots}}
	p := &plane{admin: newAdmin("https://"+addr, rand.Text(), rt), addr: addr}
	t.closers = append(t.closers, p.client.CloseIdleConnections)
	p.child, err = t.start("plane", []string{"KEEPTRUSTS_ADMIN_TOKEN=" + p.bearer}, "control-plane", "--database", "sqlite:"+t.path("plane.db"), "--listen", addr, "--tls-cert", cert, "--tls-key", key)
	if err != nil {
		return nil, nil, err
	}
	ready := settled(ctx, 20*time.Second, func() bool {
		_, err := get(ctx, p.client, "https://"+addr+"/readyz")
		return err == nil
	})
	if !ready {
		return nil, nil, fmt.Errorf("the control plane is not ready\n%s", p.child.Tail())
	}
	return p, roots, nil
}

// handshake shakes hands and says which certificate was served.
func handshake(addr string, roots *x509.CertPool) (serial string, err error) {
	d := &net.Dialer{Timeout: 5 * time.Second}
	conn, err := tls.DialWithDialer(d, "tcp", addr, &tls.Config{RootCAs: roots})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}
