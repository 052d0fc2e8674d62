package abac

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What a pattern may be, the "!" not counted.
const (
	MaxPatternLen   = 128 // characters
	MaxPatternStars = 8
)

// Pattern is one pattern of a filter, parsed. It compares the whole string, case
// and all; "*" matches any run of bytes, also none and "/"; there is no escape; a
// leading "!" excludes. It is immutable and safe for concurrent use. The zero
// Pattern matches the empty string alone.
type Pattern struct {
	prefix, suffix string   // before the first star and after the last; without a star prefix is all
	middle         []string // between stars, none empty
	star, exclude  bool
}

// ParsePattern reads a pattern. It refuses an empty one, more than MaxPatternLen
// characters or MaxPatternStars stars, control characters and invalid UTF-8. Its
// error says what is wrong and what is allowed, and does not repeat s.
func ParsePattern(s string) (Pattern, error) {
	var p Pattern
	if strings.HasPrefix(s, "!") {
		p.exclude = true
		s = s[1:]
	}
	if s == "" {
		return Pattern{}, errors.New("a pattern must not be empty")
	}
	// A byte that is not UTF-8 reads as RuneError too: what a JSON reader makes of
	// it would match another name than the one that was meant.
	if strings.ContainsRune(s, utf8.RuneError) {
		return Pattern{}, errors.New("a pattern must be valid UTF-8")
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return Pattern{}, errors.New("a pattern must not hold control characters")
	}
	if n := utf8.RuneCountInString(s); n > MaxPatternLen {
		return Pattern{}, fmt.Errorf("a pattern has at most %d characters, this one has %d", MaxPatternLen, n)
	}
	if n := strings.Count(s, "*"); n > MaxPatternStars {
		return Pattern{}, fmt.Errorf("a pattern has at most %d stars, this one has %d", MaxPatternStars, n)
	}

	first, last := strings.IndexByte(s, '*'), strings.LastIndexByte(s, '*')
	if first < 0 {
		p.prefix = s
		return p, nil
	}
	p.star, p.prefix, p.suffix = true, s[:first], s[last+1:]
	for part := range strings.SplitSeq(s[first:last], "*") {
		if part != "" {
			p.middle = append(p.middle, part)
		}
	}
	return p, nil
}

// Match says whether the pattern covers s, whether it grants or excludes. It
// does not allocate; its time grows with len(s) times the stars, never faster.
func (p Pattern) Match(s string) bool { return p.match(s) }

func (p *Pattern) match(s string) bool {
	if !p.star {
		return s == p.prefix
	}
	if len(s) < len(p.prefix)+len(p.suffix) || !strings.HasPrefix(s, p.prefix) || !strings.HasSuffix(s, p.suffix) {
		return false
	}
	s = s[len(p.prefix) : len(s)-len(p.suffix)]
	// The leftmost place for each part leaves the most for those after it, so
	// there is nothing to go back to.
	for _, part := range p.middle {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

// Exclude says whether the pattern opens with "!".
func (p Pattern) Exclude() bool { return p.exclude }

// LiteralPrefixLen returns how many bytes stand before the first star, all of
// them where there is none.
func (p Pattern) LiteralPrefixLen() int { return len(p.prefix) }

// filter is a compiled providers or models binding. The zero filter grants
// nothing.
type filter struct {
	all      bool // absent, of a purpose for which that means everything
	grants   []Pattern
	excludes []Pattern
}

// compileFilter puts the list's patterns into room, which has the capacity for
// them, and returns what is left of it. It leaves out those that do not parse:
// Compile has refused the whole profile for them by then.
func compileFilter(list []string, absentGrants bool, room []Pattern) (filter, []Pattern) {
	if list == nil {
		return filter{all: absentGrants}, room
	}
	some := func(exclude bool) []Pattern {
		first := len(room)
		for _, s := range list {
			if p, err := ParsePattern(s); err == nil && p.exclude == exclude {
				room = append(room, p)
			}
		}
		return room[first:len(room):len(room)]
	}
	return filter{grants: some(false), excludes: some(true)}, room
}

func (f *filter) allows(s string) bool {
	return f.all || matches(f.grants, s) && !matches(f.excludes, s)
}

func matches(list []Pattern, s string) bool {
	for i := range list {
		if list[i].match(s) {
			return true
		}
	}
	return false
}
