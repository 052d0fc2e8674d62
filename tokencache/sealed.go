package tokencache

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/keeptrusts/gateway/token"
)

// A sealed file is a magic, a random salt and chunks of AES-256-GCM. The key is
// HKDF-SHA256 of the secret and the salt, so each file has its own. A chunk's nonce is
// its number and whether it is the last (the STREAM construction), so that chunks can be
// neither cut off, put in another order nor taken from another file. What Seal binds is
// authenticated with each chunk.

const (
	sealedMagic = "ktseal1\n"
	saltLen     = 32
	chunkLen    = 64 << 10 // of plain text; only the last chunk is shorter
	tagLen      = 16
)

var (
	// ErrSealed says that a sealed file is not whole, not this secret's, or not bound as expected.
	ErrSealed = errors.New("it was changed, cut, or sealed for another gateway or with another runtime token")
	// ErrNotSealed says that a file is no sealed file of this version.
	ErrNotSealed = errors.New("it is no sealed file of this version")
)

// Salt is what tells a sealed file from every other.
type Salt [saltLen]byte

// Seal says how a file is sealed: with which secret, and to what it is bound, a list
// that must be equal when it is opened.
type Seal struct {
	Secret token.Secret
	Bound  []string
}

// cipher gives the key of one file, and what is authenticated with each chunk.
func (s Seal) cipher(salt *Salt) (cipher.AEAD, []byte, error) {
	key, err := hkdf.Key(sha256.New, []byte(s.Secret.Reveal()), salt[:], "keeptrusts gateway sealed file 1", 32)
	if err != nil {
		return nil, nil, fmt.Errorf("derive a key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, fmt.Errorf("derive a key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, nil, fmt.Errorf("derive a key: %w", err)
	}
	bound := []byte(sealedMagic)
	for _, b := range s.Bound {
		bound = binary.BigEndian.AppendUint32(bound, uint32(len(b)))
		bound = append(bound, b...)
	}
	return aead, bound, nil
}

// chunkNonce is never used twice: a file has a key of its own.
func chunkNonce(n uint64, last bool) []byte {
	var b [12]byte
	binary.BigEndian.PutUint64(b[3:11], n)
	if last {
		b[11] = 1
	}
	return b[:]
}

// Sealer writes a sealed file; Close ends it, and only then is it whole.
type Sealer struct {
	Salt Salt

	w     io.Writer
	aead  cipher.AEAD
	bound []byte
	buf   []byte // of plain text
	out   []byte
	n     uint64
	err   error
}

// Writer begins a sealed file.
func (s Seal) Writer(w io.Writer) (*Sealer, error) {
	o := &Sealer{w: w, buf: make([]byte, 0, chunkLen), out: make([]byte, 0, chunkLen+tagLen)}
	_, _ = rand.Read(o.Salt[:]) // it never fails: it ends the process itself
	var err error
	if o.aead, o.bound, err = s.cipher(&o.Salt); err != nil {
		return nil, err
	}
	_, err = w.Write(append([]byte(sealedMagic), o.Salt[:]...))
	return o, err
}

// Write takes plain text.
func (o *Sealer) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 && o.err == nil {
		if len(o.buf) == chunkLen { // there is more: it is not the last one
			o.flush(false)
		}
		n := min(len(b), chunkLen-len(o.buf))
		o.buf, b = append(o.buf, b[:n]...), b[n:]
		written += n
	}
	return written, o.err
}

func (o *Sealer) flush(last bool) {
	if o.err != nil {
		return
	}
	o.out = o.aead.Seal(o.out[:0], chunkNonce(o.n, last), o.buf, o.bound)
	o.n++
	o.buf = o.buf[:0]
	_, o.err = o.w.Write(o.out)
}

// Close writes the end.
func (o *Sealer) Close() error {
	o.flush(true)
	return o.err
}

// Unsealer reads a sealed file. What it gave is authentic as soon as it is given; that
// it is all is known at io.EOF only, which comes after the last chunk and nothing else.
type Unsealer struct {
	Salt Salt

	r     *bufio.Reader
	aead  cipher.AEAD
	bound []byte
	in    []byte
	left  []byte // of plain text
	n     uint64
	ended bool
	err   error
}

// Reader opens a sealed file. Its error is ErrNotSealed, or that of r; reading fails
// with ErrSealed.
func (s Seal) Reader(r io.Reader) (*Unsealer, error) {
	u := &Unsealer{r: bufio.NewReaderSize(r, chunkLen+tagLen+1), in: make([]byte, chunkLen+tagLen)}
	head := make([]byte, len(sealedMagic)+saltLen)
	if _, err := io.ReadFull(u.r, head); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, ErrNotSealed
		}
		return nil, err
	}
	if string(head[:len(sealedMagic)]) != sealedMagic {
		return nil, ErrNotSealed
	}
	u.Salt = Salt(head[len(sealedMagic):])
	var err error
	u.aead, u.bound, err = s.cipher(&u.Salt)
	return u, err
}

// Read gives plain text.
func (u *Unsealer) Read(b []byte) (int, error) {
	for len(u.left) == 0 {
		switch {
		case u.err != nil:
			return 0, u.err
		case u.ended:
			return 0, io.EOF
		}
		u.left, u.err = u.chunk()
	}
	n := copy(b, u.left)
	u.left = u.left[n:]
	return n, nil
}

// chunk opens the next one. It is the last where the file ends with it.
func (u *Unsealer) chunk() ([]byte, error) {
	n, err := io.ReadFull(u.r, u.in)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, err
	}
	last := n < len(u.in)
	if !last {
		_, err := u.r.Peek(1)
		if last = err == io.EOF; err != nil && !last {
			return nil, err
		}
	}
	if n < tagLen {
		return nil, ErrSealed // the last chunk is missing
	}
	plain, err := u.aead.Open(u.in[:0], chunkNonce(u.n, last), u.in[:n], u.bound)
	if err != nil {
		return nil, ErrSealed
	}
	u.n++
	u.ended = last
	return plain, nil
}
