package dialect

// Emitted is the output of the stream so far, in tokens: what is likely, and an
// upper bound.
func (m *Meter) Emitted() (tokens, most int64) { return 0, 0 }

// FinishLength appends what ends a stream by its limit: a chunk with finish_reason
// "length", the usage chunk where the client asked for it, a comment (its text,
// without the colon) and [DONE].
func (m *Meter) FinishLength(dst []byte, wantUsage bool, u Usage, comment string) []byte {
	return append(dst, "data: [DONE]\n\n"...)
}

// EmittedWhole is an upper bound of the output tokens of a whole answer.
func EmittedWhole(body []byte) (most int64) { return int64(len(body)) }
