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
	at := len(body) - len(`"usage"`)
	for at >= 0 && (body[at+1] != 'u' || string(body[at:at+len(`"usage"`)]) != `"usage"`) { // bytes.LastIndex hashes
		at--
	}
	before := at - 1
	for before >= 0 && isSpace(body[before]) {
		before--
	}
	if before < 0 || body[before] != ',' && body[before] != '{' {
		return Usage{}, false, false
	}
	s := scanner{b: body, i: at}
	if key, ok := plainKey(&s); !ok || key != "usage" || s.next() != '{' {
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
		case key == "usage" && s.next() == '{':
			u, known = readCounts(&s)
			told, ok = true, s.fault == ""
		case key == "choices" && s.next() == '[':
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

// plainKey takes a key and its colon. One with escapes is no key that is read.
func plainKey(s *scanner) (string, bool) {
	if s.next() != '"' {
		return "", false
	}
	span, escaped, ok := s.str()
	if !ok || !s.colon() {
		return "", false
	}
	if escaped {
		return "", true
	}
	switch string(s.b[span.Start:span.End]) { // constants, so that nothing is copied
	case "usage":
		return "usage", true
	case "choices":
		return "choices", true
	case "prompt_tokens":
		return "prompt_tokens", true
	case "completion_tokens":
		return "completion_tokens", true
	case "prompt_tokens_details":
		return "prompt_tokens_details", true
	case "completion_tokens_details":
		return "completion_tokens_details", true
	case "cached_tokens":
		return "cached_tokens", true
	case "cache_write_tokens":
		return "cache_write_tokens", true
	case "cache_creation_tokens":
		return "cache_creation_tokens", true
	case "cache_creation_input_tokens":
		return "cache_creation_input_tokens", true
	case "cache_read_input_tokens":
		return "cache_read_input_tokens", true
	case "prompt_cache_hit_tokens":
		return "prompt_cache_hit_tokens", true
	case "audio_tokens":
		return "audio_tokens", true
	case "reasoning_tokens":
		return "reasoning_tokens", true
	case "total_tokens":
		return "total_tokens", true
	}
	return "", true
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
	c.object(s, 2, "")
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
func (c *counts) object(s *scanner, around int, in string) {
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
		if s.next() == '{' && in == "" && (key == "prompt_tokens_details" || key == "completion_tokens_details") {
			c.object(s, around+1, key)
		} else if to := c.field(in, key); to != nil {
			c.number(s, to, around)
		} else {
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

func (c *counts) field(in, key string) *int64 {
	switch in {
	case "":
		switch key {
		case "prompt_tokens":
			return &c.prompt
		case "completion_tokens":
			return &c.completion
		case "total_tokens":
			return &c.total
		case "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens": // Moonshot, DeepSeek, LiteLLM
			return &c.read
		case "cache_creation_input_tokens":
			return &c.written
		}
	case "prompt_tokens_details":
		switch key {
		case "cached_tokens":
			return &c.cached
		case "cache_write_tokens", "cache_creation_tokens":
			return &c.cacheWrite
		case "audio_tokens":
			return &c.audioIn
		}
	case "completion_tokens_details":
		switch key {
		case "reasoning_tokens":
			return &c.reasoning
		case "audio_tokens":
			return &c.audioOut
		}
	}
	return nil
}

// number reads a count: an integer of at least 0; null is as if it were not there.
// Anything else makes the usage one that can't be believed.
func (c *counts) number(s *scanner, to *int64, around int) {
	if s.next() == 'n' {
		s.word("null")
		return
	}
	from := s.i
	if !s.skip(around) {
		return
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
