package dialect

import "strconv"

// limitFields are the names of an output limit, in the order of Call.nulls.
var (
	limitFields = [...]string{"max_tokens", "max_completion_tokens", "max_output_tokens"}
	limitKeys   = [...]string{`"max_tokens":`, `"max_completion_tokens":`, `"max_output_tokens":`}
)

const (
	maxLimit   = 1<<31 - 1 // of an output limit, in tokens
	maxChoices = 128
)

func (c *Call) limit(i int) int64 {
	return [...]int64{c.MaxTokens, c.MaxCompletionTokens, c.MaxOutputTokens}[i]
}

// OwnLimit is the most output tokens a choice by the call's own word, the largest
// of those that it names; -1: none. field is the target's name for the limit:
// max_output_tokens counts only where it is that, since other APIs for chat don't
// know it.
func (c *Call) OwnLimit(field string) int64 {
	n := max(c.MaxTokens, c.MaxCompletionTokens)
	if field == "max_output_tokens" {
		n = max(n, c.MaxOutputTokens)
	}
	return n
}

// readCount takes a whole number from 1 to most; null is absent, and where it
// stands is told.
func readCount(s *scanner, param string, most, absent int64) (n int64, null Span, p *Problem) {
	from := s.i
	switch c := s.next(); {
	case c == 'n':
		if !s.word("null") {
			return 0, Span{}, malformed(s.fault, s.i)
		}
		return absent, Span{from, s.i}, nil
	case c == '-' || c >= '0' && c <= '9':
		if !s.number() {
			return 0, Span{}, malformed(s.fault, s.i)
		}
	default:
		return 0, Span{}, wrong(s, param, wholeNumber(most))
	}
	for _, d := range s.b[from:s.i] {
		if n = n*10 + int64(d-'0'); d < '0' || d > '9' || n > most {
			n = 0
			break
		}
	}
	if n == 0 {
		return 0, Span{}, &Problem{invalidValue, param, "\"" + param + "\" must be " + wholeNumber(most) + "."}
	}
	return n, Span{}, nil
}

func wholeNumber(most int64) string {
	return "a whole number from 1 to " + strconv.FormatInt(most, 10)
}

// readModalities takes a list of names or null. Whatever is not text costs
// otherwise than text does.
func (c *Call) readModalities(s *scanner) *Problem {
	const want = "a list of strings"
	switch s.next() {
	case 'n':
		if !s.word("null") {
			return malformed(s.fault, s.i)
		}
		return nil
	case '[':
	default:
		return wrong(s, "modalities", want)
	}
	s.i++
	if s.next() == ']' {
		s.i++
		return nil
	}
	for {
		if s.next() != '"' {
			return wrong(s, "modalities", want)
		}
		span, _, ok := s.str()
		if !ok {
			return malformed(s.fault, s.i)
		}
		if string(s.b[span.Start:span.End]) != "text" {
			c.otherOutput = true
		}
		more, ok := s.comma(']')
		if !ok {
			return malformed(s.fault, s.i)
		}
		if !more {
			return nil
		}
	}
}

// readAudio takes how an answer in audio is wanted, or null.
func (c *Call) readAudio(s *scanner) *Problem {
	switch s.next() {
	case 'n':
		if !s.word("null") {
			return malformed(s.fault, s.i)
		}
		return nil
	case '{':
		c.otherOutput = true
		if !s.skip(1) {
			return malformed(s.fault, s.i)
		}
		return nil
	}
	return wrong(s, "audio", "an object")
}
