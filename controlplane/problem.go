package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// problem is an error that the caller is told.
type problem struct {
	code    string
	message string
	param   string        // "" is null
	allow   []string      // of 405
	retry   time.Duration // of 503: when to try again; 0: in a second
}

func (p *problem) Error() string { return p.code + ": " + p.message }

func refuse(code, format string, args ...any) *problem {
	if _, ok := codes[code]; !ok {
		panic("BUG: no status for " + code)
	}
	return &problem{code: code, message: fmt.Sprintf(format, args...)}
}

func (p *problem) at(param string) *problem {
	p.param = param
	return p
}

// after says when the caller may try again.
func (p *problem) after(d time.Duration) *problem {
	p.retry = d
	return p
}

const (
	kindInvalid    = "invalid_request_error"
	kindPermission = "permission_error"
	kindAPI        = "api_error"
)

type meaning struct {
	status int
	kind   string
}

// codes are all the codes that the control plane answers with.
var codes = map[string]meaning{
	"invalid_api_key":            {http.StatusUnauthorized, kindInvalid},
	"token_not_yet_valid":        {http.StatusUnauthorized, kindInvalid},
	"token_expired":              {http.StatusUnauthorized, kindInvalid},
	"token_revoked":              {http.StatusUnauthorized, kindInvalid}, // of the caller's own token
	"multiple_credentials":       {http.StatusBadRequest, kindInvalid},
	"credential_in_query":        {http.StatusBadRequest, kindInvalid},
	"purpose_not_allowed":        {http.StatusForbidden, kindPermission},
	"profile_invalid":            {http.StatusForbidden, kindPermission},
	"unknown_endpoint":           {http.StatusNotFound, kindInvalid},
	"method_not_allowed":         {http.StatusMethodNotAllowed, kindInvalid},
	"invalid_request":            {http.StatusBadRequest, kindInvalid},
	"invalid_header":             {http.StatusBadRequest, kindInvalid},
	"invalid_json":               {http.StatusBadRequest, kindInvalid},
	"ambiguous_key":              {http.StatusBadRequest, kindInvalid},
	"unknown_parameter":          {http.StatusBadRequest, kindInvalid},
	"missing_required_parameter": {http.StatusBadRequest, kindInvalid},
	"invalid_value":              {http.StatusBadRequest, kindInvalid},
	"immutable_field":            {http.StatusBadRequest, kindInvalid},
	"unknown_budget":             {http.StatusBadRequest, kindInvalid},
	"widening_not_confirmed":     {http.StatusBadRequest, kindInvalid},
	"body_too_large":             {http.StatusRequestEntityTooLarge, kindInvalid},
	"unsupported_media_type":     {http.StatusUnsupportedMediaType, kindInvalid},
	"token_not_found":            {http.StatusNotFound, kindInvalid},
	"budget_not_found":           {http.StatusNotFound, kindInvalid},
	"team_not_found":             {http.StatusNotFound, kindInvalid},
	"gateway_not_found":          {http.StatusNotFound, kindInvalid},
	"budget_conflict":            {http.StatusConflict, kindInvalid},
	codeTargetRevoked:            {http.StatusConflict, kindInvalid},
	"token_not_quarantined":      {http.StatusConflict, kindInvalid},
	codeSessionClosed:            {http.StatusConflict, kindInvalid},
	"revision_mismatch":          {http.StatusPreconditionFailed, kindInvalid},
	"revision_gone":              {http.StatusGone, kindInvalid},
	"overloaded":                 {http.StatusServiceUnavailable, kindAPI},
	"draining":                   {http.StatusServiceUnavailable, kindAPI},
	"database_unavailable":       {http.StatusServiceUnavailable, kindAPI},
	"internal_error":             {http.StatusInternalServerError, kindAPI},
}

// codeTargetRevoked goes out as token_revoked, like the caller's own, with another status.
const codeTargetRevoked = "token_revoked (conflict)"

// codeSessionClosed ends a ledger's session.
const codeSessionClosed = "session_closed"

func (p *problem) meaning() meaning { return codes[p.code] }

func (p *problem) wireCode() string {
	code, _, _ := strings.Cut(p.code, " ")
	return code
}

type wireError struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	} `json:"error"`
}

// write answers with the problem.
func (p *problem) write(w http.ResponseWriter) {
	m := p.meaning()
	var e wireError
	e.Error.Message, e.Error.Type, e.Error.Code = scrub(p.message), m.kind, p.wireCode()
	if p.param != "" {
		param := scrub(p.param)
		e.Error.Param = &param
	}
	switch m.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", strings.Join(p.allow, ", "))
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", strconv.Itoa(int(max(p.retry, time.Second).Seconds())))
	}
	writeJSON(w, m.status, e)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("BUG: an answer does not encode: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(b.String()))
}

// scrub takes what looks like a token out of a text that may hold a caller's words.
func scrub(s string) string {
	for {
		before, after, found := strings.Cut(s, token.Prefix)
		if !found {
			return s
		}
		i := 0
		for i < len(after) && (after[i] >= '0' && after[i] <= '9' || after[i] >= 'A' && after[i] <= 'Z' || after[i] >= 'a' && after[i] <= 'z') {
			i++
		}
		s = before + "(a token)" + after[i:]
	}
}

// invalid turns what abac finds wrong with a profile into one problem that names
// all of it; param is the first.
func invalid(list []abac.Problem) *problem {
	if len(list) == 0 {
		return nil
	}
	texts := make([]string, len(list))
	for i := range list {
		texts[i] = list[i].Error()
	}
	return refuse("invalid_value", "%s", strings.Join(texts, "; ")).at(list[0].Path)
}
