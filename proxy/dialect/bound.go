package dialect

// Bound is what a call may use of input at most, as far as its body tells.
type Bound struct {
	Input    int64 // tokens, never under, of what is in the body
	Outside  bool  // some of the input is not in the body: count the model's context
	AudioIn  bool  // some of the input may be audio
	AudioOut bool  // asks for output other than text
}

// Bound bounds the input of a call that ReadChat has read.
func (c *Call) Bound(body []byte) Bound {
	return Bound{Input: int64(len(body)) + 16}
}

// OwnLimit is the most output tokens a choice by the call's own limit; -1: it has
// none. field is the target's name for the limit: max_output_tokens counts only
// where it is that, since other chat APIs don't know it.
func (c *Call) OwnLimit(field string) int64 {
	n := max(c.MaxTokens, c.MaxCompletionTokens)
	if field == "max_output_tokens" {
		n = max(n, c.MaxOutputTokens)
	}
	return n
}
