package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/token"
)

// authority signs itself, for 127.0.0.1.
func authority(t *testing.T, serial int64) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAClientFollowsItsCABundle(t *testing.T) {
	t.Parallel()
	first, firstPEM := authority(t, 1)
	second, secondPEM := authority(t, 2)
	var current atomic.Pointer[tls.Certificate]
	var dials atomic.Int32
	current.Store(&first)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":{"message":"unknown","code":"token_not_found"}}`)
	}))
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		dials.Add(1)
		return &tls.Config{Certificates: []tls.Certificate{*current.Load()}}, nil
	}}
	web.StartTLS()
	defer web.Close()

	bundle := filepath.Join(t.TempDir(), "ca.pem")
	write := func(content ...[]byte) {
		t.Helper()
		if err := os.WriteFile(bundle, []byte(strings.Join(texts(content), "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(firstPEM)
	c := client(t, ClientOptions{URL: web.URL, CA: bundle}, "s")
	clock := time.Now()
	c.http.now = func() time.Time { return clock }
	call := func() error {
		_, err := c.Resolve(context.Background(), token.Digest{})
		if errors.Is(err, token.ErrUnknown) {
			return nil
		}
		return err
	}
	later := func() { clock = clock.Add(trustEvery) }

	for range 3 {
		later()
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections with a bundle that stayed", n)
	}
	current.Store(&second)
	web.CloseClientConnections()
	if err := call(); err == nil {
		t.Error("an authority that is not in the bundle was believed")
	}
	write(firstPEM, secondPEM)
	if err := call(); err == nil {
		t.Error("the bundle was read twice within a second")
	}
	later()
	if err := call(); err != nil {
		t.Errorf("after the bundle has changed: %v", err)
	}
	// What is no bundle, or is gone, changes nothing.
	write([]byte("-----BEGIN CERTIFICATE-----\nMII"))
	later()
	c.http.CloseIdleConnections()
	if err := call(); err != nil {
		t.Errorf("with a bundle that is half there: %v", err)
	}
	if err := os.Remove(bundle); err != nil {
		t.Fatal(err)
	}
	later()
	c.http.CloseIdleConnections()
	if err := call(); err != nil {
		t.Errorf("without the bundle: %v", err)
	}
	write(firstPEM)
	later()
	if err := call(); err == nil {
		t.Error("an authority that was taken out is still believed")
	}
}

func texts(b [][]byte) (s []string) {
	for _, one := range b {
		s = append(s, string(one))
	}
	return s
}
