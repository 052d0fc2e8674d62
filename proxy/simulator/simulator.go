// Package simulator is a provider that needs no key: OpenAI's chat completions
// on the wire, with answers, delays and misbehaviour scripted by the request
// itself (see Script). It is for `dev` and for tests.
//
// Its usage is a function of the call alone, so that a test can say what a
// request must cost:
//
//	prompt_tokens      3, and for each message 4, one for each word of its text
//	                   (split at white space), and 85 for each part that is no text
//	completion_tokens  one for each piece of content or tool arguments sent, over
//	                   all choices, and the script's reasoning_tokens once
//
// Content is cut into one piece a word, or into as many as the script's chunks
// says. A stream sends one piece a chunk, and max_tokens is a number of pieces.
package simulator

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxBody bounds what is read of one request, in bytes.
const maxBody = 64 << 20

// created is the birthday of every model in the list.
const created = 1767225600

// Options says what the provider knows.
type Options struct {
	// Models are the names that it serves. nil: it serves every name, and lists
	// none. Empty and not nil: it serves none.
	Models []string
	// APIKey is the bearer that it wants. Empty: it takes any, and none.
	APIKey string
}

// Simulator is the provider, an http.Handler for POST /v1/chat/completions and
// GET /v1/models[/{id}]. Safe for concurrent use.
type Simulator struct {
	options Options

	mu     sync.Mutex
	ring   []*exchange // oldest first
	held   int         // bytes of bodies in ring
	open   int
	billed Tokens
}

// New makes a provider that keeps no reference to o's slices.
func New(o Options) *Simulator {
	if o.Models != nil {
		o.Models = append([]string{}, o.Models...)
	}
	return &Simulator{options: o}
}

// ServeHTTP answers as the provider would. It returns within milliseconds when
// the caller leaves.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	x := s.begin(r, body)
	defer s.end(x)
	x.w, x.r = w, r
	x.headers()
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			x.fail(problem{status: http.StatusRequestEntityTooLarge, Message: "Request body is too large.", Type: "invalid_request_error"})
			return
		}
		x.gone()
		return
	}
	if p := s.authenticate(r); p != nil {
		x.fail(*p)
		return
	}
	switch path := r.URL.Path; {
	case path == "/v1/chat/completions":
		if x.method(http.MethodPost) {
			x.chat(body)
		}
	case path == "/v1/models":
		if x.method(http.MethodGet) {
			x.list()
		}
	case strings.HasPrefix(path, "/v1/models/"):
		if x.method(http.MethodGet) {
			x.model(strings.TrimPrefix(path, "/v1/models/"))
		}
	default:
		x.fail(problem{
			status:  http.StatusNotFound,
			Message: fmt.Sprintf("Invalid URL (%s %s)", r.Method, path),
			Type:    "invalid_request_error",
		})
	}
}

func (s *Simulator) serves(model string) bool {
	if s.options.Models == nil {
		return true
	}
	for _, m := range s.options.Models {
		if m == model {
			return true
		}
	}
	return false
}

func (s *Simulator) authenticate(r *http.Request) *problem {
	if s.options.APIKey == "" {
		return nil
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return &problem{
			status:  http.StatusUnauthorized,
			Message: "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
			Type:    "invalid_request_error",
		}
	}
	if subtle.ConstantTimeCompare([]byte(key), []byte(s.options.APIKey)) == 1 {
		return nil
	}
	return &problem{
		status:  http.StatusUnauthorized,
		Message: "Incorrect API key provided: " + mask(key) + ". You can find your API key at https://platform.openai.com/account/api-keys.",
		Type:    "invalid_request_error",
		Code:    "invalid_api_key",
	}
}

// mask shows of a key what the provider shows of it: its ends.
func mask(key string) string {
	if len(key) < 16 {
		return strings.Repeat("*", len(key))
	}
	return key[:4] + strings.Repeat("*", len(key)-8) + key[len(key)-4:]
}

// exchange is one request and its answer.
type exchange struct {
	s   *Simulator
	w   http.ResponseWriter
	r   *http.Request
	rec Request // guarded by s.mu

	script Script
	bySelf bool // it was us who ended it early
}

// headers sets what the provider sends with every answer, also what a gateway
// must not hand on: account ids and cookies.
func (x *exchange) headers() {
	h := x.w.Header()
	h.Set("Openai-Processing-Ms", "7")
	h.Set("Openai-Version", "2020-10-01")
	h.Set("Openai-Organization", "org-simulator")
	h.Set("Openai-Project", "proj_simulator")
	h.Set("X-Request-Id", "req_"+strings.ToLower(rand.Text()))
	h.Set("X-Ratelimit-Limit-Requests", "10000")
	h.Set("X-Ratelimit-Limit-Tokens", "2000000")
	h.Set("X-Ratelimit-Remaining-Requests", "9999")
	h.Set("X-Ratelimit-Remaining-Tokens", "1999900")
	h.Set("X-Ratelimit-Reset-Requests", "6ms")
	h.Set("X-Ratelimit-Reset-Tokens", "3ms")
	h.Set("Access-Control-Expose-Headers", "X-Request-ID")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains; preload")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Set-Cookie", "__cf_bm=simulator; path=/; HttpOnly; Secure; SameSite=None")
}

func (x *exchange) method(want string) bool {
	if x.r.Method == want {
		return true
	}
	x.w.Header().Set("Allow", want)
	x.fail(problem{
		status:  http.StatusMethodNotAllowed,
		Message: fmt.Sprintf("Not allowed to %s on %s. (HINT: Perhaps you meant to use a different HTTP method?)", x.r.Method, x.r.URL.Path),
		Type:    "invalid_request_error",
		Code:    "method_not_supported",
	})
	return false
}

type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (x *exchange) list() {
	data := []modelObject{}
	for _, m := range x.s.options.Models {
		data = append(data, modelObject{m, "model", created, "simulator"})
	}
	x.json(http.StatusOK, map[string]any{"object": "list", "data": data}, "  ")
}

func (x *exchange) model(id string) {
	if !x.s.serves(id) {
		x.fail(unknownModel(id))
		return
	}
	x.json(http.StatusOK, modelObject{id, "model", created, "simulator"}, "  ")
}

// json sends v indented, as the provider does.
func (x *exchange) json(status int, v any, indent string) {
	x.w.Header().Set("Content-Type", "application/json")
	x.send(status, append(encode(v, indent), '\n'))
}

func (x *exchange) send(status int, b []byte) {
	if x.script.Gzip {
		x.w.Header().Set("Content-Encoding", "gzip")
		b = compress(b)
	}
	x.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	x.commit(status)
	if x.script.CutAfterChunks != nil {
		x.cut(b[:len(b)/2])
		return
	}
	_, _ = x.w.Write(b) // the caller may be gone: nobody to tell
}

// commit sends the header, the script's last.
func (x *exchange) commit(status int) {
	h := x.w.Header()
	if x.script.RetryAfter != "" {
		h.Set("Retry-After", x.script.RetryAfter)
	}
	for k, v := range x.script.Headers {
		h.Set(k, v)
	}
	x.w.WriteHeader(status)
}

// wait sleeps for ms milliseconds; false when the caller left meanwhile.
func (x *exchange) wait(ms int) bool {
	if ms <= 0 {
		return x.r.Context().Err() == nil
	}
	t := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.r.Context().Done():
		return false
	}
}

// encode gives JSON with characters beyond ASCII as they are, as the provider
// writes them; json.Marshal alone would escape <, > and &.
func encode(v any, indent string) []byte {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		panic("BUG: encode an answer: " + err.Error())
	}
	return []byte(strings.TrimSuffix(b.String(), "\n"))
}
