package simulator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// call is what the provider reads of a request. Keys are read as Python reads
// them: case matters, and the last of two wins.
type call struct {
	model        string
	stream       bool
	includeUsage bool
	n            int
	limit        int // pieces; 0: none
	prompt       int64
	tool         *tool // to be called in place of an answer
	script       Script
}

type tool struct {
	name      string
	arguments string
}

const (
	tokensCall    = 3
	tokensMessage = 4
	tokensPart    = 85
	maxN          = 128
)

// unreadable is the provider's answer to a body that is no JSON object.
var unreadable = invalid("", "", "%s",
	"We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)")

type object map[string]json.RawMessage

// has says whether key is there and not null.
func (o object) has(key string) bool {
	return len(o[key]) > 0 && !bytes.Equal(o[key], []byte("null"))
}

// read decodes the value of key into v; absent and null leave v alone.
func (o object) read(key string, v any, want string) *problem {
	if !o.has(key) {
		return nil
	}
	if err := json.Unmarshal(o[key], v); err != nil {
		return invalid(key, "invalid_type", "Invalid type for '%s': expected %s.", key, want)
	}
	return nil
}

// parseCall reads the script and then the rest: a problem with the rest is for
// the caller only where the script asks for nothing else.
func parseCall(body []byte) (c call, script *problem, rest *problem) {
	var o object
	if err := json.Unmarshal(body, &o); err != nil || o == nil {
		return c, nil, unreadable
	}
	if c.script, script = parseScript(o["simulator"]); script != nil {
		return c, script, nil
	}
	return c, nil, c.read(o)
}

func (c *call) read(o object) *problem {
	if p := o.read("model", &c.model, "a string"); p != nil {
		return p
	}
	if c.model == "" {
		return invalid("", "", "you must provide a model parameter")
	}
	for _, read := range []func(object) *problem{c.readMessages, c.readStream, c.readLimits, c.readTools} {
		if p := read(o); p != nil {
			return p
		}
	}
	return nil
}

func (c *call) readMessages(o object) *problem {
	if !o.has("messages") {
		return invalid("messages", "missing_required_parameter", "Missing required parameter: 'messages'.")
	}
	var messages []object
	if p := o.read("messages", &messages, "an array of objects"); p != nil {
		return p
	}
	if len(messages) == 0 {
		return invalid("messages", "empty_array", "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.")
	}
	c.prompt = tokensCall
	for i, m := range messages {
		c.prompt += tokensMessage
		if !m.has("content") {
			continue
		}
		var text string
		if json.Unmarshal(m["content"], &text) == nil {
			c.prompt += words(text)
			continue
		}
		var parts []object
		if json.Unmarshal(m["content"], &parts) != nil {
			param := fmt.Sprintf("messages[%d].content", i)
			return invalid(param, "invalid_type", "Invalid type for '%s': expected one of a string or array of objects.", param)
		}
		for _, part := range parts {
			if json.Unmarshal(part["text"], &text) == nil && part.has("text") {
				c.prompt += words(text)
			} else {
				c.prompt += tokensPart
			}
		}
	}
	return nil
}

func words(s string) int64 { return int64(len(strings.Fields(s))) }

func (c *call) readStream(o object) *problem {
	if p := o.read("stream", &c.stream, "a boolean"); p != nil {
		return p
	}
	var options object
	if p := o.read("stream_options", &options, "an object"); p != nil {
		return p
	}
	if options == nil {
		return nil
	}
	if !c.stream {
		return invalid("stream_options", "", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
	}
	return options.read("include_usage", &c.includeUsage, "a boolean")
}

func (c *call) readLimits(o object) *problem {
	c.n = 1
	if p := o.read("n", &c.n, "an integer"); p != nil {
		return p
	}
	if c.n < 1 || c.n > maxN {
		return invalid("n", "invalid_value", "Invalid 'n': expected a value from 1 to %d, but got %d instead.", maxN, c.n)
	}
	if o.has("max_tokens") && o.has("max_completion_tokens") {
		return invalid("max_tokens", "invalid_parameter_combination", "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
	}
	for _, key := range []string{"max_tokens", "max_completion_tokens"} {
		if p := o.read(key, &c.limit, "an integer"); p != nil {
			return p
		}
		if o.has(key) && c.limit < 1 {
			return invalid(key, "integer_below_min_value", "Invalid '%s': integer below minimum value. Expected a value >= 1, but got %d instead.", key, c.limit)
		}
	}
	return nil
}

type function struct {
	Name       string `json:"name"`
	Parameters schema `json:"parameters"`
}

func (c *call) readTools(o object) *problem {
	var tools []struct {
		Function function `json:"function"`
	}
	if p := o.read("tools", &tools, "an array of objects"); p != nil {
		return p
	}
	var chosen struct {
		Function function `json:"function"`
	}
	demanded := string(o["tool_choice"]) == `"required"`
	if o.has("tool_choice") && json.Unmarshal(o["tool_choice"], &chosen) == nil && chosen.Function.Name != "" {
		demanded = true
	}
	if o.has("tool_choice") && len(tools) == 0 {
		return invalid("tool_choice", "", "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.")
	}
	if !demanded && !c.script.ToolCall {
		return nil
	}
	if len(tools) == 0 {
		c.tool = &tool{"get_weather", `{"city":"Paris"}`}
		return nil
	}
	call := tools[0].Function
	if name := chosen.Function.Name; name != "" {
		call = function{}
		for _, t := range tools {
			if t.Function.Name == name {
				call = t.Function
			}
		}
		if call.Name == "" {
			return invalid("tool_choice", "", "Invalid value for 'tool_choice': no tool is named '%s'.", name)
		}
	}
	c.tool = &tool{call.Name, string(encode(call.Parameters.example(0), ""))}
	return nil
}

// schema is as much of a JSON schema as it takes to make arguments that fit a
// plain one.
type schema struct {
	Type       any               `json:"type"`
	Enum       []any             `json:"enum"`
	Properties map[string]schema `json:"properties"`
}

// example gives a value of the schema's type, every property present.
func (s schema) example(depth int) any {
	if len(s.Enum) > 0 {
		return s.Enum[0]
	}
	switch s.Type {
	case "string":
		return "example"
	case "number", "integer":
		return 1
	case "boolean":
		return true
	case "array":
		return []any{}
	}
	value := map[string]any{}
	for name, p := range s.Properties {
		if depth < 16 {
			value[name] = p.example(depth + 1)
		}
	}
	return value
}
