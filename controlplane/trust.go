package controlplane

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// trustEvery is how often a CA bundle is looked at, at most: at a call.
const trustEvery = time.Second

// trust is the client's way to the control plane: whom it takes for it follows the
// file of its CA bundle. Safe for concurrent use.
type trust struct {
	ca  string // path of the bundle; "": the system's
	now func() time.Time

	mu     sync.Mutex
	client *http.Client
	bundle []byte // what client trusts
	looked time.Time
}

// newTrust fails where the bundle can't be used.
func newTrust(ca string) (*trust, error) {
	t := &trust{ca: ca, now: time.Now}
	bundle, roots, err := t.read()
	if err != nil {
		return nil, err
	}
	t.bundle, t.client, t.looked = bundle, newHTTP(roots), t.now()
	return t, nil
}

// Do makes one call.
func (t *trust) Do(req *http.Request) (*http.Response, error) { return t.current().Do(req) }

// current is the client to call with. A bundle that changed makes a new one, which
// dials anew; calls under way end on the old one. A bundle that can't be used leaves
// the one before in force: its file may be half-written.
func (t *trust) current() *http.Client {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ca == "" || t.now().Sub(t.looked) < trustEvery {
		return t.client
	}
	t.looked = t.now()
	bundle, roots, err := t.read()
	if err != nil || bytes.Equal(bundle, t.bundle) {
		return t.client
	}
	t.client.CloseIdleConnections()
	t.bundle, t.client = bundle, newHTTP(roots)
	return t.client
}

// CloseIdleConnections ends those on which no call is under way.
func (t *trust) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.client.CloseIdleConnections()
}

func (t *trust) read() (bundle []byte, roots *x509.CertPool, err error) {
	if t.ca == "" {
		return nil, nil, nil
	}
	if bundle, err = os.ReadFile(t.ca); err != nil {
		return nil, nil, fmt.Errorf("read the CA bundle: %w", err)
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, nil, fmt.Errorf("the CA bundle %s holds no certificate", t.ca)
	}
	return bundle, roots, nil
}

func newHTTP(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    5 * time.Second,
			MaxIdleConnsPerHost:    64,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
		},
		// A redirect would take the credential, or the call's meaning, elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
