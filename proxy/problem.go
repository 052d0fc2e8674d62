package proxy

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/keeptrusts/gateway/abac"
)

// row is one line of the table of refusals: the only place where a code gets its
// status and type. docs/errors.md is made from it.
type row struct {
	code   string
	status int
	kind   string // "type" in the body
	when   string // for the documentation
	do     string // what the caller can do
}

// The types that a body's "type" may have.
const (
	kindInvalid    = "invalid_request_error"
	kindPermission = "permission_error"
	kindAPI        = "api_error"
	kindQuota      = "insufficient_quota"
	kindRate       = "rate_limit_error"
)

// The codes of refusals that are no reason of a decision.
const (
	codeInvalidAPIKey      = "invalid_api_key"
	codeMultiple           = "multiple_credentials"
	codeInQuery            = "credential_in_query"
	codeInvalidHeader      = "invalid_header"
	codeUnknownEndpoint    = "unknown_endpoint"
	codeMethodNotAllowed   = "method_not_allowed"
	codeModelNotFound      = "model_not_found"
	codeInvalidJSON        = "invalid_json"
	codeAmbiguousKey       = "ambiguous_key"
	codeMissingModel       = "missing_model"
	codeInvalidValue       = "invalid_value"
	codeUnsupportedField   = "unsupported_field"
	codeBodyTooLarge       = "body_too_large"
	codeMediaType          = "unsupported_media_type"
	codeRequestTimeout     = "request_timeout"
	codeInvalidRequest     = "invalid_request"
	codeExpectation        = "unknown_expectation"
	codeHeadersTooLarge    = "headers_too_large"
	codePriceUnknown       = "price_unknown"
	codeContextUnknown     = "context_unknown"
	codeBudgetExceeded     = "budget_exceeded"
	codeBudgetHeld         = "budget_held"
	codeRateLimited        = "rate_limited"
	codeUnavailable        = "control_plane_unavailable"
	codeUpstreamError      = "upstream_error"
	codeUpstreamTimeout    = "upstream_timeout"
	codeUpstreamCredential = "upstream_credential_rejected"
	codeDraining           = "draining"
	codeOverloaded         = "overloaded"
	codeInternal           = "internal_error"
)

var rows = []row{
	{codeInvalidAPIKey, 401, kindInvalid, "no token, a malformed one, or one that nobody has", "send a token as `Authorization: Bearer kt_live_…`; ask your administrator for one"},
	{"token_not_yet_valid", 401, kindInvalid, "the token's `not_before` has not come", "wait, or ask your administrator for a token that is valid now"},
	{"token_expired", 401, kindInvalid, "the token's `expires_at` has passed", "ask your administrator to rotate the token"},
	{"token_revoked", 401, kindInvalid, "the token was revoked or quarantined", "ask your administrator for a new token"},
	{codeMultiple, 400, kindInvalid, "more than one of `Authorization`, `api-key` and `x-api-key`, equal or not", "send exactly one credential"},
	{codeInQuery, 400, kindInvalid, "a token stands in the query beside a credential", "take the token out of the URL, and have it rotated: URLs are kept in logs"},
	{"profile_invalid", 403, kindPermission, "the token's profile has something that this gateway does not know or does not enforce", "ask your administrator to mend the profile"},
	{"purpose_not_allowed", 403, kindPermission, "the token's purpose is not for this plane", "use a token of purpose `general` or `integration` here"},
	{"gateway_mismatch", 403, kindPermission, "the token is bound to another gateway", "use the gateway that it is bound to"},
	{"team_mismatch", 403, kindPermission, "the asserted team is not the token's, or the targets are open to other teams only", "leave out `X-Keeptrusts-Team` or name the token's own team"},
	{"model_not_allowed", 403, kindPermission, "the profile does not grant the model", "use a model that `GET /v1/models` lists, or ask your administrator to widen the token"},
	{"provider_not_allowed", 403, kindPermission, "the profile grants none of the targets that serve the model", "ask your administrator to widen the token's providers"},
	{codeModelNotFound, 404, kindInvalid, "no entry of the configuration serves the model", "use a model that `GET /v1/models` lists"},
	{codeUnknownEndpoint, 404, kindInvalid, "there is no such path, or it is not written canonically", "see the paths in the message; a base URL ends in `/v1`"},
	{codeMethodNotAllowed, 405, kindInvalid, "the path has no such method", "use a method that `Allow` names"},
	{codeInvalidHeader, 400, kindInvalid, "`X-Keeptrusts-Team` is empty or stands twice", "send it once with a team's id, or leave it out"},
	{codeInvalidJSON, 400, kindInvalid, "the body is not one strict JSON object in UTF-8", "send exactly one JSON object"},
	{codeAmbiguousKey, 400, kindInvalid, "a key stands twice, or is spelt so that some parsers read it as another", "send each key once, in its own spelling"},
	{codeMissingModel, 400, kindInvalid, "the body names no model", "send `model`"},
	{codeInvalidValue, 400, kindInvalid, "a field that the gateway reads has a wrong type or range", "see `param`"},
	{codeUnsupportedField, 400, kindInvalid, "a field would route the call, change its price, or name an object that the provider keeps", "leave out the field that `param` names"},
	{codeBodyTooLarge, 413, kindInvalid, "the body is larger than `limits.request_body`", "send a smaller body"},
	{codeMediaType, 415, kindInvalid, "the `Content-Type` is not JSON, or there is a `Content-Encoding`", "send `Content-Type: application/json`, uncompressed"},
	{codeRequestTimeout, 408, kindInvalid, "the head or the body came too slowly", "send the request again"},
	{codeInvalidRequest, 400, kindInvalid, "the HTTP framing could be read in two ways, or is none that is served; the connection closes", "use an ordinary HTTP/1.1 client"},
	{codeExpectation, 417, kindInvalid, "an `Expect` other than `100-continue`; the connection closes", "leave the header out"},
	{codeHeadersTooLarge, 431, kindInvalid, "the header block is larger than `limits.headers`; the connection closes", "send fewer headers"},
	{codePriceUnknown, 403, kindPermission, "an enforced budget in usd, and a target that is left has no price for the model", "tell the gateway's operator the key that the message names"},
	{codeContextUnknown, 403, kindPermission, "an enforced budget in usd or tokens, input that is not in the body, and a model without `context`", "send the input in the body, or tell the gateway's operator the key that the message names"},
	{codeBudgetExceeded, 429, kindQuota, "a budget does not bear what the call may cost at most; `x-should-retry: false`", "ask for less, wait until the window reopens (`Retry-After`, where it does), or ask your administrator for more"},
	{codeBudgetHeld, 429, kindRate, "what is left of a budget is held by calls that run", "try again after `Retry-After`"},
	{codeRateLimited, 429, kindRate, "a rate limit of the token at this gateway is reached", "try again after `Retry-After`; `x-ratelimit-*` say when"},
	{codeUnavailable, 503, kindAPI, "the control plane can't be reached, and nothing fresh enough is known of the token, or a budget's lease is used up", "try again after `Retry-After`"},
	{codeUpstreamError, 502, kindAPI, "the provider could not be reached, or broke off", "try again; if it stays, tell the gateway's operator"},
	{codeUpstreamCredential, 502, kindAPI, "the provider refused the gateway's own credential", "tell the gateway's operator: your token is not the cause"},
	{codeUpstreamTimeout, 504, kindAPI, "the provider did not answer within `limits.first_byte`", "try again, or ask for less"},
	{codeDraining, 503, kindAPI, "the gateway is shutting down", "try again after `Retry-After`: another gateway will answer"},
	{codeOverloaded, 503, kindAPI, "a limit of the gateway is reached", "try again after `Retry-After`"},
	{codeInternal, 500, kindAPI, "a fault of the gateway's own", "tell the gateway's operator the `x-request-id`"},
}

var rowByCode = func() map[string]*row {
	m := make(map[string]*row, len(rows))
	for i := range rows {
		m[rows[i].code] = &rows[i]
	}
	return m
}()

// refusal is an error that the caller is told. Rooms return it; one place writes it.
type refusal struct {
	row        *row
	message    string
	param      string
	allow      string // for 405
	retryAfter int    // seconds; 0: no header
	final      bool   // sending it again soon is of no use
	close      bool   // the connection can't be used again
}

func (r *refusal) Error() string { return r.row.code + ": " + r.message }

// refuse makes a refusal. A code that is not in the table is a fault of ours.
func refuse(code, format string, args ...any) *refusal {
	r := rowByCode[code]
	if r == nil {
		panic("BUG: no row for " + code)
	}
	f := &refusal{row: r, message: format}
	if len(args) > 0 {
		f.message = fmt.Sprintf(format, args...)
	}
	if r.status == 503 {
		f.retryAfter = 1
	}
	return f
}

// closing marks that the connection can't be used again.
func (r *refusal) closing() *refusal {
	r.close = true
	return r
}

// denial tells a caller why a decision went against it: which profile, what it
// may use instead, whom to ask.
func (x *exchange) denial(d abac.Decision) *refusal {
	p, r := x.policy, &x.ask
	prof := p.Profile()
	b := &prof.Bindings
	switch d.Reason {
	case abac.TokenUnknown:
		return refuse(codeInvalidAPIKey, "Incorrect API key provided: this gateway knows no such token. Ask your administrator for one.")
	case abac.TokenRevoked:
		return refuse("token_revoked", "Token %s was %s. Ask your administrator for a new one.", prof.ID, x.stopped())
	case abac.TokenNotYetValid:
		return refuse("token_not_yet_valid", "Token %s is not valid yet (not_before %s).", prof.ID, prof.NotBefore.UTC().Format("2006-01-02T15:04:05Z"))
	case abac.TokenExpired:
		return refuse("token_expired", "Token %s expired at %s. Ask your administrator to rotate it.", prof.ID, prof.ExpiresAt.UTC().Format("2006-01-02T15:04:05Z"))
	case abac.PurposeNotAllowed:
		return refuse("purpose_not_allowed", "Token %s has purpose %q, which identifies a gateway to its control plane and can't call models. Use a token of purpose \"general\" or \"integration\" here, and ask your administrator to rotate this one: it should not be in a client.", prof.ID, prof.Purpose)
	case abac.GatewayMismatch:
		return refuse("gateway_mismatch", "Token %s is bound to gateway %q; this is %q. Use that gateway, or ask your administrator for a token of this one.", prof.ID, deref(b.GatewayID), r.GatewayID)
	case abac.TeamMismatch:
		if r.DeletedTeams.Has(deref(b.TeamID)) {
			return refuse("team_mismatch", "Token %s belongs to team %s, which is deleted. Ask your administrator for a token of another team.", prof.ID, quotedOrNone(b.TeamID))
		}
		return refuse("team_mismatch", "Token %s belongs to team %s, and %s. Name its own team in X-Keeptrusts-Team or none, or ask your administrator.", prof.ID, quotedOrNone(b.TeamID), x.teamFault(b.TeamID))
	case abac.ModelNotAllowed:
		f := refuse("model_not_allowed", "Token %s may not use model %s. It may use: %s. Ask your administrator to widen it.", prof.ID, x.quoted(r.Model), granted(b.Models, prof.Purpose))
		f.param = "model"
		return f
	case abac.ModelNotFound:
		f := refuse(codeModelNotFound, "The model %s does not exist on this gateway. GET /v1/models lists those that token %s may use.", x.quoted(r.Model), prof.ID)
		f.param = "model"
		return f
	case abac.ProviderNotAllowed:
		return refuse("provider_not_allowed", "Token %s may not use a provider that serves model %s. It may use: %s. Ask your administrator to widen it.", prof.ID, x.quoted(r.Model), granted(b.Providers, prof.Purpose))
	}
	return refuse("profile_invalid", "The profile of token %s can't be used: %s. Ask your administrator to mend it.", prof.ID, p.Problem())
}

func (x *exchange) stopped() string {
	switch {
	case x.entry.Stopped():
		return "revoked or quarantined"
	case x.policy.Profile().Status == abac.Quarantined:
		return "quarantined"
	}
	return "revoked"
}

func (x *exchange) teamFault(bound *string) string {
	if r := &x.ask; r.Team != deref(bound) && r.Team != "" {
		return "the request asserts team " + x.quoted(r.Team)
	}
	return "the targets of model " + x.quoted(x.ask.Model) + " are open to other teams only"
}

// quoted repeats what a caller sent, unless it is long or may be a secret.
func (x *exchange) quoted(s string) string {
	if len(s) > maxClaim || strings.Contains(s, "kt_") || strings.Contains(s, "sk-") || containsToken([]byte(s), x.rt.cfg.LegacyPrefixes) {
		return "(not repeated)"
	}
	return strconv.Quote(s)
}

func granted(filter []string, p abac.Purpose) string {
	if filter == nil && p == abac.General {
		return "any"
	}
	if len(filter) == 0 {
		return "none"
	}
	s := append([]string(nil), filter...)
	sort.Strings(s)
	return strings.Join(s, ", ")
}

func quotedOrNone(s *string) string {
	if s == nil {
		return "none"
	}
	return fmt.Sprintf("%q", *s)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// ErrorsMarkdown is docs/errors.md, made from the table.
func ErrorsMarkdown() string {
	var b strings.Builder
	b.WriteString(`# Errors

Made from the table in ` + "`proxy/problem.go`" + ` by ` + "`make docs`" + `; a test holds the two together. Every error of the data
plane has OpenAI's shape, ` + "`{\"error\":{\"message\",\"type\",\"param\",\"code\"}}`" + `, and an ` + "`x-request-id`" + ` that the log
line of the request has too. An answer of the provider's own passes with its own status and body.

| code | status | type | when | what to do |
|---|---|---|---|---|
`)
	for _, r := range rows {
		fmt.Fprintf(&b, "| `%s` | %d | `%s` | %s | %s |\n", r.code, r.status, r.kind, r.when, r.do)
	}
	return b.String()
}
