package dialect

import (
	"fmt"
	"strings"
	"testing"
)

func TestBoundKnowsWhatIsInTheBody(t *testing.T) {
	const call = tokensOfCall
	const message = tokensOfMessage
	chars := func(n int) string { return strings.Repeat("A", n) }
	for _, c := range []struct {
		name  string
		give  string // members behind the model
		input int64
		flags string // o outside, i audio in, a other output than text
	}{
		{"no messages", `"messages":[]`, call, ""},
		{"no messages at all", `"user":"u"`, call, ""},
		{"messages are null", `"messages":null`, call + 4, ""},
		{"a message", `"messages":[{"role":"user","content":"hi"}]`, call + message + 4 + 2, ""},
		{"white space everywhere", " \"messages\" : [ { \"role\" : \"user\" , \"content\" : \"hi\" } ] ", call + message + 4 + 2, ""},
		{"two messages", `"messages":[{"role":"system","content":"be"},{"role":"user","content":"hi","name":"al"}]`, call + 2*message + 6 + 2 + 4 + 2 + 2, ""},
		{"escapes are undone", `"messages":[{"content":"\n\"\\\/\u0041\u00e9\u4e2d\ud83d\ude00"}]`, call + message + 1 + 1 + 1 + 1 + 1 + 2 + 3 + 6, ""},
		{"a lone surrogate is three bytes", `"messages":[{"content":"\ud800"}]`, call + message + 3, ""},
		{"content is null", `"messages":[{"role":"assistant","content":null,"refusal":"no"}]`, call + message + 9 + 2, ""},
		{"parts", `"messages":[{"content":[{"type":"text","text":"abc"},{"type":"text","text":"de"},"f"]}]`, call + message + 6, ""},
		{"a part of text with a cache mark", `"messages":[{"content":[{"type":"text","text":"abc","cache_control":{"type":"ephemeral"}}]}]`, call + message + 3, ""},
		{"content twice", `"messages":[{"content":"abc","content":"defg"}]`, call + message + 7, ""},
		{"a text twice", `"messages":[{"content":[{"type":"text","text":"abc","text":"defg"}]}]`, call + message + 7, ""},
		{"an earlier answer as it came", `"messages":[{"role":"assistant","content":"x","refusal":null,"annotations":[],"audio":null,"function_call":null,"tool_calls":null}]`, call + message + 9 + 1 + 8 + 2*12 + 2*12, ""},
		{"a call of a tool counts twice", `"messages":[{"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}]`, call + message + 2*(8+8+(2+8+8+1)+(4+8+8+8)+(8+8+8+(4+8+8+1)+(9+8+8+7))), ""},
		{"the answer of a tool", `"messages":[{"role":"tool","tool_call_id":"c1","content":"42"}]`, call + message + 4 + 2 + 2, ""},

		{"settings are no input", `"messages":[],"temperature":1e9,"top_p":null,"stop":["a","b"],"logit_bias":{"5":1},"metadata":{"file_id":"x"},"user":"u","store":true,"logprobs":true,"reasoning_effort":"high"`, call + 3 + 4, ""},
		{"a schema of the answer", `"response_format":{"type":"json_object"}`, call + 8 + (4 + 8 + 8 + 11), ""},
		{"a prediction", `"prediction":{"type":"content","content":"abc"}`, call + 8 + (4 + 8 + 8 + 7) + (7 + 8 + 8 + 3), ""},
		{"a tool", `"tools":[{"type":"function","function":{"name":"f"}}]`, call + tokensOfTools + 8 + 8 + (4 + 8 + 8 + 1), ""},
		{"two tools", `"tools":[{"type":"function","function":{}},{"type":"custom","custom":{}}]`, call + tokensOfTools + 2*(8+8), ""},
		{"no tools", `"tools":[]`, call, ""},
		{"functions", `"functions":[{"name":"f"}]`, call + tokensOfTools + 8 + 8 + (4 + 8 + 8 + 1), ""},
		{"a number in a schema", `"functions":[12345]`, call + tokensOfTools + 8 + 8 + 5, ""},

		{"an image in the body", `"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA","detail":"low"}}]}]`, call + message + tokensOfImage, ""},
		{"an image as PHP writes it", `"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image\/png;base64,AAAA"}}]}]`, call + message + tokensOfImage, ""},
		{"an image as a string", `"messages":[{"content":[{"type":"image_url","image_url":"data:image/png;base64,AAAA"}]}]`, call + message + tokensOfImage, ""},
		{"two images", `"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png,A"}},{"type":"image_url","image_url":{"url":"data:image/png,A"}}]}]`, call + message + 2*tokensOfImage, ""},
		{"audio in the body", `"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]}]`, call + message + tokensOfAudio, "i"},
		{"long audio", `"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"` + chars(320_000) + `","format":"wav"}}]}]`, call + message + 20_000, "i"},
		{"a file in the body", `"messages":[{"content":[{"type":"file","file":{"file_data":"data:application/pdf;base64,AAAA","filename":"a.pdf"}}]}]`, call + message + tokensOfFile + 5, ""},
		{"a file without a type", `"messages":[{"content":[{"type":"file","file":{"file_data":"AA\/A"}}]}]`, call + message + tokensOfFile, ""},
		{"a large file", `"messages":[{"content":[{"type":"file","file":{"file_data":"` + chars(200_000) + `"}}]}]`, call + message + 400_000, ""},
		{"audio as a file", `"messages":[{"content":[{"type":"file","file":{"file_data":"data:audio/mp3;base64,AAAA"}}]}]`, call + message + tokensOfFile, "i"},

		{"modalities of text", `"modalities":["text"]`, call, ""},
		{"an answer in audio", `"modalities":["text","audio"],"audio":{"voice":"v"}`, call, "a"},
		{"how audio is wanted", `"audio":{}`, call, "a"},
		{"audio null", `"audio":null,"modalities":null`, call, ""},
		{"another modality", `"modalities":["image"]`, call, "a"},
		{"text in escapes", `"modalities":["te\u0078t"]`, call, "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := boundOf(t, []byte(`{"model":"m",`+c.give+`}`))
			want := Bound{c.input, strings.Contains(c.flags, "o"), strings.Contains(c.flags, "i"), strings.Contains(c.flags, "a")}
			if b != want {
				t.Errorf("got %+v, want %+v", b, want)
			}
		})
	}
}

func TestBoundKnowsWhatIsOutside(t *testing.T) {
	in := func(part string) string { return `"messages":[{"role":"user","content":[` + part + `]}]` }
	for _, c := range []struct{ name, give string }{
		{"an image by URL", in(`{"type":"image_url","image_url":{"url":"https://a/b.png"}}`)},
		{"an image by URL as a string", in(`{"type":"image_url","image_url":"https://a/b.png"}`)},
		{"a data URL of something else", in(`{"type":"image_url","image_url":{"url":"data:text/plain,x"}}`)},
		{"a data URL in capitals", in(`{"type":"image_url","image_url":{"url":"DATA:image/png,x"}}`)},
		{"an image's URL in another spelling", in(`{"type":"image_url","image_url":{"url":"data:image/png,x","URL":"https://a"}}`)},
		{"an image's URL twice", in(`{"type":"image_url","image_url":{"url":"data:image/png,x","url":"https://a"}}`)},
		{"an image by file id", in(`{"type":"image_url","image_url":{"file_id":"f"}}`)},
		{"an image that is a number", in(`{"type":"image_url","image_url":{"url":5}}`)},
		{"audio by URL", in(`{"type":"audio_url","audio_url":{"url":"https://a"}}`)},
		{"audio by URL in its data", in(`{"type":"input_audio","input_audio":{"data":"https://a"}}`)},
		{"audio by URL, hidden", in(`{"type":"input_audio","input_audio":{"data":"https\u003a//a"}}`)},
		{"audio by URL, hidden by capitals", in(`{"type":"input_audio","input_audio":{"data":"https\u003A//a"}}`)},
		{"a file by id", in(`{"type":"file","file":{"file_id":"f"}}`)},
		{"a file by id beside its data", in(`{"type":"file","file":{"file_data":"AA","file_id":"f"}}`)},
		{"a file by URL", in(`{"type":"file","file":{"file_data":"https://a/b.pdf"}}`)},
		{"a video", in(`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,AA"}}`)},
		{"a part of an unknown type", in(`{"type":"document","text":"x"}`)},
		{"a part whose type hides", in(`{"type":"te\u0078t","text":"x"}`)},
		{"a part with two types", in(`{"type":"text","type":"document","text":"x"}`)},
		{"a part whose type is no string", in(`{"type":5,"text":"x"}`)},
		{"a part with another key", in(`{"type":"text","text":"x","source":{"type":"url"}}`)},
		{"a part with a key in another spelling", in(`{"type":"text","text":"x","Image_url":{"url":"data:image/png,A"}}`)},
		{"a part with a key in escapes", in(`{"type":"text","text":"x","image\u005furl":{"url":"data:image/png,A"}}`)},
		{"a part that is an array", in(`["x"]`)},
		{"a part that is a number", in(`5`)},
		{"a text that is an object", in(`{"type":"text","text":{"id":"x"}}`)},
		{"content that is an object", `"messages":[{"content":{"id":"x"}}]`},
		{"content that is a number", `"messages":[{"content":5}]`},
		{"content in another spelling", `"messages":[{"content":"x","Content":[{"type":"image_url"}]}]`},
		{"content in escapes", `"messages":[{"c\u006fntent":"x"}]`},
		{"a message that is a string", `"messages":["x"]`},
		{"messages that are an object", `"messages":{"id":"x"}`},
		{"messages that are a string", `"messages":"x"`},
		{"an earlier answer in audio", `"messages":[{"role":"assistant","audio":{"id":"a"}}]`},
		{"an unknown key of a message", `"messages":[{"content":"x","attachments":[{"file_id":"f"}]}]`},
		{"a file of a message", `"messages":[{"content":"x","file_id":"f"}]`},
		{"an unknown word in a message", `"messages":[{"content":"x","recall":"m"}]`},
		{"a tool that searches", `"tools":[{"type":"web_search"}]`},
		{"a tool that searches beside one that doesn't", `"tools":[{"type":"function","function":{}},{"type":"file_search","vector_store_ids":["v"]}]`},
		{"a tool with two types", `"tools":[{"type":"function","type":"mcp","function":{}}]`},
		{"a tool without a type", `"tools":[{"google_search":{}}]`},
		{"a second tool without a type", `"tools":[{"type":"function","function":{}},{"function":{}}]`},
		{"a tool with another key", `"tools":[{"type":"function","function":{},"google_search":{}}]`},
		{"a tool's type in another spelling", `"tools":[{"type":"function","Type":"web_search","function":{}}]`},
		{"a tool that is a string", `"tools":["web_search"]`},
		{"tools that are an object", `"tools":{"type":"function"}`},
		{"an earlier answer", `"messages":[],"previous_response_id":"r"`},
		{"an earlier answer whose key hides", `"messages":[],"previ\u006fus_resp\u006fnse_\u0069d":"r"`},
		{"a conversation", `"messages":[],"conversation":{"id":"c"}`},
		{"a prompt", `"messages":[],"prompt":{"id":"p"}`},
		{"a search of the web", `"messages":[],"web_search_options":{}`},
		{"a search of the web, switched on", `"messages":[],"enable_search":true`},
		{"what is cached at the provider", `"messages":[],"extra_body":{"google":{"cached_content":"cachedContents/1"}}`},
		{"a template", `"messages":[],"chat_template":"{% for i in range(9) %}{{ messages }}{% endfor %}"`},
		{"a name that hides in a value", `"messages":[],"extra":{"f\u0069l\u0065":"f"}`},
		{"much that is strange", `"messages":[],"x":"` + strings.Repeat("y", mostStrange) + `"`},
		{"much that is strange, in many", `"messages":[]` + strings.Repeat(`,"`, 0) + strange(mostStrange/100)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if b := boundOf(t, []byte(`{"model":"m",`+c.give+`}`)); !b.Outside {
				t.Errorf("%+v", b)
			}
		})
	}
}

func strange(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"x%d":"%s"`, i, strings.Repeat("y", 100))
	}
	return b.String()
}

// Whatever is put into a body, its bound does not fall, and what is outside stays
// outside.
func TestMoreInABodyNeverBoundsLess(t *testing.T) {
	bodies := disputed()
	n := 0
	for _, body := range bodies {
		var c Call
		if ReadChat(body, &c) != nil {
			continue
		}
		n++
		was := c.Bound(body)
		more := append([]byte(`{"messages_":1,"tool_choice":[{"content":"x"}],`), body[c.open:]...)
		var d Call
		if ReadChat(more, &d) != nil {
			continue
		}
		if is := d.Bound(more); is.Input <= was.Input || was.Outside && !is.Outside {
			t.Errorf("%.200q: %+v became %+v", body, was, is)
		}
	}
	if n < 50 {
		t.Errorf("%d bodies are too few", n)
	}
}

func TestBoundTakesLinearTime(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"model":"m","messages":[{"content":"x"}]`)
	for i := range 40_000 {
		fmt.Fprintf(&b, `,"x%d":"%s"`, i, strings.Repeat("u", 200))
	}
	if !boundOf(t, []byte(b.String()+"}")).Outside {
		t.Error("it is bounded")
	}
	boundOf(t, []byte(`{"model":"m","messages":[`+strings.Repeat(`{"content":[{"type":"text","text":"\n"}]},`, 100_000)+`{}]}`))
}

func BenchmarkBound(b *testing.B) {
	for _, n := range []int{300, 100_000} {
		body := chatBody(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var c Call
			if ReadChat(body, &c) != nil {
				b.Fatal("refused")
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if c.Bound(body).Input == 0 {
					b.Fatal("no bound")
				}
			}
		})
	}
}

// How our own provider is to answer is no input from elsewhere, whatever its keys are called.
func TestWhatTheSimulatorIsToldIsNoInputFromElsewhere(t *testing.T) {
	b := boundOf(t, []byte(`{"model":"m","messages":[],"simulator":{"cached_tokens":4,"content":"my file","chunks":2}}`))
	if b.Outside {
		t.Error("it counts as input from outside")
	}
	if !boundOf(t, []byte(`{"model":"m","messages":[],"simulated":{"cached_tokens":4}}`)).Outside {
		t.Error("another key of that kind does not")
	}
}
