package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// request is what a parser makes of bytes.
type request struct {
	method, target string
	http10         bool
	fields         []field
	body           []byte
	expects        string // the value of Expect, "" none
}

type field struct{ name, value string }

func (r *request) get(name string) (values []string) {
	for _, f := range r.fields {
		if strings.EqualFold(f.name, name) {
			values = append(values, f.value)
		}
	}
	return values
}

var (
	errShort = errors.New("the bytes end too early")
	errHuge  = errors.New("the head is too large")
)

// strict reads one request under RFC 9110 and 9112 without any of the tolerances
// that they allow, but for one empty line before it, leading zeros of numbers, and
// the names of trailers, which nobody is handed. It owes nothing to the gateway's
// own parser: it is what that is held against. n is how many bytes it took.
func strict(b []byte, maxHead int) (r *request, n int, err error) {
	start := 0
	if bytes.HasPrefix(b, []byte("\r\n")) {
		start = 2
	}
	end := bytes.Index(b[start:], []byte("\r\n\r\n"))
	if end < 0 {
		if maxHead > 0 && len(b)-start > maxHead {
			return nil, 0, errHuge
		}
		return nil, 0, errShort
	}
	head := string(b[start : start+end+2])
	if maxHead > 0 && len(head)+2 > maxHead {
		return nil, 0, errHuge
	}
	lines := strings.Split(head, "\r\n")
	lines = lines[:len(lines)-1]
	if strings.ContainsAny(strings.Join(lines, ""), "\r\n") {
		return nil, 0, errors.New("a CR or LF alone")
	}
	r = &request{}
	if err := r.line(lines[0]); err != nil {
		return nil, 0, err
	}
	for _, l := range lines[1:] {
		if err := r.field(l); err != nil {
			return nil, 0, err
		}
	}
	rest := b[start+end+4:]
	used, err := r.frame(rest)
	if err != nil {
		return nil, 0, err
	}
	return r, start + end + 4 + used, nil
}

func (r *request) line(l string) error {
	parts := strings.Split(l, " ")
	if len(parts) != 3 || !tokenOnly(parts[0]) || len(parts[0]) > 32 {
		return fmt.Errorf("request line of %d parts", len(parts))
	}
	r.method, r.target = parts[0], parts[1]
	switch parts[2] {
	case "HTTP/1.1":
	case "HTTP/1.0":
		r.http10 = true
	default:
		return errors.New("version")
	}
	if !strings.HasPrefix(r.target, "/") && (r.target != "*" || r.method != "OPTIONS") {
		return errors.New("target that is no path")
	}
	for i := range len(r.target) {
		if c := r.target[i]; c < 0x21 || c > 0x7e || c == '#' {
			return errors.New("target's characters")
		}
	}
	return nil
}

func (r *request) field(l string) error {
	name, value, ok := strings.Cut(l, ":")
	if !ok || !tokenOnly(name) {
		return errors.New("field name")
	}
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if c := value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return errors.New("control character in a field")
		}
	}
	switch plain := strings.ToLower(strings.ReplaceAll(name, "_", "-")); plain {
	case "content-length", "transfer-encoding":
		if strings.Contains(name, "_") {
			return errors.New("underscore in a framing field's name")
		}
	}
	r.fields = append(r.fields, field{name, value})
	return nil
}

// frame checks what frames the message and takes its body.
func (r *request) frame(rest []byte) (used int, err error) {
	lengths, codings, hosts := r.get("Content-Length"), r.get("Transfer-Encoding"), r.get("Host")
	if len(hosts) > 1 || len(hosts) == 0 && !r.http10 {
		return 0, errors.New("not one Host")
	}
	for _, h := range hosts {
		if !hostOnly(h) {
			return 0, errors.New("a Host that is none")
		}
	}
	if len(r.get("Content-Type")) > 1 {
		return 0, errors.New("two Content-Types")
	}
	if e := r.get("Expect"); len(e) > 0 && !r.http10 {
		r.expects = e[0]
		for _, v := range e {
			if !strings.EqualFold(v, "100-continue") {
				return 0, errExpect
			}
		}
	}
	switch {
	case len(lengths) > 0 && len(codings) > 0:
		return 0, errors.New("a length and a coding")
	case len(codings) > 1 || len(codings) == 1 && (r.http10 || !strings.EqualFold(codings[0], "chunked")):
		return 0, errors.New("coding")
	case len(lengths) > 1:
		return 0, errors.New("two lengths")
	case len(codings) == 1:
		return r.dechunk(rest)
	case len(lengths) == 1:
		if !digitsOnly(lengths[0]) || len(lengths[0]) > 18 {
			return 0, errors.New("length")
		}
		n, err := strconv.Atoi(lengths[0])
		if err != nil {
			return 0, err
		}
		if n > len(rest) {
			return 0, errShort
		}
		r.body = rest[:n]
		return n, nil
	}
	return 0, nil
}

var errExpect = errors.New("an expectation that nobody meets")

func (r *request) dechunk(rest []byte) (used int, err error) {
	for {
		line, n, err := crlfLine(rest[used:])
		if err != nil {
			return 0, err
		}
		if !hexOnly(line) || len(strings.TrimLeft(line, "0")) > 15 || len(line) > 32 {
			return 0, errors.New("chunk size")
		}
		used += n
		size, err := strconv.ParseInt("0"+line, 16, 64)
		if err != nil {
			return 0, err
		}
		if size == 0 {
			break
		}
		if int64(len(rest)-used) < size+2 {
			if int64(len(rest)-used) > size && rest[used+int(size)] != '\r' {
				return 0, errors.New("chunk's end")
			}
			return 0, errShort
		}
		r.body = append(r.body, rest[used:used+int(size)]...)
		used += int(size)
		if string(rest[used:used+2]) != "\r\n" {
			return 0, errors.New("chunk's end")
		}
		used += 2
	}
	for trailers := 0; ; {
		line, n, err := crlfLine(rest[used:])
		if err != nil {
			return 0, err
		}
		used += n
		if line == "" {
			return used, nil
		}
		name, _, ok := strings.Cut(line, ":")
		if trailers += n; !ok || name == "" || trailers > 4<<10 {
			return 0, errors.New("trailer")
		}
		switch strings.ToLower(name) {
		case "content-length", "transfer-encoding", "host", "authorization":
			return 0, errors.New("trailer that belongs into a head")
		}
	}
}

// crlfLine cuts a line that ends in CR LF and holds neither elsewhere.
func crlfLine(b []byte) (line string, n int, err error) {
	i := bytes.IndexAny(b, "\r\n")
	switch {
	case i < 0:
		return "", 0, errShort
	case b[i] == '\n':
		return "", 0, errors.New("a bare LF")
	case i+1 == len(b):
		return "", 0, errShort
	case b[i+1] != '\n':
		return "", 0, errors.New("a bare CR")
	}
	return string(b[:i]), i + 2, nil
}

func only(s, also string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(also, c) >= 0) {
			return false
		}
	}
	return s != ""
}

func tokenOnly(s string) bool { return only(s, "!#$%&'*+-.^_`|~") }

func hostOnly(s string) bool { return only(s, "-._~%!$&'()*+;=:[]") }

func digitsOnly(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func hexOnly(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdefABCDEF") == "" }
