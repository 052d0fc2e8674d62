package dialect

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestAStreamThatItsLimitEndsIsWholeByProtocol(t *testing.T) {
	const head = `{"id":"c1","object":"chat.completion.chunk","created":17,"model":"m-1","choices":[`
	const end = `"delta":{},"logprobs":null,"finish_reason":"length"}`
	const comment = ": keeptrusts budget_exceeded b_1\n\ndata: [DONE]\n\n"
	used := Usage{Input: 5, CachedInput: 2, Output: 3, Reasoning: 4}
	const told = `"usage":{"prompt_tokens":7,"completion_tokens":7,"total_tokens":14,"prompt_tokens_details":{"cached_tokens":2,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":4,"audio_tokens":0}}}` + "\n\n"
	for _, c := range []struct {
		name, give string
		wantUsage  bool
		want       string
	}{
		{"one choice", deltaOf(`{"content":"a"}`), false, "data: " + head + `{"index":0,` + end + "]}\n\n" + comment},
		{"usage asked for", deltaOf(`{"content":"a"}`), true, "data: " + head + `{"index":0,` + end + `],"usage":null}` + "\n\ndata: " + head + "]," + told + comment},
		{"choices", chunkOf(`[{"index":0,"delta":{}},{"index":2,"delta":{}}]`) + chunkOf(`[{"index":100,"delta":{}}]`), false,
			"data: " + head + `{"index":0,` + end + `,{"index":2,` + end + `,{"index":100,` + end + "]}\n\n" + comment},
		{"one of them is finished", chunkOf(`[{"index":0,"delta":{},"finish_reason":"stop"},{"index":1,"delta":{}}]`), false, "data: " + head + `{"index":1,` + end + "]}\n\n" + comment},
		{"all are finished", chunkOf(`[{"index":0,"delta":{},"finish_reason":"stop"}]`), true, "data: " + head + "]," + told + comment},
		{"nothing came", "", false, `data: {"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":[{"index":0,` + end + "]}\n\n" + comment},
		{"the first chunk counts", deltaOf(`{}`) + strings.ReplaceAll(deltaOf(`{}`), "c1", "c2"), false, "data: " + head + `{"index":0,` + end + "]}\n\n" + comment},
		{"Azure's first is none", `data: {"choices":[],"created":0,"id":"","model":"","prompt_filter_results":[]}` + "\n\n" + deltaOf(`{}`), false, "data: " + head + `{"index":0,` + end + "]}\n\n" + comment},
		{"values as they stand", strings.NewReplacer(`"c1"`, `"\u0063\"1"`, `17`, `1.7e1`, `"m-1"`, `null`).Replace(deltaOf(`{}`)), false,
			`data: {"id":"\u0063\"1","object":"chat.completion.chunk","created":1.7e1,"model":null,"choices":[{"index":0,` + end + "]}\n\n" + comment},
		{"an id too long to keep", strings.Replace(deltaOf(`{}`), "c1", strings.Repeat("c", maxHead), 1), false,
			`data: {"id":"","object":"chat.completion.chunk","created":17,"model":"m-1","choices":[{"index":0,` + end + "]}\n\n" + comment},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m Meter
			m.Reset(true)
			m.Next([]byte(c.give))
			m.Next([]byte(c.give)) // of the shape of the last
			got := string(m.FinishLength([]byte("before "), c.wantUsage, used, "keeptrusts budget_exceeded b_1"))
			if got != "before "+c.want {
				t.Errorf("got  %s\nwant before %s", got, c.want)
			}
			var again Meter
			again.Reset(false)
			again.Next([]byte(strings.TrimPrefix(got, "before ")))
			if u, ok := again.Usage(); ok != c.wantUsage || ok && u != used {
				t.Errorf("it reads as %+v, %v", u, ok)
			}
			for line := range strings.Lines(c.want) {
				if data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: {"); ok && !json.Valid([]byte("{"+data)) {
					t.Errorf("no JSON: %s", line)
				}
			}
		})
	}
}

func TestAStreamsEndHoldsNoMoreThanItsOwnEvents(t *testing.T) {
	var m Meter
	m.Reset(true)
	m.Next([]byte(deltaOf(`{}`)))
	if got := string(m.FinishLength(nil, false, Usage{}, "a\r\n\r\ndata: b\n")); strings.Contains(got, "\ndata: b") || !strings.Contains(got, ": a    data: b \n\n") {
		t.Errorf("a comment made an event: %q", got)
	}
	if got := string(m.FinishLength(nil, false, Usage{}, "")); strings.Contains(got, "\n:") {
		t.Errorf("an empty comment: %q", got)
	}
	m.Reset(true)
	if got := string(m.FinishLength(nil, false, Usage{}, "")); strings.Contains(got, "c1") {
		t.Errorf("of another stream: %q", got)
	}
}

func TestUsageIsWrittenAsItIsRead(t *testing.T) {
	for _, u := range []Usage{{}, {Input: 1}, {1, 2, 3, 4, 5, 6, 7}, {CacheWrite: 9}, {Input: maxTokens / 2, Reasoning: 3}} {
		b := append(appendUsage([]byte(`{"usage":`), u), '}')
		if got, ok := ReadUsage(b); !ok || got != u {
			t.Errorf("%s reads as %+v, %v; want %+v", b, got, ok, u)
		}
	}
}
