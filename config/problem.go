package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a file. It never holds a value of the
// file, so that a secret written in the wrong place does not spread.
type Problem struct {
	File    string
	Line    int    // from 1; 0 when the problem has no line
	Path    string // like providers.targets[0].base_url; "" for the whole file
	Message string // what is wrong, what is allowed
	Warning bool   // the file works, but probably not as meant
}

// String gives "file:line: path: message", the form that editors jump to.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Path != "" {
		b.WriteString(p.Path)
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems are all that is wrong with a file, by line.
type Problems []Problem

// Error gives one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
