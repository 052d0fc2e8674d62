package simulator

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"unicode/utf8"
)

type delta struct {
	Role      string     `json:"role,omitempty"`
	Content   *string    `json:"content,omitempty"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
}

// opening is the first delta of a choice: its content stands even when null.
type opening struct {
	Role      string     `json:"role"`
	Content   *string    `json:"content"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
	Refusal   *string    `json:"refusal"`
}

type chunkChoice struct {
	Index        int       `json:"index"`
	Delta        any       `json:"delta"`
	Logprobs     *struct{} `json:"logprobs"`
	FinishReason *string   `json:"finish_reason"`
}

type chunk struct {
	ID          string          `json:"id"`
	Object      string          `json:"object"`
	Created     int64           `json:"created"`
	Model       string          `json:"model"`
	ServiceTier string          `json:"service_tier"`
	Fingerprint string          `json:"system_fingerprint"`
	Choices     []chunkChoice   `json:"choices"`
	Usage       json.RawMessage `json:"usage,omitempty"`
}

// stream is one streamed answer. Its methods return false when nothing more is
// to be sent: the caller left, or the script cut it.
type stream struct {
	*exchange
	c    *call
	a    answer
	out  io.Writer
	gz   *gzip.Writer // nil: plain
	sent int          // pieces
}

func (x *exchange) stream(c *call, a answer) {
	s := &stream{exchange: x, c: c, a: a, out: x.w}
	x.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	x.w.Header().Set("Cache-Control", "no-cache")
	if c.script.Gzip {
		x.w.Header().Set("Content-Encoding", "gzip")
		s.gz = gzip.NewWriter(x.w)
		s.out = s.gz
	}
	x.commit(http.StatusOK)
	s.flush()
	defer func() { x.bill(c.tokens(s.sent)) }()
	if !x.wait(c.script.FirstChunkDelayMS) || !s.open() || !s.body() || !s.close() {
		x.noteLeaving()
	}
}

// open sends the chunk with the role for each choice.
func (s *stream) open() bool {
	o := opening{Role: "assistant"}
	if s.a.tool != nil {
		t := toolCall{Index: new(int), ID: s.a.toolID, Type: "function"}
		t.Function.Name = s.a.tool.name
		o.ToolCalls = []toolCall{t}
	} else {
		o.Content = new(string)
	}
	for i := range s.c.n {
		if !s.event(s.chunk(chunkChoice{Index: i, Delta: o})) {
			return false
		}
	}
	return true
}

// body sends the pieces, choice by choice.
func (s *stream) body() bool {
	for _, piece := range s.a.pieces {
		var d delta
		if s.a.tool != nil {
			t := toolCall{Index: new(int)}
			t.Function.Arguments = piece
			d.ToolCalls = []toolCall{t}
		} else {
			d.Content = &piece
		}
		for i := range s.c.n {
			if !s.wait(s.c.script.ChunkDelayMS) || !s.scriptedEvent(s.chunk(chunkChoice{Index: i, Delta: d})) {
				return false
			}
			s.sent++
		}
	}
	return true
}

// close sends what follows the pieces.
func (s *stream) close() bool {
	for i := range s.c.n {
		if !s.scriptedEvent(s.chunk(chunkChoice{Index: i, Delta: struct{}{}, FinishReason: &s.a.finish})) {
			return false
		}
	}
	if u := s.c.usage(s.c.tokens(s.sent)); s.c.includeUsage && u != nil {
		last := s.chunk()
		last.Choices, last.Usage = []chunkChoice{}, u
		if !s.scriptedEvent(last) {
			return false
		}
	}
	if !s.c.script.NoDone && !s.frame([]byte("[DONE]")) {
		return false
	}
	return s.gz == nil || s.gz.Close() == nil
}

func (s *stream) chunk(choices ...chunkChoice) chunk {
	k := chunk{
		ID: s.a.id, Object: "chat.completion.chunk", Created: s.a.created, Model: s.c.model,
		ServiceTier: "default", Fingerprint: fingerprint, Choices: choices,
	}
	if s.c.includeUsage && !s.c.script.NoUsage {
		k.Usage = json.RawMessage("null")
	}
	return k
}

func (s *stream) event(k chunk) bool { return s.frame(encode(k, "")) }

// scriptedEvent sends k unless the script ends the stream here.
func (s *stream) scriptedEvent(k chunk) bool {
	if n := s.c.script.CutAfterChunks; n != nil && s.sent >= *n {
		b := s.lines(encode(k, ""))
		if s.r.ProtoAtLeast(1, 1) {
			b = append(fmt.Appendf(nil, "%x\r\n", len(b)), b[:len(b)/2]...)
		} else {
			b = b[:len(b)/2]
		}
		s.cut(b)
		return false
	}
	if n := s.c.script.ErrorAfterChunks; n != nil && s.sent >= *n {
		s.bySelf = true
		s.frame(encode(scripted(http.StatusInternalServerError, s.c.model).object(), ""))
		return false
	}
	return s.event(k)
}

func (s *stream) lines(data []byte) []byte {
	end := "\n"
	if s.c.script.CRLF {
		end = "\r\n"
	}
	var b []byte
	if s.c.script.Comment {
		b = fmt.Appendf(b, ": simulator%s%s", end, end)
	}
	return fmt.Appendf(b, "data: %s%s%s", data, end, end)
}

// frame sends one event in one HTTP chunk, or in two.
func (s *stream) frame(data []byte) bool {
	b := s.lines(data)
	if !s.c.script.SplitUTF8 {
		return s.write(b)
	}
	at := len(b) / 2
	for i, c := range b {
		if !utf8.RuneStart(c) {
			at = i
			break
		}
	}
	return s.write(b[:at]) && s.write(b[at:])
}

func (s *stream) write(b []byte) bool {
	if _, err := s.out.Write(b); err != nil {
		return false
	}
	return s.flush()
}

func (s *stream) flush() bool {
	if s.gz != nil && s.gz.Flush() != nil {
		return false
	}
	return http.NewResponseController(s.w).Flush() == nil
}

// cut sends raw on the connection as it stands and closes it with no clean end.
func (x *exchange) cut(raw []byte) {
	x.bySelf = true
	conn, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // the nearest to a cut that this server has
	}
	_, _ = buffered.Write(raw)
	_ = buffered.Flush()
	if tcp, ok := conn.(*net.TCPConn); ok && x.script.Cut == "rst" {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// noteLeaving records that the stream ended early by the caller's doing.
func (x *exchange) noteLeaving() {
	if !x.bySelf {
		x.gone()
	}
}
