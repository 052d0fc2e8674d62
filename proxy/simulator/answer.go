package simulator

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

const (
	greeting    = "Hello! I am the simulator: no key, no bill, the real wire."
	fingerprint = "fp_simulator"
)

// chat answers POST /v1/chat/completions.
func (x *exchange) chat(body []byte) {
	c, script, rest := parseCall(body)
	if script != nil {
		x.fail(*script)
		return
	}
	x.script = c.script
	s := &x.script
	if !x.wait(s.DelayMS) {
		x.gone()
		return
	}
	switch {
	case s.Drop:
		x.cut(nil)
	case s.Body != "":
		x.w.Header().Set("Content-Type", "application/json")
		x.send(max(s.Status, http.StatusOK), []byte(s.Body))
	case s.Status > http.StatusOK:
		x.fail(scripted(s.Status, c.model))
	case rest != nil:
		x.fail(*rest)
	case !x.s.serves(c.model):
		x.fail(unknownModel(c.model))
	case c.stream:
		x.stream(&c, newAnswer(&c))
	default:
		x.whole(&c, newAnswer(&c))
	}
}

// answer is the same for every choice of a call.
type answer struct {
	id      string
	created int64
	pieces  []string // of the text, or of the tool's arguments
	finish  string
	tool    *tool
	toolID  string
}

func newAnswer(c *call) answer {
	a := answer{id: "chatcmpl-" + rand.Text(), created: time.Now().Unix(), finish: "stop", tool: c.tool}
	if a.tool != nil {
		a.toolID = "call_" + rand.Text()
		a.finish = "tool_calls"
		a.pieces = split(a.tool.arguments, max(c.script.Chunks, 2))
	} else {
		a.pieces = pieces(c.script.Content, c.script.Chunks)
	}
	if c.limit > 0 && len(a.pieces) > c.limit && !c.script.IgnoreLimit {
		a.pieces, a.finish = a.pieces[:c.limit], "length"
	}
	return a
}

// pieces cuts content into n parts, or one a word when n is 0; without content
// there are n words, or the greeting.
func pieces(content string, n int) []string {
	switch {
	case content == "" && n == 0:
		return pieces(greeting, 0)
	case content == "":
		made := make([]string, 0, n)
		for vocabulary := pieces(greeting+" ", 0); len(made) < n; {
			made = append(made, vocabulary[:min(len(vocabulary), n-len(made))]...)
			vocabulary[0] = " Hello!"
		}
		return made
	case n > 0:
		return split(content, n)
	}
	var cut []string
	from, inWord := 0, false
	for i, r := range content {
		space := r == ' ' || r == '\n' || r == '\t'
		if space && inWord {
			cut = append(cut, content[from:i])
			from = i
		}
		inWord = !space
	}
	return append(cut, content[from:])
}

// split cuts s into n parts of about as many characters, fewer when it has not
// so many.
func split(s string, n int) []string {
	runes := []rune(s)
	n = min(n, len(runes))
	parts := make([]string, n)
	for i := range parts {
		parts[i] = string(runes[i*len(runes)/n : (i+1)*len(runes)/n])
	}
	return parts
}

type usage struct {
	Prompt     int64 `json:"prompt_tokens"`
	Completion int64 `json:"completion_tokens"`
	Total      int64 `json:"total_tokens"`
	PromptOf   struct {
		Cached int64 `json:"cached_tokens"`
		Audio  int64 `json:"audio_tokens"`
	} `json:"prompt_tokens_details"`
	CompletionOf struct {
		Reasoning int64 `json:"reasoning_tokens"`
		Audio     int64 `json:"audio_tokens"`
		Accepted  int64 `json:"accepted_prediction_tokens"`
		Rejected  int64 `json:"rejected_prediction_tokens"`
	} `json:"completion_tokens_details"`
}

// tokens is what sent pieces cost.
func (c *call) tokens(sent int) Tokens {
	return Tokens{Prompt: c.prompt, Completion: int64(sent) + c.script.ReasoningTokens}
}

// usage is what the answer says of tokens; nil: nothing.
func (c *call) usage(t Tokens) json.RawMessage {
	if c.script.NoUsage {
		return nil
	}
	if len(c.script.Usage) > 0 {
		return c.script.Usage
	}
	var u usage
	if !c.script.ZeroUsage {
		u.Prompt, u.Completion, u.Total = t.Prompt, t.Completion, t.Prompt+t.Completion
		u.PromptOf.Cached = min(c.script.CachedTokens, t.Prompt)
		u.CompletionOf.Reasoning = c.script.ReasoningTokens
	}
	return encode(u, "")
}

type toolCall struct {
	Index    *int   `json:"index,omitempty"` // in streams
	ID       string `json:"id,omitempty"`
	Type     string `json:"type,omitempty"`
	Function struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role        string     `json:"role"`
	Content     *string    `json:"content"`
	ToolCalls   []toolCall `json:"tool_calls,omitempty"`
	Refusal     *string    `json:"refusal"`
	Annotations []struct{} `json:"annotations"`
}

type wholeChoice struct {
	Index        int       `json:"index"`
	Message      message   `json:"message"`
	Logprobs     *struct{} `json:"logprobs"`
	FinishReason string    `json:"finish_reason"`
}

type completion struct {
	ID          string          `json:"id"`
	Object      string          `json:"object"`
	Created     int64           `json:"created"`
	Model       string          `json:"model"`
	Choices     []wholeChoice   `json:"choices"`
	Usage       json.RawMessage `json:"usage,omitempty"`
	ServiceTier string          `json:"service_tier"`
	Fingerprint string          `json:"system_fingerprint"`
}

func (x *exchange) whole(c *call, a answer) {
	m := message{Role: "assistant", Annotations: []struct{}{}}
	text := strings.Join(a.pieces, "")
	if a.tool != nil {
		t := toolCall{ID: a.toolID, Type: "function"}
		t.Function.Name, t.Function.Arguments = a.tool.name, text
		m.ToolCalls = []toolCall{t}
	} else {
		m.Content = &text
	}
	tokens := c.tokens(len(a.pieces) * c.n)
	v := completion{
		ID: a.id, Object: "chat.completion", Created: a.created, Model: c.model,
		Usage: c.usage(tokens), ServiceTier: "default", Fingerprint: fingerprint,
	}
	for i := range c.n {
		v.Choices = append(v.Choices, wholeChoice{Index: i, Message: m, FinishReason: a.finish})
	}
	x.bill(tokens)
	x.json(http.StatusOK, v, "  ")
}

// compress gives b as one gzip member.
func compress(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close() // a bytes.Buffer takes everything
	return out.Bytes()
}
