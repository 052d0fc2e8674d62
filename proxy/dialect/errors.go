package dialect

// Error is an error as OpenAI's API writes it,
// https://platform.openai.com/docs/guides/error-codes.
type Error struct{ Message, Type, Param, Code string }

// AppendError appends `{"error":{"message","type","param","code"}}`; an empty
// param or code is null.
func AppendError(dst []byte, e Error) []byte {
	dst = appendString(append(dst, `{"error":{"message":`...), e.Message)
	dst = appendString(append(dst, `,"type":`...), e.Type)
	dst = appendOrNull(append(dst, `,"param":`...), e.Param)
	dst = appendOrNull(append(dst, `,"code":`...), e.Code)
	return append(dst, "}}"...)
}

func appendOrNull(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, "null"...)
	}
	return appendString(dst, s)
}

// AppendErrorEvent appends an error as an event of a stream that has begun:
// `data: {"error":{…},"request_id":"…"}`. errorJSON is what AppendError gives.
func AppendErrorEvent(dst, errorJSON []byte, requestID string) []byte {
	dst = append(append(dst, "data: "...), errorJSON[:len(errorJSON)-1]...)
	dst = appendString(append(dst, `,"request_id":`...), requestID)
	return append(dst, "}\n\n"...)
}
