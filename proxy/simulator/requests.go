package simulator

import (
	"net/http"
	"time"
)

// What Requests remembers at most: exchanges, and bytes of their bodies.
const (
	maxKept      = 4096
	maxKeptBytes = 64 << 20
)

// Request is one exchange as the provider saw it. Its slices and maps are shared:
// read only.
type Request struct {
	Method string
	Path   string // as sent, still escaped
	Query  string
	Header http.Header
	Host   string
	Remote string // the caller's address and port: one for each connection
	Body   []byte
	At     time.Time
	Ended  time.Time // zero while it is open
	Gone   bool      // the caller left before the end
	Billed Tokens
}

// Tokens is what the provider bills. An error costs nothing, a whole answer all
// of it; a stream that was cut, or whose caller left, its prompt and what was sent.
type Tokens struct {
	Prompt, Completion int64
}

// Requests gives the exchanges so far, oldest first: the last 4,096, and fewer
// when their bodies exceed 64 MiB.
func (s *Simulator) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, len(s.ring))
	for i, x := range s.ring {
		all[i] = x.rec
	}
	return all
}

// Open gives the number of exchanges under way.
func (s *Simulator) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// Tokens gives what was billed since the start.
func (s *Simulator) Tokens() Tokens {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.billed
}

func (s *Simulator) begin(r *http.Request, body []byte) *exchange {
	x := &exchange{s: s, rec: Request{
		Method: r.Method,
		Path:   r.URL.EscapedPath(),
		Query:  r.URL.RawQuery,
		Header: r.Header.Clone(),
		Host:   r.Host,
		Remote: r.RemoteAddr,
		Body:   body,
		At:     time.Now(),
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	s.ring = append(s.ring, x)
	s.held += len(body)
	for len(s.ring) > maxKept || s.held > maxKeptBytes && len(s.ring) > 1 {
		s.held -= len(s.ring[0].rec.Body)
		s.ring[0] = nil
		s.ring = s.ring[1:]
	}
	return x
}

func (s *Simulator) end(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	x.rec.Ended = time.Now()
}

func (x *exchange) bill(t Tokens) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.rec.Billed.Prompt += t.Prompt
	x.rec.Billed.Completion += t.Completion
	x.s.billed.Prompt += t.Prompt
	x.s.billed.Completion += t.Completion
}

func (x *exchange) gone() {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.rec.Gone = true
}
