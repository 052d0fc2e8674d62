package config

import (
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	micro       = 1_000_000 // of a USD, the finest price there is
	mostDollars = 100_000   // a million tokens, or a request
	aCent       = micro / 100
)

// price reads USD per million tokens, and request in USD each, from the text that
// stands in the file: a price never is a float.
func (r *reader) price(dst **Price) read {
	return func(n *yaml.Node, path string) {
		var p Price
		before := len(r.problems)
		r.section(
			field{"input", r.perMillion(&p.Input)},
			field{"cached_input", r.perMillion(&p.CachedInput)},
			field{"cache_write", r.perMillion(&p.CacheWrite)},
			field{"output", r.perMillion(&p.Output)},
			field{"reasoning", r.perMillion(&p.Reasoning)},
			field{"audio_input", r.perMillion(&p.AudioInput)},
			field{"audio_output", r.perMillion(&p.AudioOutput)},
			field{"request", r.usd(&p.Request)},
		)(n, path)
		if p != (Price{}) {
			*dst = &p
		} else if len(r.problems) == before && r.dropped == 0 {
			r.add(n.Line, path, "an empty price; give what is known (0 is free), or remove the key")
		}
	}
}

// perMillion reads USD per million tokens, which is the same number in µUSD as in
// pico-USD a token.
func (r *reader) perMillion(dst **int64) read {
	return func(n *yaml.Node, path string) {
		v, ok := r.decimal(n, path)
		if !ok {
			return
		}
		if v > 0 && v < aCent {
			r.warn(n.Line, path, "less than a cent per million tokens: was this a price per thousand?")
		}
		*dst = &v
	}
}

// usd reads USD as nano-USD.
func (r *reader) usd(dst **int64) read {
	return func(n *yaml.Node, path string) {
		if v, ok := r.decimal(n, path); ok {
			v *= 1000
			*dst = &v
		}
	}
}

// decimal reads a number of USD as µUSD.
func (r *reader) decimal(n *yaml.Node, path string) (int64, bool) {
	v, ok := r.scalar(n, path, "a price in USD, such as 0.25")
	if !ok {
		return 0, false
	}
	if tag := v.ShortTag(); tag != "!!int" && tag != "!!float" && tag != "!!str" {
		r.add(n.Line, path, "want a price in USD, such as 0.25, got %s", kind(v))
		return 0, false
	}
	micros, problem := parseDecimal(v.Value)
	if problem != "" {
		r.add(n.Line, path, "%s", problem)
	}
	return micros, problem == ""
}

// parseDecimal reads digits with at most six decimals, exactly.
func parseDecimal(s string) (micros int64, problem string) {
	const want = "want a price in USD in plain digits, such as 0.25, without sign, exponent or separators"
	if strings.HasPrefix(s, "-") {
		return 0, "a price can't be negative"
	}
	whole, fraction, point := strings.Cut(s, ".")
	if !digits(whole) || point && !digits(fraction) {
		return 0, want
	}
	if len(fraction) > 6 {
		return 0, "more than 6 decimals; a price is exact to 0.000001 USD"
	}
	whole = strings.TrimLeft(whole, "0")
	if len(whole) > 12 {
		return 0, "out of range; at most " + strconv.Itoa(mostDollars) + " USD"
	}
	for _, c := range []byte(whole + (fraction + "000000")[:6]) {
		micros = micros*10 + int64(c-'0')
	}
	if micros > mostDollars*micro {
		return 0, "out of range; at most " + strconv.Itoa(mostDollars) + " USD"
	}
	return micros, ""
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
