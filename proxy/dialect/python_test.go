package dialect

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf16"
)

// What ReadChat accepts, Python and Go's own parser read as it does: the model
// that policy saw is the model that the upstream serves.
func TestWhatReadChatAcceptsOthersReadAlike(t *testing.T) {
	bodies := disputed()
	if len(bodies) < 300 {
		t.Fatalf("%d bodies are too few", len(bodies))
	}
	python := readByPython(t, bodies)
	accepted, refused, pythonOnly := 0, 0, 0
	for i, body := range bodies {
		var c Call
		if p := ReadChat(body, &c); p != nil {
			if refused++; python[i].Model != nil {
				pythonOnly++
			}
			continue
		}
		accepted++
		want := readingOf(&c)
		if got := python[i].normal(); got != want {
			t.Errorf("%.200q\nread here %v, by Python %v", body, want, got)
		}
		if got := readByGo(t, body).normal(); got != want {
			t.Errorf("%.200q\nread here %v, by encoding/json %v", body, want, got)
		}
	}
	t.Logf("%d bodies: %d accepted and read alike, %d refused, of which Python reads a model in %d",
		len(bodies), accepted, refused, pythonOnly)
	if accepted < 50 || refused < 150 {
		t.Errorf("%d accepted and %d refused: the bodies prove little", accepted, refused)
	}
}

// reading is what a parser makes of a body; null and absent are false.
type reading struct {
	Model  any `json:"model"`
	Stream any `json:"stream"`
	Usage  any `json:"usage"`

	MaxTokens           any `json:"max_tokens"`
	MaxCompletionTokens any `json:"max_completion_tokens"`
	MaxOutputTokens     any `json:"max_output_tokens"`
	N                   any `json:"n"`
}

func readingOf(c *Call) reading {
	return reading{string(c.Model), c.Stream, c.IncludeUsage, float64(c.MaxTokens), float64(c.MaxCompletionTokens), float64(c.MaxOutputTokens), float64(c.N)}
}

func (r reading) normal() reading {
	for _, absent := range []struct {
		field *any
		is    any
	}{{&r.Stream, false}, {&r.Usage, false}, {&r.MaxTokens, -1.0}, {&r.MaxCompletionTokens, -1.0}, {&r.MaxOutputTokens, -1.0}, {&r.N, 1.0}} {
		if *absent.field == nil {
			*absent.field = absent.is
		}
	}
	return r
}

// readByPython asks one Python for all, as bytes: json.loads guesses at UTF-16
// and UTF-32 by itself.
func readByPython(t *testing.T, bodies [][]byte) []reading {
	t.Helper()
	var in bytes.Buffer
	for _, b := range bodies {
		in.WriteString(hex.EncodeToString(b) + "\n")
	}
	cmd := exec.Command("python3", "testdata/read.py")
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3 is needed as the second reader: %v", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(bodies) {
		t.Fatalf("Python answered %d of %d", len(lines), len(bodies))
	}
	read := make([]reading, len(bodies))
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &read[i]); err != nil {
			t.Fatalf("Python's line %d: %v", i, err)
		}
	}
	return read
}

// readByGo reads as a server in Go would, into a struct: fields match in any case.
func readByGo(t *testing.T, body []byte) reading {
	t.Helper()
	var v struct {
		Model   string
		Stream  bool
		Options struct {
			Usage bool `json:"include_usage"`
		} `json:"stream_options"`
		MaxTokens           *int64 `json:"max_tokens"`
		MaxCompletionTokens *int64 `json:"max_completion_tokens"`
		MaxOutputTokens     *int64 `json:"max_output_tokens"`
		N                   *int64 `json:"n"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		t.Errorf("%.200q: accepted here, not by encoding/json: %v", body, err)
	}
	number := func(n *int64) any {
		if n == nil {
			return nil
		}
		return float64(*n)
	}
	return reading{v.Model, v.Stream, v.Options.Usage, number(v.MaxTokens), number(v.MaxCompletionTokens), number(v.MaxOutputTokens), number(v.N)}
}

// disputed makes bodies over which parsers part, and some over which none does.
func disputed() [][]byte {
	var all [][]byte
	add := func(format string, args ...any) { all = append(all, fmt.Appendf(nil, format, args...)) }

	// Every pair of spellings of a field, and each alone, before and behind others.
	spellings := map[string][]string{
		"model":          {`model`, `MODEL`, `Model`, `mode\u006c`, `\u006dodel`, `mode\u004c`, `mo\u0064el`, `model `, `model\u0000`, `m\u043edel`},
		"stream":         {`stream`, `Stream`, `ſtream`, `\u017ftream`, `\u0073tream`, `STREAM`, `stream\u200b`},
		"stream_options": {`stream_options`, `Stream_Options`, `ſtream_optionſ`, `stream\u005foptions`},
		"max_tokens":     {`max_tokens`, `Max_Tokens`, `max_toKens`, `max_tokenſ`, `max_to\u006bens`, `max_to\u212aens`, `max_tokens_`},
		"n":              {`n`, `N`, `\u006e`, `ｎ`, `ñ`},
	}
	values := map[string][2]string{
		"model":          {`"cheap"`, `"forbidden"`},
		"stream":         {`false`, `true`},
		"stream_options": {`{}`, `{"include_usage":true}`},
		"max_tokens":     {`16`, `4096`},
		"n":              {`1`, `2`},
	}
	for _, field := range []string{"model", "stream", "stream_options", "max_tokens", "n"} {
		v := values[field]
		for _, a := range spellings[field] {
			add(`{"%s":%s,"x":1}`, a, v[1])
			add(`{"model":"m","x":[],"%s":%s}`, a, v[1])
			for _, b := range spellings[field] {
				add(`{"%s":%s,"%s":%s}`, a, v[0], b, v[1])
				add(`{"user":"u","%s":%s,"model_":"m","%s":%s,"stop":null}`, a, v[0], b, v[1])
			}
		}
	}
	for _, a := range []string{`include_usage`, `INCLUDE_USAGE`, `include_u\u0073age`, `include_uſage`} {
		add(`{"model":"m","stream_options":{"%s":true}}`, a)
		add(`{"model":"m","stream_options":{"include_usage":false,"%s":true}}`, a)
	}

	// Values of every kind in each field.
	for _, v := range []string{`"m"`, `"\u006d"`, `"m\/n"`, `"\ud83d\ude00"`, `"\ud800"`, `"\ude00\ud83d"`, `"\ud83dx"`, `"\u0000"`, `"m\n"`,
		`"\\u006d"`, `""`, `"é"`, `"e\u0301"`, `"\ufeff"`, `"\uFFFD"`, `"\x6d"`, `"\u00"`, `'m'`, `m`, `null`, `true`, `True`, `tru`, `0`, `1`, `-0`, `1.0`, `01`, `+1`, `.5`,
		`1.`, `1e5`, `1e999`, `-1e-999`, `NaN`, `Infinity`, `-Infinity`, `0x1`, `1_000`, `[]`, `["m"]`, `{}`, `{"model":"m"}`, `"m" "n"`, `"m"+"n"`, ``, `undefined`} {
		add(`{"model":%s}`, v)
		add(`{"model":"m","stream":%s}`, v)
		add(`{"model":"m","stream_options":%s}`, v)
		add(`{"model":"m","stream_options":{"include_usage":%s}}`, v)
		for _, field := range []string{"max_tokens", "max_completion_tokens", "max_output_tokens", "n"} {
			add(`{"model":"m","%s":%s}`, field, v)
		}
		add(`{"model":"m","other":%s}`, v)
		add(`{"model":"m","other":[%s]}`, v)
	}

	// The frame around the object.
	const good = `{"model":"m","stream":true}`
	for _, s := range []string{"%s\n", " \t\r\n%s", "\v%s", "\f%s", "\u00a0%s", "\u2028%s", "\ufeff%s", "%s\ufeff", "%s\x00", "\x00%s", "%s{\"model\":\"n\"}", "%s,", "%s]", "[%s]",
		"%s\n{\"model\":\"n\"}", "\"%s", "// x\n%s", "/* */%s", "%s//", "# x\n%s", ")]}'\n%s", "\x1e%s", "data: %s", "%[1]s%[1]s"} {
		add(s, good)
	}
	for _, s := range []string{`{"model":"m",}`, `{,"model":"m"}`, `{"model":"m";"n":1}`, `{"model"="m"}`, `{"model":"m" "n":1}`, `{model:"m"}`, `{"model":"m"`, `"model"`, `[]`, `null`, ``, ` `,
		`{}`, `{"":"m"}`, `{"a":{"model":"m"}}`, `{"a":{"model":"m"},"model":"n"}`, `{"a":"\",\"model\":\"m","model":"n"}`, `{"a":"\\","model":"n"}`, `{"a\"":1,"model":"n"}`,
		`{"\ud800":1,"model":"m"}`, `{"\ud800":1,"\udfff":2,"model":"m"}`, `{"\ud83d\ude00":1,"😀":2,"model":"m"}`, `{"K":1,"k":2,"model":"m"}`, `{"k":1,"K":2,"model":"m"}`, `{"ß":1,"ẞ":2,"model":"m"}`,
		`{"x":{"a":1,"a":2},"model":"m"}`, `{"x":{"A":1,"a":2},"model":"m"}`, `{"1":1,"01":2,"model":"m"}`, `{"__proto__":{"model":"n"},"model":"m"}`} {
		all = append(all, []byte(s))
	}

	// Encodings.
	for _, body := range []string{good, `{"model":"é"}`} {
		u := utf16.Encode([]rune(body))
		for _, mark := range []bool{false, true} {
			all = append(all, encode(u, mark, 2, false), encode(u, mark, 2, true), encode(u, mark, 4, false), encode(u, mark, 4, true))
		}
	}
	for _, s := range []string{"\xff", "\xc0\xa2", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80", "\xe0\x80\xa2", "\xed\xa0\xbd\xed\xb8\x80", "\xfe\xff", "\x7f", "\x01", "\n", "\u2028"} {
		add("{\"model\":\"m%s\"}", s)
		add("{\"model\":\"m\",\"a%s\":1}", s)
		add("{\"model\":\"m\",\"a\":\"%s\"}", s)
		add("{\"model\":\"m\",%s\"a\":1}", s)
		add("{\"model\":\"m%s,\"model\":\"n\"}", s)
	}

	// Depth and length.
	for _, n := range []int{1, 64, 511, 512, 900, 20000} {
		add(`{"model":"m","a":%s%s}`, strings.Repeat("[", n), strings.Repeat("]", n))
		add(`{"model":"m","a":%s1%s}`, strings.Repeat(`{"model":`, n), strings.Repeat("}", n))
		add(`%s{"model":"m"}%s`, strings.Repeat("[", n), strings.Repeat("]", n))
	}
	add(`{"model":"m","a":%s}`, strings.Repeat("9", 5000))
	add(`{"model":"%s"}`, strings.Repeat("m", 257))
	for _, n := range []int{31, 32, 33, 64, 65, 500} {
		var keys strings.Builder
		for i := range n {
			fmt.Fprintf(&keys, `"k%d":%d,`, i, i)
		}
		add(`{%s"model":"m"}`, keys.String())
		add(`{"model":"m",%s"model":"n"}`, keys.String())
		add(`{"model":"m",%s"MODEL":"n"}`, keys.String())
		add(`{%s"k0":1,"model":"m"}`, keys.String())
	}

	// A byte changed, put in or taken out.
	rng := rand.New(rand.NewPCG(1, 2))
	const whole = `{"messages":[{"role":"user","content":"h\u00e9\n\"x\""}],"model":"m","stream":true,"n":128,"max_tokens":2147483647,"temperature":-1.5e3,"stream_options":{"include_usage":true}}`
	const odd = "\"\\{}[]:,'0e.-tu/ \x00\n\x80\xc3"
	for range 2000 {
		b := []byte(whole)
		i := rng.IntN(len(b))
		switch c := odd[rng.IntN(len(odd))]; rng.IntN(3) {
		case 0:
			b[i] = c
		case 1:
			b = append(b[:i:i], append([]byte{c}, b[i:]...)...)
		case 2:
			b = append(b[:i:i], b[i+1:]...)
		}
		all = append(all, b)
	}
	return all
}

// encode writes UTF-16 units in size bytes each; for size 4 there must be no pair.
func encode(units []uint16, mark bool, size int, big bool) []byte {
	if mark {
		units = append([]uint16{0xfeff}, units...)
	}
	var b []byte
	for _, u := range units {
		unit := make([]byte, size)
		unit[0], unit[1] = byte(u), byte(u>>8)
		if big {
			for i, j := 0, size-1; i < j; i, j = i+1, j-1 {
				unit[i], unit[j] = unit[j], unit[i]
			}
		}
		b = append(b, unit...)
	}
	return b
}
