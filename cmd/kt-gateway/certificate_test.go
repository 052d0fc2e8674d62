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
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// madePair is a certificate for 127.0.0.1 that signs itself, and its key, in PEM.
type madePair struct{ cert, key string }

func makePair(t testing.TB, serial int64, ends time.Time) madePair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "plane"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ends.Add(-2 * year), NotAfter: ends, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return madePair{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
	}
}

// kept writes files in a folder of the test's own.
func kept(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const year = 365 * 24 * time.Hour

func inAYear() time.Time { return time.Now().Add(year) }

// watchedPair is one whose files are looked at all the time.
func watchedPair(t *testing.T, first madePair) (p *pair, dir string, log *observer.ObservedLogs) {
	t.Helper()
	dir = t.TempDir()
	files := certificate{kept(t, dir, "tls.crt", first.cert), kept(t, dir, "tls.key", first.key)}
	core, log := observer.New(zapcore.InfoLevel)
	p, err := openPair(files, zap.New(core), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.watch(ctx, 5*time.Millisecond, nil) }()
	t.Cleanup(func() { cancel(); <-ended })
	return p, dir, log
}

func (p *pair) serial() int64 { return p.current.Load().Leaf.SerialNumber.Int64() }

func TestACertificateIsReplacedWithoutAFailedHandshake(t *testing.T) {
	t.Parallel()
	const swaps = 20
	roots := x509.NewCertPool()
	var made []madePair
	for i := range swaps + 1 {
		made = append(made, makePair(t, int64(i+1), inAYear()))
		roots.AppendCertsFromPEM([]byte(made[i].cert))
	}
	p, dir, _ := watchedPair(t, made[0])
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: p.config()}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	defer server.Close()

	var handshakes atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots})
				if err != nil {
					t.Errorf("after %d: %v", handshakes.Load(), err)
					return
				}
				handshakes.Add(1)
				_ = c.Close()
			}
		})
	}
	for i, next := range made[1:] {
		before := handshakes.Load()
		// One file after the other, in either order, and none whole at once.
		order := [][2]string{{"tls.crt", next.cert}, {"tls.key", next.key}}
		if i%2 == 1 {
			order[0], order[1] = order[1], order[0]
		}
		for _, f := range order {
			kept(t, dir, f[0], f[1][:len(f[1])/2])
			waitFor(t, "handshakes meanwhile", func() bool { return handshakes.Load() > before+2 || t.Failed() })
			kept(t, dir, f[0], f[1])
		}
		waitFor(t, "the next certificate", func() bool { return p.serial() == int64(i+2) || t.Failed() })
		before = handshakes.Load()
		waitFor(t, "handshakes with it", func() bool { return handshakes.Load() > before+5 || t.Failed() })
	}
	cancel()
	load.Wait()
	t.Logf("%d certificates, %d handshakes", swaps, handshakes.Load())
}

func TestWhatMayNotReplaceACertificate(t *testing.T) {
	t.Parallel()
	first, other := makePair(t, 1, inAYear()), makePair(t, 2, inAYear())
	gone, early := makePair(t, 3, time.Now().Add(-time.Hour)), makePair(t, 4, time.Now().Add(3*year))
	for _, tt := range []struct{ name, cert, key, want string }{
		{"a certificate without its key", other.cert, first.key, "private key does not match"},
		{"nothing", "", "", "failed to find any PEM data"},
		{"one that has ended", gone.cert, gone.key, "which is not now"},
		{"one that has not begun", early.cert, early.key, "which is not now"},
		{"no certificate", "-", first.key, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, dir, log := watchedPair(t, first)
			kept(t, dir, "tls.key", tt.key)
			if kept(t, dir, "tls.crt", tt.cert); tt.cert == "-" {
				_ = os.Remove(filepath.Join(dir, "tls.crt"))
			}
			waitFor(t, "the refusal", func() bool {
				for _, e := range log.FilterMessageSnippet("was not replaced").All() {
					text := e.ContextMap()["error"].(string)
					if strings.Contains(text, "BEGIN") {
						t.Errorf("told as %q", text)
					}
					if strings.Contains(text, tt.want) {
						return true
					}
				}
				return false
			})
			if p.serial() != 1 {
				t.Errorf("serial %d is in force", p.serial())
			}
			kept(t, dir, "tls.key", other.key)
			kept(t, dir, "tls.crt", other.cert)
			waitFor(t, "the certificate after it", func() bool { return p.serial() == 2 })
		})
	}
}

func TestHupReadsACertificateAtOnce(t *testing.T) {
	t.Parallel()
	first, next := makePair(t, 1, inAYear()), makePair(t, 2, inAYear())
	dir := t.TempDir()
	p, err := openPair(certificate{kept(t, dir, "c", first.cert), kept(t, dir, "k", first.key)}, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	hup := make(chan os.Signal, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.watch(ctx, time.Hour, hup) }()
	kept(t, dir, "c", next.cert)
	kept(t, dir, "k", next.key)
	hup <- os.Interrupt
	waitFor(t, "the next certificate", func() bool { return p.serial() == 2 })
	cancel()
	<-ended
}

func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	t.Parallel()
	p, _, _ := watchedPair(t, makePair(t, 1, inAYear()))
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		client, server := net.Pipe()
		go func() { _ = tls.Server(server, p.config()).Handshake() }()
		err := tls.Client(client, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}).Handshake()
		_ = client.Close()
		_ = server.Close()
		if got := err == nil; got != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

func TestAControlPlaneDoesNotStartWithoutItsCertificate(t *testing.T) {
	t.Parallel()
	first, other := makePair(t, 1, inAYear()), makePair(t, 2, inAYear())
	dir := t.TempDir()
	cert, key := kept(t, dir, "c", first.cert), kept(t, dir, "k", other.key)
	for _, tt := range []struct {
		files certificate
		want  string
	}{
		{certificate{cert, key}, "private key does not match"},
		{certificate{dir + "/absent", key}, "--tls-cert: open"},
		{certificate{cert, dir + "/absent"}, "--tls-key: open"},
		{certificate{key, key}, "PEM"},
	} {
		_, err := openPair(tt.files, zap.NewNop(), prometheus.NewRegistry())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.files, err, tt.want)
		}
	}
}
