package dialect

import (
	"strconv"
	"strings"
)

// maxHead bounds each value that is kept of a stream's first chunk.
const maxHead = 512

// first keeps what later chunks must repeat, as it stands in the first.
type first struct {
	raw  []byte
	at   heads
	kept bool
}

func (f *first) keep(b []byte, at heads) {
	if f.kept {
		return
	}
	f.kept = true
	f.raw = f.raw[:0]
	take := func(s Span) Span {
		if s.End-s.Start > maxHead {
			return Span{}
		}
		from := len(f.raw)
		f.raw = append(f.raw, b[s.Start:s.End]...)
		return Span{from, len(f.raw)}
	}
	f.at = heads{take(at.id), take(at.created), take(at.model)}
}

// appendOpen appends a chunk's beginning up to its choices.
func (f *first) appendOpen(dst []byte) []byte {
	dst = f.appendValue(append(dst, `data: {"id":`...), f.at.id, `""`)
	dst = f.appendValue(append(dst, `,"object":"chat.completion.chunk","created":`...), f.at.created, "0")
	dst = f.appendValue(append(dst, `,"model":`...), f.at.model, `""`)
	return append(dst, `,"choices":[`...)
}

func (f *first) appendValue(dst []byte, s Span, absent string) []byte {
	if s.Start == s.End {
		return append(dst, absent...)
	}
	return append(dst, f.raw[s.Start:s.End]...)
}

// Emitted is the output of the stream so far, in tokens: what is likely, and an
// upper bound of what can be seen in it. Reasoning that the provider keeps to
// itself is in neither.
func (m *Meter) Emitted() (tokens, most int64) {
	tokens, most = m.tally.likely(), m.tally.most()
	if len(m.held) > 0 { // it was sent, if not yet passed on
		tokens++
		most += int64(len(m.held))
	}
	return tokens, most
}

// eventsUnderWay is how many events a provider has sent, when it learns that nobody
// reads on, beyond those that were read: what lies in the sockets between, and what
// it writes before the end of the connection reaches it.
const eventsUnderWay = 3

// UnderWay is how many tokens a provider may have sent beside those of Emitted, where
// it was not the provider that ended the stream: so many events of the usual size.
func (m *Meter) UnderWay() int64 {
	t := &m.tally
	if t.events == 0 {
		return eventsUnderWay
	}
	return eventsUnderWay * ((t.likely() + t.events - 1) / t.events)
}

// FinishLength appends what ends a stream by its limit: a chunk in which the
// choices that are not finished are, with finish_reason "length"; the usage chunk
// where the client asked for it; the comment, without its colon; and [DONE]. It may
// follow where Boundary is true.
func (m *Meter) FinishLength(dst []byte, wantUsage bool, u Usage, comment string) []byte {
	if open := m.open(); open != ([maxChoices / 64]uint64{}) {
		dst = m.first.appendOpen(dst)
		comma := ""
		for i := range maxChoices {
			if open[i/64]>>(i%64)&1 == 0 {
				continue
			}
			dst = strconv.AppendInt(append(append(dst, comma...), `{"index":`...), int64(i), 10)
			dst = append(dst, `,"delta":{},"logprobs":null,"finish_reason":"length"}`...)
			comma = ","
		}
		dst = append(dst, ']')
		if wantUsage {
			dst = append(dst, `,"usage":null`...)
		}
		dst = append(dst, "}\n\n"...)
	}
	if wantUsage {
		dst = appendUsage(append(m.first.appendOpen(dst), `],"usage":`...), u)
		dst = append(dst, "}\n\n"...)
	}
	if comment != "" {
		dst = append(dst, ": "...)
		dst = append(dst, strings.NewReplacer("\r", " ", "\n", " ").Replace(comment)...)
		dst = append(dst, "\n\n"...)
	}
	return append(dst, "data: [DONE]\n\n"...)
}

// open are the choices that were seen and are not finished; before any was seen,
// the first.
func (m *Meter) open() (open [maxChoices / 64]uint64) {
	none := true
	for i, seen := range m.tally.seen {
		none = none && seen == 0
		open[i] = seen &^ m.tally.finished[i]
	}
	if none {
		open[0] = 1
	}
	return open
}

// appendUsage writes usage as the provider counts: details are parts of the totals.
func appendUsage(dst []byte, u Usage) []byte {
	count := func(name string, n int64) {
		dst = strconv.AppendInt(append(dst, name...), n, 10)
	}
	count(`{"prompt_tokens":`, u.InputTotal())
	count(`,"completion_tokens":`, u.OutputTotal())
	count(`,"total_tokens":`, u.InputTotal()+u.OutputTotal())
	count(`,"prompt_tokens_details":{"cached_tokens":`, u.CachedInput)
	if u.CacheWrite > 0 {
		count(`,"cache_write_tokens":`, u.CacheWrite)
	}
	count(`,"audio_tokens":`, u.AudioInput)
	count(`},"completion_tokens_details":{"reasoning_tokens":`, u.Reasoning)
	count(`,"audio_tokens":`, u.AudioOutput)
	return append(dst, "}}"...)
}
