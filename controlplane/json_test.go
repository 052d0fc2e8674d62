package controlplane

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/token"
)

func FuzzStrictJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1,"b":[{"c":null}]}`, `{"a":1,"a":2}`, `{"a":1,"A":2}`, `{"k":1,"\u212a":2}`, `{"s":1,"\u017f":2}`, `{"a":"\ud800"}`,
		"\ufeff{}", `{}{}`, `[]`, `{"a":1e400}`, `{"a":{"b":{"c":[[[[[[[[[[[[[[1]]]]]]]]]]]]]]}}}`, ` {"a" : "\u0000" } `, `{"a":"kt_live_x"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, problem := readObject(body, nil)
		if problem != nil {
			if _, ok := codes[problem.code]; !ok {
				t.Fatalf("code %q", problem.code)
			}
			return
		}
		// What is taken is the same to a parser that takes the last of equal keys …
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		var last map[string]any
		if err := d.Decode(&last); err != nil || !reflect.DeepEqual(last, o) {
			t.Fatalf("%q: %v, read as %v and %v", body, err, o, last)
		}
		if _, err := d.Token(); err != io.EOF {
			t.Fatalf("%q: something follows", body)
		}
		// … and to one that compares them without case.
		noVariants(t, o)
		again, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if second, problem := readObject(again, nil); problem != nil || !reflect.DeepEqual(second, o) {
			t.Fatalf("%q is not what it was after a round trip: %q", body, again)
		}
	})
}

func noVariants(t *testing.T, v any) {
	switch v := v.(type) {
	case object:
		var keys []string
		for k, inner := range v {
			for _, other := range keys {
				if strings.EqualFold(k, other) {
					t.Fatalf("%q and %q", k, other)
				}
			}
			keys = append(keys, k)
			noVariants(t, inner)
		}
	case []any:
		for _, inner := range v {
			noVariants(t, inner)
		}
	}
}

func TestTokensAreFoundInTexts(t *testing.T) {
	secret := token.Mint().Reveal()
	legacy := []string{"kt_ak_"}
	for _, tt := range []struct {
		text string
		want bool
	}{
		{secret, true}, {"a " + secret + " b", true}, {"x" + secret + "y", true}, {"kt_live_" + secret, true}, {secret + secret, true},
		{secret[:len(secret)-1], false}, {"kt_live_", false}, {"", false}, {"kt_live_ and kt_live_", false},
		{"key kt_ak_0123456789abcdef!", true}, {"kt_ak_short", false}, {"kt_gk_0123456789abcdef", false},
	} {
		if got := holdsToken(tt.text, legacy); got != tt.want {
			t.Errorf("%q: got %v", tt.text, got)
		}
		if tt.want && strings.Contains(scrub(tt.text), secret) {
			t.Errorf("scrub left %q", scrub(tt.text))
		}
	}
}
