// Package token is the API token's string: its form and checksum, minting, its
// digest, and a type that never prints it. Pure: no I/O but the randomness it is
// handed. Everything here is safe for concurrent use.
//
// A minted token is Prefix, 43 base62 characters of randomness and 6 of checksum:
// the CRC-32 (IEEE) of all that stands before, big-endian in base62. A mistyped
// or made-up string is so refused without asking anyone. What is kept of a token
// is its SHA-256, a Digest; the string itself is a Secret, in the answer that
// mints it and in its owner's requests, and nowhere else.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// Prefix opens every token that this system mints. It tells nothing of the
// token's profile.
const Prefix = "kt_live_"

const (
	randomLen   = 43 // base62 characters: 256 bits
	checksumLen = 6  // base62 characters: CRC-32 needs no more
	// Len is the length of a minted token in bytes.
	Len = len(Prefix) + randomLen + checksumLen

	// MinLegacyLen is the least length of a legacy key, in bytes.
	MinLegacyLen = 20
	maxLegacyLen = 256

	maxHintPrefix = 12 // bytes: a prefix, not the randomness after it
)

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

var (
	// ErrForm says that a string is no token: its form or checksum is wrong, so
	// nobody needs to be asked about it.
	ErrForm = errors.New("not a token: wrong form or checksum")
	// ErrUnknown is what a look-up answers when no token has the digest.
	ErrUnknown = errors.New("no token has this digest")
)

// Mint makes a new token from crypto/rand.
func Mint() Secret {
	s, err := mint(rand.Reader)
	if err != nil {
		panic("BUG: crypto/rand failed: " + err.Error()) // it never does: it ends the process itself
	}
	return s
}

func mint(random io.Reader) (Secret, error) {
	b := make([]byte, 0, Len)
	b = append(b, Prefix...)
	var buf [64]byte
	for len(b) < len(Prefix)+randomLen {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return Secret{}, fmt.Errorf("mint a token: %w", err)
		}
		for _, c := range buf {
			// 248 = 4·62: above it the alphabet's first letters would come up more often.
			if c < 248 && len(b) < len(Prefix)+randomLen {
				b = append(b, alphabet[c%62])
			}
		}
	}
	sum := checksum(b)
	return NewSecret(string(append(b, sum[:]...))), nil
}

func checksum(b []byte) (c [checksumLen]byte) {
	sum := crc32.ChecksumIEEE(b)
	for i := checksumLen - 1; i >= 0; i-- {
		c[i] = alphabet[sum%62]
		sum /= 62
	}
	return c
}

// WellFormed says whether b has a minted token's form and checksum, or opens
// with one of the legacy prefixes and has a legacy key's form: 20 to 256
// characters of A-Z a-z 0-9 . _ ~ -. What opens with Prefix is never a legacy key,
// whatever the prefixes are. It does not allocate and does not keep b.
func WellFormed(b []byte, legacy []string) bool {
	if len(b) >= len(Prefix) && string(b[:len(Prefix)]) == Prefix {
		if len(b) != Len {
			return false
		}
		for _, c := range b[len(Prefix):] {
			if !alphanumeric(c) {
				return false
			}
		}
		return checksum(b[:Len-checksumLen]) == [checksumLen]byte(b[Len-checksumLen:])
	}
	if len(b) < MinLegacyLen || len(b) > maxLegacyLen {
		return false
	}
	for _, p := range legacy {
		if len(p) > 0 && len(b) > len(p) && string(b[:len(p)]) == p {
			return legacyForm(b)
		}
	}
	return false
}

func legacyForm(b []byte) bool {
	for _, c := range b {
		if !alphanumeric(c) && c != '.' && c != '_' && c != '~' && c != '-' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// Parse takes a string that should be a token. Its error is ErrForm and never
// holds the string.
func Parse(s string, legacy []string) (Secret, error) {
	if !WellFormed([]byte(s), legacy) {
		return Secret{}, ErrForm
	}
	return NewSecret(s), nil
}

// Secret is a string that must not be seen: a token, a provider's credential, an
// administrator's bearer. Every way of printing it gives its hint; only Reveal
// gives the string, for the one place that sends it. The zero Secret is empty.
// Secrets can't be compared with ==: compare digests, or in constant time.
type Secret struct {
	_ [0]func()
	// A pointer, because fmt prints an unexported field, and anything under %p,
	// without asking its methods: then it gives an address.
	s *string
}

// NewSecret wraps a string of any form.
func NewSecret(s string) Secret { return Secret{s: &s} }

// Reveal returns the string itself.
func (s Secret) Reveal() string {
	if s.s == nil {
		return ""
	}
	return *s.s
}

// Empty says whether there is no string at all.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// Digest returns the string's SHA-256: what is kept instead of it.
func (s Secret) Digest() Digest { return Sum([]byte(s.Reveal())) }

// Hint returns what people may see: of a long string that opens with "kt_" its
// prefix, up to the second underscore, and its last four characters; of anything
// else nothing, since it may be short of randomness.
func (s Secret) Hint() string {
	const nothing = "…"
	v := s.Reveal()
	if len(v) < MinLegacyLen || !strings.HasPrefix(v, "kt_") {
		return nothing
	}
	second := strings.IndexByte(v[len("kt_"):min(len(v), maxHintPrefix)], '_')
	if second < 0 {
		return nothing
	}
	return v[:len("kt_")+second+1] + "…" + v[len(v)-4:]
}

// String gives the hint, as do all that follow.
func (s Secret) String() string { return s.Hint() }

// GoString gives the hint.
func (s Secret) GoString() string { return s.Hint() }

// Format gives the hint under every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.Hint()) }

// MarshalText gives the hint, so that JSON and YAML hold no secret by accident.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.Hint()), nil }

// Digest is the SHA-256 of a token's string: the key of every look-up, and all
// that is known of a token at rest.
type Digest [sha256.Size]byte

// Sum digests a token's string. It does not allocate.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// ParseDigest reads 64 hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hex.EncodedLen(len(d)) {
		return d, fmt.Errorf("a SHA-256 is 64 hexadecimal digits, got %d characters", len(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return d, errors.New("a SHA-256 is 64 hexadecimal digits")
	}
	return d, nil
}

// String gives 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText gives the same as String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDigest reads.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	if err == nil {
		*d = v
	}
	return err
}
