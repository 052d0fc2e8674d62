package abac

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestPatternMatches(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"gpt", "gpt", true},
		{"gpt", "gpt-5", false},
		{"gpt", "xgpt", false},
		{"gpt", "GPT", false},
		{"*", "", true},
		{"*", "anything/at all\n", true},
		{"**", "x", true},
		{"gpt-*", "gpt-", true},
		{"gpt-*", "gpt-5/x", true},
		{"gpt-*", "gpt", false},
		{"*-mini", "gpt-5.4-mini", true},
		{"*-mini", "-mini", true},
		{"*-mini", "gpt-5.4-mini-x", false},
		{"a*a", "a", false}, // the ends don't share a letter
		{"a*a", "aa", true},
		{"ab*ba", "aba", false},
		{"a*b*c", "abc", true},
		{"a*b*c", "axxbxxc", true},
		{"a*b*c", "acb", false},
		{"*b*", "abc", true},
		{"*ab*ab*", "abab", true},
		{"*ab*ab*", "aab", false},
		{"*aab*b", "aaabb", true},
		{"*aab*b", "aaab", false},
		{"a**b", "ab", true},
		{"?", "a", false},
		{"[a]", "a", false},
		{"a.c", "abc", false},
		{`a\*`, `a\x`, true}, // no escape
		{"modèle-*", "modèle-é", true},
		{"*é", "è", false},
		{"!x*", "xy", true}, // what it covers; that it excludes is said by Exclude
		{"!!x", "!x", true},
		{"x!", "x!", true},
		{"日*", "日本", true},
		{"a*", "a\xff", true},
		{strings.Repeat("a*", 8), "aaaaaaaa", true},
		{strings.Repeat("a*", 8), "aaaaaaa", false},
	}
	for _, tt := range tests {
		p, err := ParsePattern(tt.pattern)
		if err != nil {
			t.Errorf("%q: %v", tt.pattern, err)
			continue
		}
		if got := p.Match(tt.s); got != tt.want {
			t.Errorf("%q of %q: %v, want %v", tt.pattern, tt.s, got, tt.want)
		}
		if got := p.Exclude(); got != strings.HasPrefix(tt.pattern, "!") {
			t.Errorf("%q: Exclude %v", tt.pattern, got)
		}
	}
}

func TestParsePatternRefuses(t *testing.T) {
	long, stars := strings.Repeat("é", MaxPatternLen), strings.Repeat("*", MaxPatternStars)
	tests := []struct{ name, give, want string }{
		{"nothing", "", "a pattern must not be empty"},
		{"an exclusion of nothing", "!", "a pattern must not be empty"},
		{"128 characters", long, ""},
		{"128 characters and the exclusion", "!" + long, ""},
		{"129 characters", long + "a", "a pattern has at most 128 characters, this one has 129"},
		{"8 stars", stars, ""},
		{"9 stars", stars + "a*", "a pattern has at most 8 stars, this one has 9"},
		{"9 stars, excluded", "!" + stars + "*", "a pattern has at most 8 stars, this one has 9"},
		{"a newline", "a\nb", "a pattern must not hold control characters"},
		{"a zero byte", "a\x00", "a pattern must not hold control characters"},
		{"a control character of 8 bits", "a\u0085", "a pattern must not hold control characters"},
		{"half a character", "a\xc3", "a pattern must be valid UTF-8"},
		{"what stands for half a character", "a\ufffd", "a pattern must be valid UTF-8"},
	}
	for _, tt := range tests {
		got := ""
		if _, err := ParsePattern(tt.give); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestLiteralPrefixLen(t *testing.T) {
	for pattern, want := range map[string]int{"*": 0, "gpt-*": 4, "gpt-*-mini*": 4, "gpt": 3, "!ab*": 2, "é*": 2} {
		p, err := ParsePattern(pattern)
		if err != nil || p.LiteralPrefixLen() != want {
			t.Errorf("%q: %d, want %d (%v)", pattern, p.LiteralPrefixLen(), want, err)
		}
	}
}

// hostile is a pattern and a name on which a matcher that goes back at every star
// takes longer than the world is old.
func hostile(length int) (Pattern, string) {
	p, err := ParsePattern(strings.Repeat("*"+strings.Repeat("a", 14), 7) + "*b")
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return p, strings.Repeat("a", length)
}

// That it ends at all is the test: the bound is far above what it takes.
func TestAHostilePatternEnds(t *testing.T) {
	p, name := hostile(1 << 20)
	ended := make(chan [2]bool)
	go func() { ended <- [2]bool{p.Match(name), p.Match(name + "b")} }()
	select {
	case got := <-ended:
		if got != [2]bool{false, true} {
			t.Errorf("matches %v", got)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("still matching")
	}
}

func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"gpt-*", "gpt-5"}, {"!*a*b", "xaxb"}, {"a**a", "aa"}, {"*é*", "é"}, {"", ""}, {"!", "x"}, {"!!x", "!x"},
		{"*********", "x"}, {"ab*ba", "aba"}, {"*ab*ab*ab", "abab"}, {"a\n", "a\n"}, {"a*\xff", "a\xff"}, {"*a*", "\xff\xfea"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		p, err := ParsePattern(pattern)
		if bad := specBadPattern(pattern); bad != (err != nil) {
			t.Fatalf("%q: bad %v, error %v", pattern, bad, err)
		}
		if err != nil {
			return
		}
		plain, excludes := strings.CutPrefix(pattern, "!")
		want := specMatch(plain, s)
		re := regexp.MustCompile(`^(?s:` + strings.ReplaceAll(regexp.QuoteMeta(plain), `\*`, `.*`) + `)$`)
		if re.MatchString(s) != want {
			t.Fatalf("the two specs differ: %q of %q", pattern, s)
		}
		if p.Match(s) != want || p.Exclude() != excludes {
			t.Fatalf("%q of %q: %v, want %v", pattern, s, p.Match(s), want)
		}
		if n := p.LiteralPrefixLen(); plain[:n] != strings.Split(plain, "*")[0] {
			t.Fatalf("%q: prefix of %d", pattern, n)
		}
		if !p.Match(strings.ReplaceAll(plain, "*", "")) || !p.Match(strings.ReplaceAll(plain, "*", "/x")) {
			t.Fatalf("%q does not match itself", pattern)
		}
	})
}
