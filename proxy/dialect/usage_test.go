package dialect

import (
	"strings"
	"testing"
)

func TestReadUsageTakesDisjointParts(t *testing.T) {
	for _, c := range []struct {
		name, give string
		want       Usage
	}{
		{"text alone", `{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}`, Usage{Input: 10, Output: 5}},
		{"every part", `{"usage":{"prompt_tokens":100,"completion_tokens":50,
			"prompt_tokens_details":{"cached_tokens":40,"cache_write_tokens":20,"audio_tokens":10},
			"completion_tokens_details":{"reasoning_tokens":30,"audio_tokens":5,"accepted_prediction_tokens":9}}}`,
			Usage{Input: 30, CachedInput: 40, CacheWrite: 20, AudioInput: 10, Output: 15, Reasoning: 30, AudioOutput: 5}},
		{"details before the totals", `{"usage":{"completion_tokens_details":{"reasoning_tokens":3},"prompt_tokens_details":{"cached_tokens":4},"completion_tokens":5,"prompt_tokens":6}}`,
			Usage{Input: 2, CachedInput: 4, Output: 2, Reasoning: 3}},
		{"more cached than there is", `{"usage":{"prompt_tokens":10,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":11,"audio_tokens":3}}}`, Usage{CachedInput: 10}},
		{"parts that overlap", `{"usage":{"prompt_tokens":10,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":3}}}`, Usage{CachedInput: 8, AudioInput: 2}},
		{"more reasoning than there is", `{"usage":{"prompt_tokens":0,"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":9}}}`, Usage{Reasoning: 4}},
		{"details that are null", `{"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":null,"completion_tokens_details":null}}`, Usage{Input: 1, Output: 2}},
		{"a part that is null", `{"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":null,"audio_tokens":1}}}`, Usage{Input: 2, AudioInput: 1, Output: 2}},
		{"reasoning beside the completion", `{"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}}`, Usage{Input: 32, Output: 9, Reasoning: 94}},
		{"reasoning in the total alone", `{"usage":{"total_tokens":135,"prompt_tokens":32,"completion_tokens":9}}`, Usage{Input: 32, Output: 103}},
		{"a total that is too small", `{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":0}}`, Usage{Input: 10, Output: 5}},
		{"a total that is null", `{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":null}}`, Usage{Input: 10, Output: 5}},
		{"output and a total alone", `{"usage":{"completion_tokens":5,"total_tokens":15}}`, Usage{Input: 10, Output: 5}},
		{"output and a smaller total", `{"usage":{"completion_tokens":5,"total_tokens":3}}`, Usage{Output: 5}},
		{"cached as DeepSeek tells it", `{"usage":{"prompt_tokens":10,"completion_tokens":1,"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":6}}`, Usage{Input: 6, CachedInput: 4, Output: 1}},
		{"cached in two places", `{"usage":{"prompt_tokens":10,"completion_tokens":1,"prompt_cache_hit_tokens":4,"prompt_tokens_details":{"cached_tokens":4}}}`, Usage{Input: 6, CachedInput: 4, Output: 1}},
		{"cached as Moonshot tells it", `{"usage":{"prompt_tokens":10,"completion_tokens":1,"cached_tokens":4}}`, Usage{Input: 6, CachedInput: 4, Output: 1}},
		{"cached and written as LiteLLM tells it", `{"usage":{"prompt_tokens":10,"completion_tokens":1,"cache_read_input_tokens":4,"cache_creation_input_tokens":3,"prompt_tokens_details":{"cached_tokens":4,"cache_creation_tokens":3}}}`, Usage{Input: 3, CachedInput: 4, CacheWrite: 3, Output: 1}},
		{"input alone", `{"usage":{"prompt_tokens":7,"total_tokens":7}}`, Usage{Input: 7}},
		{"output alone", `{"usage":{"completion_tokens":7}}`, Usage{Output: 7}},
		{"zeros", `{"usage":{"prompt_tokens":0,"completion_tokens":0}}`, Usage{}},
		{"the largest count", `{"usage":{"prompt_tokens":1125899906842624,"completion_tokens":1125899906842624}}`, Usage{Input: maxTokens, Output: maxTokens}},
		{"usage first", ` {"usage" : { "prompt_tokens" : 1 } , "choices" : [ { } ] } `, Usage{Input: 1}},
		{"counts of the same name elsewhere", `{"prompt_tokens":9,"usage":{"prompt_tokens":1,"cache_write_tokens":1,"reasoning_tokens":1,"x":{"prompt_tokens":8},
			"completion_tokens_details":{"cached_tokens":1,"prompt_tokens":7}}}`, Usage{Input: 1}},
		{"usage in a message and below other keys", `{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}","usage":{"prompt_tokens":8}}}],"x":{"usage":{"prompt_tokens":7}},"usage":{"prompt_tokens":1}}`, Usage{Input: 1}},
		{"two usages", `{"usage":{"prompt_tokens":1,"completion_tokens":9},"usage":{"prompt_tokens":2}}`, Usage{Input: 2}},
		{"a value elsewhere that is malformed", `{"a":{"b"},"usage":{"prompt_tokens":1}}`, Usage{Input: 1}},
		{"nested deeply elsewhere", `{"a":` + nested("[", "]", 2000) + `,"usage":{"prompt_tokens":1}}`, Usage{Input: 1}},
		{"usage and then null", `{"usage":{"prompt_tokens":1},"usage":null}`, Usage{Input: 1}},
		{"a count twice", `{"usage":{"prompt_tokens":1,"prompt_tokens":2}}`, Usage{Input: 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := ReadUsage([]byte(c.give))
			if !ok || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, ok, c.want)
			}
		})
	}
}

func TestTotalsAreTheProvidersOwn(t *testing.T) {
	u, _ := ReadUsage([]byte(`{"usage":{"prompt_tokens":100,"completion_tokens":50,"prompt_tokens_details":{"cached_tokens":40,"cache_write_tokens":20,"audio_tokens":10},
		"completion_tokens_details":{"reasoning_tokens":30,"audio_tokens":5}}}`))
	if u.InputTotal() != 100 || u.OutputTotal() != 50 {
		t.Errorf("got %d and %d", u.InputTotal(), u.OutputTotal())
	}
}

func TestReadUsageBelievesNothingElse(t *testing.T) {
	const counts = `{"prompt_tokens":1,"completion_tokens":2}`
	for _, c := range []struct{ name, give string }{
		{"nothing", ``},
		{"no object", `[` + counts + `]`},
		{"no usage", `{}`},
		{"usage is null", `{"usage":null}`},
		{"usage is a list", `{"usage":[` + counts + `]}`},
		{"usage is empty", `{"usage":{}}`},
		{"counts are null", `{"usage":{"prompt_tokens":null,"completion_tokens":null}}`},
		{"a total alone", `{"usage":{"total_tokens":3}}`},
		{"usage below another key", `{"x":{"usage":` + counts + `}}`},
		{"usage in a list", `{"choices":[{"usage":` + counts + `}]}`},
		{"usage in another case", `{"Usage":` + counts + `}`},
		{"usage in content", `{"content":"\"usage\":` + strings.ReplaceAll(counts, `"`, `\"`) + `"}`},
		{"a negative count", `{"usage":{"prompt_tokens":-1,"completion_tokens":2}}`},
		{"a negative part", `{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":-1}}}`},
		{"no digits", `{"usage":{"prompt_tokens":,"completion_tokens":2}}`},
		{"a leading zero", `{"usage":{"prompt_tokens":012,"completion_tokens":2}}`},
		{"minus zero", `{"usage":{"prompt_tokens":-0}}`},
		{"a fraction", `{"usage":{"prompt_tokens":1.5}}`},
		{"an exponent", `{"usage":{"prompt_tokens":1e3}}`},
		{"a negative total", `{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":-3}}`},
		{"a string", `{"usage":{"prompt_tokens":"1"}}`},
		{"true", `{"usage":{"prompt_tokens":true}}`},
		{"an object", `{"usage":{"prompt_tokens":{}}}`},
		{"one more than the largest", `{"usage":{"prompt_tokens":1125899906842625}}`},
		{"ten times the largest", `{"usage":{"prompt_tokens":11258999068426240}}`},
		{"beyond an int64", `{"usage":{"prompt_tokens":18446744073709551617}}`},
		{"a thousand digits", `{"usage":{"prompt_tokens":` + strings.Repeat("9", 1000) + `}}`},
		{"a good one and then a bad one", `{"usage":` + counts + `,"usage":{"prompt_tokens":-1}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, ok := ReadUsage([]byte(c.give)); ok || got != (Usage{}) {
				t.Errorf("got %+v, %v", got, ok)
			}
		})
	}
}

func TestAnAnswerCutAnywhereTellsNoUsage(t *testing.T) {
	const whole = `{"choices":[{"a":"\u00e9"}],"usage":{"prompt_tokens":1,"completion_tokens_details":{"reasoning_tokens":null,"x":[true,-1.5e+3]},"completion_tokens":2}}`
	for n := range len(whole) {
		if got, ok := ReadUsage([]byte(whole[:n])); ok || got != (Usage{}) {
			t.Errorf("%s: %+v, %v", whole[:n], got, ok)
		}
	}
	if _, ok := ReadUsage([]byte(whole)); !ok {
		t.Error("the whole tells none either")
	}
}
