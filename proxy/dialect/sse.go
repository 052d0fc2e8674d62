package dialect

import "bytes"

// maxEvent bounds what is held of one event; a larger one passes as it comes, and
// is not read.
const maxEvent = 1 << 20

// Meter reads usage from a stream of server-sent events as it passes
// (https://html.spec.whatwg.org/multipage/server-sent-events.html). It lets
// through whole events only, so that one can be taken out and an error can follow
// any: of an event that came in part nothing passes before the rest. It takes the
// same from a stream whatever its pieces. Reset before use; not safe for
// concurrent use.
type Meter struct {
	takeOut bool
	known   bool
	passing bool // inside an event too large to hold
	tail    [3]byte
	tailLen int
	usage   Usage
	held    []byte // the start of an event
	out     []byte
}

// keptBuffer is how much of its buffers a meter keeps over a Reset.
const keptBuffer = 64 << 10

// Reset makes the meter ready for another stream. takeOut: the client did not ask
// for the chunk that brings only usage, so it is taken out.
func (m *Meter) Reset(takeOut bool) {
	held, out := m.held[:0], m.out[:0]
	if cap(held) > keptBuffer {
		held = nil
	}
	if cap(out) > keptBuffer {
		out = nil
	}
	*m = Meter{takeOut: takeOut, held: held, out: out}
}

// Usage returns the last usage that the stream told.
func (m *Meter) Usage() (Usage, bool) { return m.usage, m.known }

// Boundary says whether all that was let through ends with an event's end.
func (m *Meter) Boundary() bool { return !m.passing }

// Next takes the next bytes of the stream and returns those that may go on: p
// itself where nothing is held or taken out, else bytes that are good until the
// next call.
func (m *Meter) Next(p []byte) []byte {
	if len(m.held) == 0 && !m.passing && endsEvent(p) && !m.matters(p) {
		return p // the ordinary chunk: whole events, nothing to read in them
	}
	m.out = m.out[:0]
	if m.passing {
		p = m.pass(p)
	}
	from := 0
	if len(m.held) > 0 {
		// What was held has no end in it, but for one that its last bytes begin.
		from = max(0, len(m.held)-len(m.tail))
		m.held = append(m.held, p...)
		p = m.held
	}
	for len(p) > 0 && !m.passing {
		n := eventEnd(p, from, from == 0)
		if n < 0 {
			break
		}
		m.event(p[:n])
		p, from = p[n:], 0
	}
	m.hold(p)
	return m.out
}

// End returns what is still held when the upstream has ended by itself.
func (m *Meter) End() []byte {
	m.out = m.out[:0]
	if len(m.held) > 0 {
		m.event(m.held)
		m.held = m.held[:0]
	}
	return m.out
}

// hold keeps the start of an event, which may lie in m.held already.
func (m *Meter) hold(p []byte) {
	if len(p) > maxEvent {
		m.out = append(m.out, p...)
		m.passing, m.held = true, m.held[:0]
		m.remember(p)
		return
	}
	if len(p) == len(m.held) {
		return // it is what is held
	}
	n := copy(m.held[:cap(m.held)], p)
	m.held = append(m.held[:n], p[n:]...)
}

// pass lets an event that is too large by and returns what follows it.
func (m *Meter) pass(p []byte) []byte {
	joined := append(m.tail[:m.tailLen:m.tailLen], p...)
	n := eventEnd(joined, 0, false)
	if n < 0 {
		m.out = append(m.out, p...)
		m.remember(joined)
		return nil
	}
	m.out = append(m.out, joined[m.tailLen:n]...)
	m.passing, m.tailLen = false, 0
	return joined[n:]
}

func (m *Meter) remember(p []byte) {
	m.tailLen = copy(m.tail[:], p[max(0, len(p)-len(m.tail)):])
}

// event reads a whole event and lets it through, or not.
func (m *Meter) event(e []byte) {
	if len(e) <= maxEvent && m.matters(e) {
		if only := m.read(e); only && m.takeOut {
			return
		}
	}
	m.out = append(m.out, e...)
}

var (
	usageMark = []byte(`usage"`)
	nullWord  = []byte("null")
)

// matters says whether there may be a usage to read. `"usage":null` stands in
// every chunk of a stream that will tell it.
func (m *Meter) matters(p []byte) bool {
	for rest := p; ; {
		i := bytes.Index(rest, usageMark)
		if i < 0 {
			break
		}
		rest = rest[i+len(usageMark):]
		v := bytes.TrimLeft(rest, " \t")
		if len(v) > 0 && (v[0] == '\n' || v[0] == '\r') {
			return true // the colon may stand in the next line
		}
		if len(v) == 0 || v[0] != ':' {
			continue
		}
		if !bytes.HasPrefix(bytes.TrimLeft(v[1:], " \t"), nullWord) {
			return true
		}
	}
	return false
}

// read takes what an event tells; only says that it brings usage and nothing else.
func (m *Meter) read(e []byte) (only bool) {
	u, known, only := readUsage(eventData(e))
	if known {
		m.usage, m.known = u, true
	}
	return only
}

// eventData joins the data lines of an event. One line is not copied.
func eventData(e []byte) []byte {
	var data []byte
	lines := 0
	for len(e) > 0 {
		n := bytes.IndexAny(e, "\r\n")
		line := e
		if n >= 0 {
			line, e = e[:n], e[n+1:]
		} else {
			e = nil
		}
		value, ok := bytes.CutPrefix(line, []byte("data:"))
		if !ok {
			continue
		}
		value = bytes.TrimPrefix(value, []byte(" "))
		switch lines++; lines {
		case 1:
			data = value
			continue
		case 2:
			data = data[:len(data):len(data)] // it lies in the event: append to a copy
		}
		data = append(append(data, '\n'), value...)
	}
	return data
}

// endsEvent says whether p ends with an empty line, in the two ways that
// providers write one.
func endsEvent(p []byte) bool {
	return bytes.HasSuffix(p, []byte("\n\n")) || bytes.HasSuffix(p, []byte("\r\n\r\n"))
}

// eventEnd looks from i on and returns where the first event of p ends, behind its
// empty line; -1: not in p. empty: a line begins at i, so an empty one is an event
// of its own. Lines end in LF, CRLF or CR. A CR that is the last byte may be half
// of a CRLF: it is waited for.
func eventEnd(p []byte, i int, empty bool) int {
	for i < len(p) {
		n := 1
		switch p[i] {
		case '\r':
			if i+1 == len(p) {
				return -1
			}
			if p[i+1] == '\n' {
				n = 2
			}
		case '\n':
		default:
			empty = false
			i++
			continue
		}
		i += n
		if empty {
			return i
		}
		empty = true
	}
	return -1
}
