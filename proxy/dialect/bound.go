package dialect

import "bytes"

// What is counted beside the text, in tokens. A tokenizer over bytes makes at most
// one token of a byte, so the bytes of a text bound its tokens in every
// vocabulary. The rest is room for what providers put around it, and for media,
// whose tokens don't follow from their bytes.
const (
	tokensOfCall    = 64  // a template's beginning and the start of the answer
	tokensOfMessage = 16  // its role and marks
	tokensOfTools   = 640 // how tools are called: Anthropic has up to 530
	tokensOfMember  = 8   // a key or element of a schema, as a template prints it

	// OpenAI charges at most 48,169 tokens for an image (gpt-4o-mini), Anthropic
	// 4,784, Google 2,240.
	tokensOfImage = 50_000

	// Google charges 32 tokens for a second of audio, OpenAI 10; 6 kbit/s are
	// 1,000 characters of base64 a second. Half of that is the divisor, and five
	// minutes the least.
	charsOfAudio  = 16
	tokensOfAudio = 10_000

	// A page of a PDF is charged as its text and as an image, about 3,000 tokens
	// for hardly less than 2,000 characters of base64.
	perCharOfFile = 2
	tokensOfFile  = 100_000
)

// Bound is what a call may use of input at most, as far as its body tells.
type Bound struct {
	Input    int64 // tokens, never under, of what is in the body
	Outside  bool  // some of the input is not in the body: count the model's context
	AudioIn  bool  // some of the input may be audio
	AudioOut bool  // asks for output other than text
}

// Bound bounds the input of a call that ReadChat has read. What it does not know
// counts as outside: keys, kinds of parts and of tools. All that stands in the body
// is added up, so that keys that stand twice inside it can only raise the bound. It
// does not allocate.
func (c *Call) Bound(body []byte) Bound {
	w := weigher{s: scanner{b: body}}
	w.Input, w.AudioOut = tokensOfCall, c.otherOutput
	w.s.space()
	w.object(atTop)
	return w.Bound
}

// place is where in a body a key or an element stands.
type place uint8

const (
	atTop place = iota
	inMessages
	inMessage
	inContent
	inPart
	inImage
	inAudio
	inFile
	inTools
	inTool
	inStructure // that a template prints
)

// weigher walks a body that is known to be JSON.
type weigher struct {
	Bound
	s             scanner
	hasTool, kind bool // a tool was seen; the one at hand tells its type
	strange       int  // bytes that were looked through
}

// object takes an object, the scanner at its brace. A key with escapes is handed on
// as it stands, so it is none that is known.
func (w *weigher) object(p place) {
	w.s.i++
	if w.s.next() == '}' {
		w.s.i++
		return
	}
	for {
		w.s.space()
		key, ok := w.quoted()
		if !ok || !w.s.colon() {
			w.lost()
			return
		}
		w.s.space()
		w.member(p, key)
		if more, ok := w.s.comma('}'); !ok || !more {
			return
		}
	}
}

func (w *weigher) array(p place) {
	w.s.i++
	if w.s.next() == ']' {
		w.s.i++
		return
	}
	for {
		w.s.space()
		w.element(p)
		if more, ok := w.s.comma(']'); !ok || !more {
			return
		}
	}
}

// members and elements take an object or an array; null is nothing, and anything
// else can't be weighed.
func (w *weigher) members(p place)  { w.enter('{', p) }
func (w *weigher) elements(p place) { w.enter('[', p) }

func (w *weigher) enter(open byte, p place) {
	switch c := w.s.next(); {
	case c != open:
		if c != 'n' {
			w.Outside = true
		}
		w.count()
	case c == '{':
		w.object(p)
	default:
		w.array(p)
	}
}

func (w *weigher) element(p place) {
	switch p {
	case inMessages:
		w.Input += tokensOfMessage
		w.members(inMessage)
	case inContent:
		if w.s.next() == '"' {
			w.text()
			return
		}
		w.members(inPart)
	case inTools:
		w.toolsBegin()
		w.kind = false
		w.Input += tokensOfMember
		if w.members(inTool); !w.kind {
			w.Outside = true
		}
	default:
		w.structure()
	}
}

func (w *weigher) toolsBegin() {
	if !w.hasTool {
		w.Input += tokensOfTools
		w.hasTool = true
	}
}

func (w *weigher) member(p place, key []byte) {
	switch p {
	case atTop:
		w.top(string(key))
	case inMessage:
		w.messageMember(string(key))
	case inPart:
		w.partMember(string(key))
	case inTool:
		w.toolMember(string(key))
	case inStructure:
		w.Input += int64(len(key)) + tokensOfMember
		w.structure()
	default:
		w.mediaMember(p, string(key))
	}
}

func (w *weigher) top(key string) {
	switch key {
	case "messages":
		w.elements(inMessages)
	case "tools":
		w.elements(inTools)
	case "functions":
		w.toolsBegin()
		w.structure()
	case "simulator": // our own provider's: how it is to answer
		w.structure()
	case "response_format", "prediction", "tool_choice", "function_call", "chat_template_kwargs",
		"guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs":
		w.structure()
	case "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "modalities", "audio",
		"stop", "stop_token_ids", "logit_bias", "logprobs", "ignore_eos", "skip_special_tokens", "parallel_tool_calls",
		"reasoning_effort", "reasoning", "include_reasoning", "thinking", "enable_thinking", "think", "verbosity",
		"user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "cache_control":
		w.skip() // no input
	default:
		w.stranger(key)
	}
}

// leadsOut are parts of the names by which APIs fetch input from elsewhere.
var leadsOut = []string{
	"url", "uri", "://", "_id", "file", "search", "web", "conversation", "thread", "session", "previous", "plugin",
	"retriev", "rag", "source", "server", "mcp", "assistant", "knowledge", "document", "collection", "context", "memory",
	"cache", "template", // what is kept at the provider; what may print a message many times
	`\u00`, // hides a letter
}

// mostStrange is more bytes than the manners of a model take in all.
const mostStrange = 16 << 10

// stranger takes the value of a key of the top that is not known. Providers have
// many of their own, most of which set the model's manner: it is input by its bytes,
// and leads out of the body only where a name in it says so.
func (w *weigher) stranger(key string) {
	from := w.s.i
	w.s.next()
	switch w.s.b[w.s.i] {
	case '"', '{', '[', 't':
	default:
		w.count()
		return
	}
	w.skip()
	value := w.s.b[from:w.s.i]
	w.Input += int64(len(value))
	if w.strange += len(key) + len(value); key == "prompt" || w.strange > mostStrange {
		w.Outside = true
		return
	}
	for _, name := range leadsOut {
		w.Outside = w.Outside || containsFold(key, name) || containsFold(value, name)
	}
}

// containsFold looks for a name in lower case, whatever case it is in there.
func containsFold[T string | []byte](in T, name string) bool {
	for i := 0; i+len(name) <= len(in); i++ {
		j := 0
		for j < len(name) && (in[i+j] == name[j] || in[i+j]|0x20 == name[j]) {
			j++
		}
		if j == len(name) {
			return true
		}
	}
	return false
}

func (w *weigher) messageMember(key string) {
	switch key {
	case "content":
		if w.s.next() == '[' {
			w.array(inContent)
			return
		}
		w.text()
	case "role", "name", "refusal", "reasoning_content", "reasoning", "tool_call_id", "id":
		w.text()
	case "tool_calls", "function_call":
		// Templates print arguments anew, with a space behind each comma and colon.
		before := w.Input
		w.structure()
		w.Input += w.Input - before
	case "annotations":
		w.structure()
	case "cache_control":
		w.skip()
	case "audio": // an earlier answer, by its id
		if w.s.next() != 'n' {
			w.Outside, w.AudioIn = true, true
		}
		w.skip()
	default:
		w.unknown()
	}
}

// partMember weighs a part of a message's content by the keys that it has, whatever
// type it says it is of.
func (w *weigher) partMember(key string) {
	switch key {
	case "type":
		w.word("text", "refusal", "input_text", "output_text", "image_url", "input_audio", "file")
	case "text", "refusal":
		w.text()
	case "image_url":
		if w.s.next() == '"' {
			w.image()
			return
		}
		w.members(inImage)
	case "input_audio":
		w.members(inAudio)
	case "file":
		w.members(inFile)
	case "cache_control":
		w.skip()
	case "audio_url":
		w.AudioIn = true
		w.unknown()
	default:
		w.unknown()
	}
}

func (w *weigher) toolMember(key string) {
	switch key {
	case "type":
		w.kind = true
		w.word("function", "custom")
	case "function", "custom":
		w.structure()
	case "cache_control", "strict":
		w.skip()
	default:
		w.unknown()
	}
}

func (w *weigher) mediaMember(p place, key string) {
	switch {
	case p == inImage && key == "url":
		w.image()
	case p == inAudio && key == "data":
		w.AudioIn = true
		w.base64(1, charsOfAudio, tokensOfAudio)
	case p == inFile && key == "file_data":
		w.base64(perCharOfFile, 1, tokensOfFile)
	case p == inFile && key == "filename":
		w.text()
	case p == inImage && key == "detail", p == inAudio && key == "format":
		w.skip()
	default:
		w.unknown() // a file_id leads out
	}
}

// image takes a data URL of an image, or one that leads out.
func (w *weigher) image() {
	w.Input += tokensOfImage
	url, ok := w.quoted()
	if !ok {
		w.Outside = true
		w.skip()
		return
	}
	if !bytes.HasPrefix(url, []byte("data:image/")) && !bytes.HasPrefix(url, []byte(`data:image\/`)) {
		w.Outside = true
	}
}

// base64 takes media that stand in the body, or an address that leads out.
func (w *weigher) base64(times, per, least int64) {
	data, ok := w.quoted()
	if !ok {
		w.Outside = true
		w.skip()
		return
	}
	w.Input += max(int64(len(data))*times/per, least)
	if bytes.HasPrefix(data, []byte("data:")) {
		w.AudioIn = w.AudioIn || bytes.HasPrefix(data, []byte("data:audio"))
		return
	}
	if bytes.IndexByte(data, ':') >= 0 || bytes.Contains(data, []byte(`\u`)) {
		w.Outside = true
	}
}

// quoted takes a string and returns what stands between its quotes.
func (w *weigher) quoted() (content []byte, ok bool) {
	if w.s.next() != '"' {
		return nil, false
	}
	span, _, ok := w.s.str()
	return w.s.b[span.Start:span.End], ok
}

// text takes a string or null; anything else can't be weighed.
func (w *weigher) text() {
	switch w.s.next() {
	case '"':
		w.Input += w.s.textLen()
	case 'n':
		w.skip()
	default:
		w.Outside = true
		w.count()
	}
}

// word takes one of the words that are known.
func (w *weigher) word(known ...string) {
	got, ok := w.quoted()
	if !ok {
		w.Outside = true
		w.skip()
		return
	}
	for _, k := range known {
		if string(got) == k {
			return
		}
	}
	w.Outside = true
}

// structure takes a value that a template prints: its strings as texts, with room
// for what is printed around each.
func (w *weigher) structure() {
	w.Input += tokensOfMember
	switch w.s.next() {
	case '"':
		w.Input += w.s.textLen()
	case '{':
		w.object(inStructure)
	case '[':
		w.array(inStructure)
	default:
		w.count()
	}
}

// unknown takes the value of a key that is not known. A number, null or false
// brings nothing in.
func (w *weigher) unknown() {
	switch w.s.next() {
	case '"', '{', '[', 't':
		w.Outside = true
	}
	w.count()
}

// count takes a value as the bytes that it has.
func (w *weigher) count() {
	from := w.s.i
	w.skip()
	w.Input += int64(w.s.i - from)
}

func (w *weigher) skip() {
	if !w.s.skip(0) {
		w.lost()
	}
}

// lost ends the walk: what follows has no bound.
func (w *weigher) lost() {
	w.Outside = true
	w.s.i = len(w.s.b)
}
