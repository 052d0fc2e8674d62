package proxy

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/keeptrusts/gateway/abac"
)

func (g *gateway) sdk(key string, o ...option.RequestOption) openai.Client {
	o = append([]option.RequestOption{option.WithBaseURL("http://" + g.addr + "/v1"), option.WithAPIKey(key), option.WithMaxRetries(0)}, o...)
	return openai.NewClient(o...)
}

func ask(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("hello there")},
	}
}

func TestTheOfficialSDKChats(t *testing.T) {
	t.Parallel()
	url, _ := simulated(t)
	g := start(t, plainConfig(url))
	ctx, client := context.Background(), g.sdk(g.key)

	answer, err := client.Chat.Completions.New(ctx, ask("chat"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Choices[0].Message.Content == "" || answer.Usage.PromptTokens != 9 || answer.Usage.CompletionTokens == 0 {
		t.Errorf("the answer: %s", answer.RawJSON())
	}
	for _, usage := range []bool{false, true} {
		p := ask("mapped")
		if usage {
			p.StreamOptions.IncludeUsage = openai.Bool(true)
		}
		stream := client.Chat.Completions.NewStreaming(ctx, p)
		var all openai.ChatCompletionAccumulator
		bare := 0
		for stream.Next() {
			c := stream.Current()
			if len(c.Choices) == 0 {
				bare++
			}
			if !all.AddChunk(c) {
				t.Errorf("a chunk that does not add up: %s", c.RawJSON())
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		if all.Choices[0].Message.Content != answer.Choices[0].Message.Content || all.Choices[0].FinishReason != "stop" || all.Model != "other" {
			t.Errorf("streamed: %+v", all.ChatCompletion)
		}
		if usage != (all.Usage.TotalTokens > 0) || usage != (bare == 1) {
			t.Errorf("usage asked for: %v, told %+v in %d chunks without choices", usage, all.Usage, bare)
		}
	}
	list, err := client.Models.List(ctx)
	if err != nil || len(list.Data) != 2 || list.Data[0].ID != "chat" || list.Data[1].ID != "mapped" {
		t.Errorf("models: %v %+v", err, list)
	}
	for _, name := range []string{"chat", "wild-one"} {
		if m, err := client.Models.Get(ctx, name); err != nil || m.ID != name || m.Object != "model" {
			t.Errorf("model %s: %v %+v", name, err, m)
		}
	}
}

func TestTheOfficialSDKReadsOurErrors(t *testing.T) {
	t.Parallel()
	url, sim := simulated(t)
	_ = sim
	g := start(t, plainConfig(url))
	bound := g.mint(func(p *abac.Profile) { p.Bindings.Models = []string{"mapped"} })
	limited := option.WithJSONSet("simulator", map[string]any{"status": 429, "retry_after": "7"})
	tests := []struct {
		key, model       string
		o                []option.RequestOption
		status           int
		code, kind, says string
	}{
		{"kt_live_nonsense", "chat", nil, 401, "invalid_api_key", "invalid_request_error", "kt_live_…"},
		{bound, "chat", nil, 403, "model_not_allowed", "permission_error", "mapped"},
		{g.key, "none-such", nil, 404, "model_not_found", "invalid_request_error", "none-such"},
		{g.key, "chat", []option.RequestOption{limited}, 429, "rate_limit_exceeded", "requests", "Rate limit reached"},
	}
	for _, test := range tests {
		client := g.sdk(test.key, test.o...)
		_, err := client.Chat.Completions.New(context.Background(), ask(test.model))
		stream := client.Chat.Completions.NewStreaming(context.Background(), ask(test.model))
		for stream.Next() {
			t.Errorf("%d: a chunk came", test.status)
		}
		for _, err := range []error{err, stream.Err()} {
			var e *openai.Error
			if !errors.As(err, &e) {
				t.Errorf("%d: not the SDK's error: %v", test.status, err)
				continue
			}
			if e.StatusCode != test.status || e.Code != test.code || e.Type != test.kind || !strings.Contains(e.Message, test.says) {
				t.Errorf("got %d %q %q %q, want %+v", e.StatusCode, e.Code, e.Type, e.Message, test)
			}
			if e.Response.Header.Get("X-Request-Id") == "" || test.status == 429 && e.Response.Header.Get("Retry-After") != "7" {
				t.Errorf("%d: headers %v", test.status, e.Response.Header)
			}
		}
	}
	_, err := func() (*openai.Model, error) {
		c := g.sdk(g.key)
		return c.Models.Get(context.Background(), "none-such")
	}()
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != 404 || e.Code != "model_not_found" {
		t.Errorf("models.get of an unknown one: %v", err)
	}
	client := g.sdk(g.key, option.WithJSONSet("simulator", map[string]any{"cut_after_chunks": 2}))
	stream := client.Chat.Completions.NewStreaming(context.Background(), ask("chat"))
	for stream.Next() {
	}
	if err := stream.Err(); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("a stream that is cut ends for the SDK with %v", err)
	}
}

func TestTheOfficialSDKRetriesAsItWouldWithoutUs(t *testing.T) {
	t.Parallel()
	limit := `{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}`
	tests := []struct {
		name    string
		answers []string
		ok      bool
		calls   int
	}{
		{"429 then 200", []string{whole(429, limit, "retry-after-ms: 1"), whole(200, completion)}, true, 2},
		{"503 twice then 200", []string{whole(503, limit, "retry-after-ms: 1"), whole(503, limit, "retry-after-ms: 1"), whole(200, completion)}, true, 3},
		{"429 that should not be retried", []string{whole(429, limit, "x-should-retry: false"), whole(200, completion)}, false, 1},
		{"400", []string{whole(400, limit), whole(200, completion)}, false, 1},
		{"cut then 200", []string{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", whole(200, completion)}, true, 2},
		{"401 of the provider's", []string{whole(401, limit, "retry-after-ms: 1"), whole(200, completion)}, true, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			u := scripted(t, func(c *callee) {
				for c.request() != "" {
					answer := test.answers[min(int(n.Add(1)), len(test.answers))-1]
					if c.send(answer); strings.HasSuffix(answer, "{") {
						return
					}
				}
			})
			g := start(t, plainConfig(u.url))
			client := g.sdk(g.key, option.WithMaxRetries(3))
			answer, err := client.Chat.Completions.New(context.Background(), ask("chat"))
			if (err == nil) != test.ok || test.ok && answer.Usage.TotalTokens != 6 {
				t.Errorf("the SDK says %v", err)
			}
			if got := len(u.seen()); got != test.calls {
				t.Errorf("%d calls came, want %d", got, test.calls)
			}
		})
	}
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	client := g.sdk("kt_live_nonsense", option.WithMaxRetries(3))
	if _, err := client.Chat.Completions.New(context.Background(), ask("chat")); err == nil {
		t.Error("no error without a token")
	}
	if n := len(g.log.lines()); n != 1 {
		t.Errorf("a refusal of ours was asked for %d times", n)
	}
}
