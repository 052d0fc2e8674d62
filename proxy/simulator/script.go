package simulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxChunks bounds the pieces of one choice.
const maxChunks = 1 << 20

// Script is what a request wants of the provider, as the extra top-level key
// "simulator" of its body. The zero value is the ordinary answer. A misspelt
// key, or a value out of range, is answered with 400 and code invalid_script.
type Script struct {
	// Status other than 0 and 200 is answered in place of a completion, with the
	// provider's own error for it. 400 to 599.
	Status int `json:"status,omitempty"`
	// RetryAfter is the Retry-After header of any answer, as it stands.
	RetryAfter string `json:"retry_after,omitempty"`
	// Headers are set on the answer last, in place of the provider's own.
	Headers map[string]string `json:"headers,omitempty"`
	// Body is sent as it stands, with Status or 200, in place of any other answer.
	Body string `json:"body,omitempty"`

	// DelayMS is waited before the header is sent, in milliseconds; FirstChunkDelayMS
	// between a stream's header and its first chunk; ChunkDelayMS before each piece.
	DelayMS           int `json:"delay_ms,omitempty"`
	FirstChunkDelayMS int `json:"first_chunk_delay_ms,omitempty"`
	ChunkDelayMS      int `json:"chunk_delay_ms,omitempty"`

	// Content is the answer's text; "" gives the default one.
	Content string `json:"content,omitempty"`
	// Chunks is the number of pieces of each choice; 0 gives one a word. Without
	// Content as many words are made.
	Chunks int `json:"chunks,omitempty"`
	// IgnoreLimit answers in full, whatever limit of output the request has.
	IgnoreLimit bool `json:"ignore_limit,omitempty"`
	// ToolCall answers with a call of the first tool, or of one of its own.
	ToolCall bool `json:"tool_call,omitempty"`

	// Drop closes the connection in place of an answer.
	Drop bool `json:"drop,omitempty"`
	// CutAfterChunks cuts the connection inside the frame that follows so many
	// pieces of a stream; a whole answer is cut in its middle. Cut says how: "fin"
	// (default) or "rst". Cut alone means after one piece.
	CutAfterChunks *int   `json:"cut_after_chunks,omitempty"`
	Cut            string `json:"cut,omitempty"`
	// ErrorAfterChunks ends a stream after so many pieces with an error event, the
	// end of the body and no [DONE].
	ErrorAfterChunks *int `json:"error_after_chunks,omitempty"`

	// NoUsage leaves usage out, ZeroUsage sends zeros, Usage sends this value.
	NoUsage   bool            `json:"no_usage,omitempty"`
	ZeroUsage bool            `json:"zero_usage,omitempty"`
	Usage     json.RawMessage `json:"usage,omitempty"`
	// CachedTokens of the prompt were cached; ReasoningTokens are counted beside
	// the pieces.
	CachedTokens    int64 `json:"cached_tokens,omitempty"`
	ReasoningTokens int64 `json:"reasoning_tokens,omitempty"`

	// SplitUTF8 sends each event in two frames, parted inside a character of more
	// than one byte where it has one.
	SplitUTF8 bool `json:"split_utf8,omitempty"`
	// NoDone ends a stream without [DONE]; CRLF ends its lines with \r\n; Comment
	// puts a comment before each event.
	NoDone  bool `json:"no_done,omitempty"`
	CRLF    bool `json:"crlf,omitempty"`
	Comment bool `json:"comment,omitempty"`
	// Gzip encodes the body, whether the caller takes it or not.
	Gzip bool `json:"gzip,omitempty"`
}

func parseScript(raw json.RawMessage) (Script, *problem) {
	var s Script
	if len(raw) == 0 {
		return s, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(&s)
	if err == nil {
		if _, extra := d.Token(); extra != io.EOF {
			err = errors.New("data after the script")
		}
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return s, invalid("simulator", "invalid_script", "Invalid script: %v", err)
	}
	return s, nil
}

func (s *Script) check() error {
	switch {
	case s.Status != 0 && s.Status != http.StatusOK && (s.Status < 400 || s.Status > 599):
		return fmt.Errorf("status %d: 200 or 400 to 599", s.Status)
	case s.DelayMS < 0 || s.ChunkDelayMS < 0 || s.FirstChunkDelayMS < 0:
		return errors.New("a delay is negative")
	case s.Chunks < 0 || s.Chunks > maxChunks:
		return fmt.Errorf("chunks %d: 0 to %d", s.Chunks, maxChunks)
	case s.Cut != "" && s.Cut != "fin" && s.Cut != "rst":
		return fmt.Errorf("cut %q: fin or rst", s.Cut)
	case s.CutAfterChunks != nil && *s.CutAfterChunks < 0, s.ErrorAfterChunks != nil && *s.ErrorAfterChunks < 0:
		return errors.New("a number of chunks is negative")
	case s.CachedTokens < 0 || s.ReasoningTokens < 0:
		return errors.New("a number of tokens is negative")
	}
	if s.Cut != "" && s.CutAfterChunks == nil {
		one := 1
		s.CutAfterChunks = &one
	}
	return nil
}
