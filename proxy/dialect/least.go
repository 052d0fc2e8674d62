package dialect

const (
	// bytesOfTokenMost is more text than a token holds on average, in any language
	// and in code.
	bytesOfTokenMost = 8
	// fewLong is text that may well be of a few long tokens.
	fewLong = 128
)

// Least is what the events that were let through hold of output at least, in
// tokens, if a token is a chunk or as long as it may well be.
func (m *Meter) Least() int64 {
	t := &m.tally
	return max(t.events, (t.text-fewLong)/bytesOfTokenMost) + t.sound/charsOfSound + t.pictures*tokensOfPicture
}
