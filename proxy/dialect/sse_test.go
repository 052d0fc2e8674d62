package dialect

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run puts a stream through a meter in pieces of n bytes. What is let through must
// end with an empty line wherever the meter says that an event ended.
func run(t *testing.T, stream string, n int, takeOut bool) (string, *Meter) {
	t.Helper()
	m := &Meter{passing: true, known: true, tailLen: 2, held: []byte("of another stream"), usage: Usage{Input: 1}}
	m.Reset(takeOut)
	var out []byte
	for rest := stream; rest != ""; {
		piece := []byte(rest[:min(n, len(rest))])
		rest = rest[len(piece):]
		out = append(out, m.Next(piece)...)
		clear(piece) // the caller's buffer is read into again
		if m.Boundary() && len(out) > 0 && !endsEmpty(out) {
			t.Fatalf("a boundary behind %q", out[max(0, len(out)-20):])
		}
	}
	return string(append(out, m.End()...)), m
}

var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

// endsEmpty says whether b ends with an empty line.
func endsEmpty(b []byte) bool {
	end := lineEnds.Replace(string(b[max(0, len(b)-4):]))
	return strings.HasSuffix(end, "\n\n") || end == "\n" && len(b) < 4
}

// A golden is the usage that is read or none, the stream, and what is left of it
// where the client did not ask for usage.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/sse/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := strings.Split(string(raw), "----------\n")
			if len(parts) != 3 {
				t.Fatalf("%d parts", len(parts))
			}
			for n := 1; n <= len(parts[1]); n += 1 + n/20 {
				all, m := run(t, parts[1], n, false)
				if got := told(m); all != parts[1] || got+"\n" != parts[0] {
					t.Fatalf("pieces of %d:\n%s\nusage %s, want %s", n, all, got, parts[0])
				}
				left, m := run(t, parts[1], n, true)
				if got := told(m); left != parts[2] || got+"\n" != parts[0] {
					t.Fatalf("pieces of %d, taken out:\n%s\nusage %s, want %s", n, left, got, parts[0])
				}
			}
		})
	}
}

func told(m *Meter) string {
	u, ok := m.Usage()
	if !ok {
		return "none"
	}
	text, _ := json.Marshal(u)
	return string(text)
}

func TestAStreamThatIsCutIsLetThroughAsItCame(t *testing.T) {
	const two = "data: {\"choices\":[{}]}\r\n\r\n" + plainChunk
	for n := range len(two) {
		if got, _ := run(t, two[:n], 7, true); got != two[:n] {
			t.Errorf("%q became %q", two[:n], got)
		}
	}
}

func TestUsageIsReadFromAStreamThatEndsBehindIt(t *testing.T) {
	const told = `data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`
	for _, end := range []string{"", "\n", "\r", "\r\n", "\r\n\r", "\r\r"} {
		for n := 1; n < len(told)+4; n += 5 {
			got, m := run(t, plainChunk+told+end, n, true)
			if u, ok := m.Usage(); !ok || u != (Usage{Input: 3, Output: 4}) || got != plainChunk {
				t.Errorf("%q in pieces of %d: %+v, %v, %q", end, n, u, ok, got)
			}
		}
	}
}

func TestWholeEventsPassWithoutACopy(t *testing.T) {
	var m Meter
	m.Reset(true)
	for _, s := range []string{plainChunk, askedChunk, plainChunk + askedChunk, ": ping\n\n", "data: [DONE]\r\n\r\n"} {
		p := []byte(s)
		if out := m.Next(p); len(out) != len(p) || &out[0] != &p[0] {
			t.Errorf("%.60q: copied", s)
		}
	}
}

func TestNothingOfAnEventPassesBeforeItsEnd(t *testing.T) {
	var m Meter
	m.Reset(false)
	for i := range len(plainChunk) - 1 {
		if out := m.Next([]byte(plainChunk[i : i+1])); len(out) > 0 {
			t.Fatalf("byte %d: %q", i, out)
		}
	}
	if out := m.Next([]byte("\n")); string(out) != plainChunk || !m.Boundary() {
		t.Errorf("at its end: %q", out)
	}
	if out := m.Next(nil); len(out) != 0 {
		t.Errorf("nothing became %q", out)
	}
}

func TestAnEventTooLargeToHoldPassesUnread(t *testing.T) {
	const head, tail = `data: {"choices":[],"x":"`, `","usage":{"prompt_tokens":9}}`
	for _, end := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		for size, want := range map[int]string{
			maxEvent - 1: "read", maxEvent: "read", maxEvent + 1: "unread", 2 * maxEvent: "unread",
		} {
			huge := head + strings.Repeat("x", size-len(head)-len(tail)-len(end)) + tail + end
			rest := usageChunk + "data: [DONE]\n\n"
			for _, n := range []int{4096, 65_537, maxEvent, 3 * maxEvent} {
				// The usage behind it is read and taken out in either case.
				left := map[string]string{"read": "", "unread": huge}[want] + "data: [DONE]\n\n"
				got, m := run(t, huge+rest, n, true)
				if u, ok := m.Usage(); got != left || !ok || u.Input != 19 {
					t.Fatalf("%d bytes, end %q, pieces of %d: %d bytes let through, want %d; usage %+v", len(huge), end, n, len(got), len(left), u)
				}
				if _, m := run(t, huge, n, true); m.known != (want == "read") {
					t.Errorf("%d bytes, pieces of %d: usage known %v", len(huge), n, m.known)
				}
			}
		}
	}
}

func TestInsideAnEventTooLargeThereIsNoBoundary(t *testing.T) {
	var m Meter
	m.Reset(true)
	if m.Next([]byte("data: " + strings.Repeat("x", maxEvent))); m.Boundary() {
		t.Error("a boundary inside an event")
	}
	if out := m.Next([]byte("\n")); string(out) != "\n" || m.Boundary() {
		t.Errorf("behind its line: %q, %v", out, m.Boundary())
	}
	if out := m.Next([]byte("\ndata: 1")); string(out) != "\n" || !m.Boundary() {
		t.Errorf("behind it: %q, %v", out, m.Boundary())
	}
	if out := m.End(); string(out) != "data: 1" {
		t.Errorf("at the end: %q", out)
	}
}

// Each would run for many minutes if a byte were looked at more than a few times.
func TestLargeStreamsTakeLinearTime(t *testing.T) {
	event := "data: " + strings.Repeat("x", maxEvent-8) + "\n\n"
	var m Meter
	m.Reset(true)
	var out []byte
	for i := range len(event) {
		out = append(out, m.Next([]byte{event[i]})...)
	}
	if string(out) != event {
		t.Error("one-byte pieces of a large event: not the same")
	}
	lines := "data: {\"choices\":[],\"usage\":{\n" + strings.Repeat("data:\n", maxEvent/8) + "data: \"prompt_tokens\":1}}\n\n"
	if got, m := run(t, lines, len(lines), true); got != "" || m.usage.Input != 1 {
		t.Errorf("many data lines: %d bytes left, %+v", len(got), m.usage)
	}
}

func TestErrorsAsOpenAIWritesThem(t *testing.T) {
	full := string(AppendError([]byte("x"), Error{"say \"hi\"\n", "api_error", "model", "upstream_error"}))
	if want := `x{"error":{"message":"say \"hi\"\u000a","type":"api_error","param":"model","code":"upstream_error"}}`; full != want {
		t.Errorf("got  %s\nwant %s", full, want)
	}
	bare := AppendError(nil, Error{Message: "m", Type: "t"})
	if want := `{"error":{"message":"m","type":"t","param":null,"code":null}}`; string(bare) != want {
		t.Errorf("got  %s\nwant %s", bare, want)
	}
	event := string(AppendErrorEvent([]byte(": x\n\n"), bare, "req_\r\n\"1"))
	want := ": x\n\n" + `data: {"error":{"message":"m","type":"t","param":null,"code":null},"request_id":"req_\u000d\u000a\"1"}` + "\n\n"
	if event != want {
		t.Errorf("got  %s\nwant %s", event, want)
	}
}
