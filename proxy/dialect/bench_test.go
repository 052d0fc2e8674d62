package dialect

import (
	"fmt"
	"strings"
	"testing"
)

const (
	plainChunk = `data: {"id":"chatcmpl-9x8y7z","object":"chat.completion.chunk","created":1751000000,"model":"gpt-4.1-mini","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}` + "\n\n"
	askedChunk = `data: {"id":"chatcmpl-9x8y7z","object":"chat.completion.chunk","created":1751000000,"model":"gpt-4.1-mini","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}],"usage":null}` + "\n\n"
	usageChunk = `data: {"id":"chatcmpl-9x8y7z","object":"chat.completion.chunk","created":1751000000,"model":"gpt-4.1-mini","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":0}}}` + "\n\n"

	wholeAnswer = `{"id":"chatcmpl-9x8y7z","object":"chat.completion","created":1751000000,"model":"gpt-4.1-mini-2025-04-14","choices":[{"index":0,"message":{"role":"assistant","content":"Hello! How can I help you today?","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":3,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default","system_fingerprint":"fp_1"}`
)

// chatBody is an ordinary call of about n bytes.
func chatBody(n int) []byte {
	const head = `{"messages":[{"role":"system","content":"You are a helpful assistant."}`
	const tail = `],"model":"gpt-4.1-mini","temperature":0.2,"stream":true,"max_tokens":256,"metadata":{"team":"a"}}`
	var b strings.Builder
	b.WriteString(head)
	for b.Len()+len(tail) < n {
		size := min(2000, max(16, n-b.Len()-len(tail)-32))
		fmt.Fprintf(&b, `,{"role":"user","content":%q}`, strings.Repeat("Ein Satz, größer.\n", size/20+1))
	}
	b.WriteString(tail)
	return []byte(b.String())
}

func BenchmarkReadChat(b *testing.B) {
	for _, n := range []int{300, 30 << 10} {
		body := chatBody(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			var c Call
			for b.Loop() {
				if ReadChat(body, &c) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	body := chatBody(300)
	var c Call
	ReadChat(body, &c)
	dst := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		dst = c.Append(dst[:0], body, Edit{Model: "vendor/other", IncludeUsage: true})
	}
}

func BenchmarkMeterNext(b *testing.B) {
	for _, c := range []struct{ name, chunk string }{{"plain", plainChunk}, {"usage null", askedChunk}, {"usage", usageChunk}} {
		b.Run(c.name, func(b *testing.B) {
			p := []byte(c.chunk)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			var m Meter
			m.Reset(true)
			for b.Loop() {
				m.Next(p)
			}
		})
	}
}

// Two choices by turns: no chunk is like the last.
func BenchmarkMeterNextUnlike(b *testing.B) {
	chunks := [2][]byte{[]byte(plainChunk), []byte(strings.Replace(plainChunk, `"index":0`, `"index":1`, 1))}
	b.ReportAllocs()
	var m Meter
	m.Reset(true)
	for i := 0; b.Loop(); i++ {
		m.Next(chunks[i&1])
	}
}

func BenchmarkReadUsage(b *testing.B) {
	body := []byte(wholeAnswer)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := ReadUsage(body); !ok {
			b.Fatal("no usage")
		}
	}
}

// Each doubling should cost about twice: a quadratic reader shows here.
func BenchmarkGrowth(b *testing.B) {
	for _, n := range []int{50_000, 100_000, 200_000} {
		var keys strings.Builder
		keys.WriteString(`{"model":"m"`)
		for i := range n {
			fmt.Fprintf(&keys, `,"k%d":0`, i)
		}
		body := []byte(keys.String() + "}")
		lines := []byte("data: {\"choices\":[],\"usage\":{\n" + strings.Repeat("data:\n", n) + "data: \"prompt_tokens\":1}}\n\n")
		marks := []byte(`data: {"a":[` + strings.Repeat(`"usage",`, n/2) + `"usage"]}` + "\n\n")
		event := []byte("data: " + strings.Repeat("x", 4*n) + "\n\n")
		b.Run(fmt.Sprintf("keys %d", n), func(b *testing.B) {
			var c Call
			for b.Loop() {
				ReadChat(body, &c)
			}
		})
		for name, p := range map[string][]byte{"data lines": lines, "marks": marks} {
			b.Run(fmt.Sprintf("%s %d", name, n), func(b *testing.B) {
				var m Meter
				for b.Loop() {
					m.Reset(true)
					m.Next(p)
				}
			})
		}
		b.Run(fmt.Sprintf("one-byte pieces %d", n), func(b *testing.B) {
			var m Meter
			for b.Loop() {
				m.Reset(true)
				for i := range event {
					m.Next(event[i : i+1])
				}
			}
		})
	}
}
