// Package proxy is the data plane: one request on a straight line through seven
// rooms (door, identify, read, authorize, admit, relay, books), the first error
// wins. fasthttp speaks to the clients; the leg to the upstream is ours.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/tokencache"
)

// Options say how New makes a server. Config, Tokens, Ledger, OrgID and Log are
// required.
type Options struct {
	Config     *config.Config
	Tokens     *tokencache.Cache
	OrgID      string        // tokens of another org do not exist here
	Org        func() string // wins over OrgID, for a gateway that learns its org once it runs; "" until then
	Log        *zap.Logger
	Registerer prometheus.Registerer // nil drops the metrics
	Records    record.Sink           // nil: off. Its owner closes it after Drain.
	Reporter   Reporter              // nil: nothing is reported
	Instance   string                // this process, as the control plane lists it
	Build      string
	Ready      func() error   // nil error: identity verified and cache usable. nil func: always
	Ledger     *budget.Ledger // its owner closes it after Drain

	// DeletedTeams gives the org's teams whose tokens are denied, the same set until
	// they change; it is asked at every request. nil: there are none.
	DeletedTeams func() *abac.TeamSet
}

// Server is the data plane. Safe for concurrent use.
type Server struct {
	tokens   *tokencache.Cache
	org      func() string
	log      *zap.Logger
	lines    lineWriter // log's core, where it is one
	records  record.Sink
	ready    func() error
	metrics  *metrics
	watcher  *watcher
	loops    eventLoops
	reporter *reporter
	used     *uses
	ledger   *budget.Ledger
	deleted  func() *abac.TeamSet
	limiters *budget.Limiters

	runtime   atomic.Pointer[runtime]
	setting   atomic.Pointer[setting]
	exchanges sync.Pool
	slabs     sync.Pool
	http      *fasthttp.Server

	endpoints     map[string]*endpoint
	modelEndpoint *endpoint
	exist         string // the endpoints that exist, for a message

	open     atomic.Int64 // exchanges
	streams  shares       // calls being relayed, by token
	holding  atomic.Int64 // calls that hold something of a budget
	bodies   shares       // bytes of bodies held, by token
	conns    shares       // connections of clients, by address
	away     atomic.Int64 // connections being turned away
	draining atomic.Int32 // a drainState
	idle     chan struct{}
	served   chan struct{} // closed when Serve returns

	lastCalls atomic.Int64 // connections that wait for a request which the drain spares

	accepting sync.Mutex
	listener  *listener // that Serve was given
	over      bool      // Drain has ended

	reload sync.Mutex
}

type drainState = int32

const (
	serving  drainState = iota
	lameDuck            // serving still, with Connection: close
	refusing            // 503 draining
)

// New makes a server. It fails where a secret can't be resolved or a metric is
// registered twice.
func New(o Options) (*Server, error) {
	if o.Ledger == nil {
		panic("BUG: a data plane without a ledger")
	}
	s := &Server{
		tokens: o.Tokens, org: o.Org, log: o.Log, records: o.Records, ready: o.Ready,
		ledger: o.Ledger, limiters: budget.NewLimiters(), deleted: o.DeletedTeams,
		idle: make(chan struct{}, 1), served: make(chan struct{}),
	}
	s.lines, _ = o.Log.Core().(lineWriter)
	if s.org == nil {
		s.org = func() string { return o.OrgID }
	}
	if s.deleted == nil {
		s.deleted = func() *abac.TeamSet { return nil }
	}
	var err error
	if s.metrics, err = newMetrics(s, o.Registerer); err != nil {
		return nil, err
	}
	rt, err := s.compile(o.Config, nil)
	if err != nil {
		return nil, err
	}
	s.runtime.Store(rt)
	if s.watcher, err = newWatcher(func(v any) { s.faulted(v) }); err != nil {
		return nil, fmt.Errorf("watch for clients that leave: %w", err)
	}
	s.loops.clock = &s.watcher.clock
	s.loops.fault = func(v any) { s.faulted(v) }
	s.used = &uses{}
	s.reporter = newReporter(s, o)
	s.routes()
	l := &o.Config.Limits
	s.http = &fasthttp.Server{
		Handler: s.handle, ErrorHandler: s.readFault, ExpectHandler: s.expect,
		// no timeouts: the connection has its own, see its await
		ReadBufferSize: int(l.Headers) + headBesides, StreamRequestBody: true,
		MaxRequestBodySize:    prefetchLimit,
		Concurrency:           2_000_000,   // more than the largest limit, which may change
		MaxIdleWorkerDuration: time.Second, // a burst's goroutines are gone within 2 s
		SecureErrorLogMessage: true, NoDefaultServerHeader: true, NoDefaultContentType: true,
		DisablePreParseMultipartForm: true, LazyRequestTime: true, DisableHeaderNamesNormalizing: true,
		Logger: quiet{s},
	}
	return s, nil
}

// headBesides is how much larger than limits.headers the buffer of a head is, so that
// framing refuses a larger one first.
const headBesides = 512

// prefetchLimit is how much of a body fasthttp reads before the handler runs: a
// refusal by credential needs no more.
const prefetchLimit = 8 << 10

// quiet takes fasthttp's own log lines, which may hold a caller's bytes: only
// that there was one is told.
type quiet struct{ s *Server }

func (q quiet) Printf(format string, _ ...any) {
	q.s.log.Debug("http server", zap.String("format", format))
}

// Serve answers on a listener until it is closed or Drain ends; then it returns nil,
// and connections that were let in are served on. It is called once. Where Drain
// has ended already, it closes the listener.
func (s *Server) Serve(ln net.Listener) error {
	defer close(s.served)
	l := &listener{Listener: ln, s: s}
	s.accepting.Lock()
	over := s.over
	s.listener = l
	s.accepting.Unlock()
	if over {
		return l.Close()
	}
	err := s.http.Serve(l)
	if s.draining.Load() == refusing {
		return nil
	}
	return err
}

// shut lets no more connections in, not even to a Serve that has only just begun.
func (s *Server) shut() {
	s.accepting.Lock()
	defer s.accepting.Unlock()
	s.over = true
	if s.listener != nil {
		_ = s.listener.Close()
	}
}

const chatPath = "/v1/chat/completions"

// handle serves one request. fasthttp does not recover: a panic here would end
// the process.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	x, served := s.resume(ctx)
	if x == nil {
		ctx.SetConnectionClose()
		return
	}
	defer func() {
		if v := recover(); v != nil {
			s.contain(x, v)
		}
	}()
	if s.draining.Load() != serving {
		ctx.SetConnectionClose()
	}
	var err error
	if served {
		err = x.passOn(x.outcome)
	} else {
		err = x.serve()
	}
	if err != nil {
		x.refuse(err)
	}
}

// ownFault is what a caller is told of one.
const ownFault = "A fault of the gateway's own. Tell its operator the request id."

// contain ends a request that a fault of ours broke off.
func (s *Server) contain(x *exchange, v any) {
	x.ctx.Response.Reset()
	x.refuse(s.broken(x, v))
}

// broken ends the call of a request that a fault of ours broke off.
func (s *Server) broken(x *exchange, v any) *refusal {
	s.panicked(x, v)
	x.drop()
	return refuse(codeInternal, ownFault).closing()
}

// serve leads through the rooms. An exchange that was answered is gone when it
// returns nil.
func (x *exchange) serve() error {
	if err := x.door(); err != nil {
		return err
	}
	if x.route != nil && x.route.action == 0 && x.route.takes(x.method()) {
		return x.route.serve(x)
	}
	if err := x.identify(); err != nil {
		return err
	}
	return x.route.serve(x)
}

// chat is POST /v1/chat/completions.
func (x *exchange) chat() error {
	if err := x.read(); err != nil {
		return err
	}
	if err := x.authorize(); err != nil {
		return err
	}
	if err := x.admit(); err != nil {
		return err
	}
	return x.relay()
}

// expect answers `Expect: 100-continue` after checks 1 to 4: a body that will be
// refused is not asked for.
func (s *Server) expect(ctx *fasthttp.RequestCtx) (status int) {
	x := s.begin(ctx)
	defer func() {
		if v := recover(); v != nil {
			s.contain(x, v)
			status = ctx.Response.StatusCode()
		}
	}()
	err := x.door()
	if err == nil && (x.route == nil || x.route.action != 0) {
		err = x.identify()
	}
	if err == nil {
		if limit := x.rt.cfg.Limits.RequestBody; int64(ctx.Request.Header.ContentLength()) > limit {
			err = tooLarge(limit)
		}
	}
	if err == nil {
		x.free()
		return fasthttp.StatusContinue
	}
	x.refuse(err)
	return ctx.Response.StatusCode()
}

// readFault tells what was wrong with a request that never reached the handler.
func (s *Server) readFault(ctx *fasthttp.RequestCtx, err error) {
	x := s.begin(ctx)
	defer func() {
		if v := recover(); v != nil {
			s.contain(x, v)
		}
	}()
	var ne net.Error
	var small *fasthttp.ErrSmallBuffer
	f := refuse(codeInvalidRequest, "The request can't be read.")
	switch {
	case x.client != nil && x.client.tooLarge, errors.As(err, &small):
		f = refuse(codeHeadersTooLarge, "The header block is larger than %d bytes.", x.rt.cfg.Limits.Headers)
	case x.client != nil && x.client.fault != "":
		f = refuse(codeInvalidRequest, "The request can't be read in one way only: %s.", x.client.fault)
	case errors.As(err, &ne) && ne.Timeout():
		if x.client != nil && !x.client.began() {
			_ = x.client.Close() // nothing was asked: nothing is answered
			x.free()
			return
		}
		f = refuse(codeRequestTimeout, "The request came too slowly.")
	}
	x.refuse(f.closing())
}

// Readiness says why the gateway should get no requests; nil: it should.
func (s *Server) Readiness() error {
	if s.draining.Load() != serving {
		return errors.New("draining")
	}
	if s.ready != nil {
		return s.ready()
	}
	return nil
}

// Reload puts a new config to use, all of it or nothing. A request keeps the one
// that it began with.
func (s *Server) Reload(c *config.Config) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	old := s.runtime.Load()
	if fixed := old.cfg.Fixed(c); len(fixed) > 0 {
		return fmt.Errorf("these can't change while the gateway runs: %v; restart it", fixed)
	}
	if most := s.http.ReadBufferSize - headBesides; int(c.Limits.Headers) > most {
		return fmt.Errorf("limits.headers can't be more than the %d bytes that it was when the gateway started; restart it", most)
	}
	rt, err := s.compile(c, old)
	if err != nil {
		return err
	}
	s.runtime.Store(rt)
	for id, up := range old.upstreams {
		if rt.upstreams[id] != up {
			up.retire()
		}
	}
	return nil
}

// Drain ends the service as DESIGN §6 says: unready at once, serving for
// limits.lame_duck, refusing after, and what still runs at limits.drain is cut
// with an error. A connection whose answer ended meanwhile has one more request. The
// context ends it earlier.
func (s *Server) Drain(ctx context.Context) error {
	l := s.runtime.Load().cfg.Limits
	end := time.After(l.Drain)
	s.draining.Store(lameDuck)
	select {
	case <-time.After(min(l.LameDuck, l.Drain)):
	case <-ctx.Done():
	}
	s.draining.Store(refusing)
	if !s.emptied(ctx.Done(), end) {
		s.watcher.all(drained)
		s.emptied(nil, time.After(2*time.Second))
	}
	s.shut()
	s.watcher.hangUp()
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	shut := make(chan error, 1)
	go func() { shut <- s.http.ShutdownWithContext(stop) }() // closing waits for whoever holds a connection
	var err error
	select {
	case err = <-shut:
	case <-stop.Done():
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // connections that would not end; the process does
	}
	s.reporter.close()
	s.watcher.close()
	s.loops.close()
	for _, up := range s.runtime.Load().upstreams {
		up.retire()
	}
	return err
}

// wake tells a drain that it may be over.
func (s *Server) wake() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

// recordFailed tells of a decision record that could not be written.
func (s *Server) recordFailed(err error) {
	s.log.Error("write a decision record", zap.Error(err))
}

// typeName says what kind of value a panic had: the value may hold secrets.
func typeName(v any) string { return fmt.Sprintf("%T", v) }

// runtime is a config, compiled: what one request reads. Immutable.
type runtime struct {
	cfg       *config.Config
	upstreams map[string]*upstream
	served    map[*config.Model]*served
	required  bool // no record, no request
}

// compile makes a runtime, with the connections of old where a target stayed.
func (s *Server) compile(c *config.Config, old *runtime) (*runtime, error) {
	rt := &runtime{
		cfg: c, upstreams: make(map[string]*upstream), served: make(map[*config.Model]*served),
		required: s.records != nil && c.Records.Mode == config.RecordsRequired,
	}
	for i := range c.Targets {
		up, err := newUpstream(&c.Targets[i])
		if err != nil {
			return nil, err
		}
		if old != nil {
			if was := old.upstreams[up.id]; was != nil && was.same(up) {
				up = was
			}
		}
		rt.upstreams[up.id] = up
	}
	for i := range c.Models {
		m := &c.Models[i]
		sv := &served{model: m, number: newNumber()}
		for j, t := range m.Targets {
			name := m.AbacTargets()[j].Model
			if name == m.Name && !m.Pattern() {
				name = ""
			}
			price := m.Price
			if t.Price != nil {
				price = t.Price
			}
			sv.targets = append(sv.targets, servedTarget{
				up: rt.upstreams[t.ID], rename: name, price: price, meter: s.metrics.of(t.ID, m.Name),
			})
		}
		rt.served[m] = sv
	}
	return rt, nil
}

// routes sets up what is served, under exact paths: a path that is written in any
// other way is not found.
func (s *Server) routes() {
	probe := func(path string, serve func(*exchange) error) *endpoint {
		return &endpoint{path: path, method: "GET", allow: "GET, HEAD", serve: serve}
	}
	s.modelEndpoint = &endpoint{path: modelsPrefix + "{id}", method: "GET", allow: "GET", action: abac.Self, serve: (*exchange).model}
	all := []*endpoint{
		{path: chatPath, method: "POST", allow: "POST", action: abac.Execute, suffix: "/chat/completions", serve: (*exchange).chat},
		{path: "/v1/models", method: "GET", allow: "GET", action: abac.List, serve: (*exchange).models},
		{path: "/v1/whoami", method: "GET", allow: "GET", action: abac.Self, serve: (*exchange).whoami},
		probe("/health", (*exchange).health), probe("/healthz", (*exchange).health), probe("/readyz", (*exchange).readyz),
		{path: "/", method: "HEAD", allow: "HEAD", serve: (*exchange).health},
	}
	s.endpoints = make(map[string]*endpoint, len(all))
	var names []string
	for _, e := range all {
		s.endpoints[e.path] = e
		if e.action != 0 {
			names = append(names, e.method+" "+e.path)
		}
	}
	names = append(names, s.modelEndpoint.method+" "+s.modelEndpoint.path)
	slices.Sort(names)
	for i, n := range names {
		if i > 0 {
			s.exist += ", "
		}
		s.exist += n
	}
}
