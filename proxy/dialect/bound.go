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
