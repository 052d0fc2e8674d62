package dialect

import (
	"bytes"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// maxModel bounds a model's name, in bytes after unescaping.
const maxModel = 256

// Call is what policy and metering need of a call's body, and where it stands.
type Call struct {
	Model        []byte // unescaped; aliases the body where it has no escape
	ModelSpan    Span   // with its quotes
	Stream       bool
	IncludeUsage bool // stream_options.include_usage is true

	// The output limits that the call names, in tokens a choice; -1: not named.
	MaxTokens, MaxCompletionTokens, MaxOutputTokens int64

	N int64 // choices, 1 where the call doesn't say

	Beside Beside // what it names beside its model

	otherOutput  bool // audio, or whatever is not text, is asked for
	nulls        [len(limitFields)]Span
	open         int  // behind the body's opening brace
	options      Span // the value of stream_options
	optionsKind  kind
	includeUsage Span // the value of include_usage inside
}

type kind uint8

const (
	absent kind = iota
	null
	emptyObject
	object
)

// ReadChat reads the body of a chat completion, strictly and in one pass: what it
// accepts, every parser reads alike. Keys that are not read here are not judged,
// but the whole must be one JSON object in UTF-8 in which no top-level key stands
// twice. c may be used again. It does not allocate for an ordinary body.
func ReadChat(body []byte, c *Call) *Problem {
	*c = Call{MaxTokens: -1, MaxCompletionTokens: -1, MaxOutputTokens: -1, N: 1}
	if bytes.HasPrefix(body, []byte("\xef\xbb\xbf")) {
		return malformed("it opens with a byte-order mark", 0)
	}
	if !utf8.Valid(body) {
		return malformed("it is not UTF-8", invalidAt(body))
	}
	s := scanner{b: body}
	if s.next() != '{' {
		return malformed("it is not an object", s.i)
	}
	s.i++
	c.open = s.i
	if p := c.members(&s); p != nil {
		return p
	}
	if s.space(); s.i != len(body) {
		return malformed("something follows the object", s.i)
	}
	if c.ModelSpan == (Span{}) {
		return &Problem{missingModel, "model", "The body names no model: send \"model\"."}
	}
	return nil
}

func invalidAt(b []byte) int {
	i := 0
	for i < len(b) {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		i += n
	}
	return i
}

func malformed(fault string, at int) *Problem {
	return &Problem{invalidJSON, "", "The body is not the JSON that was expected: " + fault + " (at byte " + strconv.Itoa(at) + ")."}
}

// members reads the top level's keys and values up to the closing brace.
func (c *Call) members(s *scanner) *Problem {
	var keys keySet
	var seen uint16 // bit set of chatKeys
	var messages, tools Span
	if s.next() == '}' {
		s.i++
		return nil
	}
	for {
		key, p := readKey(s)
		if p != nil {
			return p
		}
		// A key in another spelling of one that is read is refused wherever it stands, so
		// only the others need be compared as readers fold them.
		known := chatKey(key)
		if known < len(chatKeys) {
			if seen&(1<<known) != 0 {
				return ambiguous(chatKeys[known], "")
			}
			seen |= 1 << known
		} else if !keys.add(key) {
			return ambiguous(string(key), "")
		}
		if !s.colon() {
			return malformed(s.fault, s.i)
		}
		s.space()
		switch known {
		case keyModel:
			p = c.readModel(s)
		case keyStream:
			c.Stream, _, p = readBool(s, "stream")
		case keyStreamOptions:
			p = c.readOptions(s)
		case keyMaxTokens:
			c.MaxTokens, c.nulls[0], p = readCount(s, "max_tokens", maxLimit, -1)
		case keyMaxCompletionTokens:
			c.MaxCompletionTokens, c.nulls[1], p = readCount(s, "max_completion_tokens", maxLimit, -1)
		case keyMaxOutputTokens:
			c.MaxOutputTokens, c.nulls[2], p = readCount(s, "max_output_tokens", maxLimit, -1)
		case keyN:
			c.N, _, p = readCount(s, "n", maxChoices, 1)
		case keyModalities:
			p = c.readModalities(s)
		case keyAudio:
			p = c.readAudio(s)
		case keyMessages:
			messages, p = skipped(s)
		case keyTools:
			tools, p = skipped(s)
		default:
			if name := mistaken(key, chatKeys[:]...); name != "" {
				return ambiguous(name, "")
			}
			f := besideField(key)
			switch {
			case f == nil:
				_, p = skipped(s)
			case string(key) != f.name:
				return ambiguous(f.name, "")
			default:
				p = c.readBeside(s, f)
			}
		}
		if p != nil {
			return p
		}
		more, ok := s.comma('}')
		if !ok {
			return malformed(s.fault, s.i)
		}
		if !more {
			return c.lookInside(s.b, messages, tools, s.hints)
		}
	}
}

// skipped passes over a value.
func skipped(s *scanner) (Span, *Problem) {
	from := s.i
	if !s.skip(1) {
		return Span{}, malformed(s.fault, s.i)
	}
	return Span{from, s.i}, nil
}

// readKey takes a key, up to its colon.
func readKey(s *scanner) ([]byte, *Problem) {
	if s.next() != '"' {
		return nil, malformed("a key is missing or not quoted", s.i)
	}
	span, escaped, ok := s.str()
	if !ok {
		return nil, malformed(s.fault, s.i)
	}
	key := s.b[span.Start:span.End]
	if escaped {
		if key, ok = appendUnescaped(nil, key); !ok {
			return nil, malformed("a key holds a lone surrogate", span.Start)
		}
	}
	return key, nil
}

// mistaken returns the name that a key folds to without being spelt so. The names
// begin with a small letter.
func mistaken(key []byte, names ...string) string {
	if len(key) == 0 {
		return ""
	}
	first := key[0] | 0x20
	for _, name := range names {
		if (first == name[0] || key[0] >= utf8.RuneSelf) && bytes.EqualFold(key, []byte(name)) {
			return name
		}
	}
	return ""
}

// chatKeys are those that are read at the top of a body.
var chatKeys = [...]string{
	keyModel: "model", keyStream: "stream", keyStreamOptions: "stream_options",
	keyMaxTokens: "max_tokens", keyMaxCompletionTokens: "max_completion_tokens", keyMaxOutputTokens: "max_output_tokens",
	keyN: "n", keyModalities: "modalities", keyAudio: "audio", keyMessages: "messages", keyTools: "tools",
}

const (
	keyModel = iota
	keyStream
	keyStreamOptions
	keyMaxTokens
	keyMaxCompletionTokens
	keyMaxOutputTokens
	keyN
	keyModalities
	keyAudio
	keyMessages
	keyTools
)

// chatKey is the place of a key among chatKeys, behind them all where it is none.
func chatKey(key []byte) int {
	for i, name := range chatKeys {
		if string(key) == name {
			return i
		}
	}
	return len(chatKeys)
}

// maxNamed is the longest key that a refusal names: a credential is longer.
const maxNamed = 32

func ambiguous(key, prefix string) *Problem {
	if name := mistaken([]byte(key), chatKeys[:]...); name != "" {
		key = name
	} else if mistaken([]byte(key), "include_usage") != "" {
		key = "include_usage"
	}
	if len(key) > maxNamed {
		key = "a long key"
	}
	return &Problem{ambiguousKey, prefix + key, "A key stands twice, or in a spelling that some parsers take for another key: send each once, spelt as documented."}
}

func (c *Call) readModel(s *scanner) *Problem {
	switch s.next() {
	case '"':
	case 'n':
		if !s.word("null") {
			return malformed(s.fault, s.i)
		}
		return &Problem{missingModel, "model", "\"model\" is null: name a model."}
	default:
		return wrong(s, "model", "a string")
	}
	start := s.i
	span, escaped, ok := s.str()
	if !ok {
		return malformed(s.fault, s.i)
	}
	model := s.b[span.Start:span.End]
	if escaped {
		if model, ok = appendUnescaped(nil, model); !ok {
			return &Problem{invalidValue, "model", "\"model\" holds a lone surrogate."}
		}
	}
	switch {
	case len(model) == 0:
		return &Problem{missingModel, "model", "\"model\" is empty: name a model."}
	case len(model) > maxModel:
		return &Problem{invalidValue, "model", "\"model\" is longer than 256 bytes."}
	}
	if bytes.ContainsFunc(model, unicode.IsControl) {
		return &Problem{invalidValue, "model", "\"model\" holds a control character."}
	}
	c.Model, c.ModelSpan = model, Span{start, s.i}
	return nil
}

// wrong says that a field has another type, or that the JSON is malformed there.
func wrong(s *scanner, param, want string) *Problem {
	if !s.skip(1) {
		return malformed(s.fault, s.i)
	}
	return &Problem{invalidValue, param, "\"" + param + "\" must be " + want + "."}
}

// readBool takes true, false or null.
func readBool(s *scanner, param string) (value bool, span Span, p *Problem) {
	switch span.Start = s.i; s.next() {
	case 't':
		value = s.word("true")
	case 'f':
		s.word("false")
	case 'n':
		s.word("null")
	default:
		return false, span, wrong(s, param, "true or false")
	}
	if s.fault != "" {
		return false, span, malformed(s.fault, s.i)
	}
	span.End = s.i
	return value, span, nil
}

func (c *Call) readOptions(s *scanner) *Problem {
	c.options.Start = s.i
	switch s.next() {
	case 'n':
		if !s.word("null") {
			return malformed(s.fault, s.i)
		}
		c.optionsKind, c.options.End = null, s.i
		return nil
	case '{':
	default:
		return wrong(s, "stream_options", "an object")
	}
	s.i++
	c.optionsKind = emptyObject
	if s.next() == '}' {
		s.i++
		c.options.End = s.i
		return nil
	}
	c.optionsKind = object
	return c.optionMembers(s)
}

func (c *Call) optionMembers(s *scanner) *Problem {
	const prefix = "stream_options."
	var keys keySet
	for {
		key, p := readKey(s)
		if p != nil {
			return p
		}
		if !keys.add(key) {
			return ambiguous(string(key), prefix)
		}
		if !s.colon() {
			return malformed(s.fault, s.i)
		}
		s.space()
		switch {
		case string(key) == "include_usage":
			if c.IncludeUsage, c.includeUsage, p = readBool(s, prefix+"include_usage"); p != nil {
				return p
			}
		case mistaken(key, "include_usage") != "":
			return ambiguous("include_usage", prefix)
		case !s.skip(2):
			return malformed(s.fault, s.i)
		}
		more, ok := s.comma('}')
		if !ok {
			return malformed(s.fault, s.i)
		}
		if !more {
			c.options.End = s.i
			return nil
		}
	}
}
