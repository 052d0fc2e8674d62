package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func chunkOf(choices string) string {
	return `data: {"id":"c1","object":"chat.completion.chunk","created":17,"model":"m-1","choices":` + choices + "}\n\n"
}

func deltaOf(delta string) string {
	return chunkOf(`[{"index":0,"delta":` + delta + `,"finish_reason":null}]`)
}

// A chunk is told as the tally of it alone.
func TestWhatCountsAsOutput(t *testing.T) {
	one := tally{events: 1, seen: [2]uint64{1}}
	text := func(n int64) tally { c := one; c.text = n; return c }
	none := tally{seen: [2]uint64{1}}
	for _, c := range []struct {
		name, give string
		want       tally
	}{
		{"a text", deltaOf(`{"content":"hello"}`), text(5)},
		{"a text beyond ASCII", deltaOf(`{"content":"größe 大"}`), text(11)},
		{"escapes", deltaOf(`{"content":"\n\"\u00e9\u4e2d\\"}`), text(8)},
		{"an empty text", deltaOf(`{"role":"assistant","content":""}`), none},
		{"a null", deltaOf(`{"role":"assistant","content":null,"refusal":null}`), none},
		{"a refusal", deltaOf(`{"refusal":"no"}`), text(2)},
		{"reasoning", deltaOf(`{"reasoning_content":"hm"}`), text(2)},
		{"reasoning by another name", deltaOf(`{"reasoning":"hm"}`), text(2)},
		{"reasoning in parts", deltaOf(`{"reasoning_details":[{"type":"reasoning.text","text":"hmm"}]}`), text(3)},
		{"a call of a tool", deltaOf(`{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}`), text(7)},
		{"arguments", deltaOf(`{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}`), text(5)},
		{"arguments of an older kind", deltaOf(`{"function_call":{"arguments":"{}"}}`), text(2)},
		{"a key that nobody knows", deltaOf(`{"thoughts":["ab",{"c":"de"}]}`), text(4)},
		{"text beside the delta", chunkOf(`[{"index":0,"text":"abc"}]`), text(3)},
		{"logprobs don't count again", chunkOf(`[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.1,"bytes":[97],"top_logprobs":[]}]}}]`), text(1)},
		{"a filter's results", chunkOf(`[{"index":0,"delta":{"content":"a"},"content_filter_results":{"hate":{"severity":"safe"}}}]`), text(1)},
		{"padding", `data: {"choices":[{"index":0,"delta":{"content":"a"}}],"obfuscation":"xyz"}` + "\n\n", text(1)},
		{"a transcript of audio", deltaOf(`{"audio":{"id":"","transcript":"hey"}}`), text(3)},
		{"audio", deltaOf(`{"audio":{"data":"` + strings.Repeat("A", 6400) + `"}}`), tally{events: 1, sound: 6400, seen: [2]uint64{1}}},
		{"data that is no audio", deltaOf(`{"data":"abc"}`), text(3)},
		{"data behind audio", deltaOf(`{"audio":{"x":[]},"y":{"data":"abc"}}`), text(3)},
		{"an image", deltaOf(`{"images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}`), tally{events: 1, pictures: 1, seen: [2]uint64{1}}},
		{"an image's address", deltaOf(`{"images":[{"image_url":{"url":"https://a"}}]}`), text(9)},
		{"the end of a choice", chunkOf(`[{"index":0,"delta":{},"finish_reason":"stop"}]`), tally{seen: [2]uint64{1}, finished: [2]uint64{1}}},
		{"choices", chunkOf(`[{"index":1,"delta":{"content":"ab"},"finish_reason":"stop"},{"index":70,"delta":{"content":"c"},"finish_reason":null}]`), tally{events: 1, text: 3, seen: [2]uint64{2, 1 << 6}, finished: [2]uint64{2}}},
		{"an index that comes last", chunkOf(`[{"finish_reason":"stop","delta":{"content":"ab"},"index":3}]`), tally{events: 1, text: 2, seen: [2]uint64{8}, finished: [2]uint64{8}}},
		{"a choice without an index", chunkOf(`[{"index":3,"delta":{"content":"ab"}},{"delta":{"content":"c"}}]`), tally{events: 1, text: 3, seen: [2]uint64{9}}},
		{"audio and its transcript", deltaOf(`{"audio":{"data":"AAAA","transcript":"hey"}}`), tally{events: 1, text: 3, sound: 4, seen: [2]uint64{1}}},
		{"an image and a text", deltaOf(`{"content":"hey","images":[{"url":"data:,"}]}`), tally{events: 1, text: 3, pictures: 1, seen: [2]uint64{1}}},
		{"an index out of range", chunkOf(`[{"index":128,"delta":{"content":"a"}},{"index":-1,"delta":{"content":"a"}},{"index":1e2,"delta":{}}]`), tally{events: 1, text: 2}},
		{"an answer's message", chunkOf(`[{"index":0,"message":{"role":"assistant","content":"abc","tool_calls":[{"id":"i","type":"function","function":{"name":"f","arguments":"{}"}}]}}]`), text(7)},
		{"usage alone", usageChunk, tally{}},
		{"a comment", ": keeptrusts\n\n", tally{}},
		{"the end", "data: [DONE]\n\n", tally{}},
		{"an error", `data: {"error":{"message":"broken"}}` + "\n\n", tally{}},
		{"other fields of an event", "event: x\nid: 5\nretry: 3\n\n", tally{}},
		{"data in two lines", "data: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"content\":\"abc\"}}]}\n\n", text(3)},
		{"what is no JSON counts its bytes", "data: hello\n\n", tally{unread: 5}},
		{"a text that does not end", "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"abc\n\n", tally{unread: 46, seen: [2]uint64{1}}},
		{"choices that are none", chunkOf(`"x"`), tally{}},
		{"choices that are strings", chunkOf(`["x",null]`), tally{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m Meter
			m.Reset(true)
			m.Next([]byte(c.give))
			if m.tally != c.want {
				t.Errorf("got  %+v\nwant %+v", m.tally, c.want)
			}
			m.Next([]byte(c.give)) // where it has become the shape
			twice := c.want
			twice.events, twice.text, twice.sound, twice.pictures, twice.unread = 2*twice.events, 2*twice.text, 2*twice.sound, 2*twice.pictures, 2*twice.unread
			if m.tally != twice {
				t.Errorf("twice: got  %+v\nwant %+v", m.tally, twice)
			}
		})
	}
}

func TestEmittedIsLikelyAndMost(t *testing.T) {
	emitted := func(stream string) string {
		var m Meter
		m.Reset(true)
		m.Next([]byte(stream))
		tokens, most := m.Emitted()
		return fmt.Sprint(tokens, " ", most)
	}
	for _, c := range []struct{ name, give, want string }{
		{"nothing", "", "0 0"},
		{"a token a chunk", strings.Repeat(deltaOf(`{"content":"a"}`), 50), "50 66"},
		{"long chunks", strings.Repeat(deltaOf(`{"content":"abcdefghijklmnop"}`), 10), "40 176"},
		{"two choices", chunkOf(`[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]`), "1 34"},
		{"a second of audio", deltaOf(`{"audio":{"data":"` + strings.Repeat("A", 64_000) + `"}}`), "21 516"},
		{"an image", deltaOf(`{"images":[{"image_url":{"url":"data:,"}}]}`), "1025 8208"},
		{"an event in part", plainChunk + plainChunk[:100], "2 121"},
	} {
		if got := emitted(c.give); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	huge := "data: " + strings.Repeat("x", 2*maxEvent) + "\n\n"
	for _, n := range []int{1 << 10, 1 << 16, len(huge)} {
		_, m := run(t, huge+plainChunk, n, true)
		if tokens, most := m.Emitted(); tokens != 2 || most != int64(len(huge)+5+tokensOfChoice) {
			t.Errorf("a huge event in pieces of %d: %d, %d", n, tokens, most)
		}
	}
}

func TestEmittedWholeIsNeverUnder(t *testing.T) {
	for _, c := range []struct {
		name, give string
		want       int64
	}{
		{"an answer", wholeAnswer, int64(len("Hello! How can I help you today?")) + tokensOfChoice},
		{"two choices", `{"choices":[{"index":0,"message":{"content":"abc"}},{"index":1,"message":{"content":"de"}}]}`, 5 + 2*tokensOfChoice},
		{"a call of a tool", `{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]}`, 3 + tokensOfChoice},
		{"no choices", `{"choices":[]}`, 0},
		{"another object", `{"object":"error"}`, 18},
		{"no JSON", `<html>`, 6},
		{"nothing", ``, 0},
		{"cut short", wholeAnswer[:200], 200},
	} {
		if got := EmittedWhole([]byte(c.give)); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// Real tokens never pass the upper bound, and a token a chunk is never more than
// what is likely.
func TestEmittedBoundsTheTokensOfAText(t *testing.T) {
	for _, g := range goldens(t, "texts.jsonl") {
		for _, n := range []int{1, 3, 50} {
			var m Meter
			m.Reset(true)
			chunks := int64(0)
			for rest := []rune(g.text); len(rest) > 0; chunks++ {
				k := min(n, len(rest))
				m.Next([]byte(deltaOf(`{"content":` + plainJSON(t, string(rest[:k])) + `}`)))
				rest = rest[k:]
			}
			tokens, most := m.Emitted()
			if most < max(g.o200k, g.cl100k) || tokens < chunks || tokens > most {
				t.Errorf("%s in chunks of %d: %d, at most %d; o200k %d, cl100k %d, %d chunks", g.name, n, tokens, most, g.o200k, g.cl100k, chunks)
			}
		}
	}
}

// A stream of chunks of one shape is counted as one in which none is like another.
func TestAShapeCountsAsReadingDoes(t *testing.T) {
	shapes := []string{
		plainChunk, askedChunk, strings.ReplaceAll(plainChunk, "\n", "\r\n"),
		deltaOf(`{"content":" word"}`), deltaOf(`{"tool_calls":[{"index":0,"function":{"arguments":" word"}}]}`),
		`data: {"id":"c1","choices":[{"index":0,"delta":{"content":" word"}}],"obfuscation":"padding"}` + "\n\n",
		`data: {"id":"c1","obfuscation":"padding","choices":[{"index":0,"delta":{"content":" word"}}]}` + "\n\n",
		chunkOf(`[{"index":0,"delta":{"content":" word"},"finish_reason":"stop"}]`),
		chunkOf(`[{"index":0,"delta":{"content":" word","refusal":"b"}}]`),
		"event: message\nid: 7\n" + deltaOf(`{"content":" word"}`),
	}
	texts := []string{"", "a", " word", "größe", `\n`, `\"`, `\\`, `\\\"`, `\u00e9`, `\ud83d\ude00`, `}`, `","content":"x`, `\",\"usage\":{}`, strings.Repeat("x", 5000), `word"},"finish_reason":null}]}`, "\\", "a\nb", "\xff"}
	pads := []string{"", "x", "abcdefgh", `\"`}
	for i, s := range shapes {
		for _, last := range shapes {
			var one Meter
			one.Reset(true)
			var events []string
			for _, text := range texts {
				for _, pad := range pads {
					events = append(events, strings.Replace(strings.Replace(s, " word", text, 1), "padding", pad, 1))
				}
			}
			events = append(events, last)
			var want tally
			for _, e := range events {
				one.Next([]byte(e))
				var alone Meter
				alone.Reset(true)
				alone.Next([]byte(e))
				alone.End()
				want.events += alone.tally.events
				want.text += alone.tally.text
				want.unread += alone.tally.unread
				for j := range want.seen {
					want.seen[j] |= alone.tally.seen[j]
					want.finished[j] |= alone.tally.finished[j]
				}
			}
			if one.tally != want {
				t.Fatalf("shape %d: got  %+v\nwant %+v", i, one.tally, want)
			}
		}
	}
}

func TestTheOrdinaryChunkIsNotRead(t *testing.T) {
	for _, s := range []string{
		plainChunk, askedChunk, deltaOf(`{"tool_calls":[{"index":0,"function":{"arguments":" word"}}]}`),
		`data: {"id":"c1","choices":[{"index":0,"delta":{"content":" word"}}],"obfuscation":"padding"}` + "\n\n",
	} {
		var m Meter
		m.Reset(true)
		m.Next([]byte(s))
		next := strings.Replace(strings.Replace(s, " word", `another\n`, 1), "padding", "x", 1)
		if n := m.ordinary([]byte(next + next)); n != 2*len(next) {
			t.Errorf("%q: %d of %d fit", next, n, 2*len(next))
		}
		if n := m.ordinary([]byte(next[:len(next)-1])); n != 0 {
			t.Errorf("%q: a part of it fits", next)
		}
		m.Reset(true)
		if n := m.ordinary([]byte(s)); n != 0 {
			t.Error("a shape outlives its stream")
		}
	}
}

// Where a line ends in CR, an LF may follow that belongs to it.
func TestAnEventWhoseEndIsOpenIsNoShape(t *testing.T) {
	for _, end := range []string{"\r\r", "\r\n\r", "\n\r"} {
		var m Meter
		m.Reset(true)
		e := strings.TrimSpace(plainChunk) + end
		m.Next([]byte(e + e + e))
		m.End()
		if n := m.ordinary([]byte(e)); n != 0 || m.tally.events != 3 {
			t.Errorf("%q: %d fit, %d events", end, n, m.tally.events)
		}
	}
}

func TestTheLastUsageCountsWhateverTheShape(t *testing.T) {
	running := strings.Replace(plainChunk, `}]}`, `}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, 1)
	for n := 1; n < len(running)*3; n += 50 {
		_, m := run(t, running+usageChunk+running, n, true)
		if u, _ := m.Usage(); u != (Usage{Input: 1, Output: 2}) {
			t.Errorf("pieces of %d: %+v", n, u)
		}
	}
}

// plainTally counts an event's JSON as encoding/json reads it. clear is false where
// readers may part: a key stands twice or hides, the text is no JSON, or audio.
func plainTally(data []byte) (text int64, clear bool) {
	if !utf8.Valid(data) || bytes.ContainsRune(data, '\\') || bytes.Contains(data, []byte(`"audio"`)) || twins(data) {
		return 0, false
	}
	var v map[string]any
	if json.Unmarshal(data, &v) != nil {
		return 0, false
	}
	choices, _ := v["choices"].([]any)
	for _, c := range choices {
		choice, _ := c.(map[string]any)
		for k, e := range choice {
			switch k {
			case "index", "finish_reason", "native_finish_reason", "stop_reason", "matched_stop", "logprobs", "token_ids", "content_filter_results", "content_filter_result", "content_filter_offsets":
			default:
				text += plainText(k, e)
			}
		}
	}
	return text, true
}

func plainText(key string, v any) (n int64) {
	switch v := v.(type) {
	case string:
		if key != "role" && key != "type" && (key != "url" || !strings.HasPrefix(v, "data:")) {
			n = int64(len(v))
		}
	case []any:
		for _, e := range v {
			n += plainText(key, e)
		}
	case map[string]any:
		for k, e := range v {
			n += plainText(k, e)
		}
	}
	return n
}

// twins says whether an object has a key twice.
func twins(data []byte) bool {
	d := json.NewDecoder(bytes.NewReader(data))
	var walk func() bool
	walk = func() bool {
		t, err := d.Token()
		if err != nil {
			return true
		}
		keys := map[string]bool{}
		for object := t == json.Delim('{'); (object || t == json.Delim('[')) && d.More(); {
			if object {
				k, _ := d.Token()
				key, _ := k.(string)
				if keys[key] {
					return true
				}
				keys[key] = true
			}
			if walk() {
				return true
			}
		}
		if t == json.Delim('{') || t == json.Delim('[') {
			_, _ = d.Token()
		}
		return false
	}
	return walk()
}
