package config

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	maxHeaders     = 64
	maxHeaderValue = 4096 // bytes
)

// Headers that a target can't set: what frames a message, what is between two
// neighbours only, what the gateway sets by itself, and what holds credentials.
var reservedHeaders = []string{
	"accept", "accept-encoding", "api-key", "authorization", "connection", "content-encoding", "content-length",
	"content-type", "cookie", "date", "expect", "forwarded", "host", "http2-settings", "idempotency-key", "keep-alive",
	"proxy-authenticate", "proxy-authorization", "proxy-connection", "set-cookie", "te", "trailer", "transfer-encoding",
	"upgrade", "via", "x-api-key", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
}

// headers reads the headers that a target sends with every request.
func (r *reader) headers(dst *map[string]string) read {
	return func(n *yaml.Node, path string) {
		out := make(map[string]string)
		folded := make(map[string]bool)
		r.mapping(n, path, "", func(k, v *yaml.Node) {
			if problem := headerName(k.Value); problem != "" {
				r.add(k.Line, path, "%s", problem)
				return
			}
			at := join(path, k.Value)
			if folded[strings.ToLower(k.Value)] {
				r.add(k.Line, at, "stands twice, in another case")
				return
			}
			folded[strings.ToLower(k.Value)] = true
			if len(folded) == maxHeaders+1 {
				r.add(k.Line, path, "more than %d headers", maxHeaders)
			}
			if s, ok := r.textOf(v, at, headerValue); ok {
				out[k.Value] = s
			}
		})
		if len(out) > 0 {
			*dst = out
		}
	}
}

func headerName(s string) string {
	ok := s != "" && len(s) <= 64
	for _, c := range []byte(s) {
		ok = ok && (alphanumeric(c) || c == '-' || c == '_')
	}
	if !ok {
		return "a header's name is 1 to 64 of A-Z a-z 0-9 - _"
	}
	// Some servers read _ as -.
	name := strings.ReplaceAll(strings.ToLower(s), "_", "-")
	if slices.Contains(reservedHeaders, name) {
		return "the gateway sets or removes " + name + " itself: it can't be configured; a credential is the target's secret_key_ref"
	}
	for _, w := range []string{"secret", "password", "apikey", "api-key", "authorization", "auth-token", "access-token"} {
		if strings.Contains(name, w) {
			return "this header's name says that it holds a secret, and a header's value is no place for one: use secret_key_ref"
		}
	}
	return ""
}

func headerValue(s string) string {
	ok := s != "" && len(s) <= maxHeaderValue && strings.TrimSpace(s) == s
	for _, c := range []byte(s) {
		ok = ok && c >= ' ' && c <= '~'
	}
	if !ok {
		return "want 1 to 4096 printable ASCII characters, no space at either end"
	}
	lower := strings.ToLower(s)
	for _, p := range []string{"bearer ", "basic ", "sk-", "kt_live_", "kt_ak_", "kt_gk_"} {
		if strings.HasPrefix(lower, p) {
			return "this looks like a secret, and a header's value is no place for one: use secret_key_ref"
		}
	}
	return ""
}
