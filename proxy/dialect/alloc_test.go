//go:build !race

package dialect

import "testing"

func TestTheCallPathDoesNotAllocate(t *testing.T) {
	body, answer := chatBody(30<<10), []byte(wholeAnswer)
	dst := make([]byte, 0, 2*len(body))
	var call Call
	bareBody := []byte(`{"model":"m"}`)
	var bare Call
	if ReadChat(bareBody, &bare) != nil {
		t.Fatal("refused")
	}
	other := []byte(deltaOf(`{"content":"another"}`))
	var m Meter
	m.Reset(true)
	chunk, asked := []byte(plainChunk), []byte(askedChunk)
	half, rest := chunk[:90], chunk[90:]
	m.Next(half) // its buffers grow once
	m.Next(rest)
	for _, c := range []struct {
		name string
		run  func()
	}{
		{"ReadChat of an ordinary body", func() {
			if ReadChat(body, &call) != nil {
				t.Error("refused")
			}
		}},
		{"Bound", func() {
			if call.Bound(body).Outside {
				t.Error("outside")
			}
		}},
		{"Append with a limit", func() {
			dst = bare.Append(dst[:0], bareBody, Edit{Model: "vendor/other", IncludeUsage: true, OutputLimit: 4096, OutputField: "max_completion_tokens"})
		}},
		{"Emitted", func() { m.Emitted() }},
		{"EmittedWhole", func() { EmittedWhole(answer) }},
		{"Append into room enough", func() { dst = call.Append(dst[:0], body, Edit{Model: "vendor/other", IncludeUsage: true}) }},
		{"Meter.Next of a chunk", func() { m.Next(chunk) }},
		{"Meter.Next of a chunk with usage null", func() { m.Next(asked) }},
		{"Meter.Next of a chunk in two pieces", func() { m.Next(half); m.Next(rest) }},
		{"Meter.Next of chunks of two shapes", func() { m.Next(chunk); m.Next(other) }},
		{"Meter.Next of the usage chunk", func() { m.Next([]byte(usageChunk)) }},
		{"Meter.Reset", func() { m.Reset(true) }},
		{"ReadUsage", func() {
			if _, ok := ReadUsage(answer); !ok {
				t.Error("no usage")
			}
		}},
	} {
		if n := testing.AllocsPerRun(200, c.run); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}
