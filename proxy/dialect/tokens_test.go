package dialect

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
)

// golden is a text whose tokens were counted by two tokenizers that agree but for
// a few, of which the larger stands. Of tools it is the largest of four ways to
// print them: as they came, spaced, indented by four, as TypeScript.
type golden struct {
	name, text    string
	o200k, cl100k int64
}

func goldens(t testing.TB, file string) []golden {
	t.Helper()
	counts := map[string][]string{}
	raw, err := os.ReadFile("testdata/tokens/counts.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		counts[fields[0]] = fields
	}
	raw, err = os.ReadFile("testdata/tokens/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all []golden
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l struct{ Name, Text string }
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		c := counts[l.Name]
		sum := sha256.Sum256([]byte(l.Text))
		if len(c) != 4 || c[3] != hex.EncodeToString(sum[:]) {
			t.Fatalf("%s: it is not the text that was counted", l.Name)
		}
		g := golden{name: l.Name, text: l.Text}
		g.o200k, _ = strconv.ParseInt(c[1], 10, 64)
		g.cl100k, _ = strconv.ParseInt(c[2], 10, 64)
		all = append(all, g)
	}
	return all
}

func boundOf(t testing.TB, body []byte) Bound {
	t.Helper()
	var c Call
	if p := ReadChat(body, &c); p != nil {
		t.Fatalf("%.200s: %+v", body, *p)
	}
	return c.Bound(body)
}

// inASCII writes a text as a JSON string as Python's json does by default.
func inASCII(text string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(text)) {
		if u < ' ' || u > '~' || u == '"' || u == '\\' {
			fmt.Fprintf(&b, `\u%04x`, u)
		} else {
			b.WriteByte(byte(u))
		}
	}
	return `"` + b.String() + `"`
}

func plainJSON(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(text); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// The bound is never under, by the text alone, without the room around it.
func TestTheBoundIsNeverUnderTheTokens(t *testing.T) {
	texts := goldens(t, "texts.jsonl")
	if len(texts) < 200 {
		t.Fatalf("%d texts are too few", len(texts))
	}
	const around = tokensOfCall + tokensOfMessage + int64(len("user"))
	under := 0
	kinds := map[string][]float64{}
	var over []float64
	for _, g := range texts {
		for way, content := range map[string]string{"plain": plainJSON(t, g.text), "in ASCII": inASCII(g.text), "a part": `[{"type":"text","text":` + plainJSON(t, g.text) + `}]`} {
			b := boundOf(t, []byte(`{"model":"m","messages":[{"role":"user","content":`+content+`}]}`))
			got := b.Input - around
			if b.Outside || got < g.o200k || got < g.cl100k {
				under++
				t.Errorf("%s, %s: bound %d, outside %v; o200k %d, cl100k %d", g.name, way, got, b.Outside, g.o200k, g.cl100k)
			}
			if way != "in ASCII" && got != int64(len(g.text)) {
				t.Errorf("%s, %s: bound %d, it has %d bytes", g.name, way, got, len(g.text))
			}
			if way == "plain" && g.o200k > 0 {
				kind, _, _ := strings.Cut(g.name, "-")
				over = append(over, float64(got)/float64(g.o200k))
				kinds[kind] = append(kinds[kind], float64(got)/float64(g.o200k))
			}
		}
	}
	t.Logf("%d texts: %d under, median %.2f × over", len(texts), under, median(over))
	for kind, list := range kinds {
		if len(list) > 3 {
			t.Logf("%-12s %3d texts, median %.2f ×", kind, len(list), median(list))
		}
	}
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// A conversation is charged its texts and a few tokens a message; OpenAI says three
// and one for a name, and three for the answer's start.
func TestTheBoundOfAConversationIsNeverUnder(t *testing.T) {
	texts := goldens(t, "texts.jsonl")
	for n := 1; n < len(texts); n += 7 {
		var list []string
		tokens := int64(3)
		for _, g := range texts[:n] {
			list = append(list, `{"role":"assistant","name":"a","content":`+plainJSON(t, g.text)+`}`)
			tokens += max(g.o200k, g.cl100k) + 3 + 1 + 1 + 1
		}
		b := boundOf(t, []byte(`{"model":"m","messages":[`+strings.Join(list, ",")+`]}`))
		if b.Input < tokens || b.Outside {
			t.Errorf("%d messages: bound %d, outside %v; charged %d", n, b.Input, b.Outside, tokens)
		}
	}
}

func TestTheBoundOfToolsIsNeverUnder(t *testing.T) {
	tools := goldens(t, "tools.jsonl")
	if len(tools) < 8 {
		t.Fatalf("%d sets of tools", len(tools))
	}
	var over []float64
	for _, g := range tools {
		b := boundOf(t, []byte(`{"model":"m","messages":[],"tools":`+g.text+`}`))
		got := b.Input - tokensOfCall - tokensOfTools
		if got < max(g.o200k, g.cl100k) || b.Outside {
			t.Errorf("%s: bound %d, outside %v; o200k %d, cl100k %d", g.name, got, b.Outside, g.o200k, g.cl100k)
		}
		over = append(over, float64(got)/float64(g.o200k))
	}
	t.Logf("%d sets of tools, median %.2f × over the dearest printing", len(tools), median(over))
}
