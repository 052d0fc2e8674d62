package dialect

// Usage is what a call used, in disjoint parts: no token is in two of them.
type Usage struct {
	Input       int64 // fresh text input
	CachedInput int64 // read from the provider's cache
	CacheWrite  int64 // written to it
	Output      int64 // visible text output
	Reasoning   int64
	AudioInput  int64
	AudioOutput int64
}

// InputTotal is the input as the provider counts it.
func (u Usage) InputTotal() int64 { return u.Input + u.CachedInput + u.CacheWrite + u.AudioInput }

// OutputTotal is the output as the provider counts it.
func (u Usage) OutputTotal() int64 { return u.Output + u.Reasoning + u.AudioOutput }

// maxTokens is the largest count that is believed: sums of several stay far from
// an int64's end.
const maxTokens = 1 << 50

// ReadUsage reads the usage of a whole chat.completion
// (https://platform.openai.com/docs/api-reference/chat/object). false: there is
// none, or none that can be believed. The last of several counts.
func ReadUsage(body []byte) (Usage, bool) {
	if u, known, ok := lastUsage(body); ok {
		return u, known
	}
	u, known, _ := readUsage(body)
	return u, known
}

// lastUsage reads the usage of an answer from its end, where providers put it; of a
// long one that is nearly all of the work saved. ok: it is certain that in JSON
// this is the last usage of the outermost object. A quote after a comma or a brace
// and before a letter opens a string, for where it closed one the text would be no
// JSON; what a colon follows is a key; and where members and one brace are all that
// comes after it, its object is the outermost.
func lastUsage(body []byte) (u Usage, known, ok bool) {
	at := lastUsageKey(body)
	before := at - 1
	for before >= 0 && isSpace(body[before]) {
		before--
	}
	if before < 0 || body[before] != ',' && body[before] != '{' {
		return Usage{}, false, false
	}
	s := scanner{b: body, i: at}
	if key, ok := plainKey(&s); !ok || string(key) != "usage" || s.next() != '{' {
		return Usage{}, false, false
	}
	u, known = readCounts(&s)
	if s.fault != "" {
		return Usage{}, false, false
	}
	for {
		more, ok := s.comma('}')
		if !ok {
			return Usage{}, false, false
		}
		if !more {
			break
		}
		if _, ok := plainKey(&s); !ok || !s.pass() {
			return Usage{}, false, false
		}
	}
	for _, c := range body[s.i:] {
		if !isSpace(c) {
			return Usage{}, false, false
		}
	}
	return u, known, true
}

const usageKey = `"usage"`

// usageSkip is how far back the next place lies where usageKey may begin, by the byte
// at this one.
var usageSkip = func() (t [256]uint8) {
	for i := range t {
		t[i] = uint8(len(usageKey))
	}
	for i := len(usageKey) - 1; i > 0; i-- {
		t[usageKey[i]] = uint8(i)
	}
	return t
}()

// lastUsageKey finds the last usageKey in b; negative: none. bytes.LastIndex would hash
// every byte.
func lastUsageKey(b []byte) int {
	at := len(b) - len(usageKey)
	for at >= 0 && (b[at] != '"' || string(b[at:at+len(usageKey)]) != usageKey) {
		at -= int(usageSkip[b[at]])
	}
	return at
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// readUsage also says whether there is usage, believed or not, and choices is
// there and empty: the mark of the chunk that brings only usage.
func readUsage(body []byte) (u Usage, known, only bool) {
	s := scanner{b: body}
	if s.next() != '{' {
		return Usage{}, false, false
	}
	s.i++
	if s.next() == '}' {
		return Usage{}, false, false
	}
	told, noChoices := false, false
	for {
		key, ok := plainKey(&s)
		if !ok {
			return Usage{}, false, false
		}
		switch {
		case string(key) == "usage" && s.next() == '{':
			u, known = readCounts(&s)
			told, ok = true, s.fault == ""
		case string(key) == "choices" && s.next() == '[':
			from := s.i
			ok = s.pass()
			inner := scanner{b: body, i: from + 1}
			noChoices = inner.next() == ']'
		default:
			ok = s.pass()
		}
		if !ok {
			return Usage{}, false, false
		}
		more, ok := s.comma('}')
		if !ok {
			return Usage{}, false, false
		}
		if !more {
			return u, known, told && noChoices
		}
	}
}

// pass skips one value by its brackets and quotes alone. An answer is its
// provider's to get right: what is read in it is only its usage.
func (s *scanner) pass() bool {
	if c := s.next(); c != '{' && c != '[' {
		return s.skip(1)
	}
	depth := 0
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '"':
			if _, _, ok := s.str(); !ok {
				return false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				s.i++
				return true
			}
		}
		s.i++
	}
	return s.fail("it ends too early")
}

// plainKey takes a key and its colon. One with escapes is no key that is read: it is
// empty.
func plainKey(s *scanner) ([]byte, bool) {
	if s.next() != '"' {
		return nil, false
	}
	span, escaped, ok := s.str()
	if !ok || !s.colon() {
		return nil, false
	}
	if escaped {
		return nil, true
	}
	return s.b[span.Start:span.End], true
}

// counts are those of a usage object as the provider writes them: details are
// parts of the totals.
type counts struct {
	prompt, completion, total      int64
	cached, cacheWrite, audioIn    int64
	read, written                  int64 // the same two, beside the totals
	reasoning, audioOut            int64
	hasPrompt, hasCompletion, lost bool
}

func readCounts(s *scanner) (Usage, bool) {
	var c counts
	c.object(s, 2, noDetail)
	if s.fault != "" || c.lost || !c.hasPrompt && !c.hasCompletion {
		return Usage{}, false
	}
	var u Usage
	left := c.prompt
	if !c.hasPrompt {
		left = max(0, c.total-c.completion)
	}
	u.CachedInput = part(&left, max(c.cached, c.read))
	u.CacheWrite = part(&left, max(c.cacheWrite, c.written))
	u.AudioInput = part(&left, c.audioIn)
	u.Input = left
	// Some providers count reasoning beside completion_tokens: only the total has it.
	left = c.completion
	if c.hasPrompt {
		left = max(left, c.total-c.prompt)
	}
	u.Reasoning = part(&left, c.reasoning)
	u.AudioOutput = part(&left, c.audioOut)
	u.Output = left
	return u, true
}

// part takes n out of what is left, never more than there is.
func part(left *int64, n int64) int64 {
	n = min(n, *left)
	*left -= n
	return n
}

// object reads the members of usage, or of one of its details; around is how many
// objects they stand in.
func (c *counts) object(s *scanner, around int, in detail) {
	s.i++
	if s.next() == '}' {
		s.i++
		return
	}
	for {
		key, ok := plainKey(s)
		if !ok {
			s.fail("usage is malformed")
			return
		}
		to, inside := c.field(in, key)
		switch {
		case inside != noDetail && s.next() == '{':
			c.object(s, around+1, inside)
		case to != nil:
			c.number(s, to, around)
		default:
			s.skip(around)
		}
		if s.fault != "" {
			return
		}
		if more, ok := s.comma('}'); !ok || !more {
			return
		}
	}
}

// detail is a part of usage whose counts are parts of a total.
type detail uint8

const (
	noDetail detail = iota
	ofPrompt
	ofCompletion
)

// field returns where a key's count is kept, or whose details it opens.
func (c *counts) field(in detail, key []byte) (to *int64, inside detail) {
	switch in {
	case noDetail:
		switch string(key) {
		case "prompt_tokens":
			return &c.prompt, noDetail
		case "completion_tokens":
			return &c.completion, noDetail
		case "total_tokens":
			return &c.total, noDetail
		case "prompt_tokens_details":
			return nil, ofPrompt
		case "completion_tokens_details":
			return nil, ofCompletion
		case "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens": // Moonshot, DeepSeek, LiteLLM
			return &c.read, noDetail
		case "cache_creation_input_tokens":
			return &c.written, noDetail
		}
	case ofPrompt:
		switch string(key) {
		case "cached_tokens":
			return &c.cached, noDetail
		case "cache_write_tokens", "cache_creation_tokens":
			return &c.cacheWrite, noDetail
		case "audio_tokens":
			return &c.audioIn, noDetail
		}
	case ofCompletion:
		switch string(key) {
		case "reasoning_tokens":
			return &c.reasoning, noDetail
		case "audio_tokens":
			return &c.audioOut, noDetail
		}
	}
	return nil, noDetail
}

// endsNumber says whether a byte can't be a part of one.
func endsNumber(c byte) bool { return c == ',' || c == '}' || isSpace(c) }

// number reads a count: an integer of at least 0; null is as if it were not there.
// Anything else makes the usage one that can't be believed.
func (c *counts) number(s *scanner, to *int64, around int) {
	if s.next() == 'n' {
		s.word("null")
		return
	}
	from := s.i
	if !s.digits() || s.i == len(s.b) || s.i-from > 1 && s.b[from] == '0' || !endsNumber(s.b[s.i]) {
		if s.i = from; !s.skip(around) { // it is another value
			return
		}
	}
	n := int64(0)
	for _, d := range s.b[from:s.i] {
		if d < '0' || d > '9' {
			c.lost = true
			return
		}
		if n = n*10 + int64(d-'0'); n > maxTokens {
			c.lost = true
			return
		}
	}
	*to = n
	c.hasPrompt = c.hasPrompt || to == &c.prompt
	c.hasCompletion = c.hasCompletion || to == &c.completion
}
