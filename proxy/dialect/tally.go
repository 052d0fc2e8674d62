package dialect

import (
	"bytes"
	"math/bits"
)

// What is counted of output, in tokens.
const (
	bytesOfToken = 4 // of text, likely

	// Audio is streamed as 3,200 characters of base64 a token (OpenAI, 24 kHz, 16
	// bit); compressed to 24 kbit/s it is 200.
	charsOfSound     = 3200
	charsOfSoundMost = 128

	tokensOfPicture     = 1024
	tokensOfPictureMost = 8192

	// Room for what a choice is charged beside its text: marks and its end.
	tokensOfChoice = 16
)

// tally is the output that was seen, of a stream or of a whole answer.
type tally struct {
	events   int64 // with output in them
	text     int64 // bytes, escapes undone
	sound    int64 // characters of base64
	pictures int64
	unread   int64 // bytes of what is too large or malformed

	seen, finished [maxChoices / 64]uint64 // choices, a bit an index
}

// likely is about how many tokens that is. Reasoning that a provider keeps to
// itself is in neither this nor most.
func (t *tally) likely() int64 {
	return max(t.events, t.text/bytesOfToken) + t.sound/charsOfSound + t.pictures*tokensOfPicture
}

// most is an upper bound.
func (t *tally) most() int64 {
	n := t.text + t.unread + (t.sound+charsOfSoundMost-1)/charsOfSoundMost + t.pictures*tokensOfPictureMost
	for _, s := range t.seen {
		n += int64(bits.OnesCount64(s)) * tokensOfChoice
	}
	return n
}

// reader reads one chunk, or a whole answer, into a tally. It is lenient: an answer
// is its provider's to get right.
type reader struct {
	*tally
	s     scanner
	depth int

	sounds bool  // inside audio
	chosen bool  // the key choices was met
	filled bool  // and there is one
	ends   bool  // the choice at hand is finished
	texts  int   // strings that count, empty ones too
	hole   Span  // the last of them, without quotes
	pad    Span  // that of obfuscation
	index  int   // of the choice at hand
	head   heads // where the stream's own fields stand
}

// heads are the raw values of what every chunk of a stream has alike.
type heads struct{ id, created, model Span }

// The objects in which a key may stand.
type level uint8

const (
	inChunk level = iota
	inChoice
	inDelta // or deeper
)

// read takes the whole. false: it is malformed, and what was read may not be all.
func (r *reader) read() bool {
	before := *r.tally
	if r.s.next() != '{' {
		return false
	}
	r.object(inChunk)
	if r.text != before.text || r.sound != before.sound || r.pictures != before.pictures {
		r.events++
	}
	return r.s.fault == ""
}

func (r *reader) object(in level) {
	r.s.i++
	if r.s.next() == '}' {
		r.s.i++
		return
	}
	if r.depth++; r.depth > maxDepth {
		r.s.fail("it is nested too deeply")
		return
	}
	for {
		if r.s.next() != '"' {
			r.s.fail("a key is missing or not quoted")
			return
		}
		span, _, ok := r.s.str()
		if !ok || !r.s.colon() {
			return
		}
		r.s.space()
		r.member(in, r.s.b[span.Start:span.End])
		if r.s.fault != "" {
			return
		}
		more, ok := r.s.comma('}')
		if !ok || !more {
			r.depth--
			return
		}
	}
}

func (r *reader) array(in level, key []byte) {
	r.s.i++
	if r.s.next() == ']' {
		r.s.i++
		return
	}
	if r.depth++; r.depth > maxDepth {
		r.s.fail("it is nested too deeply")
		return
	}
	for {
		r.s.space()
		if in == inChunk {
			r.choice()
		} else {
			r.value(key)
		}
		if r.s.fault != "" {
			return
		}
		more, ok := r.s.comma(']')
		if !ok || !more {
			r.depth--
			return
		}
	}
}

func (r *reader) member(in level, key []byte) {
	switch in {
	case inChunk:
		r.chunkMember(string(key))
	case inChoice:
		r.choiceMember(key)
	default:
		r.value(key)
	}
}

func (r *reader) chunkMember(key string) {
	from := r.s.i
	switch key {
	case "choices":
		if r.chosen = true; r.s.next() == '[' {
			r.array(inChunk, nil)
			return
		}
		r.s.pass()
	case "id":
		r.s.pass()
		r.head.id = Span{from, r.s.i}
	case "created":
		r.s.pass()
		r.head.created = Span{from, r.s.i}
	case "model":
		r.s.pass()
		r.head.model = Span{from, r.s.i}
	case "obfuscation":
		if r.s.pass(); r.s.b[from] == '"' && r.s.fault == "" {
			r.pad = Span{from + 1, r.s.i - 1}
		}
	default:
		r.s.pass()
	}
}

func (r *reader) choice() {
	if r.s.next() != '{' {
		r.s.pass()
		return
	}
	r.index, r.filled = 0, true
	r.ends = false
	r.object(inChoice)
	if i := r.index; i >= 0 && i < maxChoices {
		r.seen[i/64] |= 1 << (i % 64)
		if r.ends {
			r.finished[i/64] |= 1 << (i % 64)
		}
	}
}

// choiceMember takes for output whatever it does not know.
func (r *reader) choiceMember(key []byte) {
	switch string(key) {
	case "index":
		r.index = r.small()
	case "finish_reason":
		r.ends = r.s.next() != 'n'
		r.s.pass()
	case "native_finish_reason", "stop_reason", "matched_stop", "logprobs", "token_ids",
		"content_filter_results", "content_filter_result", "content_filter_offsets":
		r.s.pass()
	default:
		r.value(key)
	}
}

// small takes a number below maxChoices; -1 for any other.
func (r *reader) small() int {
	from := r.s.i
	r.s.pass()
	n := 0
	for _, d := range r.s.b[from:r.s.i] {
		if d < '0' || d > '9' || n >= maxChoices {
			return -1
		}
		n = n*10 + int(d-'0')
	}
	return n
}

// value takes what a delta or message holds under a key.
func (r *reader) value(key []byte) {
	switch r.s.next() {
	case '"':
		r.string(key)
	case '{':
		outer := r.sounds
		r.sounds = outer || string(key) == "audio"
		r.object(inDelta)
		r.sounds = outer
	case '[':
		r.array(inDelta, key)
	default:
		r.s.pass()
	}
}

func (r *reader) string(key []byte) {
	from := r.s.i + 1
	n := r.s.textLen()
	if r.s.fault != "" {
		return
	}
	switch {
	case string(key) == "role", string(key) == "type":
		return
	case string(key) == "data" && r.sounds:
		r.sound += n
	case string(key) == "url" && bytes.HasPrefix(r.s.b[from:], []byte("data:")):
		r.pictures++
	default:
		r.text += n
		r.texts++
		r.hole = Span{from, r.s.i - 1}
	}
}

// EmittedWhole is an upper bound of the output tokens of a whole answer, as far as
// they can be seen in it. One that is malformed counts its bytes.
func EmittedWhole(body []byte) (most int64) {
	var t tally
	r := reader{tally: &t, s: scanner{b: body}}
	if !r.read() || !r.chosen {
		return int64(len(body))
	}
	return t.most()
}
