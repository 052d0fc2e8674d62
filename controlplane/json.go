package controlplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const maxDepth = 16 // objects and lists in each other; ours need 4

// object is a JSON object whose keys, at every depth, can be read in one way only.
// Values are as encoding/json gives them, with json.Number for numbers, objects as
// map[string]any.
type object = map[string]any

// readObject reads a body strictly: one object, valid UTF-8 and JSON, nothing after
// it, no key that stands twice (under Unicode simple folding, which is how some
// parsers compare), and no string that is a token: none may be stored by accident.
func readObject(body []byte, legacy []string) (object, *problem) {
	return read(body, reader{legacy: legacy})
}

// readLoosely is readObject without a look for tokens: what it returns must go nowhere.
func readLoosely(body []byte) (object, *problem) { return read(body, reader{loose: true}) }

func read(body []byte, r reader) (object, *problem) {
	if !utf8.Valid(body) {
		return nil, refuse("invalid_json", "The body is not valid UTF-8.")
	}
	if !json.Valid(body) {
		return nil, refuse("invalid_json", "The body is not one valid JSON object.")
	}
	r.d = json.NewDecoder(bytes.NewReader(body))
	r.d.UseNumber()
	v, p := r.value("", 0)
	if p != nil {
		return nil, p
	}
	o, ok := v.(object)
	if !ok {
		return nil, refuse("invalid_json", "The body must be a JSON object.")
	}
	return o, nil
}

type reader struct {
	d      *json.Decoder
	legacy []string
	loose  bool // a string may be a token
}

func (r *reader) value(path string, depth int) (any, *problem) {
	if depth > maxDepth {
		return nil, refuse("invalid_json", "The body nests deeper than %d.", maxDepth)
	}
	switch t := r.token().(type) {
	case json.Delim:
		if t == '{' {
			return r.object(path, depth)
		}
		return r.list(path, depth)
	case string:
		return t, r.text(path, t)
	default:
		return t, nil
	}
}

func (r *reader) token() json.Token {
	t, err := r.d.Token()
	if err != nil {
		panic("BUG: valid JSON does not read: " + err.Error())
	}
	return t
}

func (r *reader) object(path string, depth int) (any, *problem) {
	o, folded := object{}, map[string]bool{}
	for r.d.More() {
		key := r.token().(string)
		at := join(path, key)
		if p := r.text(path, key); p != nil {
			return nil, p
		}
		if f := fold(key); folded[f] {
			return nil, refuse("ambiguous_key", "A key stands twice, or in two spellings.").at(at)
		} else {
			folded[f] = true
		}
		v, p := r.value(at, depth+1)
		if p != nil {
			return nil, p
		}
		o[key] = v
	}
	r.token()
	return o, nil
}

func (r *reader) list(path string, depth int) (any, *problem) {
	list := []any{}
	for r.d.More() {
		v, p := r.value(fmt.Sprintf("%s[%d]", path, len(list)), depth+1)
		if p != nil {
			return nil, p
		}
		list = append(list, v)
	}
	r.token()
	return list, nil
}

func (r *reader) text(path, s string) *problem {
	// A lone surrogate reads as the replacement character.
	if strings.ContainsRune(s, utf8.RuneError) {
		return refuse("invalid_value", "Not valid Unicode.").at(path)
	}
	if !r.loose && holdsToken(s, r.legacy) {
		return refuse("invalid_value", "This holds a token's string, which is stored nowhere. Name tokens by their id, and rotate this one if others may have seen it.").at(path)
	}
	return nil
}

// join makes the path of a key. One that could be anything is not shown.
func join(path, key string) string {
	if len(key) > 64 || strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) }) {
		key = "…"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// fold maps strings to one where they are equal under Unicode simple folding.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}

// known refuses keys of o that are none of keys.
func known(o object, path string, keys ...string) error {
	names := make([]string, 0, len(o))
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names) // of several the same one is named each time
	for _, name := range names {
		if slices.Contains(keys, name) {
			continue
		}
		for _, k := range keys {
			if fold(k) == fold(name) {
				return refuse("ambiguous_key", "The key must be spelt %s.", k).at(join(path, name))
			}
		}
		return refuse("unknown_parameter", "Unknown key; allowed: %s.", allowed(keys)).at(join(path, name))
	}
	return nil
}

func allowed(names []string) string {
	if len(names) == 0 {
		return "none here"
	}
	return strings.Join(names, ", ")
}

// text takes a string; absent or null is "".
func text(o object, key string) (string, error) {
	switch v := o[key].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", refuse("invalid_value", "%s must be a string.", key).at(key)
}

// required takes a string that must be there.
func required(o object, key string) (string, error) {
	s, err := text(o, key)
	if err == nil && s == "" {
		err = refuse("missing_required_parameter", "%s is required.", key).at(key)
	}
	return s, err
}

// instant takes a time in RFC 3339; absent or null is nil.
func instant(o object, key string) (*time.Time, error) {
	v, ok := o[key]
	if !ok || v == nil {
		return nil, nil
	}
	s, ok := v.(string)
	if ok {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			t = t.UTC().Truncate(time.Microsecond)
			return &t, nil
		}
	}
	return nil, refuse("invalid_value", `%s must be a time in RFC 3339, such as "2026-11-01T00:00:00Z", or null.`, key).at(key)
}
