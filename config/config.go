// Package config is the gateway's one YAML file: parse it, check it, watch it.
// Parsing has no side effects and finds every problem at once. A Config does not
// change once parsed, but by Override before it is put to use; reading it is safe
// for concurrent use.
package config

import (
	"time"

	"github.com/keeptrusts/gateway/abac"
)

// Config is a whole file with defaults filled in. Paths are relative to the
// process's folder or absolute, never to the file's folder.
type Config struct {
	GatewayID        string // 1 to 128 of [A-Za-z0-9._-]
	Listen           string // host:port of the data plane
	OperationsListen string // host:port of metrics and probes
	DataDir          string
	LegacyPrefixes   []string // prefixes of opaque keys that are tokens here too

	ControlPlane ControlPlane
	Cache        Cache
	Targets      []Target // providers.targets, in the file's order; ids are unique
	Models       []Model  // the file's entries in order, then those implied by a target's own model
	Limits       Limits
	Records      Records
	Log          Log
	Debug        Debug

	file     string // its name
	dir      string // its folder
	database string // embedded.database as written, relative to DataDir
	sum      sum    // of the content this was parsed from; zero unless loaded from a file
	secrets  []secretUse
	bundles  []bundleUse
	warnings Problems

	tokenless int // line of the control plane that comes without a token; 0: none does

	targets  map[string]*Target
	names    map[string]*Model
	patterns []*Model // longest literal prefix first, then the file's order
}

// ControlPlane says who knows the tokens. URL "" embeds one.
type ControlPlane struct {
	URL      string     // https://, or http:// on loopback or with Insecure; no trailing slash
	Token    *SecretRef // the runtime token; never nil when URL is set
	Embedded Embedded
	FreshFor time.Duration // a profile is used without asking for this long
	MaxStale time.Duration // and never served when older than this; at least FreshFor
	CA       string        // path of a PEM bundle; "" uses the system's
	Insecure bool          // allows http:// beyond loopback
}

// Embedded is the control plane inside the gateway, used when no URL is given.
type Embedded struct {
	Database string // path of the SQLite file
	Listen   string // host:port
}

// Cache sizes the hot set.
type Cache struct {
	Profiles int // at least 1
}

// Target is one upstream: providers.targets[].
type Target struct {
	ID          string // 1 to 64 of [A-Za-z0-9._-]
	Provider    string // name of an adapter, see Providers
	BaseURL     string // scheme://host[:port]/path, no trailing slash
	CA          string // path of a PEM bundle, trusted instead of the system's; "": the system's
	Secret      *SecretRef
	Teams       []string // teams it is open to; empty: all
	Dialects    []string // that it speaks without translation; never empty
	StreamUsage bool     // takes stream_options.include_usage
	OutputLimit string   // name of the field that limits output
	Headers     map[string]string
	Model       string // its own model, which it serves under that name; "": none
}

// Model is one entry of models: a name, or a pattern with *.
type Model struct {
	Name      string
	Targets   []ModelTarget // 1 to abac.MaxTargets, in the file's order
	Context   int64         // most input tokens; 0: not given
	MaxOutput int64         // most output tokens; 0: not given
	Price     *Price        // nil: unknown

	isPattern bool
	pattern   abac.Pattern
	abac      []abac.Target
}

// ModelTarget is one way to serve a model.
type ModelTarget struct {
	ID     string // of a Target that exists
	Model  string // the upstream's name of the model; "": as requested
	Weight int    // share of the traffic, default 1; 0: only when no other is left
	Price  *Price // overrides the entry's; nil: the entry's holds
}

// Price is exact: pico-USD a token (USD per million tokens × 10⁶), and nano-USD a
// request. nil: not given, which is not the same as 0.
type Price struct {
	Input, CachedInput, CacheWrite, Output *int64
	Reasoning, AudioInput, AudioOutput     *int64
	Request                                *int64
}

// Flat says that requests alone have a price: tokens cost nothing beside it.
func (p *Price) Flat() bool { return p.Request != nil && *p == (Price{Request: p.Request}) }

// Limits bound what one gateway holds and waits for. Sizes are in bytes.
type Limits struct {
	RequestBody int64 // of one request
	Headers     int64 // of one request's header block
	Bodies      int64 // of all requests being read or held, together

	Connections  int
	Streams      int
	OutputTokens int64 // the output limit where a budget needs one and nobody gives one

	HeaderRead   time.Duration
	BodyRead     time.Duration
	ClientIdle   time.Duration
	FirstByte    time.Duration
	UpstreamIdle time.Duration

	KeepaliveComment time.Duration // between comments on a silent stream; 0: none
	LameDuck         time.Duration // still serving after SIGTERM; 0: none
	Drain            time.Duration // from SIGTERM to the end, LameDuck included
}

// The record modes.
const (
	RecordsBestEffort = "best_effort"
	RecordsRequired   = "required" // no record, no request
)

// Records says where decision records go: Path "" is off, "-" is stdout.
type Records struct {
	Path, Mode string
}

// Log has the Level: debug, info, warn or error.
type Log struct {
	Level string
}

// Debug opens what is closed by default.
type Debug struct {
	Pprof bool
}

// Default is what an empty file means: no targets, no models.
func Default() *Config {
	c := defaults("")
	c.index()
	return c
}

func defaults(dir string) *Config {
	c := &Config{
		GatewayID:        "gw_local",
		Listen:           "0.0.0.0:41002",
		OperationsListen: "127.0.0.1:41003",
		LegacyPrefixes:   []string{"kt_ak_", "kt_gk_"},
		ControlPlane: ControlPlane{
			Embedded: Embedded{Listen: "127.0.0.1:41004"},
			FreshFor: 30 * time.Second,
			MaxStale: 10 * time.Minute,
		},
		Cache: Cache{Profiles: 200_000},
		Limits: Limits{
			RequestBody: 32 << 20, Headers: 16 << 10, Bodies: 1 << 30,
			Connections: 40_000, Streams: 20_000, OutputTokens: 4096,
			HeaderRead: 10 * time.Second, BodyRead: 60 * time.Second, ClientIdle: 120 * time.Second,
			FirstByte: 600 * time.Second, UpstreamIdle: 120 * time.Second, KeepaliveComment: 15 * time.Second,
			LameDuck: 3 * time.Second, Drain: 25 * time.Second,
		},
		Records:  Records{Mode: RecordsBestEffort},
		Log:      Log{Level: "info"},
		dir:      dir,
		database: "kt-gateway.db",
	}
	c.setDataDir(c.path("."))
	return c
}

// path makes a path of the file relative to the file's folder.
func (c *Config) path(p string) string { return under(c.dir, p) }

func (c *Config) setDataDir(dir string) {
	c.DataDir = dir
	c.ControlPlane.Embedded.Database = under(dir, c.database)
}
