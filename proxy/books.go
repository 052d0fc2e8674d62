package proxy

import (
	"errors"
	"runtime/debug"
	"strconv"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/proxy/dialect"
	"github.com/keeptrusts/gateway/record"
)

// statusClientLeft is what the log and the metrics say of a client that left; no
// client ever sees it.
const statusClientLeft = 499

// refuse is the one place that writes refusals.
func (x *exchange) refuse(err error) {
	if errors.Is(err, errClientLeft) {
		x.drop()
		x.ctx.SetConnectionClose()
		x.ctx.SetStatusCode(statusClientLeft)
		client := x.client
		x.close(codeClientLeft)
		if client != nil { // one that has closed only its own side would read the 499
			_ = client.Close()
		}
		return
	}
	var f *refusal
	if !errors.As(err, &f) {
		x.s.log.Error("a room returned an error that is no refusal", zap.String("request_id", x.requestID()), zap.Error(err))
		f = refuse(codeInternal, ownFault)
	}
	ctx, h := x.ctx, &x.ctx.Response.Header
	ctx.SetStatusCode(f.row.status)
	h.SetContentType("application/json")
	h.SetCanonical(headRequestID, x.id[:])
	if f.row.status == 401 {
		h.Set("WWW-Authenticate", "Bearer")
	}
	if f.allow != "" {
		h.Set("Allow", f.allow)
	}
	if f.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(f.retryAfter))
	}
	if f.final {
		h.Set("X-Should-Retry", "false")
	}
	if f.row.code == codeRateLimited {
		x.tellRates(h.SetBytesKV)
	}
	if f.close || x.bodyUnread() {
		ctx.SetConnectionClose()
		if x.client != nil {
			x.client.limits.lingers.Store(x.client.state != connHead)
		}
	}
	var room [640]byte // refusals come by the thousand
	ctx.SetBody(dialect.AppendError(room[:0], dialect.Error{
		Message: f.message, Type: f.row.kind, Param: f.param, Code: f.row.code,
	}))
	x.close(f.row.code)
}

// bodyUnread says whether part of the body is still on its way: reading it only
// to drop it would hold the gateway hostage.
func (x *exchange) bodyUnread() bool {
	if x.client == nil {
		return false
	}
	return x.client.state == connChunked || x.client.state == connBody
}

// close keeps the books of a request, whatever became of it, and frees it: one
// decision counted, one log line, one record. It never panics: fasthttp calls it
// where nobody recovers.
func (x *exchange) close(code string) {
	s := x.s
	defer x.free()
	defer func() { // the answer stands; what the books call may be at fault
		if v := recover(); v != nil {
			s.panicked(x, v)
		}
	}()
	s.watcher.remove(x)
	now := x.ended // a whole answer is written right after
	if now.IsZero() || x.rec.Stream {
		now = time.Now()
	}
	r := &x.rec
	r.Time, r.Duration = x.began, now.Sub(x.began)
	r.RequestID, r.Code = x.requestID(), code
	if r.Status = 200; x.ctx != nil {
		r.Status = x.ctx.Response.StatusCode()
	}
	if code == codeClientLeft {
		r.Status = statusClientLeft
		s.metrics.left.Inc()
	}
	if !x.sent.IsZero() {
		r.Upstream = now.Sub(x.sent)
		s.metrics.gateway.Observe(x.sent.Sub(x.began).Seconds())
	}
	if r.FirstByte == 0 {
		r.FirstByte = r.Duration
	}
	x.settle(code, now)
	x.account(r.Status)
	x.describe()
	s.metrics.duration.Observe(r.Duration.Seconds())
	if s.records != nil {
		if err := s.records.Write(r); err != nil {
			s.recordFailed(err)
		}
	}
	level := zap.InfoLevel
	if r.Status >= 500 {
		level = zap.WarnLevel
	}
	if w := s.lines; w != nil {
		if w.Enabled(level) {
			_ = w.WriteRecord(level, now, "request", r)
		}
	} else if e := s.log.Check(level, "request"); e != nil {
		e.Write(r.Fields()...)
	}
}

// lineWriter is what a log's core may be beside: one that takes a request's line
// straight. zap's own way to a core costs as much as the line.
type lineWriter interface {
	zapcore.LevelEnabler
	WriteRecord(level zapcore.Level, at time.Time, msg string, r *record.Record) error
}

// account counts what the call used.
func (x *exchange) account(status int) {
	s := x.s
	if x.judged {
		s.metrics.decide(x)
		x.rec.Reason = x.reason.String()
		if x.denied != "" {
			x.rec.Reason = x.denied
		}
		if x.reason == abac.Allowed && x.route.action != abac.Execute {
			s.used.note(x)
		}
	}
	if x.target == nil {
		s.metrics.refused.inc(status)
		return
	}
	t := &x.serving.targets[x.slot]
	t.meter.requests.inc(status)
	t.meter.upstream.Observe(x.rec.Upstream.Seconds())
	if r := &x.rec; r.Cost > 0 {
		t.meter.cost.Add(float64(r.Cost) / 1e9)
	}
	if x.metered {
		t.meter.input.Add(float64(x.usage.InputTotal()))
		t.meter.output.Add(float64(x.usage.OutputTotal()))
	} else if status < 300 {
		s.metrics.unmetered.Inc()
	}
}

// describe fills in who asked for what.
func (x *exchange) describe() {
	r, cfg := &x.rec, x.rt.cfg
	r.GatewayID = cfg.GatewayID
	if x.policy != nil {
		r.TokenID, r.Purpose, r.Team = x.entry.ID, string(x.entry.Purpose), x.entry.Team
		r.Identity = x.entry.Notes.Line(r.AppendIdentity)
	}
	if x.serving != nil {
		r.Model = x.serving.model.Name
	}
	if x.target != nil {
		r.Target = x.target.id
	}
	if x.route != nil {
		r.Action = actionNames[x.route.action]
	}
	if x.client != nil {
		r.Client = x.client.remote
	}
	r.ClientRequestID = x.claim(x.head.clientID)
	r.AgentID = x.claim(x.head.agentID)
}

var actionNames = [...]string{0: "", abac.Execute: "execute", abac.List: "list", abac.Self: "self"}

const maxClaim = 128

// claim takes what a client says of itself: bounded, and never a token that
// somebody put there by mistake.
func (x *exchange) claim(b []byte) string {
	if len(b) == 0 || containsToken(b, x.rt.cfg.LegacyPrefixes) {
		return ""
	}
	return str(b[:min(len(b), maxClaim)])
}

// panicked notes a fault of ours in a request.
func (s *Server) panicked(x *exchange, v any) { s.faulted(v, zap.String("request_id", x.requestID())) }

// faulted notes a fault of ours. The stack names functions; the value may hold a
// caller's bytes, so only its type is told.
func (s *Server) faulted(v any, more ...zap.Field) {
	stack := debug.Stack()
	if at, ok := v.(faultElsewhere); ok {
		v, stack = at.v, at.stack
	}
	s.metrics.panics.Inc()
	s.log.Error("panic", append(more, zap.String("type", typeName(v)), zap.ByteString("stack", stack))...)
}

// faultElsewhere is a panic of another goroutine, with its stack.
type faultElsewhere struct {
	v     any
	stack []byte
}
