package controlplane

import (
	"crypto/subtle"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// who is a set of callers.
type who uint8

const (
	administrator who = 1 << iota
	runtime           // tokens with purpose gateway_runtime
	integration       // tokens with purpose integration
)

// caller is who makes a request: the administrator, or a token.
type caller struct {
	admin bool
	token *store.Token
}

const notBeforeLeeway = 60 * time.Second

// name is what the audit log and the request log call the caller.
func (c caller) name() string {
	switch {
	case c.admin:
		return "administrator"
	case c.token != nil:
		return c.token.Profile.ID
	}
	return ""
}

func (c caller) org() string     { return c.token.Profile.OrgID }
func (c caller) gateway() string { return *c.token.Profile.Bindings.GatewayID }

// identify finds whose the request's one credential is.
func (s *Server) identify(r *http.Request) (caller, error) {
	secret, err := s.credential(r)
	if err != nil {
		return caller{}, err
	}
	digest := secret.Digest()
	if subtle.ConstantTimeCompare(digest[:], s.admin[:]) == 1 && !s.locked {
		return caller{admin: true}, nil
	}
	if !token.WellFormed([]byte(secret.Reveal()), s.legacyPrefixes()) {
		return caller{}, errUnknownKey
	}
	t, _, err := s.store.ByDigest(r.Context(), digest)
	if errors.Is(err, store.ErrNotFound) {
		return caller{}, errUnknownKey
	}
	if err != nil {
		return caller{}, err
	}
	return caller{token: &t}, nil
}

var errUnknownKey = refuse("invalid_api_key", "Incorrect API key provided: it is neither the admin token nor a token that exists here. Administration takes `Authorization: Bearer` with the admin token.")

// credential takes the one credential out of the request, under the data plane's rules.
func (s *Server) credential(r *http.Request) (token.Secret, error) {
	inQuery := s.queryHoldsToken(r.URL.RawQuery)
	given, count := "", 0
	malformed := false
	for _, v := range r.Header["Authorization"] {
		count++
		scheme, rest, _ := strings.Cut(v, " ")
		given = strings.Trim(rest, " ")
		malformed = !strings.EqualFold(scheme, "Bearer")
	}
	for _, name := range [...]string{"Api-Key", "X-Api-Key"} {
		for _, v := range r.Header[name] {
			count++
			given = strings.Trim(v, " ")
		}
	}
	switch {
	case count > 1:
		return token.Secret{}, refuse("multiple_credentials", "The request has %d credentials; send exactly one of Authorization, api-key and x-api-key, once.", count)
	case count == 1 && inQuery:
		return token.Secret{}, refuse("credential_in_query", "The query holds a token. Take it out of the URL and rotate it: URLs are kept in logs.")
	case count == 0 || malformed || given == "" || strings.ContainsAny(given, " \t"):
		return token.Secret{}, refuse("invalid_api_key", "There is no usable credential: send `Authorization: Bearer` with the admin token, or with a gateway's or an integration's token.")
	}
	return token.NewSecret(given), nil
}

func (s *Server) queryHoldsToken(query string) bool {
	if query == "" {
		return false
	}
	if plain, err := url.QueryUnescape(query); err == nil && s.holdsToken(plain) {
		return true
	}
	return s.holdsToken(query)
}

// holdsToken says whether a text holds a string of a token's form.
func (s *Server) holdsToken(text string) bool { return holdsToken(text, s.legacyPrefixes()) }

func holdsToken(text string, legacy []string) bool {
	holds := func(prefix string, length int) bool {
		for at := 0; ; at++ {
			i := strings.Index(text[at:], prefix)
			if i < 0 || prefix == "" {
				return false
			}
			at += i
			end := at
			for end < len(text) && end-at < length && tokenByte(text[end]) {
				end++
			}
			if token.WellFormed([]byte(text[at:end]), legacy) {
				return true
			}
		}
	}
	if holds(token.Prefix, token.Len) {
		return true
	}
	for _, p := range legacy {
		if holds(p, 256) {
			return true
		}
	}
	return false
}

func tokenByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' ||
		c == '.' || c == '_' || c == '~' || c == '-'
}

// authorise says whether the caller may use an endpoint that is open to allowed.
func (s *Server) authorise(c caller, allowed who) error {
	if c.admin {
		switch {
		case allowed&administrator != 0:
		case allowed&runtime == 0:
			return refuse("purpose_not_allowed", "This endpoint tells a token of its own usage: it takes a token with purpose integration. The administrator asks GET /v1/usage?token_id=….")
		default:
			return refuse("purpose_not_allowed", "This endpoint is a gateway's: it takes a token with purpose gateway_runtime, not the admin token. Mint one with POST /v1/tokens and bindings.gateway_id.")
		}
		return nil
	}
	p := &c.token.Profile
	if err := standing(p, s.now()); err != nil {
		return err
	}
	if problem := abac.Compile(p).Problem(); problem != "" {
		return refuse("profile_invalid", "The profile of token %s can't be used: %s. Ask your administrator to mend it.", p.ID, problem)
	}
	switch {
	case p.Purpose == abac.GatewayRuntime && allowed&runtime != 0,
		p.Purpose == abac.Integration && allowed&integration != 0:
		return nil
	}
	return refuse("purpose_not_allowed", "Token %s has purpose %s: %s", p.ID, p.Purpose, instead(p.Purpose))
}

// standing is check 1 of a decision, for the control plane's own callers.
func standing(p *abac.Profile, now time.Time) error {
	switch {
	case p.Status != abac.Active:
		return refuse("token_revoked", "Token %s was %s. Ask your administrator for a new one.", p.ID, p.Status)
	case p.NotBefore != nil && now.Add(notBeforeLeeway).Before(*p.NotBefore):
		return refuse("token_not_yet_valid", "Token %s is not valid before %s.", p.ID, p.NotBefore.UTC().Format(time.RFC3339))
	case p.ExpiresAt != nil && !now.Before(*p.ExpiresAt):
		return refuse("token_expired", "Token %s expired at %s. Ask your administrator to rotate it.", p.ID, p.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return nil
}

func instead(p abac.Purpose) string {
	switch p {
	case abac.GatewayRuntime:
		return "it may use GET /v1/whoami and /v1/runtime/… here, and nothing on a gateway. Administration takes the admin token."
	case abac.Integration:
		return "it may use GET /v1/whoami and GET /v1/whoami/usage here, and call models at a gateway. Administration takes the admin token."
	}
	return "it calls models at a gateway and can do nothing on the control plane. Administration takes the admin token; ask your administrator."
}
