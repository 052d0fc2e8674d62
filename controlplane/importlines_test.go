package controlplane

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
)

var legacyPrefixes = []string{"kt_ak_", "kt_gk_"}

const (
	sampleToken  = "kt_live_0000000000000000000000000000000000000000000" + "1jIOm5"
	sampleLegacy = "kt_ak_0123456789abcdef"
)

func TestALineIsSentWithTheDigestInPlaceOfTheString(t *testing.T) {
	const head = `{"name":"n","purpose":"general",`
	for _, tt := range []struct{ name, line, want string }{
		{"a minted one", head + `"token":"` + sampleToken + `"}`, sha(sampleToken)},
		{"a legacy one", head + `"token":"` + sampleLegacy + `"}`, sha(sampleLegacy)},
		{"an escaped one", head + `"token":"kt_ak\u005f0123456789abcdef"}`, sha(sampleLegacy)},
		{"a digest", head + `"sha256":"12"}`, `"sha256":"12"`},
		{"numbers as they are", head + `"sha256":"12","bindings":{"rate_limits":{"requests_per_minute":9007199254740993}}}`, "9007199254740993"},
		{"a wrong checksum", head + `"token":"` + sampleToken[:56] + `0"}`, "!another form"},
		{"another prefix", head + `"token":"sk-0123456789abcdef0123"}`, "!another form"},
		{"too short", head + `"token":"kt_ak_0123456789"}`, "!another form"},
		{"a blank after it", head + `"token":"` + sampleLegacy + ` "}`, "!another form"},
		{"no string", head + `"token":12}`, "!must be a string"},
		{"null", head + `"token":null}`, "!holds token"},
		{"neither", head + `"expires_at":null}`, "!holds token"},
		{"both", head + `"token":"` + sampleLegacy + `","sha256":"` + sha(sampleLegacy) + `"}`, "!not both"},
		{"twice", head + `"token":"` + sampleLegacy + `","token":"x"}`, "!twice"},
		{"in another spelling", head + `"Token":"` + sampleLegacy + `","sha256":"12"}`, "!spelt token"},
		{"no purpose", `{"name":"n","token":"` + sampleLegacy + `"}`, "!purpose is required"},
		{"in the name too", `{"name":"` + sampleLegacy + `","purpose":"general","token":"` + sampleLegacy + `"}`, "!holds a token"},
		{"in the name, escaped", `{"name":"kt\u005fak_0123456789abcdef","purpose":"general","sha256":"12"}`, "!holds a token"},
		{"as a key", head + `"sha256":"12","` + sampleToken + `":1}`, "!holds a token"},
		{"as a key twice", head + `"` + sampleToken + `":1,"` + sampleToken + `":1}`, "!twice"},
		{"no JSON", `token ` + sampleToken, "!valid JSON"},
		{"no object", `"` + sampleToken + `"`, "!JSON object"},
	} {
		line, err := sendable(importLine{n: 1, raw: []byte(tt.line)}, legacyPrefixes)
		refusal, refused := strings.CutPrefix(tt.want, "!")
		got := string(line)
		if err != nil {
			got = err.Error()
			if r := refusedLine(1, err.(*problem)); strings.Contains(*r.Error, sampleToken) || strings.Contains(*r.Error, "0123456789") {
				t.Errorf("%s: the refusal repeats the string: %s", tt.name, *r.Error)
			}
		}
		if (err != nil) != refused || !strings.Contains(got, refusal) {
			t.Errorf("%s: %s", tt.name, got)
		}
		if strings.Contains(string(line), "kt_") || strings.Contains(string(line), `"token"`) {
			t.Errorf("%s: sent: %s", tt.name, line)
		}
	}
}

func TestLinesKeepTheirNumbers(t *testing.T) {
	ok := `{"name":"n","purpose":"general","sha256":"12"}`
	var refused []int
	r := ImportLines(strings.NewReader(strings.Join([]string{"", ok, "bad", "", ok, strings.Repeat("x", 1<<17), ok}, "\n")), nil,
		func(r Imported) { refused = append(refused, r.Line) })
	sent, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var at []int
	for i, l := range strings.Split(string(sent), "\n") {
		if l != "" {
			at = append(at, i+1)
		}
	}
	if len(at) != 3 || at[0] != 2 || at[1] != 5 || at[2] != 7 || len(refused) != 2 || refused[0] != 3 || refused[1] != 6 {
		t.Errorf("sent %v, refused %v", at, refused)
	}
}

// Whatever stands on a line, the string of its token is not in what is sent.
func FuzzSendable(f *testing.F) {
	f.Add(`{"name":"n","purpose":"general","token":"` + sampleToken + `"}`)
	f.Add(`{"name":"kt_ak_0123456789abcdef0","purpose":"general","token":"` + sampleLegacy + `"}`)
	f.Add(`{"name":"n","purpose":"general","sha256":"12","bindings":{"models":["a"]}}`)
	f.Add(`{"token":"kt_ak\u005f0123456789abcdef","purpose":{}}`)
	f.Fuzz(func(t *testing.T, line string) {
		sent, err := sendable(importLine{n: 1, raw: []byte(line)}, legacyPrefixes)
		if err != nil {
			return
		}
		var o map[string]any
		if err := json.Unmarshal(sent, &o); err != nil || o["token"] != nil || o["sha256"] == nil {
			t.Fatalf("%s: %v", sent, err)
		}
		if holdsToken(string(sent), legacyPrefixes) || strings.ContainsAny(string(sent), "\n") {
			t.Fatalf("sent %s", sent)
		}
		var was map[string]any
		_ = json.Unmarshal([]byte(line), &was)
		if s, ok := was["token"].(string); ok && strings.Contains(string(sent), s) {
			t.Fatalf("the string was sent: %s", sent)
		}
	})
}
