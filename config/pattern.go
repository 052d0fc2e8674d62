package config

import "strings"

type pattern struct{ parts []string }

func parsePattern(s string) (pattern, error) { return pattern{strings.Split(s, "*")}, nil }

func (p pattern) LiteralPrefixLen() int { return len(p.parts[0]) }

func (p pattern) Match(s string) bool {
	last := len(p.parts) - 1
	if !strings.HasPrefix(s, p.parts[0]) {
		return false
	}
	s = s[len(p.parts[0]):]
	for _, part := range p.parts[1:last] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, p.parts[last])
}
