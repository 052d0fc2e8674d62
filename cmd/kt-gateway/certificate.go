package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// certificateEvery is how often the files of a certificate are looked at.
const certificateEvery = time.Second

// certificate names the files for https; both are empty for http.
type certificate struct{ cert, key string }

// pair is the certificate and key in force. Its files may change while it serves, one
// after the other: what is in force stays until both belong together. Safe for
// concurrent use.
type pair struct {
	files   certificate
	log     *zap.Logger
	current atomic.Pointer[tls.Certificate]

	// Of whoever looks at the files alone.
	known  [sha256.Size]byte // the content that was looked at last
	broken bool              // it was no pair, and that has not been told yet
}

// openPair reads the files; its error says what is wrong with them.
func openPair(files certificate, log *zap.Logger, r prometheus.Registerer) (*pair, error) {
	p := &pair{files: files, log: log}
	content, err := p.read()
	if err != nil {
		return nil, err
	}
	c, err := content.pair()
	if err != nil {
		return nil, err
	}
	p.known = content.sum()
	p.use(c)
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keeptrusts_gateway_tls_certificate_expiry_timestamp_seconds",
		Help: "When the control plane's certificate in force ends, in Unix seconds.",
	}, func() float64 { return float64(p.current.Load().Leaf.NotAfter.Unix()) }))
	return p, nil
}

// config is for a server that takes new certificates while it runs.
func (p *pair) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load(), nil },
	}
}

// watch looks at the files at each tick, and at once on hup, until ctx ends.
func (p *pair) watch(ctx context.Context, every time.Duration, hup <-chan os.Signal) {
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		case _, open := <-hup:
			if !open {
				hup = nil
			}
		}
		p.look()
	}
}

// look puts changed files into force. Files that do not belong together are told of
// when they stay so: between the writing of the two they never do.
func (p *pair) look() {
	content, err := p.read()
	sum := content.sum()
	if err != nil {
		sum = sha256.Sum256([]byte(err.Error()))
	}
	if sum == p.known {
		if p.broken {
			p.broken = false
			if err == nil {
				_, err = p.next(content)
			}
			p.log.Error("the certificate was not replaced: the one before stays in force", zap.Error(err))
		}
		return
	}
	p.known, p.broken = sum, true
	if err != nil {
		return
	}
	if c, err := p.next(content); err == nil {
		p.broken = false
		p.use(c)
	}
}

// next is what the files hold, where it may follow what is in force.
func (p *pair) next(f pairFiles) (*tls.Certificate, error) {
	c, err := f.pair()
	if err == nil && !counts(c) && counts(p.current.Load()) {
		err = fmt.Errorf("%s is good from %s to %s, which is not now", f.names.cert,
			c.Leaf.NotBefore.UTC().Format(time.RFC3339), c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return c, err
}

func (p *pair) use(c *tls.Certificate) {
	p.current.Store(c)
	fields := []zap.Field{zap.String("file", p.files.cert), zap.Stringer("serial", c.Leaf.SerialNumber), zap.Time("good_until", c.Leaf.NotAfter)}
	if !counts(c) {
		p.log.Warn("the certificate in force is not good at this time: clients will refuse it", fields...)
		return
	}
	p.log.Info("a certificate is in force", fields...)
}

// counts says whether a client takes it at this time.
func counts(c *tls.Certificate) bool {
	now := time.Now()
	return !now.Before(c.Leaf.NotBefore) && !now.After(c.Leaf.NotAfter)
}

// pairFiles are both files as they were at one look.
type pairFiles struct {
	names     certificate
	cert, key []byte
}

func (p *pair) read() (f pairFiles, err error) {
	f.names = p.files
	if f.cert, err = os.ReadFile(p.files.cert); err != nil {
		return f, fmt.Errorf("--tls-cert: %w", err)
	}
	if f.key, err = os.ReadFile(p.files.key); err != nil {
		return f, fmt.Errorf("--tls-key: %w", err)
	}
	return f, nil
}

func (f pairFiles) sum() [sha256.Size]byte {
	cert := sha256.Sum256(f.cert)
	return sha256.Sum256(append(cert[:], f.key...))
}

// pair fails unless both belong together.
func (f pairFiles) pair() (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.names.cert, f.names.key, err)
	}
	return &c, nil
}
