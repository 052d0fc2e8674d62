package config

import (
	"crypto/x509"
	"errors"
	"fmt"
)

const maxBundle = 4 << 20 // bytes

// bundleUse is a file of certificates and where the configuration names it.
type bundleUse struct {
	file string
	line int
	path string
}

// Roots reads the authorities that CA names now. nil: there is no CA, and the
// system's hold.
func (t *Target) Roots() (*x509.CertPool, error) {
	if t.CA == "" {
		return nil, nil
	}
	return readBundle(t.CA)
}

// readBundle fails unless the file holds a certificate.
func readBundle(file string) (*x509.CertPool, error) {
	b, err := readAtMost(file, maxBundle)
	if err != nil {
		return nil, fmt.Errorf("read the CA bundle: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, errors.New("the CA bundle " + file + " holds no certificate in PEM")
	}
	return pool, nil
}
