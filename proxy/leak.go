package proxy

import (
	"bytes"
	"errors"
)

// errLeak ends a stream in which an upstream repeats its credential.
var errLeak = errors.New("an error event holds the target's credential")

// leaks says whether an upstream's own words hold the credential that it was called
// with, as it is or behind JSON's escapes.
func (u *upstream) leaks(b []byte) bool {
	if u.secret.Empty() {
		return false
	}
	secret := []byte(u.secret.Reveal())
	return bytes.Contains(b, secret) || bytes.IndexByte(b, '\\') >= 0 && bytes.Contains(unescaped(b), secret)
}

// unescaped undoes JSON's escapes of ASCII, as often as it can; a credential has
// nothing else.
func unescaped(b []byte) []byte {
	plain := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' || i+1 == len(b) {
			plain = append(plain, b[i])
			continue
		}
		if i+5 < len(b) && b[i+1] == 'u' && b[i+2] == '0' && b[i+3] == '0' {
			hi, ok1 := unhex(b[i+4])
			lo, ok2 := unhex(b[i+5])
			if ok1 && ok2 {
				plain = append(plain, hi<<4|lo)
				i += 5
				continue
			}
		}
		i++
		plain = append(plain, b[i]) // a quote, a slash or a backslash
	}
	return plain
}

// leaksEvent looks at events of a stream: only those that tell an error cost more
// than one search.
func (u *upstream) leaksEvent(b []byte) bool {
	return bytes.Contains(b, errorKey) && u.leaks(b)
}

var errorKey = []byte(`"error"`)
