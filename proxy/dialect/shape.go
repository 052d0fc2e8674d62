package dialect

import "bytes"

// maxShape bounds the event that is kept as a shape.
const maxShape = 4 << 10

// shape is the last chunk that was read which brought one text and nothing else. A
// stream's chunks are like one another but for that text, and the padding that some
// have: one that fits is counted without being read.
type shape struct {
	event     []byte // a copy; empty: there is none
	hole, pad Span   // what may differ, between quotes; pad lies behind, or is empty
}

var errorKey = []byte(`"error"`)

// keep takes the event whose JSON begins at. r has read it.
func (s *shape) keep(event []byte, at int, r *reader) {
	s.event = s.event[:0]
	if r.texts != 1 || r.sound+r.pictures > 0 || len(event) > maxShape || !endsEvent(event) || bytes.Contains(event, errorKey) {
		return
	}
	s.event = append(s.event, event...)
	s.hole = Span{at + r.hole.Start, at + r.hole.End}
	s.pad = Span{}
	if r.pad.Start > r.hole.End {
		s.pad = Span{at + r.pad.Start, at + r.pad.End}
	}
}

// fit says how long the event is with which p begins, where it has the shape, and
// how much text is in it; 0: it has not.
func (s *shape) fit(p []byte) (n int, text int64) {
	if len(s.event) == 0 || !bytes.HasPrefix(p, s.event[:s.hole.Start]) {
		return 0, 0
	}
	c := scanner{b: p, i: s.hole.Start - 1}
	text = c.textLen()
	from := s.hole.End
	if s.pad != (Span{}) {
		between := s.event[from:s.pad.Start]
		if c.fault != "" || !bytes.HasPrefix(p[c.i-1:], between) {
			return 0, 0
		}
		c.i += len(between) - 2
		c.textLen()
		from = s.pad.End
	}
	if c.fault != "" || !bytes.HasPrefix(p[c.i-1:], s.event[from:]) {
		return 0, 0
	}
	return c.i - 1 + len(s.event) - from, text
}
