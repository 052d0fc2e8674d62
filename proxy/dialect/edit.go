package dialect

import "strconv"

// Edit is what the gateway changes in a body. The zero value changes nothing.
type Edit struct {
	Model        string // the upstream's name of the model; "": as it is
	IncludeUsage bool   // ask for usage in a stream
	OutputLimit  int64  // tokens a choice, under the name OutputField; 0: as it is
	OutputField  string // max_tokens, max_completion_tokens or max_output_tokens
}

// patch puts a text into the place of a span. A name is put as a JSON string.
type patch struct {
	at    Span
	text  string
	name  string
	limit int64 // behind the text; 0: none
	comma string
}

// Append appends the body with the edit, every other byte as it was. The body is
// the one that ReadChat read. A limit that the call names under the same name
// stays.
func (c *Call) Append(dst, body []byte, e Edit) []byte {
	var all [3]patch
	patches := all[:0]
	if p, ok := c.usagePatch(e); ok {
		patches = append(patches, p)
	}
	if p, ok := c.limitPatch(e); ok {
		patches = put(patches, p)
	}
	if e.Model != "" {
		patches = put(patches, patch{at: c.ModelSpan, name: e.Model})
	}
	from := 0
	for i := range patches {
		p := &patches[i]
		dst = append(dst, body[from:p.at.Start]...)
		if p.name != "" {
			dst = appendString(dst, p.name)
		}
		dst = append(dst, p.text...)
		if p.limit > 0 {
			dst = strconv.AppendInt(dst, p.limit, 10)
		}
		dst = append(dst, p.comma...)
		from = p.at.End
	}
	return append(dst, body[from:]...)
}

// put keeps the patches in the order of the body.
func put(patches []patch, p patch) []patch {
	patches = append(patches, p)
	for i := len(patches) - 1; i > 0 && patches[i].at.Start < patches[i-1].at.Start; i-- {
		patches[i], patches[i-1] = patches[i-1], patches[i]
	}
	return patches
}

// usagePatch says what to put where, so that the stream tells its usage.
func (c *Call) usagePatch(e Edit) (patch, bool) {
	switch {
	case !e.IncludeUsage || c.IncludeUsage:
		return patch{}, false
	case c.optionsKind == absent:
		return patch{at: Span{c.open, c.open}, text: `"stream_options":{"include_usage":true},`}, true
	case c.optionsKind == null, c.optionsKind == emptyObject:
		return patch{at: c.options, text: `{"include_usage":true}`}, true
	case c.includeUsage != Span{}:
		return patch{at: c.includeUsage, text: "true"}, true
	}
	behind := c.options.Start + 1
	return patch{at: Span{behind, behind}, text: `"include_usage":true,`}, true
}

// limitPatch puts the limit into the place of a null of its name: a second key
// would be read in two ways.
func (c *Call) limitPatch(e Edit) (patch, bool) {
	if e.OutputLimit <= 0 {
		return patch{}, false
	}
	for i, field := range limitFields {
		if field != e.OutputField {
			continue
		}
		switch at := c.nulls[i]; {
		case at != Span{}:
			return patch{at: at, limit: e.OutputLimit}, true
		case c.limit(i) >= 0:
			return patch{}, false
		}
		return patch{at: Span{c.open, c.open}, text: limitKeys[i], limit: e.OutputLimit, comma: ","}, true
	}
	return patch{}, false
}
