package dialect

import (
	"bytes"
	"slices"
	"strconv"
	"unicode/utf8"
)

// What a body names beside its model: other models, ways to be routed, tiers of
// another price, and objects that the provider keeps, which may be another caller's.

// sense is what a provider reads in a field.
type sense uint8

const (
	otherModels sense = iota // models that may answer too: each is checked like `model`
	routing                  // who answers, or from where: refused at a target that reads it
	tier                     // a tier: refused, but for those that cost what the model does
	stored                   // an object kept at the provider: refused until it is known whose it is
)

// field is a key at the top of a body with a sense beside the call's own.
type field struct {
	name  string
	sense sense
	// readers are the adapters whose provider reads it; nil: any. What stands
	// behind "openai-compatible" or "litellm" is not known: they read all.
	readers []string
}

// fields is the one table of them. The providers' own references name them: OpenAI's
// and Azure's chat completions, OpenRouter's routing, LiteLLM's and Groq's parameters.
var fields = []field{
	{"models", otherModels, nil}, // OpenRouter: the next in the list where one fails
	{"fallbacks", otherModels, nil},
	{"safety_model", otherModels, nil}, // Together
	{"lora_path", otherModels, nil},    // SGLang: what is answered with is chosen so
	{"adapter_id", otherModels, nil},

	{"route", routing, []string{"openrouter"}},
	{"provider", routing, []string{"openrouter"}},
	{"preset", routing, []string{"openrouter"}},
	{"plugins", routing, []string{"openrouter"}},
	{"compound_custom", routing, []string{"groq"}},
	{"data_sources", routing, []string{"azure"}},
	{"dataSources", routing, []string{"azure"}},
	{"extra_body", routing, []string{}},
	{"model_list", routing, []string{}},
	{"deployment_id", routing, []string{}},
	{"custom_llm_provider", routing, []string{}},
	{"context_window_fallbacks", routing, []string{}},
	{"content_policy_fallbacks", routing, []string{}},
	{"api_base", routing, []string{}},
	{"base_url", routing, []string{}},
	{"api_key", routing, []string{}},
	{"user_config", routing, []string{}},

	{"service_tier", tier, nil},

	{"previous_response_id", stored, nil},
	{"conversation", stored, nil},
	{"prompt", stored, nil}, // as an object; a text is none
	{"prompt_id", stored, nil},
	{"thread_id", stored, nil},
	{"assistant_id", stored, nil},
	{"container", stored, nil},
	{"cached_content", stored, nil},
	{"file_id", stored, nil},
	{"file_ids", stored, nil},
	{"vector_store_ids", stored, nil},
}

// knowsAll are the adapters behind which anything may stand.
var knowsAll = []string{"openai-compatible", "litellm"}

// keptAnywhere are the keys that name stored objects wherever they stand in a message's
// parts or in a tool. hints knows how they end.
var keptAnywhere = []string{"file_id", "file_ids", "vector_store_ids", "container_id", "connector_id"}

// plainTiers cost what the model's price says.
var plainTiers = []string{"auto", "default", "standard", "standard_only", "on_demand"}

// maxOthers bounds the models that a call may name beside its own.
const maxOthers = 16

// Beside is what a call names beside its model.
type Beside struct {
	Models [][]byte // unescaped; they may alias the body
	Param  string   // where the first of Models stands
	Tier   string   // the field of a tier with a price of its own; "": none
	Stored string   // where an object kept at the provider is named; "": none

	routing []*field
}

// Routed returns the field by which a provider spoken to by this adapter would be
// told who answers; "" for none.
func (b *Beside) Routed(adapter string) string {
	for _, f := range b.routing {
		if f.readers == nil || slices.Contains(f.readers, adapter) || slices.Contains(knowsAll, adapter) {
			return f.name
		}
	}
	return ""
}

// byLetter are the fields by their first letter, which is a small one.
var byLetter = func() (t ['z' - 'a' + 1][]*field) {
	for i := range fields {
		f := &fields[i]
		t[f.name[0]-'a'] = append(t[f.name[0]-'a'], f)
	}
	return t
}()

// besideField finds the field that a key is, or that some parsers take it for.
func besideField(key []byte) *field {
	if len(key) == 0 {
		return nil
	}
	if first := key[0] | 0x20; first >= 'a' && first <= 'z' {
		return foldsToOne(key, byLetter[first-'a'])
	}
	if key[0] >= utf8.RuneSelf {
		for _, list := range byLetter {
			if f := foldsToOne(key, list); f != nil {
				return f
			}
		}
	}
	return nil
}

func foldsToOne(key []byte, list []*field) (found *field) {
	for _, f := range list {
		if string(key) == f.name {
			return f
		}
		if found == nil && bytes.EqualFold(key, []byte(f.name)) {
			found = f
		}
	}
	return found
}

// readBeside takes the value of a field of the table, the scanner before it.
func (c *Call) readBeside(s *scanner, f *field) *Problem {
	from := s.i
	if !s.skip(1) {
		return malformed(s.fault, s.i)
	}
	value := s.b[from:s.i]
	if string(value) == "null" {
		return nil
	}
	switch f.sense {
	case otherModels:
		return c.takeModels(value, f.name)
	case routing:
		c.Beside.routing = append(c.Beside.routing, f)
	case tier:
		name, ok := plainString(value)
		if !ok || !slices.Contains(plainTiers, name) {
			c.Beside.Tier = f.name
		}
	case stored:
		if f.name != "prompt" || value[0] == '{' {
			c.keeps(f.name)
		}
	}
	return nil
}

func (c *Call) keeps(where string) {
	if c.Beside.Stored == "" {
		c.Beside.Stored = where
	}
}

// takeModels takes the names in a value: a string, or every string in it, the keys
// of objects apart.
func (c *Call) takeModels(value []byte, param string) *Problem {
	s := scanner{b: value}
	for {
		i := bytes.IndexByte(s.b[s.i:], '"')
		if i < 0 {
			return nil
		}
		s.i += i
		span, escaped, ok := s.str()
		if !ok {
			return malformed(s.fault, s.i)
		}
		if s.next() == ':' { // a key
			continue
		}
		name := s.b[span.Start:span.End]
		if escaped {
			if name, ok = appendUnescaped(nil, name); !ok {
				return &Problem{invalidValue, param, strconv.Quote(param) + " holds a lone surrogate."}
			}
		}
		if len(name) == 0 || len(name) > maxModel || len(c.Beside.Models) == maxOthers {
			return &Problem{invalidValue, param, strconv.Quote(param) + " must name at most " + strconv.Itoa(maxOthers) + " models, each of at most 256 bytes."}
		}
		if len(c.Beside.Models) == 0 {
			c.Beside.Param = param
		}
		c.Beside.Models = append(c.Beside.Models, name)
	}
}

// plainString is a string without escapes.
func plainString(value []byte) (string, bool) {
	n := len(value)
	if n < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
		return "", false
	}
	return string(value[1 : n-1]), true
}

// lookInside looks through the messages and tools of a body that was read, where they
// may name something: most don't, and are not read again. hints are what was seen of both.
func (c *Call) lookInside(body []byte, messages, tools Span, h hints) *Problem {
	if !h.anywhere && !(h.inTool && tools != (Span{})) {
		return nil
	}
	w := finder{c: c, s: scanner{b: body, i: messages.Start}}
	if messages != (Span{}) {
		w.each('[', func() { w.message() })
	}
	if w.s.i = tools.Start; tools != (Span{}) {
		w.each('[', func() { w.keyed("tools", true) })
	}
	return w.problem
}

// hints say whether some key may be one that message and keyed look for, in whatever
// spelling; inTool: one that counts in tools alone.
type hints struct{ anywhere, inTool bool }

// see takes a key as it is written. By its last letter most are known to be none.
func (h *hints) see(key []byte, escaped bool) {
	if len(key) == 0 {
		return
	}
	switch last := key[len(key)-1]; {
	case escaped || last >= utf8.RuneSelf:
		h.anywhere = true
	case last|0x20 == 'd' || last|0x20 == 's' || last|0x20 == 'o':
		h.anywhere = h.anywhere || mistaken(key, keptAnywhere...) != "" || mistaken(key, "audio") != ""
	case last|0x20 == 'l' || last|0x20 == 'r':
		h.inTool = h.inTool || mistaken(key, "model", "container") != ""
	}
}

// finder walks JSON that is known to be sound.
type finder struct {
	c       *Call
	s       scanner
	problem *Problem
}

// each calls do at every element of an array, which takes it; another value is
// passed over.
func (w *finder) each(open byte, do func()) {
	if w.s.next() != open {
		w.s.skip(0)
		return
	}
	w.s.i++
	if w.s.next() == open+2 { // ] and } stand two behind [ and {
		w.s.i++
		return
	}
	for {
		w.s.space()
		do()
		if more, ok := w.s.comma(open + 2); !ok || !more {
			return
		}
	}
}

// key takes a key and its colon.
func (w *finder) key() []byte {
	span, escaped, _ := w.s.str()
	key := w.s.b[span.Start:span.End]
	if escaped {
		key, _ = appendUnescaped(nil, key)
	}
	w.s.colon()
	w.s.space()
	return key
}

func (w *finder) message() {
	w.each('{', func() {
		switch key := w.key(); string(key) {
		case "content":
			w.keyed("messages", false)
		case "audio": // an earlier answer, by its id
			if w.s.next() != 'n' {
				w.c.keeps("messages.audio")
			}
			w.s.skip(0)
		default:
			w.mistaken(key, "messages", "content", "audio")
			w.s.skip(0)
		}
	})
}

// mistaken refuses a key that some parsers take for one of names.
func (w *finder) mistaken(key []byte, where string, names ...string) {
	if name := mistaken(key, names...); name != "" && string(key) != name && w.problem == nil {
		w.problem = ambiguous(name, where+".")
	}
}

// schemas are where a caller's own names stand.
var schemas = []string{"function", "custom", "parameters", "input_schema", "schema"}

// keyed looks at every key of a value and of what is inside. In a tool a model may be
// named, and the caller's own schema stands apart.
func (w *finder) keyed(where string, tool bool) {
	switch w.s.next() {
	case '[':
		w.each('[', func() { w.keyed(where, tool) })
	case '{':
		w.each('{', func() {
			key := w.key()
			switch {
			case tool && slices.Contains(schemas, string(key)):
				w.s.skip(0)
			case tool && string(key) == "model":
				from := w.s.i
				w.s.skip(0)
				if p := w.c.takeModels(w.s.b[from:w.s.i], "tools.model"); p != nil && w.problem == nil {
					w.problem = p
				}
			case tool && string(key) == "container" && w.s.next() == '"', slices.Contains(keptAnywhere, string(key)):
				if w.s.next() != 'n' {
					w.c.keeps(where + "." + string(key))
				}
				w.s.skip(0)
			default:
				w.mistaken(key, where, keptAnywhere...)
				if tool {
					w.mistaken(key, where, "model", "container")
				}
				w.keyed(where, tool)
			}
		})
	default:
		w.s.skip(0)
	}
}
