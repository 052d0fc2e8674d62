// Package dialect is how each client and provider writes a call, usage and an
// error: strict reading, and the few edits that a gateway makes. Pure: bytes in,
// bytes out. Nothing here keeps what it is handed, but where it says so.
package dialect

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// maxDepth bounds the objects and arrays inside one another, the whole included:
// parsers of other languages give up not far above.
const maxDepth = 512

// Problem is what is wrong with a body: a code of the error table, the field that
// it is about, and a sentence for the caller, which never repeats a value.
type Problem struct{ Code, Param, Message string }

// The codes that reading a body may give.
const (
	invalidJSON  = "invalid_json"
	ambiguousKey = "ambiguous_key"
	missingModel = "missing_model"
	invalidValue = "invalid_value"
)

// Span is b[Start:End] of a body.
type Span struct{ Start, End int }

// scanner walks strict JSON (RFC 8259). fault is "" while all is well.
type scanner struct {
	b     []byte
	i     int
	fault string
	hints hints // of the objects that were skipped
}

func (s *scanner) fail(fault string) bool {
	if s.fault == "" {
		s.fault = fault
	}
	return false
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// next passes over white space and returns the byte there; 0 at the end.
func (s *scanner) next() byte {
	s.space()
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// word takes one of true, false and null.
func (s *scanner) word(w string) bool {
	if bytes.HasPrefix(s.b[s.i:], []byte(w)) {
		s.i += len(w)
		return true
	}
	return s.fail("a value is malformed")
}

// skip passes over one value of any kind; around is how many objects and arrays
// it stands in.
func (s *scanner) skip(around int) bool {
	switch c := s.next(); {
	case c == '"':
		_, _, ok := s.str()
		return ok
	case c == '{':
		return s.skipObject(around)
	case c == '[':
		return s.skipArray(around)
	case c == 't':
		return s.word("true")
	case c == 'f':
		return s.word("false")
	case c == 'n':
		return s.word("null")
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case s.i >= len(s.b):
		return s.fail("it ends too early")
	}
	return s.fail("a value is malformed")
}

func (s *scanner) skipObject(around int) bool {
	if around >= maxDepth {
		return s.fail("it is nested too deeply")
	}
	s.i++
	if s.next() == '}' {
		s.i++
		return true
	}
	for {
		if s.next() != '"' {
			return s.fail("a key is missing or not quoted")
		}
		span, escaped, ok := s.str()
		if !ok {
			return false
		}
		s.hints.see(s.b[span.Start:span.End], escaped)
		if !s.colon() || !s.skip(around+1) {
			return false
		}
		if more, ok := s.comma('}'); !ok || !more {
			return ok
		}
	}
}

func (s *scanner) skipArray(around int) bool {
	if around >= maxDepth {
		return s.fail("it is nested too deeply")
	}
	s.i++
	if s.next() == ']' {
		s.i++
		return true
	}
	for {
		if !s.skip(around + 1) {
			return false
		}
		if more, ok := s.comma(']'); !ok || !more {
			return ok
		}
	}
}

func (s *scanner) colon() bool {
	if s.next() != ':' {
		return s.fail("a colon is missing after a key")
	}
	s.i++
	return true
}

// comma takes a comma (more) or the closing byte.
func (s *scanner) comma(end byte) (more, ok bool) {
	switch s.next() {
	case ',':
		s.i++
		return true, true
	case end:
		s.i++
		return false, true
	}
	return false, s.fail("a comma or a closing bracket is missing")
}

func (s *scanner) number() bool {
	if s.b[s.i] == '-' {
		s.i++
	}
	switch {
	case s.i < len(s.b) && s.b[s.i] == '0':
		s.i++
	case !s.digits():
		return s.fail("a number is malformed")
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		if !s.digits() {
			return s.fail("a number is malformed")
		}
	}
	if s.i < len(s.b) && s.b[s.i]|0x20 == 'e' {
		s.i++
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		if !s.digits() {
			return s.fail("a number is malformed")
		}
	}
	return true
}

func (s *scanner) digits() bool {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

// str takes a string and returns where its content lies and whether it has
// escapes. Its UTF-8 was checked with the whole body.
func (s *scanner) str() (content Span, escaped, ok bool) {
	s.i++
	content.Start = s.i
	for {
		s.i += plainRun(s.b[s.i:])
		if s.i >= len(s.b) {
			return content, false, s.fail("it ends inside a string")
		}
		switch c := s.b[s.i]; {
		case c == '"':
			content.End = s.i
			s.i++
			return content, escaped, true
		case c == '\\':
			escaped = true
			if !s.escape() {
				return content, true, false
			}
		default:
			return content, escaped, s.fail("a control character in a string must be escaped")
		}
	}
}

// textLen takes a string and returns how many bytes it has without its escapes, or
// more: each half of a surrogate pair counts as what a lone one becomes. A string
// that does not end leaves a fault.
func (s *scanner) textLen() int64 {
	s.i++
	from, saved := s.i, 0
	for {
		s.i += plainRun(s.b[s.i:])
		if s.i+1 >= len(s.b) || s.b[s.i] != '\\' {
			break
		}
		if s.b[s.i+1] != 'u' {
			saved++
			s.i += 2
			continue
		}
		r, _ := hex4(s.b[s.i+2:])
		switch {
		case r < 0x80:
			saved += 5
		case r < 0x800:
			saved += 4
		default:
			saved += 3
		}
		s.i = min(s.i+6, len(s.b))
	}
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		s.fail("it ends inside a string")
		return int64(max(0, s.i-from-saved))
	}
	s.i++
	return int64(s.i - 1 - from - saved)
}

func (s *scanner) escape() bool {
	if s.i+1 >= len(s.b) {
		return s.fail("it ends inside a string")
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return true
	case 'u':
		if _, ok := hex4(s.b[s.i+2:]); ok {
			s.i += 6
			return true
		}
	}
	return s.fail("an escape in a string is malformed")
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// plainRun counts the bytes before the first quote, backslash or control
// character, eight at a time.
func plainRun(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; n+8 <= len(b); n += 8 {
		v := binary.LittleEndian.Uint64(b[n:])
		quote, slash := v^(ones*'"'), v^(ones*'\\')
		// A byte's high bit is set where the byte is 0, or in the last line below
		// 0x20; borrows can only mark bytes above a true one, and the lowest counts.
		hit := (quote-ones)&^quote | (slash-ones)&^slash | (v-ones*' ')&^v
		if hit &= highs; hit != 0 {
			return n + bits.TrailingZeros64(hit)/8
		}
	}
	for ; n < len(b); n++ {
		if c := b[n]; c < ' ' || c == '"' || c == '\\' {
			break
		}
	}
	return n
}

// appendUnescaped appends a string's content without its escapes. ok is false
// for a lone surrogate, which readers turn into different things.
func appendUnescaped(dst, content []byte) (out []byte, ok bool) {
	for i := 0; i < len(content); {
		c := content[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		i += 2
		switch e := content[i-1]; e {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, _ := hex4(content[i:])
			i += 4
			if r >= 0xd800 && r < 0xe000 {
				low, paired := rune(0), r < 0xdc00 && i+6 <= len(content) && content[i] == '\\' && content[i+1] == 'u'
				if paired {
					low, _ = hex4(content[i+2:])
				}
				if low < 0xdc00 || low > 0xdfff {
					return dst, false
				}
				i += 6
				r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, e)
		}
	}
	return dst, true
}

// appendString appends s, which is valid UTF-8, as a JSON string.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ' || c == 0x7f:
			const hexDigits = "0123456789abcdef"
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // bytes that are no UTF-8 become U+FFFD
			i += n - 1
		}
	}
	return append(dst, '"')
}
