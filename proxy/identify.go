package proxy

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

const challenge = "Send it as \"Authorization: Bearer kt_live_…\"; ask your administrator for one."

// identify finds the profile of the request's one credential and runs checks 1
// to 4. The order is DESIGN §5's: credential, route and method, the rest.
func (x *exchange) identify() error {
	digest, err := x.credential()
	if err == nil {
		err = x.lookUp(digest)
	}
	if err != nil {
		if f, ok := err.(*refusal); ok && f.row.code == codeInvalidAPIKey {
			x.reason, x.judged = abac.TokenUnknown, true
		}
		return err
	}
	x.ask = abac.Request{
		Now: x.began, OrgID: x.s.org(), GatewayID: x.rt.cfg.GatewayID, Team: str(x.head.team),
		DeletedTeams: x.s.deleted(),
	}
	if x.route != nil {
		x.ask.Action = x.route.action
	}
	badTeam := x.head.teams > 1 || x.head.teams == 1 && len(x.head.team) == 0
	if badTeam { // told only where every check passes
		x.ask.Team = deref(x.policy.Profile().Bindings.TeamID)
	}
	d := x.identified()
	// A call is decided once its model is known, or here, where it is denied.
	x.reason, x.judged = d.Reason, x.route != nil && (d.Reason != abac.Allowed || x.route.action != abac.Execute)
	var denied *refusal
	if d.Reason != abac.Allowed {
		denied = x.denial(d)
		if denied.row.status == 401 {
			return denied
		}
		x.misplaced()
	}
	if err := x.checkRoute(); err != nil {
		return err
	}
	if denied != nil {
		return denied
	}
	if badTeam {
		f := refuse(codeInvalidHeader, "X-Keeptrusts-Team must stand once, with a team's id, or not at all.")
		f.param = "X-Keeptrusts-Team"
		return f
	}
	return nil
}

// credential returns the digest of the one credential, which is of a token's form.
func (x *exchange) credential() (token.Digest, error) {
	h := &x.head
	legacy := x.rt.cfg.LegacyPrefixes
	if len(x.query) > 0 && holdsToken(x.query, legacy) {
		if h.credentials == 0 {
			return token.Digest{}, refuse(codeInvalidAPIKey, "No credential in a header: a token in the URL is never taken. %s Have the token in the URL rotated: URLs are kept in logs.", challenge)
		}
		return token.Digest{}, refuse(codeInQuery, "A token stands in the URL. Take it out and have it rotated: URLs are kept in logs.")
	}
	switch {
	case h.credentials == 0:
		return token.Digest{}, refuse(codeInvalidAPIKey, "You didn't provide an API key. "+challenge)
	case h.credentials > 1:
		return token.Digest{}, refuse(codeMultiple, "More than one of Authorization, api-key and x-api-key: send exactly one credential.")
	}
	b := h.credential
	if h.scheme {
		scheme, rest, ok := bytes.Cut(b, space)
		if !ok || !strings.EqualFold(str(scheme), "bearer") {
			x.s.tokens.CountMalformed()
			return token.Digest{}, refuse(codeInvalidAPIKey, "The Authorization header holds no bearer token. "+challenge)
		}
		b = trimOWS(rest)
	}
	// A minted token whose digest is known has a token's form: it need not be
	// looked at again. A legacy key's form is the config's, which may change.
	if len(b) == token.Len && string(b[:len(token.Prefix)]) == token.Prefix {
		if d := token.Sum(b); x.known(d) || token.WellFormed(b, legacy) {
			return d, nil
		}
	} else if token.WellFormed(b, legacy) {
		return token.Sum(b), nil
	}
	x.s.tokens.CountMalformed()
	return token.Digest{}, refuse(codeInvalidAPIKey, "Incorrect API key provided: it is not of a token's form. "+challenge)
}

// known takes what the cache has of a digest.
func (x *exchange) known(d token.Digest) bool {
	x.entry = x.s.tokens.Peek(&d, x.began)
	return x.entry != nil
}

func (x *exchange) lookUp(d token.Digest) error {
	if x.entry != nil {
		x.policy = x.entry.Policy
		return nil
	}
	e, err := x.s.tokens.Get(context.Background(), d)
	switch {
	case err == nil:
		x.entry, x.policy = e, e.Policy
		return nil
	case errors.Is(err, token.ErrUnknown):
		return refuse(codeInvalidAPIKey, "Incorrect API key provided: this gateway knows no such token. Ask your administrator for one.")
	case errors.Is(err, tokencache.ErrOverloaded):
		return refuse(codeOverloaded, "Too many tokens are being looked up; send the request again.")
	}
	return refuse(codeUnavailable, "The control plane can't be reached, and nothing fresh enough is known of this token; send the request again.")
}

func (x *exchange) checkRoute() error {
	if x.route == nil {
		hint := ""
		if !bytes.HasPrefix(x.path, []byte("/v1/")) {
			hint = " The base URL ends in /v1."
		}
		return refuse(codeUnknownEndpoint, "There is no %s here.%s These exist: %s.", x.pathForHumans(), hint, x.s.exist)
	}
	if x.method() != x.route.method {
		f := refuse(codeMethodNotAllowed, "%s takes %s.", x.route.path, x.route.allow)
		f.allow = x.route.allow
		return f
	}
	return nil
}

// pathForHumans never repeats what may be a secret.
func (x *exchange) pathForHumans() string {
	if q := x.quoted(string(x.path)); q == strconv.Quote(string(x.path)) {
		return string(x.path)
	}
	return "such path"
}

// misplaced counts a runtime token met here: it should never be in a client.
func (x *exchange) misplaced() {
	if x.policy.Profile().Purpose == abac.GatewayRuntime {
		x.s.metrics.misplaced.Inc()
		x.s.noteMisplaced(x)
	}
}

// holdsToken looks for a string of a token's form in a query, as written and
// unescaped.
func holdsToken(query []byte, legacy []string) bool {
	if containsToken(query, legacy) {
		return true
	}
	if bytes.IndexByte(query, '%') < 0 && bytes.IndexByte(query, '+') < 0 {
		return false
	}
	// Piece by piece, so that one bad escape hides nothing.
	for _, piece := range strings.FieldsFunc(string(query), func(r rune) bool { return r == '&' || r == ';' || r == '=' }) {
		for range 3 { // escaped more than once
			plain, err := url.QueryUnescape(piece)
			if err != nil {
				plain = lenientUnescape(piece)
			}
			if containsToken([]byte(plain), legacy) {
				return true
			}
			if plain == piece {
				break
			}
			piece = plain
		}
	}
	return false
}

// lenientUnescape decodes the escapes that are sound and leaves the others.
func lenientUnescape(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, ok1 := unhex(s[i+1])
			lo, ok2 := unhex(s[i+2])
			if ok1 && ok2 {
				b = append(b, hi<<4|lo)
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func containsToken(b []byte, legacy []string) bool {
	if hasRun(b, token.Prefix, token.Len, false) {
		return true
	}
	for _, p := range legacy {
		if p != "" && hasRun(b, p, token.MinLegacyLen, true) {
			return true
		}
	}
	return false
}

// hasRun looks for prefix, followed by token characters up to n bytes in all.
func hasRun(b []byte, prefix string, n int, legacy bool) bool {
	for {
		i := bytes.Index(b, []byte(prefix))
		if i < 0 || len(b)-i < n {
			return false
		}
		b = b[i:]
		ok := true
		for _, c := range b[len(prefix):n] {
			if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || legacy && strings.IndexByte("._~-", c) >= 0) {
				ok = false
				break
			}
		}
		if ok {
			return true
		}
		b = b[len(prefix):]
	}
}
