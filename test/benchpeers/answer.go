package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// reader takes answers off a connection, with no allocation and no more
// understanding of HTTP than it takes to know that an answer is whole.
type reader struct {
	conn net.Conn
	buf  [32 << 10]byte
	from int
	to   int

	chunked bool
	left    int // bytes of the body, or of its chunk
	body    int // bytes so far
	events  int // ends of events so far: empty lines
	last    byte
}

var (
	errMore     = errors.New("bytes after the answer")
	errTooLarge = errors.New("a head larger than the buffer")
)

// fill reads once more.
func (r *reader) fill() error {
	if r.from == r.to {
		r.from, r.to = 0, 0
	}
	if r.to == len(r.buf) {
		if r.from == 0 {
			return errTooLarge
		}
		r.to = copy(r.buf[:], r.buf[r.from:r.to])
		r.from = 0
	}
	n, err := r.conn.Read(r.buf[r.to:])
	r.to += n
	if n > 0 {
		return nil
	}
	return err
}

// head reads a status line and a header.
func (r *reader) head() error {
	at := -1
	for at < 0 {
		if err := r.fill(); err != nil {
			return err
		}
		at = bytes.Index(r.buf[r.from:r.to], []byte("\r\n\r\n"))
	}
	head := r.buf[r.from : r.from+at]
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("not a 200: %.400s", r.buf[r.from:r.to])
	}
	r.chunked, r.left, r.body, r.events, r.last = false, -1, 0, 0, 0
	for rest := head; len(rest) > 0; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case len(name) == 14 && bytes.EqualFold(name, []byte("Content-Length")):
			n, err := strconv.Atoi(string(value))
			if err != nil {
				return err
			}
			r.left = n
		case len(name) == 17 && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			r.chunked = true
		}
	}
	if !r.chunked && r.left < 0 {
		return fmt.Errorf("an answer of no known length: %.400s", head)
	}
	r.from += at + 4
	return nil
}

// more takes what is there of the body, and reads if there is nothing. It says
// whether the body has ended.
func (r *reader) more() (bool, error) {
	if r.chunked {
		return r.moreChunks()
	}
	if r.left > 0 && r.from == r.to {
		if err := r.fill(); err != nil {
			return false, err
		}
	}
	r.take(min(r.left, r.to-r.from))
	return r.left == 0, r.atEnd(r.left == 0)
}

func (r *reader) take(n int) {
	p := r.buf[r.from : r.from+n]
	if n > 0 {
		if r.last == '\n' && p[0] == '\n' {
			r.events++
		}
		r.events += bytes.Count(p, []byte("\n\n"))
		r.last = p[n-1]
	}
	r.from += n
	r.left -= n
	r.body += n
}

func (r *reader) moreChunks() (bool, error) {
	if r.from == r.to {
		if err := r.fill(); err != nil {
			return false, err
		}
	}
	took := false
	// An event in hand is told of before the next is waited for.
	again := func() (bool, error) {
		if took {
			return false, nil
		}
		return false, r.fill()
	}
	for {
		if r.left > 0 {
			took = true
			r.take(min(r.left, r.to-r.from))
			if r.left > 0 {
				return false, nil
			}
			r.left = 0
		}
		// The end of a chunk's data and the next one's size, or the size alone.
		line := r.buf[r.from:r.to]
		skip := 0
		if r.body > 0 {
			skip = 2
		}
		if len(line) < skip {
			return again()
		}
		at := bytes.Index(line[skip:], []byte("\r\n"))
		if at < 0 {
			if len(line) > 64 {
				return false, fmt.Errorf("no chunk: %.64q", line)
			}
			return again()
		}
		n, err := strconv.ParseInt(string(line[skip:skip+at]), 16, 32)
		if err != nil {
			return false, err
		}
		if n == 0 {
			if len(line) < skip+at+4 {
				return again()
			}
			r.from += skip + at + 4
			return true, r.atEnd(true)
		}
		r.from += skip + at + 2
		r.left = int(n)
	}
}

func (r *reader) atEnd(end bool) error {
	if end && r.from != r.to {
		return errMore
	}
	return nil
}
