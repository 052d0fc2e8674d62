package main

import (
	"fmt"
	"strings"
	"unicode/utf16"
)

// bodyCase is one case: a body, and what is known of it beforehand.
type bodyCase struct {
	body    string
	sound   bool // it must be served
	refused bool // it must not
}

// everyBody is the cases.
func everyBody() (all []bodyCase) {
	sound := func(format string, args ...any) {
		all = append(all, bodyCase{body: fmt.Sprintf(format, args...), sound: true})
	}
	either := func(format string, args ...any) { all = append(all, bodyCase{body: fmt.Sprintf(format, args...)}) }
	refused := func(format string, args ...any) {
		all = append(all, bodyCase{body: fmt.Sprintf(format, args...), refused: true})
	}

	// Every pair of spellings of the model's key, granted before and behind, and alone.
	keys := []string{`model`, `MODEL`, `Model`, `mode\u006c`, `\u006dodel`, `\u006D\u006f\u0064\u0065\u006c`, `mode\u004c`, `m\u004fdel`, `mOdel`, `moDel`}
	near := []string{`model `, ` model`, `model\u0000`, `m\u043edel`, `model\u200b`, `models_`, `model_id`, `_model`, `modell`, `mode`, `m\u00f6del`}
	for i, a := range keys {
		for j, b := range keys {
			refused(`{"%s":"cheap","%s":"dear"}`, a, b)
			refused(`{"%s":"dear","%s":"cheap"}`, a, b)
			if i == 0 && j > 0 {
				refused(`{"messages":[],"%s":"cheap","temperature":1,"%s":"cheap"}`, a, b)
			}
		}
		either(`{"%s":"cheap"}`, a)
		refused(`{"%s":"dear"}`, a)
	}
	for _, k := range near {
		sound(`{"model":"cheap","%s":"dear"}`, k)
		sound(`{"%s":"dear","model":"cheap"}`, k)
		refused(`{"%s":"cheap"}`, k)
	}

	// The model's value.
	for _, v := range []string{`"dear"`, `"\u0064ear"`, `"d\u0065ar"`, `"dear\u0000"`, `"cheap\u0000dear"`, `"cheap\ndear"`, `""`, `null`, `1`, `true`, `["cheap"]`, `{"a":"cheap"}`, `"cheap "`, `" cheap"`, `"CHEAP"`, `"cheap\ud800"`, `"\udc00cheap"`, `"cheap,dear"`, `"cheap/../dear"`, `"cheap\u202edear"`, `"*"`,
		`"che` + "\x00" + `ap"`, `"cheap` + "\xff" + `"`, `"cheap` + "\xed\xa0\x80" + `"`, `"cheap` + "\n" + `"`, `'cheap'`, `cheap`, `"cheap`, `"che\ap"`, `"che\u00zzap"`, `"\x63heap"`, `"` + strings.Repeat("c", 300) + `"`, `"ch` + "\u200b" + `eap"`, `"сheap"`, `"cheap` + "\u0301" + `"`} {
		refused(`{"model":%s}`, v)
		refused(`{"messages":[],"model":%s,"n":1}`, v)
	}
	for _, v := range []string{`"\u0063heap"`, `"\u0063\u0068\u0065\u0061\u0070"`, `"ch\u0065ap"`} {
		sound(`{"model":%s}`, v)
	}

	// Keys that fold to ones that are read, and their values.
	for _, f := range [][]string{{`stream`, `Stream`, `STREAM`, `ſtream`, `\u017ftream`, `\u0053tream`}, {`n`, `N`}, {`max_tokens`, `Max_Tokens`, `max_toKens`, `max_tokenſ`, `max_to\u212aens`}, {`max_completion_tokens`, `MAX_COMPLETION_TOKENS`, `max_completion_tokenſ`},
		{`stream_options`, `Stream_Options`, `ſtream_options`, `stream_optionſ`}} {
		value := map[string]string{"stream": "true", "stream_options": `{"include_usage":true}`}[f[0]]
		if value == "" {
			value = "1"
		}
		for i, a := range f {
			if i > 0 {
				refused(`{"model":"cheap","%s":%s}`, a, value)
			}
			for _, b := range f {
				refused(`{"model":"cheap","%s":%s,"%s":%s}`, a, value, b, value)
			}
		}
		sound(`{"model":"cheap","%s":%s}`, f[0], value)
		for _, v := range []string{`"true"`, `"1"`, `[]`, `1e400`, `-1`, `1.5`, `99999999999999999999`, `NaN`, `Infinity`, `-Infinity`, `0x1`, `01`, `+1`, `.5`, `1.`, `1_0`, `tru`, `True`, `nul`, `-`, `1e`} {
			if v != "[]" || f[0] != "stream_options" {
				refused(`{"model":"cheap","%s":%s}`, f[0], v)
			}
		}
	}
	for _, v := range []string{`NaN`, `Infinity`, `-Infinity`, `01`, `+1`, `.5`, `1.`, `tru`, `True`, `None`, `undefined`, `-`, `1e`, `'a'`, `0x1`, `1n`, `"\x41"`, `"\u12"`, `"a` + "\t" + `"`, `[1,]`, `[,1]`, `{"a":1,}`, `{a:1}`, `{"a" 1}`, `[1 2]`, `"a" "b"`, `/**/1`, `//1` + "\n", `#1` + "\n"} {
		refused(`{"model":"cheap","other":%s}`, v)
		refused(`{"other":%s,"model":"cheap"}`, v)
	}
	for _, v := range []string{`1e400`, `-0`, `1E+2`, `99999999999999999999999`, `"\ud800"`, `"\ud83d\ude00"`, `"😀"`, `null`, `[]`, `{}`, `{"a":1,"a":2}`, `{"model":"dear"}`, `"model"`, `"\",\"model\":\"dear"`, `"\\"`, `[["model","dear"]]`, strings.Repeat("[", 500) + strings.Repeat("]", 500)} {
		sound(`{"model":"cheap","other":%s}`, v)
		sound(`{"other":%s,"model":"cheap"}`, v)
	}

	// The frame around the object.
	for _, f := range []string{"\ufeff%s", "%s\ufeff", "\x00%s", "%s\x00", "%s%s", "%s,%s", "%s\n%s", "%s{\"model\":\"dear\"}", "%s]", "[%s]", "[%s,{\"model\":\"dear\"}]", "\"%s\"", "// x\n%s", "/* */%s", "%s//", "# x\n%s", ")]}'\n%s", "\x1e%s", "data: %s", "\v%s", "\f%s", "\u00a0%s", "\u2028%s", "\u0085%s", "%s;", "%s,", "{}%s", "null%s", "%s null", "model=cheap", " ", "null", "[]", "{}", "\"cheap\"", "1"} {
		refused("%s", strings.ReplaceAll(f, "%s", `{"model":"cheap"}`))
	}
	for _, f := range []string{"%s\n", " \t\r\n%s", "%s \r\n\t "} {
		sound("%s", strings.ReplaceAll(f, "%s", `{"model":"cheap"}`))
	}
	for _, b := range []string{`{"model":"cheap",}`, `{,"model":"cheap"}`, `{"model":"cheap";"n":1}`, `{"model"="cheap"}`, `{"model":"cheap" "n":1}`, `{model:"cheap"}`, `{"model":"cheap"`, `{'model':'cheap'}`, `{"model"::"cheap"}`, `{{"model":"cheap"}}`, `{"model":"cheap"}}`, `{"a":{"model":"cheap"}}`, `{"model":"cheap","a"}`, `{"model":"cheap",:1}`, `{"model":"cheap","\ud800":1}`, `{"model":"cheap","x":1,"X":2}`, `{"model":"cheap","x":1,"\u0078":2}`, `{"model":"cheap","ß":1,"ẞ":2}`, `{"model":"cheap","k":1,"K":2}`} {
		refused("%s", b)
	}

	// Encodings, and bytes that are no UTF-8.
	for _, text := range []string{`{"model":"cheap"}`, `{"model":"dear"}`} {
		u := utf16.Encode([]rune(text))
		for _, size := range []int{2, 4} {
			for _, big := range []bool{false, true} {
				for _, mark := range []bool{false, true} {
					refused("%s", wide(u, size, big, mark))
				}
			}
		}
	}
	for _, s := range []string{"\xff", "\xc0\xa2", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80", "\xe0\x80\xa2", "\xed\xa0\xbd\xed\xb8\x80", "\xfe\xff", "\xc1\xad", "\x01", "\x1f"} {
		refused("{\"model\":\"cheap%s\"}", s)
		refused("{\"model\":\"cheap\",\"a%s\":1}", s)
		refused("{\"model\":\"cheap\",\"a\":\"%s\"}", s)
		refused("{\"model\":\"cheap\",%s\"a\":1}", s)
	}

	// Depth and length.
	for _, n := range []int{511, 512, 513, 1000, 20_000, 200_000} {
		add := refused
		if n < 512 {
			add = sound
		}
		add(`{"model":"cheap","a":%s%s}`, strings.Repeat("[", n), strings.Repeat("]", n))
		add(`{"model":"cheap","a":%s1%s}`, strings.Repeat(`{"model":`, n), strings.Repeat("}", n))
	}
	for _, n := range []int{31, 32, 33, 64, 65, 500, 5000} {
		var many strings.Builder
		for i := range n {
			fmt.Fprintf(&many, `"k%d":%d,`, i, i)
		}
		sound(`{%s"model":"cheap"}`, many.String())
		refused(`{"model":"cheap",%s"model":"dear"}`, many.String())
		refused(`{"model":"cheap",%s"MODEL":"dear"}`, many.String())
	}
	return append(all, routedBodies()...)
}

// routed is served by a target whose provider reads models in other fields too.
const routed = "routed"

func routedBodies() (all []bodyCase) {
	for _, more := range []string{`"models":["dear"]`, `"models":["routed","dear"]`, `"models":["routed"],"models":["dear"]`, `"Models":["dear"]`, `"model\u0073":["dear"]`, `"models":"dear"`, `"models":[{"model":"dear"}]`, `"models":null,"MODELS":["dear"]`,
		`"route":"fallback","models":["dear"]`, `"provider":{"order":["x"],"allow_fallbacks":true}`, `"preset":"mine"`, `"plugins":[{"id":"web"}]`, `"plugins":[{"id":"x","model":"dear"}]`, `"transforms":["middle-out"]`, `"route":"fallback"`, `"fallbacks":["dear"]`, `"tools":[{"type":"x","model":"dear"}]`} {
		all = append(all, bodyCase{body: `{"model":"routed",` + more + `}`}, bodyCase{body: `{` + more + `,"model":"routed"}`})
	}
	// What a provider keeps may be another caller's, wherever it is named; a tier has a
	// price of its own.
	for _, more := range []string{`"previous_response_id":"resp_1"`, `"conversation":"conv_1"`, `"conversation":{"id":"conv_1"}`, `"prompt":{"id":"pmpt_1"}`, `"Previous_response_id":"resp_1"`, `"previous_respon\u0073e_id":"resp_1"`, `"service_tier":"priority"`, `"service_tier":"flex"`, `"Service_tier":"priority"`,
		`"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]`, `"messages":[{"role":"user","content":[{"type":"file","file":{"file\u005fid":"file-1"}}]}]`, `"tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]`} {
		all = append(all, bodyCase{body: `{"model":"cheap",` + more + `}`, refused: true}, bodyCase{body: `{` + more + `,"model":"routed"}`, refused: true})
	}
	return append(all, bodyCase{body: `{"model":"routed"}`, sound: true}, bodyCase{body: `{"model":"cheap","service_tier":"auto","store":false}`, sound: true})
}

// wide writes UTF-16 units in size bytes each.
func wide(units []uint16, size int, big, mark bool) string {
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
	return string(b)
}
