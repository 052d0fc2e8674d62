package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/keeptrusts/gateway/abac"
)

// Provider is an adapter: how a kind of upstream is spoken to.
type Provider struct {
	Name        string
	OutputLimit string // the field that limits output, unless the target says otherwise
}

// Providers are the adapters there are; the first is the default. All speak the
// openai dialect.
var Providers = []Provider{
	{"openai", "max_completion_tokens"},
	{"azure", "max_completion_tokens"},
	{"openai-compatible", "max_tokens"},
	{"anyscale", "max_tokens"},
	{"cerebras", "max_tokens"},
	{"deepseek", "max_tokens"},
	{"fireworks", "max_tokens"},
	{"groq", "max_tokens"},
	{"litellm", "max_tokens"},
	{"llamacpp", "max_tokens"},
	{"lmstudio", "max_tokens"},
	{"mistral", "max_tokens"},
	{"nvidia", "max_tokens"},
	{"ollama", "max_tokens"},
	{"openrouter", "max_tokens"},
	{"perplexity", "max_tokens"},
	{"sglang", "max_tokens"},
	{"simulator", "max_completion_tokens"},
	{"together", "max_tokens"},
	{"vllm", "max_tokens"},
	{"xai", "max_tokens"},
}

var (
	dialects     = []string{"openai"}
	logLevels    = []string{"debug", "info", "warn", "error"}
	outputLimits = []string{"max_completion_tokens", "max_tokens", "max_output_tokens"}
)

func providerName(s string) string {
	names := make([]string, len(Providers))
	for i, p := range Providers {
		names[i] = p.Name
	}
	return oneOf(names...)(s)
}

func outputLimitOf(provider string) string {
	for _, p := range Providers {
		if p.Name == provider {
			return p.OutputLimit
		}
	}
	return outputLimits[0]
}

func oneOf(words ...string) check {
	return func(s string) string {
		if slices.Contains(words, s) {
			return ""
		}
		return "unknown value" + didYouMean(s, words) + "; allowed: " + strings.Join(words, ", ")
	}
}

// idForm is what identifiers are made of.
func idForm(most int) check {
	return func(s string) string {
		ok := s != "" && len(s) <= most
		for _, c := range []byte(s) {
			ok = ok && (alphanumeric(c) || c == '.' || c == '_' || c == '-')
		}
		if ok {
			return ""
		}
		return fmt.Sprintf("want 1 to %d of A-Z a-z 0-9 . _ -", most)
	}
}

// teamID is what a token's team_id may be.
func teamID(s string) string {
	if idForm(128)(strings.ReplaceAll(s, ":", "-")) == "" {
		return ""
	}
	return "want 1 to 128 of A-Z a-z 0-9 . _ : -"
}

// label is a name that people choose: printable, in bytes at most this long.
func label(most int) check {
	return func(s string) string {
		ok := s != "" && len(s) <= most && strings.TrimSpace(s) == s
		for _, c := range s {
			ok = ok && unicode.IsPrint(c)
		}
		if ok {
			return ""
		}
		return fmt.Sprintf("want 1 to %d printable characters, no space at either end", most)
	}
}

func literal(s string) string {
	if strings.Contains(s, "*") {
		return "the upstream's own name, so no *; leave it out to pass on the name asked for"
	}
	return ""
}

func modelName(s string) string {
	if strings.HasPrefix(s, "!") {
		return "an entry can't exclude: no ! in front"
	}
	if !strings.Contains(s, "*") {
		return ""
	}
	if _, err := abac.ParsePattern(s); err != nil {
		return err.Error()
	}
	return ""
}

func legacyPrefix(s string) string {
	const minted = "kt_live_"
	if s == "" || len(s) > 32 || strings.ContainsFunc(s, func(c rune) bool {
		return c > '~' || !alphanumeric(byte(c)) && !strings.ContainsRune("._~-", c)
	}) {
		return "want 1 to 32 of A-Z a-z 0-9 . _ ~ -"
	}
	if strings.HasPrefix(minted, s) || strings.HasPrefix(s, minted) {
		return minted + " is the prefix of tokens minted here: a legacy prefix can't overlap it"
	}
	return ""
}

func filePath(s string) string {
	if s == "" {
		return "want a path"
	}
	if strings.ContainsFunc(s, unicode.IsControl) || len(s) > 4096 {
		return "want a path of at most 4096 characters, none of them control characters"
	}
	return ""
}

func plainFile(s string) string {
	if strings.Contains(s, "://") || strings.HasPrefix(s, "sqlite:") {
		return "want the path of a SQLite file, without a scheme; another database belongs to kt-gateway control-plane"
	}
	return ""
}

// address is where to listen.
func address(s string) string {
	const want = "want host:port, such as 0.0.0.0:41002, [::1]:41002 or :41002; port 0 takes a free one"
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return want
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return want
	}
	if host == "" || hostForm(host) {
		return ""
	}
	return want
}

// hostForm says whether s is an IP address or could be a host's name.
func hostForm(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if s == "" || len(s) > 253 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		if !alphanumeric(c) && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// webURL is http or https, a host, a plain path, and nothing else.
func webURL(s string) string {
	const want = "want http://host or https://host, a port and a path if need be"
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.TrimSpace(s) != s:
		return want
	case u.Scheme != "http" && u.Scheme != "https":
		return want
	case u.User != nil:
		return "no user name or password in a URL: a secret stands by reference only"
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return "no query and no fragment in a URL; " + want
	case !hostForm(u.Hostname()) || u.Opaque != "" || strings.HasSuffix(u.Host, ":"):
		return want
	case u.RawPath != "" || strings.Contains(u.EscapedPath(), "%"):
		return "no escapes (%) in the path"
	}
	if p := strings.TrimSuffix(u.Path, "/"); p != "" && path.Clean(p) != p {
		return "a path without empty, . and .. segments"
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "want a port from 1 to 65535"
		}
	}
	return ""
}

func baseURL(s string) string {
	for _, endpoint := range []string{"/chat/completions", "/responses", "/embeddings"} {
		if strings.HasSuffix(strings.TrimSuffix(s, "/"), endpoint) {
			return "want the base that endpoints are added to, without " + endpoint
		}
	}
	return ""
}

// trimURL writes a checked URL in one way: no slash at the end, scheme in lower case.
func trimURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return s
	}
	return u.Scheme + "://" + strings.ToLower(u.Host) + strings.TrimSuffix(u.Path, "/")
}

// withVersion adds the path that every client expects to a URL that has none.
func withVersion(s string) string {
	if u, err := url.Parse(s); err == nil && u.Path == "" {
		return s + "/v1"
	}
	return s
}

// cleartext refuses http:// to a control plane that is elsewhere.
func cleartext(s string, insecure bool) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" || insecure {
		return ""
	}
	host := u.Hostname()
	if ip, err := netip.ParseAddr(host); strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback() {
		return ""
	}
	return "http:// beyond loopback sends tokens in clear: use https://, or set control_plane.insecure: true"
}
