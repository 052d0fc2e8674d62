// Package controlplane is the control plane's API: its server, its client, and the
// same in process. It mints, changes and stops tokens, and tells gateways whose a
// token is. Every caller is the administrator or a token whose profile allows the
// endpoint; nothing else opens anything.
package controlplane

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// OrgDefault is the org of tokens that name none, and of an embedded gateway.
const OrgDefault = "org_default"

// MinAdminToken is the least length of the admin token, in bytes.
const MinAdminToken = 24

const (
	defaultMaxStale = 10 * time.Minute    // of a gateway that does not tell its own
	maxMaxStale     = 30 * 24 * time.Hour // beyond it a gateway is never forgotten
	misplacedEvery  = time.Minute
)

// Options are what a Server is made of.
type Options struct {
	// Store must be open; it stays the caller's to close, after the last request. It
	// takes this Server's clock, where Now is set.
	Store *store.Store
	// AdminToken opens the administrator's endpoints; empty: nothing does.
	AdminToken token.Secret
	Log        *zap.Logger           // nil: none
	Now        func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: no metrics
	// LegacyPrefixes are those of opaque keys that are taken as tokens; see SetLegacyPrefixes.
	LegacyPrefixes []string
}

// Server serves the API. It is safe for concurrent use, and runs a goroutine only
// while something watches.
type Server struct {
	store   *store.Store
	admin   token.Digest
	locked  bool // there is no admin token: nobody is the administrator
	log     *zap.Logger
	now     func() time.Time
	legacy  atomic.Pointer[[]string]
	routes  []route
	metrics metrics
	heard   hearing
	strays  throttle

	hub      *hub
	deafOnce sync.Once // says that the database notifies nobody
	told     *telling
	patience time.Duration // with who does not read a watch or a snapshot

	snapshots chan struct{} // holds those that are being written
	turn      time.Duration // how long one waits for its turn
}

// New makes a Server. It refuses an admin token shorter than MinAdminToken, or one
// that no header can carry.
func New(o Options) (*Server, error) {
	if o.Store == nil {
		panic("BUG: control plane without a store")
	}
	if n := len(o.AdminToken.Reveal()); n > 0 && n < MinAdminToken {
		return nil, fmt.Errorf("the admin token has %d characters, it needs at least %d", n, MinAdminToken)
	}
	if strings.ContainsFunc(o.AdminToken.Reveal(), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the admin token must be printable ASCII without spaces: no header can carry another")
	}
	s := &Server{
		store: o.Store, admin: o.AdminToken.Digest(), locked: o.AdminToken.Empty(),
		log: o.Log, now: o.Now, routes: routes(),
		hub: newHub(), told: newTelling(), patience: writeWithin,
		snapshots: make(chan struct{}, snapshotsAtOnce), turn: snapshotTurn,
	}
	s.SetLegacyPrefixes(o.LegacyPrefixes)
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.now == nil {
		s.now = time.Now
	} else {
		s.store.Clock(s.now)
	}
	var err error
	s.store.Moved(s.changed)
	if s.metrics, err = newMetrics(o.Registerer, s.hub.len); err != nil {
		return nil, fmt.Errorf("control plane metrics: %w", err)
	}
	return s, nil
}

// SetLegacyPrefixes takes other prefixes than Options had, in effect at once. The list
// must not change afterwards.
func (s *Server) SetLegacyPrefixes(prefixes []string) { s.legacy.Store(&prefixes) }

func (s *Server) legacyPrefixes() []string { return *s.legacy.Load() }

// Handler serves /v1/…, /healthz and /readyz.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

type metrics struct {
	requests *prometheus.CounterVec
	seconds  prometheus.Histogram
	resolved *prometheus.CounterVec

	snapshots *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, watches func() int) (metrics, error) {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keeptrusts_gateway_control_plane_requests_total",
			Help: "Requests that the control plane answered, by endpoint and status.",
		}, []string{"endpoint", "status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "keeptrusts_gateway_control_plane_request_duration_seconds",
			Help:    "Time that the control plane took to answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		resolved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keeptrusts_gateway_control_plane_resolves_total",
			Help: "Digests that gateways asked for, by what the answer was.",
		}, []string{"result"}),
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keeptrusts_gateway_control_plane_snapshots_total",
			Help: "Snapshots that gateways asked for, by how they ended: whole, failed (broken off), or refused (no turn came).",
		}, []string{"result"}),
	}
	if r == nil {
		return m, nil
	}
	live := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keeptrusts_gateway_control_plane_watches",
		Help: "Watches that gateways have open here.",
	}, func() float64 { return float64(watches()) })
	return m, errors.Join(r.Register(m.requests), r.Register(m.seconds), r.Register(m.resolved), r.Register(m.snapshots), r.Register(live))
}
