package proxy

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/proxy/dialect"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/tokencache"
)

// exchange is one request on its way through the rooms. It is pooled: what
// outlives it is copied. Strings made by str live as long as it does.
type exchange struct {
	s      *Server
	rt     *runtime             // the config it began with
	ctx    *fasthttp.RequestCtx // nil: the shortcut, while nothing of fasthttp's is needed
	client *conn
	short  bool // the request is the client's shortcut
	began  time.Time
	// outcome is what serve returned without fasthttp, which is to write the answer.
	outcome error
	id      [idLen]byte

	// door
	path  []byte
	query []byte
	route *endpoint
	head  headers

	// identify
	entry  *tokencache.Entry
	policy *abac.Policy
	reason abac.Reason // of the decision, where one was made
	judged bool        // one was
	ask    abac.Request

	// read, authorize, admit
	body    []byte
	held    int64 // bytes counted against limits.bodies
	call    dialect.Call
	serving *served
	left    uint64 // bit set of the targets that the decision left
	order   []uint8

	// admit: what was taken, given back or settled when the exchange closes
	spends   *allowance
	asked    time.Time // when the call asked for it
	most     most
	hold     budget.Hold
	holds    bool            // counted in Server.holding
	limiter  *budget.Limiter // that took the call; nil: none did
	rates    budget.RateState
	admitted bool      // all was taken that had to be
	denied   string    // the code where it was not
	text     [192]byte // for a header being written

	// relay
	target  *upstream
	slot    uint8  // index of target in serving.targets
	out     []byte // the request's head and body, as sent
	answer  answer
	turn    int   // which of order has it
	awaits  bool  // its answer was waited for when the watcher woke the exchange
	unsent  error // of writing the request: the answer may come all the same
	sent    time.Time
	ended   time.Time // when the answer was read to its end
	unasked bool      // the client did not ask for the chunk that brings only usage
	stream  stream
	meter   dialect.Meter
	usage   dialect.Usage
	metered bool  // usage was told
	slotted bool  // counted against limits.streams
	reached bool  // some target may have got the call
	owes    bool  // the target that has it now may cost something
	prior   bill  // what earlier targets told that they used
	emitted int64 // most output tokens of a whole answer that told no usage, or broke off

	rec record.Record

	life
}

// life is what the watcher sees of an exchange.
type life struct {
	mu     sync.Mutex
	up     *upstreamConn      // to be closed when the exchange is aborted
	cancel context.CancelFunc // to be called then
	gone   chan struct{}      // to be closed then; nil: nobody waits for it
	told   bool               // it was
	cause  atomic.Int32       // an abortCause; set once
	doing  atomic.Int32       // a phase
	since  atomic.Int64       // the watcher's clock when the phase began or last moved
	spoke  atomic.Int64       // and when the client of a stream was last told that its call is alive
	woken  bool               // the watcher interrupted the read from up

	next, prev *exchange // in the watcher's list
	listed     bool
	until      int64 // when the token ends as far as is known, in Unix nanoseconds; under the watcher's lock
	fd         int   // registered for the client's leaving; -1: not yet
}

type phase int32

const (
	awaitsBudget phase = iota // the ledger has its own limit
	awaitsHead                // the upstream has not answered
	awaitsBody                // its body is being read
	writesClient              // the client is: its connection has a limit of its own
)

type abortCause int32

const (
	notAborted    abortCause = iota
	clientLeft               // FIN or RST from the client
	firstByteLate            // no head within limits.first_byte
	upstreamIdle             // no byte within limits.upstream_idle
	drained                  // limits.drain is over
	tokenRevoked             // or quarantined
	tokenExpired
	faulted // a fault of ours, where nobody could answer
)

// str views b as a string for as long as nobody changes b: inside an exchange.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

const (
	idLen    = 30
	idPrefix = "req_"
	// keptBuffer is how much of a buffer a pooled exchange keeps.
	keptBuffer = 64 << 10
)

// newID fills in a random request id: 130 bits, 26 characters.
func (x *exchange) newID() {
	copy(x.id[:], idPrefix)
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	a, b, c := rand.Uint64(), rand.Uint64(), rand.Uint64()
	for i := 0; i < 12; i++ {
		x.id[len(idPrefix)+i] = alphabet[a>>(5*i)&31]
		x.id[len(idPrefix)+12+i] = alphabet[b>>(5*i)&31]
	}
	x.id[idLen-2], x.id[idLen-1] = alphabet[c&31], alphabet[c>>5&31]
}

// requestID is valid while the exchange is.
func (x *exchange) requestID() string { return str(x.id[:]) }

// begin takes an exchange from the pool for a request that fasthttp has read.
func (s *Server) begin(ctx *fasthttp.RequestCtx) *exchange {
	c, _ := ctx.Conn().(*conn)
	x := s.take(c)
	x.ctx = ctx
	return x
}

// take takes one for a request of c.
func (s *Server) take(c *conn) *exchange {
	x, _ := s.exchanges.Get().(*exchange)
	if x == nil {
		x = &exchange{}
	}
	x.s, x.client, x.rt = s, c, s.runtime.Load()
	x.began = time.Now()
	x.newID()
	x.life.fd = -1
	x.life.since.Store(s.watcher.clock.Load())
	s.open.Add(1)
	return x
}

// free gives the exchange back. It must be the last thing that touches it.
func (x *exchange) free() {
	s := x.s
	if x.held > 0 {
		s.bodies.give(tokenSlot(&x.entry.Digest), x.held)
	}
	if x.slotted {
		s.streams.give(tokenSlot(&x.entry.Digest), 1)
	}
	if x.holds || x.limiter != nil {
		x.unsettled()
	}
	x.reset()
	s.exchanges.Put(x)
	if s.open.Add(-1) == 0 && s.draining.Load() != serving {
		s.wake()
	}
}

// reset empties everything but buffers of an ordinary size.
func (x *exchange) reset() {
	x.s, x.rt, x.ctx, x.client, x.short = nil, nil, nil, nil, false
	x.path, x.query, x.route = nil, nil, nil
	x.head = headers{forward: kept(x.head.forward)}
	x.entry, x.policy, x.ask = nil, nil, abac.Request{}
	x.reason, x.judged = 0, false
	x.body, x.held, x.call = kept(x.body), 0, dialect.Call{}
	x.serving, x.left, x.order = nil, 0, x.order[:0]
	x.target, x.slot, x.out = nil, 0, kept(x.out)
	x.answer.status = 0 // readAnswer empties the rest
	x.turn, x.awaits, x.unsent, x.outcome = 0, false, nil, nil
	x.sent, x.ended = time.Time{}, time.Time{}
	if x.stream.x != nil {
		x.stream = stream{out: kept(x.stream.out)}
	}
	x.spends, x.asked, x.most = nil, time.Time{}, most{}
	x.hold, x.holds, x.limiter, x.rates = budget.Hold{}, false, nil, budget.RateState{}
	x.admitted, x.denied = false, ""
	x.usage, x.metered, x.slotted = dialect.Usage{}, false, false
	x.reached, x.owes, x.prior, x.emitted = false, false, bill{}, 0
	x.rec = record.Record{}
	x.life.up, x.life.cancel, x.life.next, x.life.prev, x.life.listed = nil, nil, nil, nil, false
	x.life.gone, x.life.told, x.life.woken = nil, false, false
	x.life.cause.Store(0)
	x.life.doing.Store(0)
}

// kept empties a buffer, or lets go of one that grew large.
func kept(b []byte) []byte {
	if cap(b) > keptBuffer {
		return nil
	}
	return b[:0]
}

// attach hands the connection to the watcher, so that an abort closes it. False:
// the exchange was aborted already.
func (x *exchange) attach(c *upstreamConn) bool {
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	if x.aborted() != notAborted {
		return false
	}
	x.life.up = c
	return true
}

// detach takes it back: from here nobody else closes it.
func (x *exchange) detach() *upstreamConn {
	x.life.mu.Lock()
	c := x.life.up
	x.life.up = nil
	if x.life.woken { // whoever reads next is not meant
		x.life.woken = false
		_ = c.resume()
	}
	if c != nil {
		x.s.loops.leave(c)
	}
	x.life.mu.Unlock()
	return c
}

func (x *exchange) aborted() abortCause { return abortCause(x.life.cause.Load()) }

// abort ends what the exchange waits for. The first cause counts. Safe to call
// from another goroutine while the exchange is listed.
func (x *exchange) abort(cause abortCause) {
	if !x.life.cause.CompareAndSwap(0, int32(cause)) {
		return
	}
	x.life.mu.Lock()
	defer x.life.mu.Unlock()
	if x.life.cancel != nil {
		x.life.cancel()
	}
	if x.life.gone != nil && !x.life.told {
		close(x.life.gone)
		x.life.told = true
	}
	if x.life.up != nil {
		_ = x.life.up.Close()
	}
}

// enter says what the exchange waits for from now on.
func (x *exchange) enter(p phase) {
	x.life.doing.Store(int32(p))
	x.life.since.Store(x.s.watcher.clock.Load())
}
