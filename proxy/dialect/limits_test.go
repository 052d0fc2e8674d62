package dialect

import (
	"fmt"
	"strings"
	"testing"
)

func TestOutputLimitsAreRead(t *testing.T) {
	for _, c := range []struct {
		name, give           string
		max, completion, out int64
		n                    int64
		own, ownOut          int64 // OwnLimit of another target, and of one that knows max_output_tokens
	}{
		{"none", ``, -1, -1, -1, 1, -1, -1},
		{"null", `,"max_tokens":null,"max_completion_tokens":null,"max_output_tokens":null,"n":null`, -1, -1, -1, 1, -1, -1},
		{"the least", `,"max_tokens":1,"n":1`, 1, -1, -1, 1, 1, 1},
		{"the most", `,"max_tokens":2147483647,"n":128`, 2147483647, -1, -1, 128, 2147483647, 2147483647},
		{"the newer name", `,"max_completion_tokens" : 16 `, -1, 16, -1, 1, 16, 16},
		{"both: the larger counts", `,"max_completion_tokens":16,"max_tokens":20`, 20, 16, -1, 1, 20, 20},
		{"both, the other way", `,"max_completion_tokens":25,"max_tokens":20`, 20, 25, -1, 1, 25, 25},
		{"the name of another API", `,"max_output_tokens":9`, -1, -1, 9, 1, -1, 9},
		{"all three", `,"max_output_tokens":9,"max_tokens":5,"max_completion_tokens":null`, 5, -1, 9, 1, 5, 9},
		{"escapes in the key", `,"max\u005ftokens":7,"\u006e":3`, 7, -1, -1, 3, 7, 7},
		{"inside another value", `,"x":{"max_tokens":7,"n":0}`, -1, -1, -1, 1, -1, -1},
		{"an exact length", `,"max_tokens":12345`, 12345, -1, -1, 1, 12345, 12345},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := Call{MaxTokens: 5, MaxCompletionTokens: 5, MaxOutputTokens: 5, N: 5, otherOutput: true} // of the request before
			if p := ReadChat([]byte(`{"model":"m"`+c.give+`}`), &call); p != nil {
				t.Fatalf("refused: %+v", *p)
			}
			got := []int64{call.MaxTokens, call.MaxCompletionTokens, call.MaxOutputTokens, call.N, call.OwnLimit("max_tokens"), call.OwnLimit("max_output_tokens")}
			if want := []int64{c.max, c.completion, c.out, c.n, c.own, c.ownOut}; fmt.Sprint(got) != fmt.Sprint(want) || call.otherOutput {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestOutputLimitsOfAnotherTypeOrRangeAreRefused(t *testing.T) {
	for _, field := range []string{"max_tokens", "max_completion_tokens", "max_output_tokens", "n"} {
		for _, v := range []string{`0`, `-0`, `-1`, `1.0`, `1.5`, `1e2`, `1E0`, `"5"`, `true`, `false`, `[]`, `[5]`, `{}`, `2147483648`, `99999999999999999999999`, `9223372036854775808`, `18446744073709551617`} {
			refused(t, fmt.Sprintf(`{"model":"m","%s":%s}`, field, v), invalidValue, field)
		}
		for _, v := range []string{`nul`, `NaN`, `+1`, `1 2`, `1.`, `-`, `1x`, ``, `"5`, `[`} {
			refused(t, fmt.Sprintf(`{"model":"m","%s":%s}`, field, v), invalidJSON, "")
		}
		refused(t, fmt.Sprintf(`{"model":"m","%s":5,"%s":5}`, field, field), ambiguousKey, field)
		refused(t, fmt.Sprintf(`{"model":"m","%s":5}`, strings.ToUpper(field)), ambiguousKey, field)
		refused(t, fmt.Sprintf(`{"model":"m","%s":null,"%s":5}`, field, strings.ToUpper(field)), ambiguousKey, field)
	}
	refused(t, `{"model":"m","n":129}`, invalidValue, "n")
	refused(t, `{"model":"m","max_to\u212aens":5}`, ambiguousKey, "max_tokens")
	refused(t, `{"model":"m","max_tokenſ":5}`, ambiguousKey, "max_tokens")
	for _, v := range []string{`"text"`, `{}`, `5`, `[5]`, `["text",null]`, `[["text"]]`} {
		refused(t, `{"model":"m","modalities":`+v+`}`, invalidValue, "modalities")
	}
	for _, v := range []string{`"alloy"`, `[]`, `true`, `5`} {
		refused(t, `{"model":"m","audio":`+v+`}`, invalidValue, "audio")
	}
	for _, v := range []string{`"modalities":["text"`, `"modalities":["text",]`, `"modalities":nul`, `"modalities":["te`, `"audio":{"a"}`, `"audio":nil`, `"audio":{`} {
		refused(t, `{"model":"m",`+v+`}`, invalidJSON, "")
	}
	refused(t, `{"model":"m","Modalities":["text"]}`, ambiguousKey, "modalities")
	refused(t, `{"model":"m","AUDIO":null}`, ambiguousKey, "audio")
}

func refused(t *testing.T, body, code, param string) {
	t.Helper()
	var c Call
	p := ReadChat([]byte(body), &c)
	if p == nil {
		t.Errorf("%s: accepted", body)
	} else if p.Code != code || p.Param != param {
		t.Errorf("%s: %s, param %q; want %s, param %q", body, p.Code, p.Param, code, param)
	}
}

func TestAnOutputLimitIsPutWhereNoneIs(t *testing.T) {
	limit := Edit{OutputLimit: 77, OutputField: "max_tokens"}
	all := Edit{Model: "n", IncludeUsage: true, OutputLimit: 77, OutputField: "max_tokens"}
	for _, c := range []struct {
		name string
		edit Edit
		give string
		want string
	}{
		{"at the top", limit, ` { "model":"m"}`, ` {"max_tokens":77, "model":"m"}`},
		{"under another name", Edit{OutputLimit: 1, OutputField: "max_completion_tokens"}, `{"model":"m"}`, `{"max_completion_tokens":1,"model":"m"}`},
		{"under the third", Edit{OutputLimit: 2147483647, OutputField: "max_output_tokens"}, `{"model":"m"}`, `{"max_output_tokens":2147483647,"model":"m"}`},
		{"in the place of a null", limit, `{"max_tokens": null ,"model":"m"}`, `{"max_tokens": 77 ,"model":"m"}`},
		{"in the place of a null in escapes", limit, `{"model":"m","max\u005ftokens":null}`, `{"model":"m","max\u005ftokens":77}`},
		{"beside another's null", limit, `{"max_completion_tokens":null,"model":"m"}`, `{"max_tokens":77,"max_completion_tokens":null,"model":"m"}`},
		{"never over the call's own", limit, `{"model":"m","max_tokens":5}`, `{"model":"m","max_tokens":5}`},
		{"no limit", Edit{OutputField: "max_tokens"}, `{"model":"m"}`, `{"model":"m"}`},
		{"no name", Edit{OutputLimit: 5}, `{"model":"m"}`, `{"model":"m"}`},
		{"a name that nobody knows", Edit{OutputLimit: 5, OutputField: "max"}, `{"model":"m"}`, `{"model":"m"}`},
		{"with all else at the top", all, `{"model":"m","x":1}`, `{"stream_options":{"include_usage":true},"max_tokens":77,"model":"n","x":1}`},
		{"with all else, before", all, `{"max_tokens":null,"stream_options":{},"model":"m"}`, `{"max_tokens":77,"stream_options":{"include_usage":true},"model":"n"}`},
		{"with all else, behind", all, `{"model":"m","stream_options":null,"max_tokens":null}`, `{"model":"n","stream_options":{"include_usage":true},"max_tokens":77}`},
		{"with all else, around", all, `{"stream_options":{"a":1},"model":"m","max_tokens":null}`, `{"stream_options":{"include_usage":true,"a":1},"model":"n","max_tokens":77}`},
		{"with all else, the options last", all, `{"max_tokens":null,"model":"m","stream_options":{"include_usage":false}}`, `{"max_tokens":77,"model":"n","stream_options":{"include_usage":true}}`},
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
