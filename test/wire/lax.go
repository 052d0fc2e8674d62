package main

import (
	"bytes"
	"strconv"
	"strings"
)

// lax is a parser as servers in the field have them: each is tolerant in its own
// way. What they read in different ways is what must never reach them.
type lax struct {
	name       string
	lf         bool // an LF alone ends a line
	cr         bool // so does a CR alone
	joins      bool // a folded line continues the one before; else it is left out
	trimsName  bool // white space before a colon is none
	underscore bool // an underscore in a name is a dash, as CGI has it
	nul        bool // a value ends at a NUL
	length     bool // a length wins over a coding; else the coding wins
	last       bool // of two fields the last counts; else the first
	contains   bool // any coding that contains "chunked" is it; else the last of the list must be
	prefix     bool // a number ends where its digits do, and may have a sign or 0x
	bits       int  // of a chunk's size; it wraps
}

// panel is the lax parsers that every case is read by.
var panel = []lax{
	{name: "as the RFC allows", lf: true, joins: true, bits: 64},
	{name: "length first", length: true, lf: true, bits: 64},
	{name: "coding by a search", contains: true, trimsName: true, bits: 64},
	{name: "the last field counts", last: true, joins: true, lf: true, prefix: true, bits: 64},
	{name: "names as in CGI", underscore: true, trimsName: true, bits: 64},
	{name: "C strings", nul: true, lf: true, prefix: true, bits: 32},
	{name: "CR is a line end", cr: true, lf: true, contains: true, bits: 64},
	{name: "folds are left out", lf: true, length: true, last: true, prefix: true, bits: 32},
}

// read takes the first request, as far as this parser understands it.
func (p *lax) read(b []byte) (r *request, n int, ok bool) {
	at := 0
	next := func() (string, bool) {
		for i := at; i < len(b); i++ {
			switch {
			case b[i] == '\n' && (p.lf || i > at && b[i-1] == '\r'):
				line := strings.TrimSuffix(string(b[at:i]), "\r")
				at = i + 1
				return line, true
			case b[i] == '\r' && p.cr && (i+1 == len(b) || b[i+1] != '\n'):
				line := string(b[at:i])
				at = i + 1
				return line, true
			}
		}
		return "", false
	}
	line, ok := next()
	for ok && line == "" {
		line, ok = next()
	}
	words := strings.Fields(line)
	if !ok || len(words) < 2 {
		return nil, 0, false
	}
	r = &request{method: words[0], target: words[1]}
	for {
		line, ok := next()
		if !ok {
			return nil, 0, false
		}
		if line == "" {
			break
		}
		p.field(r, line)
	}
	used, ok := p.frame(r, b[at:])
	return r, at + used, ok
}

func (p *lax) field(r *request, line string) {
	if line[0] == ' ' || line[0] == '\t' {
		if n := len(r.fields); n > 0 && p.joins {
			r.fields[n-1].value = strings.TrimSpace(r.fields[n-1].value + " " + strings.TrimSpace(line))
			return
		}
		if !p.trimsName {
			return
		}
	}
	name, value, _ := strings.Cut(line, ":")
	if p.trimsName {
		name = strings.TrimSpace(name)
	}
	if p.underscore {
		name = strings.ReplaceAll(name, "_", "-")
	}
	if p.nul {
		value, _, _ = strings.Cut(value, "\x00")
	}
	r.fields = append(r.fields, field{name, strings.TrimSpace(value)})
}

func (p *lax) frame(r *request, rest []byte) (used int, ok bool) {
	pick := func(values []string) string {
		switch {
		case len(values) == 0:
			return ""
		case p.last:
			return values[len(values)-1]
		}
		return values[0]
	}
	lengths, codings := r.get("Content-Length"), r.get("Transfer-Encoding")
	coding := strings.ToLower(pick(codings))
	chunked := coding == "chunked" || strings.HasSuffix(coding, ", chunked") || p.contains && strings.Contains(coding, "chunked")
	if chunked && (len(lengths) == 0 || !p.length) {
		return p.dechunk(r, rest)
	}
	if len(lengths) == 0 {
		return 0, true
	}
	n, ok := p.number(pick(lengths), 10, 64)
	if !ok || n > int64(len(rest)) {
		return 0, false
	}
	r.body = rest[:n]
	return int(n), true
}

// number reads a number; where prefix is set, what of it can be read.
func (p *lax) number(s string, base, bits int) (int64, bool) {
	if p.prefix {
		s = strings.TrimPrefix(strings.TrimSpace(s), "+")
		if base == 16 || strings.HasPrefix(s, "0x") {
			base, s = 16, strings.TrimPrefix(s, "0x")
		}
		end := 0
		for end < len(s) && strings.IndexByte("0123456789abcdefABCDEF"[:min(base+base/16*6, 22)], s[end]) >= 0 {
			end++
		}
		s = s[:end]
	}
	if len(s) > 16 && base == 16 {
		s = s[len(s)-16:] // it wraps
	}
	n, err := strconv.ParseUint(s, base, 64)
	if bits == 32 {
		n &= 0xffffffff
	}
	return int64(n), err == nil && int64(n) >= 0
}

func (p *lax) dechunk(r *request, rest []byte) (used int, ok bool) {
	for {
		i := bytes.IndexByte(rest[used:], '\n')
		if i < 0 {
			return 0, false
		}
		line, _, _ := strings.Cut(strings.TrimSuffix(string(rest[used:used+i]), "\r"), ";")
		used += i + 1
		n, ok := p.number(strings.TrimSpace(line), 16, p.bits)
		if !ok || n > int64(len(rest)-used) {
			return 0, false
		}
		if n == 0 {
			break
		}
		r.body = append(r.body, rest[used:used+int(n)]...)
		used += int(n)
		used += len(rest[used:]) - len(bytes.TrimPrefix(bytes.TrimPrefix(rest[used:], []byte("\r")), []byte("\n")))
	}
	for {
		i := bytes.IndexByte(rest[used:], '\n')
		if i < 0 {
			return 0, false
		}
		line := strings.TrimSuffix(string(rest[used:used+i]), "\r")
		if used += i + 1; line == "" {
			return used, true
		}
	}
}

// disputed says whether the panel, or the strict parser, reads the first request
// of b otherwise than want; a nil want: the strict parser refuses it.
func disputed(b []byte, want *request, taken int) bool {
	if want == nil {
		return true
	}
	for i := range panel {
		r, n, ok := panel[i].read(b)
		if !ok || n != taken || r.method != want.method || r.target != want.target || !bytes.Equal(r.body, want.body) {
			return true
		}
	}
	return false
}
