package dialect

import (
	"fmt"
	"strings"
	"testing"
)

func nested(open, end string, n int) string { return strings.Repeat(open, n) + strings.Repeat(end, n) }

func TestReadChatTakesWhatEveryParserReadsAlike(t *testing.T) {
	long := strings.Repeat("m", maxModel)
	for _, c := range []struct {
		name, give, model    string
		stream, includeUsage bool
	}{
		{"the least", `{"model":"m"}`, "m", false, false},
		{"white space of every kind", " \t\r\n{ \"model\"\n:\t\"m\" , \"stream\" : true }\r\n ", "m", true, false},
		{"stream is null", `{"model":"m","stream":null}`, "m", false, false},
		{"stream is false", `{"model":"m","stream":false}`, "m", false, false},
		{"stream before model", `{"stream":true,"model":"m"}`, "m", true, false},
		{"usage asked for", `{"model":"m","stream":true,"stream_options":{"include_usage":true}}`, "m", true, true},
		{"usage not asked for", `{"model":"m","stream_options":{"include_usage":false,"x":[1]}}`, "m", false, false},
		{"include_usage is null", `{"model":"m","stream_options":{"include_usage":null}}`, "m", false, false},
		{"stream_options is null", `{"model":"m","stream_options":null}`, "m", false, false},
		{"stream_options is empty", `{"model":"m","stream_options":{ }}`, "m", false, false},
		{"escapes in the model", `{"model":"\u0067pt\/\ud83d\ude00\"\\"}`, "gpt/😀\"\\", false, false},
		{"escapes in the keys", `{"mod\u0065l":"m","\u0073tream":true}`, "m", true, false},
		{"escapes in the options' keys", `{"model":"m","stream_options":{"include\u005fusage":true}}`, "m", false, true},
		{"a model of the most bytes", `{"model":"` + long + `"}`, long, false, false},
		{"a model beyond ASCII", `{"model":"größe-大"}`, "größe-大", false, false},
		{"model inside another value", `{"metadata":{"model":"x","MODEL":"y","model":"z"},"model":"m"}`, "m", false, false},
		{"names of the options at the top", `{"include_usage":true,"model":"m"}`, "m", false, false},
		{"keys that only look alike", `{"models":["a"],"model":"m","model ":1,"modél":2,"":3,"Streams":4}`, "m", false, false},
		{"keys told apart by more than case", `{"ß":1,"ss":2,"ı":3,"i":4,"model":"m"}`, "m", false, false},
		{"a lone surrogate where it is not read", `{"model":"m","messages":["\ud800"]}`, "m", false, false},
		{"numbers beyond every range", `{"model":"m","a":1e999,"b":-0.0E-999,"c":` + strings.Repeat("9", 5000) + `}`, "m", false, false},
		{"nested as deeply as allowed", `{"model":"m","a":` + nested("[", "]", maxDepth-1) + `}`, "m", false, false},
		{"objects nested as deeply", `{"model":"m","a":` + strings.Repeat(`{"a":`, maxDepth-2) + "{}" + strings.Repeat("}", maxDepth-2) + `}`, "m", false, false},
		{"options nested as deeply", `{"model":"m","stream_options":{"a":` + nested("[", "]", maxDepth-2) + `}}`, "m", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := Call{Stream: true, IncludeUsage: true, optionsKind: object} // of the request before
			if p := ReadChat([]byte(c.give), &call); p != nil {
				t.Fatalf("refused: %+v", *p)
			}
			if string(call.Model) != c.model || call.Stream != c.stream || call.IncludeUsage != c.includeUsage {
				t.Errorf("got %q, stream %v, usage %v; want %q, %v, %v", call.Model, call.Stream, call.IncludeUsage, c.model, c.stream, c.includeUsage)
			}
			at := c.give[call.ModelSpan.Start:call.ModelSpan.End]
			if at[0] != '"' || at[len(at)-1] != '"' || len(at) < 3 {
				t.Errorf("the model's span is %s", at)
			}
		})
	}
}

func TestReadChatRefuses(t *testing.T) {
	const key = "stream_options."
	longKey := strings.Repeat("k", maxNamed+1)
	for _, c := range []struct{ name, give, code, param string }{
		{"nothing", ``, invalidJSON, ""},
		{"white space alone", " \n", invalidJSON, ""},
		{"an array", `[{"model":"m"}]`, invalidJSON, ""},
		{"null", `null`, invalidJSON, ""},
		{"a byte-order mark", "\ufeff" + `{"model":"m"}`, invalidJSON, ""},
		{"UTF-16", "{\x00\"\x00m\x00", invalidJSON, ""},
		{"a byte that is not UTF-8", "{\"model\":\"m\",\"a\":\"\xff\"}", invalidJSON, ""},
		{"a surrogate in UTF-8", "{\"model\":\"m\",\"a\":\"\xed\xa0\x80\"}", invalidJSON, ""},
		{"an overlong quote", "{\"model\":\"m\xc0\xa2}", invalidJSON, ""},
		{"a second document", `{"model":"m"}{"model":"n"}`, invalidJSON, ""},
		{"a closing brace too many", `{"model":"m"}}`, invalidJSON, ""},
		{"a NUL behind", "{\"model\":\"m\"}\x00", invalidJSON, ""},
		{"a NUL for white space", "{\x00\"model\":\"m\"}", invalidJSON, ""},
		{"a form feed for white space", "{\f\"model\":\"m\"}", invalidJSON, ""},
		{"a no-break space for white space", "{\u00a0\"model\":\"m\"}", invalidJSON, ""},
		{"a trailing comma", `{"model":"m",}`, invalidJSON, ""},
		{"a trailing comma in an array", `{"model":"m","a":[1,]}`, invalidJSON, ""},
		{"a leading comma", `{,"model":"m"}`, invalidJSON, ""},
		{"no comma", `{"model":"m" "a":1}`, invalidJSON, ""},
		{"no colon", `{"model" "m"}`, invalidJSON, ""},
		{"no value", `{"model":}`, invalidJSON, ""},
		{"a key without quotes", `{model:"m"}`, invalidJSON, ""},
		{"single quotes", `{'model':'m'}`, invalidJSON, ""},
		{"a comment", `{"model":"m"/* */}`, invalidJSON, ""},
		{"NaN", `{"model":"m","a":NaN}`, invalidJSON, ""},
		{"Infinity", `{"model":"m","a":-Infinity}`, invalidJSON, ""},
		{"True", `{"model":"m","stream":True}`, invalidJSON, ""},
		{"a word cut short", `{"model":"m","stream":tru}`, invalidJSON, ""},
		{"a word with more", `{"model":"m","stream":truee}`, invalidJSON, ""},
		{"a leading zero", `{"model":"m","a":01}`, invalidJSON, ""},
		{"a plus", `{"model":"m","a":+1}`, invalidJSON, ""},
		{"a point first", `{"model":"m","a":.5}`, invalidJSON, ""},
		{"a point last", `{"model":"m","a":1.}`, invalidJSON, ""},
		{"an exponent without digits", `{"model":"m","a":1e+}`, invalidJSON, ""},
		{"a lone minus", `{"model":"m","a":-}`, invalidJSON, ""},
		{"a hexadecimal number", `{"model":"m","a":0x1}`, invalidJSON, ""},
		{"a control character in a string", "{\"model\":\"m\",\"a\":\"\n\"}", invalidJSON, ""},
		{"a tab in a key", "{\"model\":\"m\",\"a\t\":1}", invalidJSON, ""},
		{"an unknown escape", `{"model":"m","a":"\x41"}`, invalidJSON, ""},
		{"an escape cut short", `{"model":"m","a":"\u00g0"}`, invalidJSON, ""},
		{"a string that does not end", `{"model":"m`, invalidJSON, ""},
		{"an end inside an escape", `{"model":"m\`, invalidJSON, ""},
		{"an end inside an escape's digits", `{"model":"m\u00`, invalidJSON, ""},
		{"an end inside a word", `{"model":n`, invalidJSON, ""},
		{"an end behind a colon", `{"model":`, invalidJSON, ""},
		{"an end behind a comma", `{"model":"m",`, invalidJSON, ""},
		{"an end inside the options", `{"model":"m","stream_options":{`, invalidJSON, ""},
		{"an end behind the options' colon", `{"model":"m","stream_options":{"include_usage":`, invalidJSON, ""},
		{"brackets that do not match", `{"model":"m","a":[}`, invalidJSON, ""},
		{"a lone surrogate in a key", `{"model":"m","\ud800":1}`, invalidJSON, ""},
		{"half a pair in a key", `{"model":"m","\ud800\u0041":1}`, invalidJSON, ""},
		{"nested too deeply", `{"model":"m","a":` + nested("[", "]", maxDepth) + `}`, invalidJSON, ""},
		{"objects nested too deeply", `{"model":"m","a":` + strings.Repeat(`{"a":`, maxDepth-1) + "{}" + strings.Repeat("}", maxDepth-1) + `}`, invalidJSON, ""},
		{"options nested too deeply", `{"model":"m","stream_options":{"a":` + nested("[", "]", maxDepth-1) + `}}`, invalidJSON, ""},
		{"nested without end", strings.Repeat(`{"a":`, 1<<20), invalidJSON, ""},

		{"model twice", `{"model":"cheap","model":"dear"}`, ambiguousKey, "model"},
		{"model twice, the same", `{"model":"m","model":"m"}`, ambiguousKey, "model"},
		{"model twice, once escaped", `{"model":"cheap","mode\u006c":"dear"}`, ambiguousKey, "model"},
		{"model in capitals beside it", `{"model":"dear","MODEL":"cheap"}`, ambiguousKey, "model"},
		{"model in capitals before it", `{"MODEL":"cheap","model":"dear"}`, ambiguousKey, "model"},
		{"model in capitals alone", `{"Model":"m"}`, ambiguousKey, "model"},
		{"stream with a long s", `{"model":"m","ſtream":true}`, ambiguousKey, "stream"},
		{"stream with a long s, escaped", `{"model":"m","\u017ftream":true}`, ambiguousKey, "stream"},
		{"stream in capitals", `{"model":"m","Stream":true}`, ambiguousKey, "stream"},
		{"stream_options in capitals", `{"model":"m","STREAM_OPTIONS":{}}`, ambiguousKey, "stream_options"},
		{"stream_options with a long s at its end", `{"model":"m","stream_optionſ":{}}`, ambiguousKey, "stream_options"},
		{"stream twice", `{"model":"m","stream":false,"stream":true}`, ambiguousKey, "stream"},
		{"another key twice", `{"model":"m","n":1,"n":2}`, ambiguousKey, "n"},
		{"another key in two cases", `{"model":"m","top_p":1,"Top_P":2}`, ambiguousKey, "Top_P"},
		{"a Kelvin sign beside a k", `{"model":"m","k":1,"\u212a":2}`, ambiguousKey, "\u212a"},
		{"two sigmas", `{"model":"m","σ":1,"ς":2}`, ambiguousKey, "ς"},
		{"two long keys", `{"model":"m","` + longKey + `":1,"` + longKey + `":2}`, ambiguousKey, "a long key"},
		{"an empty key twice", `{"model":"m","":1,"":2}`, ambiguousKey, ""},
		{"include_usage twice", `{"model":"m","stream_options":{"include_usage":false,"include_usage":true}}`, ambiguousKey, key + "include_usage"},
		{"include_usage in capitals", `{"model":"m","stream_options":{"Include_Usage":true}}`, ambiguousKey, key + "include_usage"},
		{"include_usage with a long s", `{"model":"m","stream_options":{"include_uſage":true}}`, ambiguousKey, key + "include_usage"},
		{"another option twice", `{"model":"m","stream_options":{"a":1,"A":2}}`, ambiguousKey, key + "A"},

		{"no model", `{}`, missingModel, "model"},
		{"other keys alone", `{"stream":true}`, missingModel, "model"},
		{"model is null", `{"model":null}`, missingModel, "model"},
		{"model is empty", `{"model":""}`, missingModel, "model"},

		{"model is a number", `{"model":1}`, invalidValue, "model"},
		{"model is an array", `{"model":["m"]}`, invalidValue, "model"},
		{"model is an object", `{"model":{"id":"m"}}`, invalidValue, "model"},
		{"model is true", `{"model":true}`, invalidValue, "model"},
		{"model is too long", `{"model":"` + strings.Repeat("m", maxModel+1) + `"}`, invalidValue, "model"},
		{"a NUL in the model", `{"model":"m\u0000"}`, invalidValue, "model"},
		{"a line feed in the model", `{"model":"m\n"}`, invalidValue, "model"},
		{"a DEL in the model", "{\"model\":\"m\x7f\"}", invalidValue, "model"},
		{"a C1 control in the model", `{"model":"m\u009b"}`, invalidValue, "model"},
		{"a lone high surrogate in the model", `{"model":"m\ud800"}`, invalidValue, "model"},
		{"a lone low surrogate in the model", `{"model":"\udc00m"}`, invalidValue, "model"},
		{"a pair the wrong way round", `{"model":"\udc00\ud800"}`, invalidValue, "model"},
		{"half a pair before a letter beyond the halves", `{"model":"\ud800\ue000"}`, invalidValue, "model"},
		{"half a pair before half a pair", `{"model":"\ud800\ud800"}`, invalidValue, "model"},
		{"half a pair before another escape", `{"model":"\ud800\n00dc00"}`, invalidValue, "model"},
		{"stream is a string", `{"model":"m","stream":"true"}`, invalidValue, "stream"},
		{"stream is a number", `{"model":"m","stream":1}`, invalidValue, "stream"},
		{"stream_options is an array", `{"model":"m","stream_options":[]}`, invalidValue, "stream_options"},
		{"stream_options is true", `{"model":"m","stream_options":true}`, invalidValue, "stream_options"},
		{"include_usage is a number", `{"model":"m","stream_options":{"include_usage":1}}`, invalidValue, key + "include_usage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var call Call
			p := ReadChat([]byte(c.give), &call)
			if p == nil {
				t.Fatalf("accepted, model %q", call.Model)
			}
			if p.Code != c.code || p.Param != c.param || !strings.HasSuffix(p.Message, ".") {
				t.Errorf("got %s, param %q, %q; want %s, param %q", p.Code, p.Param, p.Message, c.code, c.param)
			}
		})
	}
}

func TestARefusalNeverRepeatsAValue(t *testing.T) {
	const secret = "kt_secret"
	for _, give := range []string{
		`{"model":["kt_secret"]}`, `{"model":"m","stream":"kt_secret"}`, `{"model":"kt_secret\ud800"}`,
		`{"model":"m","stream_options":"kt_secret"}`, `{"a":kt_secret}`, `{"model":"kt_secret`, `kt_secret`,
		`{"model":"m","stream_options":{"include_usage":"kt_secret"}}`, `{"model":"kt_secret"} kt_secret`,
	} {
		var call Call
		if p := ReadChat([]byte(give), &call); p == nil || strings.Contains(fmt.Sprint(*p), secret) {
			t.Errorf("%s: %+v", give, p)
		}
	}
}

func TestAppendChangesOnlyWhatItIsAskedFor(t *testing.T) {
	both := Edit{Model: "n/2", IncludeUsage: true}
	for _, c := range []struct {
		name string
		edit Edit
		give string
		want string
	}{
		{"nothing", Edit{}, " { \"model\" : \"m\" }\n", " { \"model\" : \"m\" }\n"},
		{"the model", Edit{Model: "n"}, `{"a": 1, "model" :"m" ,"b":[ ]}`, `{"a": 1, "model" :"n" ,"b":[ ]}`},
		{"a model with escapes, in a key with escapes", Edit{Model: "n"}, `{"mod\u0065l":"\u006d\"x"}`, `{"mod\u0065l":"n"}`},
		{"a name that needs escapes", Edit{Model: "a\"b\\c\n\x7f大\xff"}, `{"model":"m"}`, `{"model":"a\"b\\c\u000a\u007f大` + "\ufffd" + `"}`},
		{"a longer name", Edit{Model: "vendor/name"}, `{"model":"m"}`, `{"model":"vendor/name"}`},
		{"no options", Edit{IncludeUsage: true}, ` { "model":"m"}`, ` {"stream_options":{"include_usage":true}, "model":"m"}`},
		{"no options, model too", both, `{"model":"m","a":1}`, `{"stream_options":{"include_usage":true},"model":"n/2","a":1}`},
		{"options null before the model", both, `{"stream_options": null ,"model":"m"}`, `{"stream_options": {"include_usage":true} ,"model":"n/2"}`},
		{"options null behind the model", both, `{"model":"m","stream_options": null }`, `{"model":"n/2","stream_options": {"include_usage":true} }`},
		{"options empty before the model", both, `{"stream_options":{ },"model":"m"}`, `{"stream_options":{"include_usage":true},"model":"n/2"}`},
		{"options empty behind the model", both, `{"model":"m","stream_options":{}}`, `{"model":"n/2","stream_options":{"include_usage":true}}`},
		{"options without it before the model", both, `{"stream_options":{ "a":1},"model":"m"}`, `{"stream_options":{"include_usage":true, "a":1},"model":"n/2"}`},
		{"options without it behind the model", both, `{"model":"m","stream_options":{"a":{}}}`, `{"model":"n/2","stream_options":{"include_usage":true,"a":{}}}`},
		{"false before the model", both, `{"stream_options":{"a":1,"include_usage" : false },"model":"m"}`, `{"stream_options":{"a":1,"include_usage" : true },"model":"n/2"}`},
		{"false behind the model", both, `{"model":"m","stream_options":{"include_usage":false}}`, `{"model":"n/2","stream_options":{"include_usage":true}}`},
		{"null behind the model", both, `{"model":"m","stream_options":{"include_usage": null}}`, `{"model":"n/2","stream_options":{"include_usage": true}}`},
		{"false in a key with escapes", Edit{IncludeUsage: true}, `{"model":"m","stream\u005foptions":{"include_us\u0061ge":false}}`, `{"model":"m","stream\u005foptions":{"include_us\u0061ge":true}}`},
		{"true already", both, `{"stream_options":{"include_usage":true},"model":"m"}`, `{"stream_options":{"include_usage":true},"model":"n/2"}`},
		{"a namesake inside another value", Edit{IncludeUsage: true}, `{"x":{"stream_options":{"include_usage":false}},"model":"m"}`, `{"stream_options":{"include_usage":true},"x":{"stream_options":{"include_usage":false}},"model":"m"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var call Call
			if p := ReadChat([]byte(c.give), &call); p != nil {
				t.Fatalf("refused: %+v", *p)
			}
			if got := string(call.Append([]byte("before "), []byte(c.give), c.edit)); got != "before "+c.want {
				t.Errorf("got  %s\nwant before %s", got, c.want)
			}
		})
	}
}

func TestPlainRunStopsWhereAStringDoes(t *testing.T) {
	plain := func(b []byte) int {
		for i, c := range b {
			if c < ' ' || c == '"' || c == '\\' {
				return i
			}
		}
		return len(b)
	}
	var b [17]byte
	for first := range 256 {
		for second := range 256 {
			for i := range b {
				b[i] = 'x'
			}
			b[3], b[4], b[12] = byte(first), byte(second), '"'
			if got, want := plainRun(b[:]), plain(b[:]); got != want {
				t.Fatalf("%q: %d, want %d", b, got, want)
			}
		}
	}
}

func TestKeysAreToldApartHoweverMany(t *testing.T) {
	for _, n := range []int{1, fewKeys - 1, fewKeys, fewKeys + 1, 100_000} {
		var b strings.Builder
		b.WriteString(`{"first":0,"model":"m"`)
		for i := range n {
			fmt.Fprintf(&b, `,"k%d":0`, i)
		}
		for _, c := range []struct{ last, code string }{{``, ""}, {`,"First":0`, ambiguousKey}, {`,"K0":0`, ambiguousKey}, {fmt.Sprintf(`,"k%d":0`, n-1), ambiguousKey}, {`,"MODEL":0`, ambiguousKey}} {
			var call Call
			code := ""
			if p := ReadChat([]byte(b.String()+c.last+"}"), &call); p != nil {
				code = p.Code
			}
			if code != c.code {
				t.Errorf("%d keys and %s: %q, want %q", n, c.last, code, c.code)
			}
		}
	}
}
