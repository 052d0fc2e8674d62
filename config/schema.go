package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/keeptrusts/gateway/abac"
)

const (
	tick    = 10 * time.Millisecond // the least that a wait may be
	anyList = 100_000               // the file's size bounds it
	million = 1_000_000
)

// root is the schema of a whole file.
func (r *reader) root(c *Config) read {
	l := &c.Limits
	return r.section(
		field{"gateway_id", r.text(&c.GatewayID, idForm(128))},
		field{"listen", r.text(&c.Listen, address)},
		field{"operations_listen", r.text(&c.OperationsListen, address)},
		field{"data_dir", r.pathOf(c, c.setDataDir)},
		field{"legacy_prefixes", r.texts(&c.LegacyPrefixes, 0, 16, legacyPrefix)},
		field{"control_plane", r.controlPlane(c)},
		field{"cache", r.section(field{"profiles", number(r, &c.Cache.Profiles, 1, 100*million)})},
		field{"providers", r.section(field{"targets", r.list(0, anyList, func(_ int, n *yaml.Node, path string) {
			c.Targets = append(c.Targets, r.target(c, n, path))
		})})},
		field{"models", r.list(0, anyList, func(_ int, n *yaml.Node, path string) {
			c.Models = append(c.Models, r.model(n, path))
		})},
		field{"limits", r.section(
			field{"request_body", r.size(&l.RequestBody, 1, 1<<30)},
			field{"headers", r.size(&l.Headers, 1<<10, 1<<20)},
			field{"bodies", r.size(&l.Bodies, 1, 1<<40)},
			field{"connections", number(r, &l.Connections, 1, million)},
			field{"streams", number(r, &l.Streams, 1, million)},
			field{"output_tokens", number(r, &l.OutputTokens, 1, 100*million)},
			field{"header_read", r.duration(&l.HeaderRead, tick, time.Hour)},
			field{"body_read", r.duration(&l.BodyRead, tick, time.Hour)},
			field{"client_idle", r.duration(&l.ClientIdle, tick, 24*time.Hour)},
			field{"first_byte", r.duration(&l.FirstByte, tick, 24*time.Hour)},
			field{"upstream_idle", r.duration(&l.UpstreamIdle, tick, 24*time.Hour)},
			field{"keepalive_comment", r.duration(&l.KeepaliveComment, 0, time.Hour)},
			field{"lame_duck", r.duration(&l.LameDuck, 0, time.Hour)},
			field{"drain", r.duration(&l.Drain, 0, time.Hour)},
		)},
		field{"records", r.section(
			field{"path", r.pathOf(c, func(p string) { c.Records.Path = p }, "", "-")},
			field{"mode", r.text(&c.Records.Mode, oneOf(RecordsBestEffort, RecordsRequired))},
		)},
		field{"log", r.section(field{"level", r.text(&c.Log.Level, oneOf(logLevels...))})},
		field{"debug", r.section(field{"pprof", r.boolean(&c.Debug.Pprof)})},
	)
}

func (r *reader) controlPlane(c *Config) read {
	cp := &c.ControlPlane
	return r.section(
		field{"url", r.text(&cp.URL, webURL)},
		field{"token", r.token(c)},
		field{"embedded", r.section(
			field{"database", r.text(&c.database, filePath, plainFile)},
			field{"listen", r.text(&cp.Embedded.Listen, address)},
		)},
		field{"fresh_for", r.duration(&cp.FreshFor, tick, 24*time.Hour)},
		field{"max_stale", r.duration(&cp.MaxStale, tick, 30*24*time.Hour)},
		field{"ca", r.pathOf(c, func(p string) { cp.CA = p }, "")},
		field{"insecure", r.boolean(&cp.Insecure)},
	)
}

// pathOf reads a path, relative to the file's folder, and hands it to set. The words
// in keep stand for themselves.
func (r *reader) pathOf(c *Config, set func(string), keep ...string) read {
	return func(n *yaml.Node, path string) {
		s, ok := r.textOf(n, path, func(s string) string {
			if slices.Contains(keep, s) {
				return ""
			}
			return filePath(s)
		})
		switch {
		case !ok:
		case slices.Contains(keep, s):
			set(s)
		default:
			set(c.path(s))
		}
	}
}

func (r *reader) target(c *Config, n *yaml.Node, path string) Target {
	t := Target{Provider: Providers[0].Name, StreamUsage: true}
	r.section(
		field{"id", r.text(&t.ID, idForm(64))},
		field{"provider", r.text(&t.Provider, providerName)},
		field{"base_url", r.text(&t.BaseURL, webURL, baseURL)},
		field{"secret_key_ref", r.secretRef(c, &t.Secret)},
		field{"ca", r.pathOf(c, func(p string) { t.CA = p }, "")},
		field{"teams", r.texts(&t.Teams, 1, 1024, teamID)},
		field{"dialects", r.texts(&t.Dialects, 1, len(dialects), oneOf(dialects...))},
		field{"stream_usage", r.boolean(&t.StreamUsage)},
		field{"output_limit", r.text(&t.OutputLimit, oneOf(outputLimits...))},
		field{"headers", r.headers(&t.Headers)},
		field{"model", r.text(&t.Model, label(256), literal)},
	)(n, path)
	r.require(path, "id", "base_url")
	if t.BaseURL != "" {
		t.BaseURL = withVersion(trimURL(t.BaseURL))
	}
	if ca := join(path, "ca"); t.CA != "" {
		c.bundles = append(c.bundles, bundleUse{t.CA, r.line(ca), ca})
		if strings.HasPrefix(t.BaseURL, "http://") {
			r.warn(r.line(ca), ca, "says nothing: base_url is http://, which nobody vouches for")
		}
	}
	if t.OutputLimit == "" {
		t.OutputLimit = outputLimitOf(t.Provider)
	}
	if t.Dialects == nil {
		t.Dialects = []string{dialects[0]}
	}
	return t
}

func (r *reader) model(n *yaml.Node, path string) Model {
	var m Model
	r.section(
		field{"name", r.text(&m.Name, label(256), modelName)},
		field{"targets", r.list(1, abac.MaxTargets, func(_ int, n *yaml.Node, path string) {
			m.Targets = append(m.Targets, r.modelTarget(n, path))
		})},
		field{"context", number(r, &m.Context, 1, 1000*million)},
		field{"max_output", number(r, &m.MaxOutput, 1, 1000*million)},
		field{"price", r.price(&m.Price)},
	)(n, path)
	r.require(path, "name", "targets")
	if strings.Contains(m.Name, "*") {
		m.isPattern = true
		m.pattern, _ = abac.ParsePattern(m.Name)
	}
	return m
}

func (r *reader) modelTarget(n *yaml.Node, path string) ModelTarget {
	t := ModelTarget{Weight: 1}
	r.section(
		field{"id", r.text(&t.ID, idForm(64))},
		field{"model", r.text(&t.Model, label(256), literal)},
		field{"weight", number(r, &t.Weight, 0, million)},
		field{"price", r.price(&t.Price)},
	)(n, path)
	r.require(path, "id")
	return t
}

// require names the keys that a mapping must have. Nothing more is said of a value
// that is no mapping.
func (r *reader) require(path string, keys ...string) {
	for _, p := range r.problems {
		if p.Path == path && !p.Warning {
			return
		}
	}
	for _, k := range keys {
		if _, ok := r.lines[join(path, k)]; !ok {
			r.add(r.line(path), join(path, k), "missing; this key is required")
		}
	}
}

// together finds what is wrong between keys that are each fine.
func (r *reader) together(c *Config) {
	r.listeners(c)
	r.references(c)
	r.ownModels(c)
	cp := &c.ControlPlane
	if cp.URL != "" {
		cp.URL = trimURL(cp.URL)
		if problem := cleartext(cp.URL, cp.Insecure); problem != "" {
			r.add(r.line("control_plane.url"), "control_plane.url", "%s", problem)
		}
		if _, ok := r.lines["control_plane.token"]; !ok {
			c.tokenless = r.line("control_plane.url")
		}
		c.settleToken(r.lineOf("control_plane.token", "control_plane.url"))
	}
	if cp.MaxStale < cp.FreshFor {
		r.add(r.lineOf("control_plane.max_stale", "control_plane.fresh_for"), "control_plane.max_stale",
			"%s is less than fresh_for (%s): nothing would be fresh and served", durationText(cp.MaxStale), durationText(cp.FreshFor))
	}
	if c.Records.Mode == RecordsRequired && c.Records.Path == "" {
		r.add(r.line("records.mode"), "records.path", "missing; mode required refuses what it can't record: give a file, or - for stdout")
	}
	l := c.Limits
	if l.Drain < l.LameDuck {
		r.warn(r.lineOf("limits.drain", "limits.lame_duck"), "limits.drain",
			"%s ends before lame_duck (%s) does: drain is all told", durationText(l.Drain), durationText(l.LameDuck))
	}
	if l.Bodies < l.RequestBody {
		r.warn(r.lineOf("limits.bodies", "limits.request_body"), "limits.bodies",
			"%s is less than request_body (%s): the largest request never fits", sizeText(l.Bodies), sizeText(l.RequestBody))
	}
}

// lineOf is the line of the first of these keys that the file has.
func (r *reader) lineOf(paths ...string) int {
	for _, p := range paths {
		if n, ok := r.lines[p]; ok {
			return n
		}
	}
	return r.line(paths[0])
}

func (r *reader) listeners(c *Config) {
	type listener struct{ path, address string }
	all := []listener{{"listen", c.Listen}, {"operations_listen", c.OperationsListen}}
	if c.ControlPlane.URL == "" {
		all = append(all, listener{"control_plane.embedded.listen", c.ControlPlane.Embedded.Listen})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.address == b.address && !strings.HasSuffix(a.address, ":0") {
				r.add(r.lineOf(a.path, b.path), a.path, "the same address as %s", b.path)
			}
		}
	}
}

// references checks ids and names: unique, and of something that exists.
func (r *reader) references(c *Config) {
	ids := make(map[string]string, len(c.Targets))
	known := make([]string, 0, len(c.Targets))
	for i, t := range c.Targets {
		path := fmt.Sprintf("providers.targets[%d].id", i)
		if first, ok := ids[t.ID]; ok {
			r.add(r.line(path), path, "the same id as %s", first)
		} else if t.ID != "" {
			ids[t.ID] = path
			known = append(known, t.ID)
		}
	}
	names := make(map[string]string, len(c.Models))
	for i, m := range c.Models {
		path := fmt.Sprintf("models[%d].name", i)
		if first, ok := names[m.Name]; ok {
			r.add(r.line(path), path, "the same name as %s", first)
		} else if m.Name != "" {
			names[m.Name] = path
		}
		seen := make(map[[2]string]bool, len(m.Targets))
		for j, t := range m.Targets {
			path := fmt.Sprintf("models[%d].targets[%d].id", i, j)
			upstream := cmp.Or(t.Model, m.Name)
			switch {
			case t.ID == "":
			case ids[t.ID] == "":
				r.add(r.line(path), path, "no target of providers.targets has this id%s", idsKnown(t.ID, known))
			case seen[[2]string{t.ID, upstream}]:
				r.add(r.line(path), path, "the same target and model stand twice")
			}
			seen[[2]string{t.ID, upstream}] = true
		}
	}
}

// ownModels bounds the entries that are implied by targets.
func (r *reader) ownModels(c *Config) {
	named := make(map[string]bool, len(c.Models))
	for _, m := range c.Models {
		named[m.Name] = true
	}
	serving := make(map[string]int)
	for i, t := range c.Targets {
		if t.Model == "" || named[t.Model] {
			continue
		}
		if serving[t.Model]++; serving[t.Model] > abac.MaxTargets {
			path := fmt.Sprintf("providers.targets[%d].model", i)
			r.add(r.line(path), path, "more than %d targets serve this name", abac.MaxTargets)
		}
	}
}

func idsKnown(id string, known []string) string {
	if len(known) == 0 {
		return "; there are none"
	}
	if hint := didYouMean(id, known); hint != "" {
		return hint
	}
	if len(known) > 20 {
		return ""
	}
	return "; there are: " + strings.Join(known, ", ")
}
