package dialect

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// What ReadChat accepts, encoding/json reads alike, into a struct and into a map;
// and Append's output is accepted again, with the edit in it and nothing else.
func FuzzReadChat(f *testing.F) {
	for _, b := range disputed()[:200] {
		f.Add(b, "up", true, int64(0), uint8(0))
	}
	for _, g := range goldens(f, "tools.jsonl")[:2] {
		f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi\u00e9"},{"type":"image_url","image_url":{"url":"data:image/png;base64,A"}}]}],"tools":`+g.text+`}`), "", true, int64(7), uint8(1))
	}
	f.Add([]byte(`{"max_tokens":null,"model":"m","max_completion_tokens": 5,"n":2}`), "up", true, int64(1), uint8(0))
	f.Add([]byte(`{"messages":[{"content":"x"},{"content":null,"tool_calls":[{"function":{"arguments":"{}"}}]}],"model":"m"}`), "", false, int64(1<<31-1), uint8(2))
	f.Add([]byte(`{"model":"m","stream_options":{"x":{"include_usage":1},"include_usage":null}}`), "a\"\\\x01é", true, int64(16), uint8(1))
	f.Add([]byte(` { "stream_options" : null , "model" : "m" } `), "", true, int64(16), uint8(1))
	f.Add([]byte(`{"stream_options":{ },"model":"\u006d"}`), "n", false, int64(16), uint8(1))
	f.Fuzz(func(t *testing.T, body []byte, model string, usage bool, limit int64, field uint8) {
		var c Call
		if p := ReadChat(body, &c); p != nil {
			if p.Code == "" || p.Message == "" {
				t.Fatalf("an empty problem: %+v", *p)
			}
			return
		}
		checkRead(t, body, &c)
		checkBound(t, body, &c)
		e := Edit{Model: strings.ToValidUTF8(model, ""), IncludeUsage: usage, OutputLimit: limit % (maxLimit + 1), OutputField: limitFields[int(field)%len(limitFields)]}
		if len(e.Model) > maxModel || strings.ContainsFunc(e.Model, isControl) {
			e.Model = ""
		}
		before := bytes.Clone(body)
		out := c.Append([]byte("kept"), body, e)
		if !bytes.Equal(before, body) || !bytes.HasPrefix(out, []byte("kept")) {
			t.Fatalf("Append changed what it was handed: %q", body)
		}
		checkEdit(t, body, out[4:], e)
	})
}

func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

func checkRead(t *testing.T, body []byte, c *Call) {
	t.Helper()
	want := readingOf(c)
	if got := readByGo(t, body).normal(); got != want {
		t.Fatalf("%q: read %v, by encoding/json %v", body, want, got)
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	var model string
	var stream bool
	if json.Unmarshal(m["model"], &model) != nil || model != string(c.Model) {
		t.Fatalf("%q: read %q, by a map %q", body, c.Model, model)
	}
	if s := m["stream"]; s != nil && json.Unmarshal(s, &stream) != nil || stream != c.Stream {
		t.Fatalf("%q: read %v, by a map %v", body, c.Stream, stream)
	}
	if span := body[c.ModelSpan.Start:c.ModelSpan.End]; json.Unmarshal(span, &model) != nil || model != string(c.Model) {
		t.Fatalf("%q: the model's span is %q", body, span)
	}
}

// checkEdit says whether out is body with the edit, compared as trees whose
// leaves are the bytes that stood there.
func checkEdit(t *testing.T, body, out []byte, e Edit) {
	t.Helper()
	var c Call
	if p := ReadChat(out, &c); p != nil {
		t.Fatalf("%q edited to %q: %+v", body, out, *p)
	}
	if e.Model != "" && string(c.Model) != e.Model || e.IncludeUsage && !c.IncludeUsage {
		t.Fatalf("%q edited to %q: not by %+v", body, out, e)
	}
	if e.Model == "" && !e.IncludeUsage && e.OutputLimit <= 0 && !bytes.Equal(body, out) {
		t.Fatalf("%q became %q without an edit", body, out)
	}
	var before Call
	ReadChat(body, &before)
	for i, field := range limitFields {
		want := before.limit(i)
		if want < 0 && field == e.OutputField && e.OutputLimit > 0 {
			want = e.OutputLimit
		}
		if c.limit(i) != want {
			t.Fatalf("%q edited to %q: %s is %d, want %d", body, out, field, c.limit(i), want)
		}
	}
	if c.N != before.N {
		t.Fatalf("%q edited to %q: n is %d", body, out, c.N)
	}
	var was, is map[string]json.RawMessage
	if json.Unmarshal(body, &was) != nil || json.Unmarshal(out, &is) != nil {
		t.Fatalf("%q edited to %q: unread", body, out)
	}
	var wasIn, isIn map[string]json.RawMessage
	_ = json.Unmarshal(was["stream_options"], &wasIn)
	_ = json.Unmarshal(is["stream_options"], &isIn)
	if e.Model != "" {
		delete(was, "model")
		delete(is, "model")
	}
	if e.IncludeUsage {
		delete(was, "stream_options")
		delete(is, "stream_options")
		delete(wasIn, "include_usage")
		delete(isIn, "include_usage")
	}
	if before.limit(limitIndex(e.OutputField)) < 0 && e.OutputLimit > 0 {
		delete(was, e.OutputField)
		delete(is, e.OutputField)
	}
	for _, pair := range [][2]map[string]json.RawMessage{{was, is}, {wasIn, isIn}} {
		if len(pair[0]) != len(pair[1]) {
			t.Fatalf("%q edited to %q: keys came or went", body, out)
		}
		for k, v := range pair[0] {
			if !bytes.Equal(v, pair[1][k]) {
				t.Fatalf("%q edited to %q: %q changed", body, out, k)
			}
		}
	}
}

func limitIndex(field string) int { return slices.Index(limitFields[:], field) }

// checkBound says whether the bound is under the texts of the messages, as a plain
// decoder reads them.
func checkBound(t *testing.T, body []byte, c *Call) {
	t.Helper()
	b := c.Bound(body)
	if b.Input < tokensOfCall || b.Input > int64(len(body))*2*tokensOfMessage+tokensOfTools+int64(len(body)/8)*tokensOfFile+tokensOfFile {
		t.Fatalf("%q: %+v", body, b)
	}
	var v struct {
		Messages []struct{ Content any }
	}
	if b.Outside || json.Unmarshal(body, &v) != nil {
		return
	}
	least := int64(0)
	for _, m := range v.Messages {
		switch content := m.Content.(type) {
		case string:
			least += int64(len(content))
		case []any:
			for _, part := range content {
				if o, ok := part.(map[string]any); ok {
					text, _ := o["text"].(string)
					least += int64(len(text))
					if _, ok := o["image_url"]; ok && o["image_url"] != nil {
						least += tokensOfImage
					}
				}
			}
		}
	}
	if b.Input < least {
		t.Fatalf("%q: bound %d, its texts have %d", body, b.Input, least)
	}
}

// Whatever the pieces, the meter lets the same through and reads the same; and
// that is what a reader of whole events finds.
func FuzzMeter(f *testing.F) {
	const chunk, told, done = `data: {"choices":[{"delta":{"content":"x"}}],"usage":null}`, `data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}`, `data: [DONE]`
	for _, end := range []string{"\n\n", "\r\n\r\n", "\r\r", "\n\r\n", "\r\n\n", "\r\n\r", "\n\r"} {
		f.Add([]byte(chunk+end+told+end+done+end), []byte{1, 2, 3}, true)
		f.Add([]byte(": hello"+end+end+told+end+chunk), []byte{200, 0, 7}, true)
	}
	f.Add([]byte("data: {\"choices\":[],\ndata:\"usage\"\ndata: :{\"prompt_tokens\":1}}\n\n"), []byte{9}, true)
	f.Add([]byte("event: x\ndata\nid: 1\n\n"+told), []byte{4, 4}, false)
	f.Add([]byte(strings.Repeat(plainChunk, 3)+askedChunk+usageChunk+"data: [DONE]\n\n"), []byte{250, 7, 0, 90}, true)
	f.Add([]byte(chunkOf(`[{"index":1,"delta":{"content":"ab"},"finish_reason":"stop"},{"index":0,"delta":{"reasoning":["c",{"d":"e"}]}}]`)+deltaOf(`{"role":"x","content":"y"}`)+deltaOf(`{"role":"x","content":""}`)), []byte{99}, false)
	one := byte(len(plainChunk))
	f.Add([]byte(strings.Repeat(plainChunk, 4)+usageChunk), []byte{one, one, one, one}, true)
	f.Add([]byte("\n\r\r\n\n"+told+"\r\r\ndata:[DONE]\r\r"), []byte{1}, true)
	f.Fuzz(func(t *testing.T, stream, cuts []byte, takeOut bool) {
		var whole, bytewise, cut Meter
		whole.Reset(takeOut)
		bytewise.Reset(takeOut)
		cut.Reset(takeOut)
		want := string(whole.Next(stream))
		want += string(whole.End())

		checkPieces(t, &bytewise, &whole, stream, want, func() int { return 1 })
		checkPieces(t, &cut, &whole, stream, want, func() int {
			if len(cuts) == 0 {
				return len(stream)
			}
			n := int(cuts[0])
			cuts = cuts[1:]
			return n
		})
		if !takeOut && want != string(stream) {
			t.Fatalf("%q became %q", stream, want)
		}
		checkMeter(t, &whole, stream, want, takeOut)
	})
}

func checkPieces(t *testing.T, m, whole *Meter, stream []byte, want string, size func() int) {
	t.Helper()
	var got []byte
	for rest := stream; len(rest) > 0; {
		n := min(size(), len(rest))
		piece := bytes.Clone(rest[:n])
		if m.Pass(piece) {
			got = append(got, piece...)
		} else {
			got = append(got, m.Next(piece)...)
		}
		clear(piece) // nothing of it may be needed later
		rest = rest[n:]
	}
	got = append(got, m.End()...)
	if string(got) != want {
		t.Fatalf("%q in pieces became %q, whole %q", stream, got, want)
	}
	u, ok := m.Usage()
	if wu, wok := whole.Usage(); u != wu || ok != wok {
		t.Fatalf("%q in pieces: %+v %v, whole %+v %v", stream, u, ok, wu, wok)
	}
	if m.tally != whole.tally {
		t.Fatalf("%q in pieces: %+v, whole %+v", stream, m.tally, whole.tally)
	}
	if got, want := m.FinishLength(nil, true, u, "c"), whole.FinishLength(nil, true, u, "c"); !bytes.Equal(got, want) {
		t.Fatalf("%q in pieces ends with %q, whole with %q", stream, got, want)
	}
}

// checkMeter compares with the plainest reading of the events' specification.
func checkMeter(t *testing.T, m *Meter, stream []byte, out string, takeOut bool) {
	t.Helper()
	var kept strings.Builder
	var usage Usage
	known, clear := false, true
	text := int64(0)
	for _, e := range splitEvents(string(stream)) {
		var data []string
		for _, line := range strings.FieldsFunc(e, func(r rune) bool { return r == '\n' || r == '\r' }) {
			if v, ok := strings.CutPrefix(line, "data:"); ok {
				data = append(data, strings.TrimPrefix(v, " "))
			}
		}
		joined := []byte(strings.Join(data, "\n"))
		if len(joined) > 0 && string(joined) != "[DONE]" {
			n, ok := plainTally(joined)
			text, clear = text+n, clear && ok
		}
		u, ok, only := readUsage(joined)
		if ok {
			usage, known = u, true
		}
		if !only || !takeOut {
			kept.WriteString(e)
		}
	}
	if kept.String() != out {
		t.Fatalf("%q: %q came out, %q should", stream, out, kept.String())
	}
	if clear && m.tally.text != text {
		t.Fatalf("%q: %d bytes of text counted, %d are there", stream, m.tally.text, text)
	}
	if u, ok := m.Usage(); ok != known || u != usage {
		t.Fatalf("%q: metered %+v %v, the events tell %+v %v", stream, u, ok, usage, known)
	}
}

// splitEvents cuts a stream behind every empty line.
func splitEvents(s string) []string {
	var events []string
	from, empty := 0, true
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\n' && s[i] != '\r':
			empty = false
			continue
		case s[i] == '\r' && i+1 < len(s) && s[i+1] == '\n':
			i++
		}
		if empty {
			events = append(events, s[from:i+1])
			from = i + 1
		}
		empty = true
	}
	if from < len(s) {
		events = append(events, s[from:])
	}
	return events
}

// Parts are never negative, what is read is what a decoder of the whole reads,
// and text that only looks like usage is none.
func FuzzReadUsage(f *testing.F) {
	for _, s := range []string{
		`{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":1},"completion_tokens_details":{"reasoning_tokens":2,"audio_tokens":1}}}`,
		`{"usage":{"completion_tokens":5,"total_tokens":15,"prompt_cache_hit_tokens":4}}`, `{"usage":{"prompt_tokens":9,"completion_tokens":5,"cache_read_input_tokens":4,"cache_creation_input_tokens":3}}`,
		`{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}"}}],"usage":null}`,
		`{"x":{"usage":{"prompt_tokens":1}}}`, `{"usage":{"prompt_tokens":1e3}}`, `{"usage":{"prompt_tokens":-1}}`, `{"usage":{"prompt_tokens":99999999999999999999}}`,
		`{"us\u0061ge":{"prompt_tokens":1}}`, `{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}`, `{"usage":{"prompt_tokens":1,"total_tokens":7}}`, `[{"usage":{"prompt_tokens":1}}]`, `{"a":{"b"},"usage":{"prompt_tokens":1}}`,
		`{"usage":{"prompt_tokens":1},"x":[{"y":1,"usage":{"prompt_tokens":2}}]}`, `{"usage":{"prompt_tokens":1},"x":{"y":1,"usage":{"prompt_tokens":2}}}`,
		`{"usage":{"prompt_tokens":1},"x":["a","usage"]}`, `{"usage":{"prompt_tokens":1},"x":{"a":",\"usage"}, "usage" : {"prompt_tokens":3} , "z":"}"} `,
		`{"usage":{"prompt_tokens":1},"usage":null}`, `[{"usage":{"prompt_tokens":1}},{"usage":{"prompt_tokens":2}}]`, `{"usage":{"prompt_tokens":1}}]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		u, ok := ReadUsage(body)
		whole, known, _ := readUsage(body)
		if json.Valid(body) && (whole != u || known != ok) {
			t.Fatalf("%q: from its end %+v %v, from its start %+v %v", body, u, ok, whole, known)
		}
		u, ok = whole, known
		if min(u.Input, u.CachedInput, u.CacheWrite, u.Output, u.Reasoning, u.AudioInput, u.AudioOutput) < 0 {
			t.Fatalf("%q: a part is negative: %+v", body, u)
		}
		if !ok {
			if u != (Usage{}) {
				t.Fatalf("%q: no usage, but %+v", body, u)
			}
			return
		}
		if bytes.ContainsRune(body, '\\') {
			return // keys in escapes are not read here
		}
		want, clear := plainUsage(t, body)
		if clear && u != want {
			t.Fatalf("%q: %+v, want %+v", body, u, want)
		}
	})
}

// plainUsage reads a usage that was believed by encoding/json. clear is false
// where a key stands twice, or what stands around the usage is malformed.
func plainUsage(t *testing.T, body []byte) (u Usage, clear bool) {
	t.Helper()
	type object = map[string]json.RawMessage
	read := func(raw []byte) (o object) {
		if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&o); err != nil && raw != nil && raw[0] == '{' {
			t.Fatalf("%q: believed, and no JSON: %v", body, err)
		}
		return o
	}
	count := func(o object, key string) (n int64) {
		if err := json.Unmarshal(o[key], &n); err != nil && o[key] != nil {
			t.Fatalf("%q: believed, and %s is no integer: %v", body, key, err)
		}
		return n
	}
	if n := bytes.Count(body, []byte(`"cached_tokens"`)) + bytes.Count(body, []byte(`"prompt_cache_hit_tokens"`)) + bytes.Count(body, []byte(`"cache_read_input_tokens"`)); n > 1 {
		return u, false
	}
	if n := bytes.Count(body, []byte(`"cache_write_tokens"`)) + bytes.Count(body, []byte(`"cache_creation_tokens"`)) + bytes.Count(body, []byte(`"cache_creation_input_tokens"`)); n > 1 {
		return u, false
	}
	for _, key := range []string{"usage", "total_tokens", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details", "reasoning_tokens"} {
		if bytes.Count(body, []byte(`"`+key+`"`)) > 1 {
			return u, false
		}
	}
	if bytes.Count(body, []byte(`"audio_tokens"`)) > 1 {
		return u, false
	}
	var whole object
	if json.NewDecoder(bytes.NewReader(body)).Decode(&whole) != nil {
		return u, false
	}
	usage := read(whole["usage"])
	in, out := read(usage["prompt_tokens_details"]), read(usage["completion_tokens_details"])
	left := count(usage, "prompt_tokens")
	if p := usage["prompt_tokens"]; p == nil || string(p) == "null" {
		left = max(0, count(usage, "total_tokens")-count(usage, "completion_tokens"))
	}
	take := func(n int64) int64 { n = min(n, left); left -= n; return n }
	cached := count(usage, "cached_tokens") + count(usage, "prompt_cache_hit_tokens") + count(usage, "cache_read_input_tokens") + count(in, "cached_tokens")
	written := count(usage, "cache_creation_input_tokens") + count(in, "cache_write_tokens") + count(in, "cache_creation_tokens")
	u.CachedInput, u.CacheWrite, u.AudioInput = take(cached), take(written), take(count(in, "audio_tokens"))
	u.Input, left = left, count(usage, "completion_tokens")
	if p := usage["prompt_tokens"]; p != nil && string(p) != "null" {
		left = max(left, count(usage, "total_tokens")-count(usage, "prompt_tokens"))
	}
	u.Reasoning, u.AudioOutput = take(count(out, "reasoning_tokens")), take(count(out, "audio_tokens"))
	u.Output = left
	return u, true
}
