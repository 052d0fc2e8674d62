package proxy

import "errors"

var errChunkFraming = errors.New("malformed chunked framing")

// dechunker takes the chunked coding of RFC 9112 §7.1 apart. It keeps its place
// at any byte, so a read may end anywhere: fasthttp's own reader loses bytes
// when a deadline strikes inside a chunk header. The zero value is ready.
type dechunker struct {
	state  chunkState
	left   int64 // payload bytes of the current chunk still to come
	digits int   // hexadecimal digits seen of the current size
	size   int64
	extra  int // bytes of extensions and trailers seen
	// strict refuses extensions: a caller has no use for them, and parsers
	// disagree on where they end.
	strict bool
}

type chunkState uint8

const (
	chunkSize     chunkState = iota // reading hexadecimal digits
	chunkExt                        // after ";", up to the line's end
	chunkSizeLF                     // after the size line's CR
	chunkData                       // inside the payload
	chunkDataCR                     // expects the CR after the payload
	chunkDataLF                     // expects the LF after it
	trailerStart                    // at the start of a trailer line
	trailerLine                     // inside one
	trailerLF                       // after its CR
	chunkedLastLF                   // after the CR of the empty line
	chunkedDone
)

const (
	maxChunkSize  = 1 << 40
	maxChunkExtra = 4 << 10
)

func (d *dechunker) done() bool { return d.state == chunkedDone }

// next takes bytes from p and returns a piece of payload (aliasing p, maybe
// empty) and how many bytes of p it used. After done it uses none.
func (d *dechunker) next(p []byte) (payload []byte, used int, err error) {
	for used < len(p) {
		if d.state == chunkData {
			n := int64(len(p) - used)
			if n > d.left {
				n = d.left
			}
			payload = p[used : used+int(n)]
			used += int(n)
			if d.left -= n; d.left == 0 {
				d.state = chunkDataCR
			}
			return payload, used, nil
		}
		if d.state == chunkedDone {
			return nil, used, nil
		}
		if err := d.step(p[used]); err != nil {
			return nil, used, err
		}
		used++
	}
	return nil, used, nil
}

// step takes one byte of framing.
func (d *dechunker) step(c byte) error {
	switch d.state {
	case chunkSize:
		return d.sizeByte(c)
	case chunkExt:
		return d.skip(c, chunkSizeLF)
	case chunkSizeLF:
		if c != '\n' {
			return errChunkFraming
		}
		d.digits = 0
		if d.left, d.size = d.size, 0; d.left == 0 {
			d.state = trailerStart
		} else {
			d.state = chunkData
		}
	case chunkDataCR:
		return d.expect(c, '\r', chunkDataLF)
	case chunkDataLF:
		return d.expect(c, '\n', chunkSize)
	case trailerStart:
		if c == '\r' {
			d.state = chunkedLastLF
			return nil
		}
		d.state = trailerLine
		return d.skip(c, trailerLF)
	case trailerLine:
		return d.skip(c, trailerLF)
	case trailerLF:
		return d.expect(c, '\n', trailerStart)
	case chunkedLastLF:
		return d.expect(c, '\n', chunkedDone)
	default:
		return errChunkFraming
	}
	return nil
}

func (d *dechunker) sizeByte(c byte) error {
	if v, ok := unhex(c); ok {
		d.digits++
		d.size = d.size<<4 | int64(v)
		if d.digits > 16 || d.size > maxChunkSize {
			return errChunkFraming
		}
		return nil
	}
	if d.digits == 0 {
		return errChunkFraming
	}
	switch c {
	case '\r':
		d.state = chunkSizeLF
		return nil
	case ';', ' ', '\t':
		if !d.strict {
			d.state = chunkExt
			return nil
		}
	}
	return errChunkFraming
}

// skip passes over bytes that nobody reads, up to a CR.
func (d *dechunker) skip(c byte, after chunkState) error {
	if c == '\r' {
		d.state = after
		return nil
	}
	if d.extra++; d.extra > maxChunkExtra || c == '\n' || c == 0 {
		return errChunkFraming
	}
	return nil
}

func (d *dechunker) expect(c, want byte, after chunkState) error {
	if c != want {
		return errChunkFraming
	}
	d.state = after
	return nil
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// between says whether the next byte is the first of a chunk.
func (d *dechunker) between() bool { return d.state == chunkSize && d.digits == 0 }

// wholeChunk returns the payload where b is one chunk and nothing else, without
// extensions; nil: it is not.
func wholeChunk(b []byte) []byte {
	const mostDigits = 8
	size, i := 0, 0
	for ; i < len(b) && i <= mostDigits; i++ {
		v, ok := unhex(b[i])
		if !ok {
			break
		}
		size = size<<4 | int(v)
	}
	if from := i + 2; i > 0 && i <= mostDigits && size > 0 && len(b) == from+size+2 &&
		b[i] == '\r' && b[i+1] == '\n' && b[from+size] == '\r' && b[from+size+1] == '\n' {
		return b[from : from+size]
	}
	return nil
}

const (
	lowerHex = "0123456789abcdef"
	// frameRoom is what a chunk's size line may need before its payload.
	frameRoom = 10
)

// frame puts a chunk's size line right before the payload that starts at
// b[frameRoom], and CRLF behind it, and returns the whole chunk.
func frame(b []byte) []byte {
	n := len(b) - frameRoom
	i := frameRoom - 2
	b[i], b[i+1] = '\r', '\n'
	for {
		i--
		b[i] = lowerHex[n&15]
		if n >>= 4; n == 0 {
			break
		}
	}
	return append(b, '\r', '\n')[i:]
}
