package controlplane

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/keeptrusts/gateway/token"
)

// ImportLines makes of a file of tokens what Import sends: a `token` on a line becomes
// the sha256 of its string, which goes no further. Lines that can't be sent (a token
// of another form or prefix, none, no purpose, a token's string elsewhere on the line)
// are given to refused and left blank, so that lines keep their numbers. Legacy are
// the prefixes of opaque keys. Refused is called from another goroutine, until the
// reader's end; whoever stops reading before that closes it.
func ImportLines(file io.Reader, legacy []string, refused func(Imported)) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		at := 0 // lines written
		err := readLines(file, func(l importLine) bool {
			line, err := sendable(l, legacy)
			var p *problem
			if errors.As(err, &p) {
				refused(refusedLine(l.n, p))
				return true
			}
			line = append([]byte(strings.Repeat("\n", l.n-at-1)), append(line, '\n')...)
			at = l.n
			_, err = w.Write(line)
			return err == nil
		})
		_ = w.CloseWithError(err)
	}()
	return r
}

// sendable is a line with the digest in place of the string. Its error never repeats
// what the line holds.
func sendable(l importLine, legacy []string) ([]byte, error) {
	if l.long {
		return nil, refuse("body_too_large", "The line is longer than %d bytes.", maxImportLine)
	}
	o, p := readLoosely(l.raw)
	if p != nil {
		p.param = "" // it may be anything
		return nil, p
	}
	for key := range o {
		if key != "token" && fold(key) == fold("token") {
			return nil, refuse("ambiguous_key", "The key must be spelt token.")
		}
	}
	secret, has := o["token"].(string)
	switch {
	case o["token"] != nil && !has:
		return nil, refuse("invalid_value", "token must be a string.")
	case has && o["sha256"] != nil:
		return nil, refuse("invalid_value", "A line holds token or sha256, not both.")
	case !has && o["sha256"] == nil:
		return nil, refuse("missing_required_parameter", "A line holds token, which is hashed here, or sha256.")
	case has && !token.WellFormed([]byte(secret), legacy):
		return nil, refuse("invalid_value", "The token is of another form: allowed are minted ones with a right checksum, and 20 to 256 characters of A-Z a-z 0-9 . _ ~ - that open with one of %s.",
			strings.Join(legacy, ", "))
	case o["purpose"] == nil:
		return nil, refuse("missing_required_parameter", "purpose is required; it is not read from a string's prefix.")
	}
	delete(o, "token")
	if has {
		o["sha256"] = token.Sum([]byte(secret)).String()
	}
	line, err := json.Marshal(o)
	if err != nil {
		panic("BUG: what was read does not encode: " + err.Error())
	}
	if _, p := readObject(line, legacy); p != nil {
		p.param = ""
		return nil, p
	}
	if has && strings.Contains(string(line), secret) {
		return nil, refuse("invalid_value", "The token's string stands elsewhere on the line too.")
	}
	return line, nil
}
