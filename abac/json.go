package abac

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxInvalid bounds what is kept of bindings that are all wrong, and the keys of
// one object, which are compared with each other.
const maxInvalid = 64

const (
	bindingKeys = "gateway_id, team_id, providers, models, budgets, rate_limits"
	budgetKeys  = "id, limit, unit, window, mode"
	rateKeys    = "requests_per_minute, tokens_per_minute, max_parallel_requests"
)

// UnmarshalJSON reads bindings as DESIGN §3 wants them read: keys are compared
// case and all, null is an absent key, and whatever it does not understand is
// kept in Invalid, so that Compile denies it and Validate names it. It returns nil
// always. It wants a zero b: one that holds something has met its key before.
func (b *Bindings) UnmarshalJSON(data []byte) error {
	again := b.GatewayID != nil || b.TeamID != nil || b.Providers != nil || b.Models != nil ||
		b.Budgets != nil || b.RateLimits != nil || b.Invalid != nil
	*b = Bindings{}
	if again {
		b.wrong("bindings", "stands twice")
	}
	if absent(data) {
		return nil
	}
	if !utf8.Valid(data) {
		b.wrong("bindings", "not valid UTF-8")
		return nil
	}
	b.object("bindings", bindingKeys, data, func(key string, v json.RawMessage) bool {
		path := "bindings." + key
		switch key {
		case "gateway_id":
			b.GatewayID = b.text(path, v)
		case "team_id":
			b.TeamID = b.text(path, v)
		case "providers":
			b.Providers = b.texts(path, v)
		case "models":
			b.Models = b.texts(path, v)
		case "budgets":
			b.Budgets = b.budgets(path, v)
		case "rate_limits":
			b.RateLimits = b.rateLimits(path, v)
		default:
			return false
		}
		return true
	})
	return nil
}

func (b *Bindings) wrong(path, message string) {
	if len(b.Invalid) < maxInvalid {
		b.Invalid = append(b.Invalid, path+": "+message)
	}
}

// object hands the keys of an object to read, which says whether it knows the
// key. Nulls are handed over too: they are values of keys that must be known.
func (b *Bindings) object(path, known string, data []byte, read func(string, json.RawMessage) bool) {
	if data = trim(data); len(data) == 0 || data[0] != '{' {
		b.wrong(path, "must be an object")
		return
	}
	d := json.NewDecoder(bytes.NewReader(data))
	_, err := d.Token()
	var seen []string
	for err == nil && d.More() {
		if len(seen) == maxInvalid {
			if len(b.Invalid) <= maxInvalid { // said even where the list is full
				b.Invalid = append(b.Invalid, path+": too many keys")
			}
			return
		}
		var key json.Token
		var v json.RawMessage
		if key, err = d.Token(); err != nil {
			break
		}
		if err = d.Decode(&v); err != nil {
			break
		}
		name := key.(string) // a decoder gives nothing else before a value of an object
		twice := false
		for _, s := range seen {
			twice = twice || strings.EqualFold(s, name)
		}
		seen = append(seen, name)
		switch {
		case twice:
			b.wrong(path+printable(name), "stands twice")
		case !read(name, v):
			b.wrong(path+printable(name), "unknown key; allowed: "+known)
		}
	}
	if err == nil {
		_, err = d.Token()
	}
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return
		}
	}
	b.wrong(path, "not valid JSON")
}

// printable gives ".key" for a key that may be shown: others could be anything,
// a token pasted into the wrong place included.
func printable(key string) string {
	if len(key) > 32 || !ValidID(key) {
		return ".…"
	}
	return "." + key
}

func absent(v []byte) bool { return string(trim(v)) == "null" }

// trim takes away what JSON calls white space (RFC 8259 §2); Unicode has more of it.
func trim(v []byte) []byte { return bytes.Trim(v, " \t\r\n") }

func (b *Bindings) text(path string, v json.RawMessage) *string {
	if absent(v) {
		return nil
	}
	var s string
	if v[0] != '"' || json.Unmarshal(v, &s) != nil {
		b.wrong(path, "must be a string")
		return nil
	}
	// A lone surrogate reads as the replacement character, as a wrong byte does.
	if strings.ContainsRune(s, utf8.RuneError) {
		b.wrong(path, "must be valid Unicode")
		return nil
	}
	return &s
}

func (b *Bindings) list(path string, v json.RawMessage) []json.RawMessage {
	if absent(v) {
		return nil
	}
	var list []json.RawMessage
	if v[0] != '[' || json.Unmarshal(v, &list) != nil {
		b.wrong(path, "must be a list")
		return nil
	}
	return list // not nil, also for []
}

func (b *Bindings) texts(path string, v json.RawMessage) []string {
	raw := b.list(path, v)
	if raw == nil {
		return nil
	}
	list := make([]string, 0, len(raw))
	for i, v := range raw {
		at := path + "[" + strconv.Itoa(i) + "]"
		if absent(v) {
			b.wrong(at, "must be a string, not null")
		} else if s := b.text(at, v); s != nil {
			list = append(list, *s)
		}
	}
	return list
}

func (b *Bindings) budgets(path string, v json.RawMessage) []BudgetBinding {
	raw := b.list(path, v)
	if raw == nil {
		return nil
	}
	list := make([]BudgetBinding, 0, len(raw))
	for i, v := range raw {
		at := path + "[" + strconv.Itoa(i) + "]"
		var budget BudgetBinding
		before := len(b.Invalid)
		b.object(at, budgetKeys, v, func(key string, v json.RawMessage) bool {
			var to *string
			switch key {
			case "id":
				to = &budget.ID
			case "limit":
				to = &budget.Limit
			case "unit":
				to = &budget.Unit
			case "window":
				to = &budget.Window
			case "mode":
				to = &budget.Mode
			default:
				return false
			}
			if s := b.text(at+"."+key, v); s != nil {
				if *s == "" && key != "id" {
					b.wrong(at+"."+key, "must not be empty")
				}
				*to = *s
			}
			return true
		})
		if budget.ID == "" && len(b.Invalid) == before {
			b.wrong(at+".id", wantID)
		}
		list = append(list, budget)
	}
	return list
}

func (b *Bindings) rateLimits(path string, v json.RawMessage) *RateLimits {
	if absent(v) {
		return nil
	}
	var limits RateLimits
	before := len(b.Invalid)
	b.object(path, rateKeys, v, func(key string, v json.RawMessage) bool {
		var to *int64
		switch key {
		case "requests_per_minute":
			to = &limits.RequestsPerMinute
		case "tokens_per_minute":
			to = &limits.TokensPerMinute
		case "max_parallel_requests":
			to = &limits.MaxParallelRequests
		default:
			return false
		}
		if absent(v) {
			return true
		}
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil || n < 1 || n > maxRate {
			b.wrong(path+"."+key, "must be a whole number from 1 to "+strconv.FormatInt(maxRate, 10))
			return true
		}
		*to = n
		return true
	})
	if limits == (RateLimits{}) && len(b.Invalid) > before {
		return nil // said already; "must not be empty" beside it would mislead
	}
	return &limits
}
