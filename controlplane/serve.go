package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/controlplane/store"
)

const maxBody = 1 << 20 // bytes

// call is one request on its way through the server.
type call struct {
	r     *http.Request
	w     http.ResponseWriter
	id    string // x-request-id
	began time.Time
	who   caller
	route *route // nil until found
	token string // the {id} of the path
	body  object // nil: there was none

	streams bool // the answer has begun and is the handler's to end
}

// route is one endpoint.
type route struct {
	method  string
	path    string // "{id}" stands for one segment
	open    who
	takes   takes
	handler func(*Server, *call) (status int, answer any, err error)
}

// takes is what an endpoint may be sent beside its path.
type takes int

const (
	nothing   takes = 0
	withBody  takes = 1 // it is required; else none or an object may come
	withQuery takes = 2 // the handler reads the parameters; else none may come
)

func routes() []route {
	return []route{
		{"POST", "/v1/tokens", administrator, withBody, (*Server).createToken},
		{"GET", "/v1/tokens", administrator, withQuery, (*Server).listTokens},
		{"POST", "/v1/tokens/identify", administrator, withBody, (*Server).identifyToken},
		{"POST", "/v1/tokens/import", administrator, nothing, (*Server).importTokens},
		{"GET", "/v1/tokens/{id}", administrator, nothing, (*Server).showToken},
		{"PATCH", "/v1/tokens/{id}", administrator, withBody, (*Server).patchToken},
		{"DELETE", "/v1/tokens/{id}", administrator, nothing, (*Server).revokeToken},
		{"POST", "/v1/tokens/{id}/rotate", administrator, nothing, (*Server).rotateToken},
		{"POST", "/v1/tokens/{id}/revoke", administrator, nothing, (*Server).revokeToken},
		{"POST", "/v1/tokens/{id}/quarantine", administrator, nothing, (*Server).quarantineToken},
		{"POST", "/v1/tokens/{id}/release", administrator, nothing, (*Server).releaseToken},
		{"GET", "/v1/budgets", administrator, withQuery, (*Server).listBudgets},
		{"GET", "/v1/budgets/{id}", administrator, withQuery, (*Server).showBudget},
		{"PUT", "/v1/budgets/{id}", administrator, withBody | withQuery, (*Server).putBudget},
		{"POST", "/v1/budgets/{id}/top-up", administrator, withBody | withQuery, (*Server).topUpBudget},
		{"GET", "/v1/teams", administrator, withQuery, (*Server).listTeams},
		{"GET", "/v1/teams/{id}", administrator, withQuery, (*Server).showTeam},
		{"PUT", "/v1/teams/{id}", administrator, withQuery, (*Server).putTeam},
		{"DELETE", "/v1/teams/{id}", administrator, withQuery, (*Server).deleteTeam},
		{"GET", "/v1/usage", administrator, withQuery, (*Server).listUsage},
		{"GET", "/v1/gateways", administrator, withQuery, (*Server).listGateways},
		{"GET", "/v1/gateways/{id}", administrator, withQuery, (*Server).showGateway},
		{"PUT", "/v1/gateways/{id}", administrator, withQuery, (*Server).putGateway},
		{"DELETE", "/v1/gateways/{id}", administrator, withQuery, (*Server).deleteGateway},
		{"GET", "/v1/audit", administrator, withQuery, (*Server).listAudit},
		{"GET", "/v1/whoami", administrator | runtime | integration, nothing, (*Server).whoami},
		{"GET", "/v1/whoami/usage", integration, withQuery, (*Server).ownUsage},
		{"POST", "/v1/runtime/resolve", runtime, withBody, (*Server).resolveToken},
		{"GET", "/v1/runtime/snapshot", runtime, withQuery, (*Server).tellSnapshot},
		{"GET", "/v1/runtime/watch", runtime, withQuery, (*Server).watchRuntime},
		{"POST", "/v1/runtime/report", runtime, withBody, (*Server).takeReport},
		{"POST", "/v1/runtime/leases", runtime, withBody, (*Server).leaseMoney},
		{"POST", "/v1/runtime/settlements", runtime, withBody, (*Server).settleMoney},
	}
}

// serve takes one request from its first check to its log line.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	c := &call{r: r, w: w, id: "req_" + rand.Text(), began: s.now()}
	w.Header().Set("X-Request-Id", c.id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if probe := s.probe(c); probe {
		return
	}
	status, code := http.StatusOK, ""
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
				panic(v)
			}
			status, code = http.StatusInternalServerError, "internal_error"
			s.log.Error("panic", zap.String("request_id", c.id), zap.String("panic", scrub(fmt.Sprint(v))), zap.Stack("stack"))
			if c.streams {
				panic(http.ErrAbortHandler)
			}
			refuse(code, "The control plane failed; its log has more under %s.", c.id).write(w)
		}
		s.logLine(c, status, code)
	}()
	n, answer, err := s.handle(c)
	if err != nil {
		p := s.public(c, err)
		status, code = p.meaning().status, p.wireCode()
		p.write(w)
		return
	}
	if n == statusWritten {
		return
	}
	status = n
	if n == http.StatusNoContent {
		w.WriteHeader(n)
		return
	}
	writeJSON(w, n, answer)
}

// handle is the straight line: credential, route and method, profile, query, body, endpoint.
func (s *Server) handle(c *call) (int, any, error) {
	if !strings.HasPrefix(c.r.RequestURI, "/") && c.r.RequestURI != "" {
		return 0, nil, refuse("invalid_request", "The request target must be a path.")
	}
	var err error
	if c.who, err = s.identify(c.r); err != nil {
		return 0, nil, err
	}
	if err := s.find(c); err != nil {
		return 0, nil, err
	}
	if err := s.authorise(c.who, c.route.open); err != nil {
		return 0, nil, err
	}
	// What is not understood may have been meant to restrain: dry_run revokes nothing.
	if c.route.takes&withQuery == 0 {
		if _, err := query(c); err != nil {
			return 0, nil, err
		}
	}
	if !c.route.lines() {
		if err := s.readBody(c); err != nil {
			return 0, nil, err
		}
	}
	status, answer, err := c.route.handler(s, c)
	if err == nil && c.route.used() {
		s.tellOwn(c.r.Context())
	}
	return status, answer, err
}

// find looks the endpoint up by its path, which must be written canonically.
func (s *Server) find(c *call) error {
	path := c.r.URL.EscapedPath()
	segments := strings.Split(path, "/")
	var allow []string
	for i := range s.routes {
		rt := &s.routes[i]
		id, ok := match(strings.Split(rt.path, "/"), segments)
		if !ok {
			continue
		}
		// An earlier route's path may hide a later one's: identify is no id.
		if len(allow) > 0 && rt.path != c.route.path {
			break
		}
		c.route, c.token = rt, id
		if rt.method == c.r.Method || rt.method == "GET" && c.r.Method == "HEAD" {
			return nil
		}
		allow = append(allow, rt.method)
	}
	if len(allow) > 0 {
		p := refuse("method_not_allowed", "%s takes %s.", c.route.path, strings.Join(allow, ", "))
		if slices.Contains(allow, "GET") {
			allow = append(allow, "HEAD")
		}
		p.allow = allow
		return p
	}
	return refuse("unknown_endpoint", "There is no such endpoint on the control plane. There are: %s.%s", s.endpoints(), missingV1(path))
}

func missingV1(path string) string {
	if strings.HasPrefix(path, "/v1/") {
		return ""
	}
	return " The base URL ends in /v1."
}

func (s *Server) endpoints() string {
	list := make([]string, len(s.routes))
	for i, rt := range s.routes {
		list[i] = rt.method + " " + rt.path
	}
	return strings.Join(list, ", ")
}

func match(pattern, path []string) (id string, ok bool) {
	if len(pattern) != len(path) {
		return "", false
	}
	for i, p := range pattern {
		switch {
		case p == "{id}" && canonical(path[i]):
			id = path[i]
		case p != path[i]:
			return "", false
		}
	}
	return id, true
}

// canonical says whether a segment is written in the one way that is served.
func canonical(segment string) bool {
	return segment != "" && segment != "." && segment != ".." && !strings.ContainsAny(segment, "%;\\")
}

// lines says whether the endpoint reads its body itself, line by line.
func (r *route) lines() bool { return r.path == "/v1/tokens/import" }

// used says whether what the endpoint changes may be used as soon as it answers. One
// that stops something waits by itself, for all gateways.
func (r *route) used() bool {
	if r.open != administrator || strings.HasSuffix(r.path, "/revoke") || strings.HasSuffix(r.path, "/quarantine") {
		return false
	}
	return r.method == "POST" || r.method == "PATCH" || r.method == "PUT"
}

// mostBody is how long a body may be, in bytes.
func (r *route) mostBody() int64 {
	switch r.path {
	case "/v1/runtime/leases", "/v1/runtime/settlements":
		return maxLedgerBody
	}
	return maxBody
}

// readBody reads the body, where the endpoint may have one.
func (s *Server) readBody(c *call) error {
	h := c.r.Header
	if h.Get("Content-Encoding") != "" {
		return refuse("unsupported_media_type", "A body must come without Content-Encoding.")
	}
	most := c.route.mostBody()
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, most))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return refuse("body_too_large", "The body is larger than %d bytes.", most)
	case err != nil:
		return refuse("invalid_request", "The body could not be read to its end.")
	}
	if len(raw) == 0 {
		if c.route.takes&withBody != 0 {
			return refuse("invalid_json", "The body is empty; send a JSON object.")
		}
		return nil
	}
	if t := h.Get("Content-Type"); t != "" {
		media, _, err := mime.ParseMediaType(t)
		if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
			return refuse("unsupported_media_type", "The body must be application/json.")
		}
	}
	o, problem := readObject(raw, s.legacyPrefixes())
	if problem != nil {
		return problem
	}
	c.body = o
	if c.r.Method == http.MethodGet || c.r.Method == http.MethodHead {
		return known(o, "")
	}
	return nil
}

// public is the one place between errors and what callers are told of them.
func (s *Server) public(c *call, err error) *problem {
	var p *problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, store.ErrNotFound):
		return refuse("token_not_found", "There is no token with this id.")
	case c.r.Context().Err() != nil:
		return refuse("invalid_request", "The caller left.")
	}
	s.log.Error("request failed", zap.String("request_id", c.id), zap.String("error", scrub(err.Error())))
	return refuse("database_unavailable", "The control plane's database does not answer; try again.")
}

func (s *Server) logLine(c *call, status int, code string) {
	endpoint := "none"
	if c.route != nil {
		endpoint = c.route.method + " " + c.route.path
	}
	s.metrics.requests.WithLabelValues(endpoint, strconv.Itoa(status)).Inc()
	took := s.now().Sub(c.began)
	if !c.streams {
		s.metrics.seconds.Observe(took.Seconds())
	}
	e := s.log.Check(zap.InfoLevel, "request")
	if e == nil {
		return
	}
	client, _, _ := net.SplitHostPort(c.r.RemoteAddr)
	e.Write(zap.String("request_id", c.id), zap.String("actor", c.who.name()), zap.String("endpoint", endpoint),
		zap.Int("status", status), zap.String("code", code), zap.Float64("ms", float64(took.Microseconds())/1000),
		zap.String("client", client))
}

// probe answers /healthz and /readyz, which take no credential and log nothing.
func (s *Server) probe(c *call) bool {
	path := c.r.URL.EscapedPath()
	if path != "/healthz" && path != "/readyz" {
		return false
	}
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		p := refuse("method_not_allowed", "%s takes GET.", path)
		p.allow = []string{"GET", "HEAD"}
		p.write(c.w)
		return true
	}
	if path == "/readyz" {
		ctx, cancel := context.WithTimeout(c.r.Context(), 2*time.Second)
		defer cancel()
		if err := s.store.Ping(ctx); err != nil {
			s.log.Warn("not ready", zap.Error(err))
			refuse("database_unavailable", "The control plane's database does not answer.").write(c.w)
			return true
		}
	}
	writeJSON(c.w, http.StatusOK, map[string]string{"status": "ok"})
	return true
}
