package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	maxProblems = 100     // shown of one file
	maxNodes    = 250_000 // read of one file, each alias counted as all it stands for
)

// reader walks a file's nodes and collects what is wrong with them.
type reader struct {
	file     string
	problems Problems
	dropped  int            // problems beyond maxProblems
	nodes    int            // read so far
	lines    map[string]int // where each path stands
}

// read takes a node that stands at a path into the field that it was made for.
type read func(n *yaml.Node, path string)

// field is a key that a section may have.
type field struct {
	name string
	read read
}

func (r *reader) add(line int, path, format string, args ...any) {
	if len(r.problems) == maxProblems {
		r.dropped++
		return
	}
	r.problems = append(r.problems, Problem{File: r.file, Line: line, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (r *reader) warn(line int, path, format string, args ...any) {
	before := len(r.problems)
	r.add(line, path, format, args...)
	if len(r.problems) > before {
		r.problems[before].Warning = true
	}
}

// line is where a path stands, or else the section that it should be in.
func (r *reader) line(path string) int {
	for {
		if n, ok := r.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 1
		}
		path = path[:i]
	}
}

// failed says whether anything worse than a warning was found.
func (r *reader) failed() bool {
	return slices.ContainsFunc(r.problems, func(p Problem) bool { return !p.Warning })
}

// open follows an alias and counts the node; nil: nothing to read there.
func (r *reader) open(n *yaml.Node, path string) *yaml.Node {
	r.nodes++
	if r.nodes > maxNodes {
		if r.nodes == maxNodes+1 {
			r.add(n.Line, path, "more than %d values in one file; aliases count as all they stand for", maxNodes)
		}
		return nil
	}
	r.lines[path] = n.Line
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// section reads a mapping with these keys and no others. None at all is fine: each
// key has its default, or is asked for by the caller.
func (r *reader) section(fields ...field) read {
	return func(n *yaml.Node, path string) {
		r.mapping(n, path, "", func(k, v *yaml.Node) {
			i := slices.IndexFunc(fields, func(f field) bool { return f.name == k.Value })
			if i < 0 {
				names := make([]string, len(fields))
				for i, f := range fields {
					names[i] = f.name
				}
				hint, shown := didYouMean(k.Value, names), k.Value
				if hint == "" {
					shown = printable(k.Value)
				}
				r.add(k.Line, join(path, shown), "unknown key%s; allowed: %s", hint, strings.Join(names, ", "))
				return
			}
			fields[i].read(v, join(path, k.Value))
		})
	}
}

// mapping hands out each key that stands for the first time with its value. want
// says what it should have been instead of a scalar; "" is a mapping.
func (r *reader) mapping(n *yaml.Node, path, want string, each func(k, v *yaml.Node)) {
	line := n.Line
	if n = r.open(n, path); n == nil || null(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		if want == "" {
			want = "want a mapping (key: value), got " + kind(n)
		}
		r.add(line, path, "%s", want)
		return
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			r.add(k.Line, path, "a key must be plain text, got %s", kind(k))
			continue
		}
		if k.ShortTag() == "!!merge" {
			r.add(k.Line, path, "merge keys (<<) are not supported: write the keys out")
			continue
		}
		if first, ok := seen[k.Value]; ok {
			r.add(k.Line, join(path, printable(k.Value)), "stands twice, first on line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		each(k, v)
	}
}

// list reads a sequence of most many; none at all is fine, an empty one only if
// least is 0.
func (r *reader) list(least, most int, each func(i int, n *yaml.Node, path string)) read {
	return func(n *yaml.Node, path string) {
		line := n.Line
		if n = r.open(n, path); n == nil || null(n) {
			return
		}
		switch {
		case n.Kind != yaml.SequenceNode:
			r.add(line, path, "want a list ([…], or a line with - each), got %s", kind(n))
		case len(n.Content) < least:
			r.add(line, path, "an empty list; give at least %d, or remove the key", least)
		case len(n.Content) > most:
			r.add(line, path, "%d entries; at most %d", len(n.Content), most)
		default:
			for i, e := range n.Content {
				each(i, e, fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
}

// scalar opens a value that must be one; ok is false when there is nothing more to
// say about it.
func (r *reader) scalar(n *yaml.Node, path, want string) (v *yaml.Node, ok bool) {
	line := n.Line
	if n = r.open(n, path); n == nil {
		return nil, false
	}
	switch {
	case n.Kind != yaml.ScalarNode:
		r.add(line, path, "want %s, got %s", want, kind(n))
	case null(n):
		r.add(line, path, "no value; want %s, or remove the key", want)
	default:
		return n, true
	}
	return nil, false
}

// check judges a text and says what is wrong and allowed; "" is fine.
type check func(s string) string

// text reads a string that every check agrees with.
func (r *reader) text(dst *string, checks ...check) read {
	return func(n *yaml.Node, path string) {
		if s, ok := r.textOf(n, path, checks...); ok {
			*dst = s
		}
	}
}

func (r *reader) textOf(n *yaml.Node, path string, checks ...check) (string, bool) {
	v, ok := r.scalar(n, path, "a string")
	if !ok {
		return "", false
	}
	if v.ShortTag() != "!!str" {
		r.add(n.Line, path, "want a string, got %s: put it in quotes", kind(v))
		return "", false
	}
	for _, c := range checks {
		if problem := c(v.Value); problem != "" {
			r.add(n.Line, path, "%s", problem)
			return "", false
		}
	}
	return v.Value, true
}

// texts reads a list of strings without repetition.
func (r *reader) texts(dst *[]string, least, most int, checks ...check) read {
	return func(n *yaml.Node, path string) {
		var out []string
		r.list(least, most, func(_ int, n *yaml.Node, path string) {
			s, ok := r.textOf(n, path, checks...)
			if ok && slices.Contains(out, s) {
				r.add(n.Line, path, "stands twice in the list")
			} else if ok {
				out = append(out, s)
			}
		})(n, path)
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind == yaml.SequenceNode {
			*dst = out
		}
	}
}

func (r *reader) boolean(dst *bool) read {
	return func(n *yaml.Node, path string) {
		v, ok := r.scalar(n, path, "true or false")
		if !ok {
			return
		}
		if v.ShortTag() != "!!bool" {
			r.add(n.Line, path, "want true or false, got %s", kind(v))
			return
		}
		*dst = strings.EqualFold(v.Value, "true")
	}
}

// number reads an integer within bounds, both included.
func number[T int | int64](r *reader, dst *T, least, most int64) read {
	return func(n *yaml.Node, path string) {
		want := fmt.Sprintf("a whole number from %d to %d", least, most)
		v, ok := r.scalar(n, path, want)
		if !ok {
			return
		}
		i, err := strconv.ParseInt(v.Value, 10, 64)
		if v.ShortTag() != "!!int" || err != nil {
			r.add(n.Line, path, "want %s, in digits alone", want)
		} else if i < least || i > most {
			r.add(n.Line, path, "out of range; want %s", want)
		} else {
			*dst = T(i)
		}
	}
}

// size reads a number of bytes: digits, or digits and KiB, MiB, GiB.
func (r *reader) size(dst *int64, least, most int64) read {
	return func(n *yaml.Node, path string) {
		want := fmt.Sprintf("a size from %s to %s, such as 32MiB, 16KiB, 1GiB or a plain number of bytes", sizeText(least), sizeText(most))
		v, ok := r.scalar(n, path, want)
		if !ok {
			return
		}
		i, ok := parseSize(v.Value)
		if tag := v.ShortTag(); !ok || tag != "!!int" && tag != "!!str" {
			r.add(n.Line, path, "want %s", want)
		} else if i < least || i > most {
			r.add(n.Line, path, "out of range; want %s", want)
		} else {
			*dst = i
		}
	}
}

// duration reads a number with a unit.
func (r *reader) duration(dst *time.Duration, least, most time.Duration) read {
	return func(n *yaml.Node, path string) {
		want := fmt.Sprintf("a duration from %s to %s, such as 500ms, 10s, 5m or 1h", durationText(least), durationText(most))
		v, ok := r.scalar(n, path, want)
		if !ok {
			return
		}
		if tag := v.ShortTag(); tag == "!!int" || tag == "!!float" {
			r.add(n.Line, path, "a number without a unit; want %s", want)
			return
		}
		d, err := time.ParseDuration(v.Value)
		if err != nil || v.ShortTag() != "!!str" {
			r.add(n.Line, path, "want %s", want)
		} else if d < least || d > most {
			r.add(n.Line, path, "out of range; want %s", want)
		} else {
			*dst = d
		}
	}
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// kind names what a node is, never what it holds.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!str":
		return "a string"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "a date"
	}
	return "a tagged value"
}
