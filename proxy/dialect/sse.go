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
	passing bool // inside an event too large to hold
	takeOut bool
	known   bool
	tail    [3]byte
	shape   shape
	held    []byte // the start of an event
	tally   tally
	tailLen int
	usage   Usage
	out     []byte
	first   first
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
	*m = Meter{takeOut: takeOut, held: held, out: out, shape: shape{event: m.shape.event[:0]}, first: first{raw: m.first.raw[:0]}}
}

// Usage returns the last usage that the stream told.
func (m *Meter) Usage() (Usage, bool) { return m.usage, m.known }

// Boundary says whether all that was let through ends with an event's end.
func (m *Meter) Boundary() bool { return !m.passing }

// Next takes the next bytes of the stream and returns those that may go on: p
// itself where nothing is held or taken out, else bytes that are good until the
// next call.
func (m *Meter) Next(p []byte) []byte {
	m.out = m.out[:0]
	if len(m.held) == 0 && !m.passing {
		n := m.ordinary(p)
		if n == len(p) {
			return p
		}
		if endsEvent(p) && !m.matters(p[n:]) {
			m.countAll(p[n:])
			return p // whole events, and no usage in them
		}
		m.out = append(m.out, p[:n]...)
		p = p[n:]
	}
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

// Pass takes p as Next does where it is one event of the shape of the last one that was
// read, and says whether it is: then it goes on as it is, and tells neither usage nor an
// error. Else nothing was taken.
func (m *Meter) Pass(p []byte) bool {
	if len(m.held) > 0 || m.passing {
		return false
	}
	n, text := m.shape.fit(p)
	if n == 0 || n != len(p) {
		return false
	}
	m.fits(text)
	return true
}

// fits counts an event of the shape.
func (m *Meter) fits(text int64) {
	if text > 0 {
		m.tally.text += text
		m.tally.events++
	}
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
		m.tally.unread += int64(len(p))
		m.tally.events++
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
		m.tally.unread += int64(len(p))
		m.out = append(m.out, p...)
		m.remember(joined)
		return nil
	}
	m.tally.unread += int64(n - m.tailLen)
	m.out = append(m.out, joined[m.tailLen:n]...)
	m.passing, m.tailLen = false, 0
	return joined[n:]
}

func (m *Meter) remember(p []byte) {
	m.tailLen = copy(m.tail[:], p[max(0, len(p)-len(m.tail)):])
}

// event reads a whole event and lets it through, or not.
func (m *Meter) event(e []byte) {
	switch {
	case m.ordinary(e) == len(e):
	case len(e) > maxEvent:
		m.tally.unread += int64(len(e))
		m.tally.events++
	default:
		told := m.matters(e)
		m.count(e, told)
		if told && m.read(e) && m.takeOut {
			return
		}
	}
	m.out = append(m.out, e...)
}

// ordinary counts the events at the beginning of p that have the shape of the last
// one read, and returns how long they are: there is nothing to read in them.
func (m *Meter) ordinary(p []byte) (n int) {
	for n < len(p) {
		used, text := m.shape.fit(p[n:])
		if used == 0 {
			break
		}
		m.fits(text)
		n += used
	}
	return n
}

// countAll counts whole events in which there is no usage.
func (m *Meter) countAll(p []byte) {
	for len(p) > 0 {
		n := m.ordinary(p)
		if n == 0 {
			if n = eventEnd(p, 0, true); n < 0 {
				n = len(p)
			}
			m.count(p[:n], false)
		}
		p = p[n:]
	}
}

// count counts the output in an event. told: there may be usage in it.
func (m *Meter) count(e []byte, told bool) {
	if len(e) > maxEvent {
		m.tally.unread += int64(len(e))
		m.tally.events++
		return
	}
	data, at := eventData(e)
	if len(data) == 0 || string(data) == "[DONE]" {
		return
	}
	r := reader{tally: &m.tally, s: scanner{b: data}}
	if !r.read() {
		m.tally.unread += int64(len(data))
		return
	}
	if !r.filled {
		return // among them Azure's first, whose id is empty
	}
	m.first.keep(data, r.head)
	if at >= 0 && !told {
		m.shape.keep(e, at, &r)
	}
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
	data, _ := eventData(e)
	u, known, only := readUsage(data)
	if known {
		m.usage, m.known = u, true
	}
	return only
}

// eventData joins the data lines of an event. One line is not copied, and at is
// where in the event it stands; else at is -1.
func eventData(e []byte) (data []byte, at int) {
	lines := 0
	for from := 0; from < len(e); {
		line := e[from:]
		next := len(e)
		if n := lineEnd(line); n >= 0 {
			line, next = line[:n], from+n+1
		}
		if value, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			value = bytes.TrimPrefix(value, []byte(" "))
			switch lines++; lines {
			case 1:
				data, at = value, from+len(line)-len(value)
			case 2:
				data, at = data[:len(data):len(data)], -1 // it lies in the event: append to a copy
				fallthrough
			default:
				data = append(append(data, '\n'), value...)
			}
		}
		from = next
	}
	return data, at
}

// lineEnd finds the first CR or LF.
func lineEnd(p []byte) int {
	const near = 64 // bytes at a time: one of the two may be missing altogether
	for i := 0; i < len(p); i += near {
		part := p[i:min(i+near, len(p))]
		n, cr := bytes.IndexByte(part, '\n'), bytes.IndexByte(part, '\r')
		if cr >= 0 && (n < 0 || cr < n) {
			n = cr
		}
		if n >= 0 {
			return i + n
		}
	}
	return -1
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
