package config

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const maxFile = 1 << 20 // bytes

// Load reads and checks a file. The error is Problems when the content is wrong,
// and another when the file can't be read.
func Load(path string) (*Config, error) {
	src, err := readAtMost(path, maxFile)
	if err != nil {
		return nil, err
	}
	c, err := Parse(path, src)
	if err != nil {
		return nil, err
	}
	c.sum = sumOf(src, c.secrets, c.bundles)
	return c, nil
}

// Parse checks a file's content. Relative paths are taken from name's folder. It
// reads no file, and of the environment only whether there is a runtime token.
func Parse(name string, src []byte) (*Config, error) {
	r := &reader{file: name, lines: make(map[string]int)}
	c := defaults(filepath.Dir(name))
	c.file = name
	if root := r.document(src); root != nil {
		r.root(c)(root, "")
		c.setDataDir(c.DataDir)
		r.together(c)
	}
	slices.SortStableFunc(r.problems, func(a, b Problem) int { return a.Line - b.Line })
	if r.dropped > 0 {
		r.problems = append(r.problems, Problem{File: name, Message: "and " + strconv.Itoa(r.dropped) + " more"})
	}
	if r.failed() {
		return nil, r.problems
	}
	c.warnings = r.problems
	c.imply()
	c.index()
	return c, nil
}

// document parses the one document there may be; nil when it is empty or wrong.
func (r *reader) document(src []byte) *yaml.Node {
	if len(src) > maxFile {
		r.add(0, "", "larger than %s", sizeText(maxFile))
		return nil
	}
	if bytes.HasPrefix(src, []byte("\ufeff")) {
		r.add(1, "", "opens with a byte-order mark: save the file as UTF-8 without it")
		return nil
	}
	if at, what := unreadable(src); at >= 0 {
		r.add(1+bytes.Count(src[:at], []byte("\n")), "", "%s", what)
		return nil
	}
	var doc, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(src))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		r.syntax(src, err)
		return nil
	}
	if err := d.Decode(&more); err == nil {
		r.add(more.Line, "", "a second document (after ---): a file holds one")
		return nil
	} else if !errors.Is(err, io.EOF) {
		r.syntax(src, err)
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil
	}
	return doc.Content[0]
}

var (
	syntaxLine    = regexp.MustCompile(`^line (\d+): `)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
	// The library counts the lines of what its parser says from 0, and those of
	// its scanner from 1; a first line it leaves out.
	fromParser = regexp.MustCompile(`^did not find expected (node content|'-' indicator|key|',' or|<)|^found (undefined tag|incompatible|duplicate %)`)
)

// syntax reports what the YAML library says, without what it quotes from the file.
func (r *reader) syntax(src []byte, err error) {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.TrimPrefix(text, m[0])
		if fromParser.MatchString(text) {
			line++
		}
	} else if m := unknownAnchor.FindStringSubmatch(text); m != nil {
		before, _, _ := bytes.Cut(src, []byte("*"+m[1]))
		line, text = 1+bytes.Count(before, []byte("\n")), "an alias (*) of an anchor (&) that does not stand before it"
	}
	r.add(line, "", "not YAML: %s", text)
}

// unreadable finds the first byte that no YAML file may have; -1: none.
func unreadable(b []byte) (at int, what string) {
	for i := 0; i < len(b); {
		c, n := utf8.DecodeRune(b[i:])
		switch {
		case c == utf8.RuneError && n <= 1:
			return i, "not UTF-8"
		case c < ' ' && c != '\t' && c != '\n' && c != '\r', c >= 0x7f && c <= 0x9f && c != 0x85,
			c == '\ufeff', c == '\ufffe', c == '\uffff':
			return i, "a control character"
		}
		i += n
	}
	return -1, ""
}

// Warnings are what is probably not as meant, in a file that works, and now also
// the secrets and CA bundles that can't be used at this moment.
func (c *Config) Warnings() []Problem {
	out := slices.Clone(c.warnings)
	for _, s := range c.secrets {
		if _, err := s.ref.Resolve(); err != nil {
			out = append(out, Problem{File: c.file, Line: s.line, Path: s.path, Message: err.Error(), Warning: true})
		}
	}
	for _, b := range c.bundles {
		if _, err := readBundle(b.file); err != nil {
			out = append(out, Problem{File: c.file, Line: b.line, Path: b.path, Message: err.Error(), Warning: true})
		}
	}
	slices.SortStableFunc(out, func(a, b Problem) int { return a.Line - b.Line })
	return out
}
