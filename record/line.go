package record

import (
	"strconv"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Fields gives the record as the one field of its log line, in space of its own:
// `if e := log.Check(level, "request"); e != nil { e.Write(r.Fields()...) }` does
// not allocate.
func (r *Record) Fields() []zap.Field {
	r.fields[0] = zap.Inline(r)
	return r.fields[:]
}

// MarshalLogObject adds what follows ts, level and msg in the log line. The
// claims and what follows them are left out where empty or false. It does not allocate.
func (r *Record) MarshalLogObject(e zapcore.ObjectEncoder) error {
	e.AddString("request_id", r.RequestID)
	e.AddString("token_id", r.TokenID)
	e.AddString("purpose", r.Purpose)
	e.AddString("team", r.Team)
	e.AddString("model", r.Model)
	e.AddString("target", r.Target)
	e.AddInt("status", r.Status)
	e.AddString("code", r.Code)
	e.AddBool("stream", r.Stream)
	e.AddFloat64("ms", milliseconds(r.Duration))
	e.AddFloat64("upstream_ms", milliseconds(r.Upstream))
	e.AddFloat64("first_byte_ms", milliseconds(r.FirstByte))
	e.AddInt64("input_tokens", r.InputTokens)
	e.AddInt64("output_tokens", r.OutputTokens)
	e.AddByteString("cost", AppendUSD(r.text[:0], r.Cost))
	e.AddString("client", r.Client)
	addIf(e, "client_request_id", r.ClientRequestID)
	addIf(e, "agent_id", r.AgentID)
	addIf(e, "action", r.Action)
	addIf(e, "gateway_id", r.GatewayID)
	addIf(e, "reason", r.Reason)
	if r.Estimated {
		e.AddBool("estimated", true)
	}
	return nil
}

func addIf(e zapcore.ObjectEncoder, key, value string) {
	if value != "" {
		e.AddString(key, value)
	}
}

// milliseconds keeps microseconds as its fraction.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// AppendJSON appends the record as one JSON object without a newline: every key
// always, in the log line's order, ts first, in UTC. Bytes that are no UTF-8
// become U+FFFD.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(b, `{"ts":"`...)
	b = r.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, '"')
	b = r.appendCommon(b)
	b = appendString(b, "client_request_id", r.ClientRequestID)
	b = appendString(b, "agent_id", r.AgentID)
	b = appendString(b, "action", r.Action)
	b = appendString(b, "gateway_id", r.GatewayID)
	b = appendString(b, "reason", r.Reason)
	b = strconv.AppendBool(append(b, `,"estimated":`...), r.Estimated)
	return append(b, '}')
}

// appendCommon appends from request_id to client.
func (r *Record) appendCommon(b []byte) []byte {
	b = appendString(b, "request_id", r.RequestID)
	if r.Identity != nil {
		b = append(b, r.Identity...)
	} else {
		b = r.AppendIdentity(b)
	}
	b = appendString(b, "model", r.Model)
	b = appendString(b, "target", r.Target)
	b = strconv.AppendInt(append(b, `,"status":`...), int64(r.Status), 10)
	b = appendString(b, "code", r.Code)
	b = strconv.AppendBool(append(b, `,"stream":`...), r.Stream)
	b = appendMilliseconds(append(b, `,"ms":`...), r.Duration)
	b = appendMilliseconds(append(b, `,"upstream_ms":`...), r.Upstream)
	b = appendMilliseconds(append(b, `,"first_byte_ms":`...), r.FirstByte)
	b = strconv.AppendInt(append(b, `,"input_tokens":`...), r.InputTokens, 10)
	b = strconv.AppendInt(append(b, `,"output_tokens":`...), r.OutputTokens, 10)
	b = append(AppendUSD(append(b, `,"cost":"`...), r.Cost), '"')
	return appendString(b, "client", r.Client)
}

// AppendIdentity appends the part of a line that a token's requests share.
func (r *Record) AppendIdentity(b []byte) []byte {
	b = appendString(b, "token_id", r.TokenID)
	b = appendString(b, "purpose", r.Purpose)
	return appendString(b, "team", r.Team)
}

// appendMilliseconds appends what milliseconds gives, without its float.
func appendMilliseconds(b []byte, d time.Duration) []byte {
	us := d.Microseconds()
	if us < 0 {
		b, us = append(b, '-'), -us
	}
	b = strconv.AppendInt(b, us/1000, 10)
	fraction := us % 1000
	if fraction == 0 {
		return b
	}
	b = append(b, '.', byte('0'+fraction/100))
	if fraction %= 100; fraction > 0 {
		b = append(b, byte('0'+fraction/10))
		if fraction %= 10; fraction > 0 {
			b = append(b, byte('0'+fraction))
		}
	}
	return b
}

// AppendLog appends the log line that MarshalLogObject and a zap JSON encoder
// make, with its newline: the encoder's generality costs more than all of a
// request's decisions.
func (r *Record) AppendLog(b []byte, level string, at time.Time, msg string) []byte {
	b = append(append(append(b, `{"level":"`...), level...), `","ts":"`...)
	b = append(at.AppendFormat(b, time.RFC3339Nano), '"')
	b = appendString(b, "msg", msg)
	b = r.appendCommon(b)
	b = appendStringIf(b, "client_request_id", r.ClientRequestID)
	b = appendStringIf(b, "agent_id", r.AgentID)
	b = appendStringIf(b, "action", r.Action)
	b = appendStringIf(b, "gateway_id", r.GatewayID)
	b = appendStringIf(b, "reason", r.Reason)
	if r.Estimated {
		b = append(b, `,"estimated":true`...)
	}
	return append(b, '}', '\n')
}

func appendStringIf(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	return appendString(b, key, s)
}

// AppendUSD appends nano-USD as a decimal number of USD, exact and without
// trailing zeros: 1500000000 is 1.5.
func AppendUSD(b []byte, nano int64) []byte {
	const unit, digits = 1_000_000_000, 9
	u := uint64(nano)
	if nano < 0 {
		b = append(b, '-')
		u = -u // two's complement: right for the least int64 too
	}
	b = strconv.AppendUint(b, u/unit, 10)
	fraction := u % unit
	if fraction == 0 {
		return b
	}
	var d [digits]byte
	for i := digits - 1; i >= 0; i-- {
		d[i] = byte('0' + fraction%10)
		fraction /= 10
	}
	n := digits
	for d[n-1] == '0' {
		n--
	}
	return append(append(b, '.'), d[:n]...)
}

const hexDigits = "0123456789abcdef"

// appendString appends a comma, the key and the value as JSON. The key needs no
// escape.
func appendString(b []byte, key, s string) []byte {
	b = append(append(append(b, ',', '"'), key...), '"', ':', '"')
	if plain(s) {
		return append(append(b, s...), '"')
	}
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, s[from:i]...), `\ufffd`...)
				from = i + 1
			}
			i += size
			continue
		}
		if c < ' ' || c == '"' || c == '\\' {
			b = append(b, s[from:i]...)
			if c < ' ' {
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			} else {
				b = append(b, '\\', c)
			}
			from = i + 1
		}
		i++
	}
	return append(append(b, s[from:]...), '"')
}

// plain says whether s is its own JSON: ASCII without control characters, quotes
// and backslashes. Eight bytes at a time, for nearly all that is logged is plain.
func plain(s string) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	var bad uint64
	for ; len(s) >= 8; s = s[8:] {
		v := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, backslash := v^ones*'"', v^ones*'\\'
		// A byte's top bit comes out where it was set, or the byte was below.
		bad |= v | (v - ones*' ') | (quote - ones) | (backslash - ones)
	}
	if bad&tops != 0 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
