package config

import (
	"errors"
	"fmt"
	"strings"
)

// Override sets a field, named by its path in the file, from a flag or a variable,
// which win over the file. A path in value is relative to the process's folder, the
// database to data_dir. The error reads "field: what is wrong, what is allowed" and
// does not hold the value. It is for a Config that nobody else reads yet.
func (c *Config) Override(field, value string) error {
	cp := &c.ControlPlane
	fields := []struct {
		name   string
		dst    *string
		checks []check
	}{
		{"gateway_id", &c.GatewayID, []check{idForm(128)}},
		{"listen", &c.Listen, []check{address}},
		{"operations_listen", &c.OperationsListen, []check{address}},
		{"data_dir", &c.DataDir, []check{filePath}},
		{"control_plane.url", &cp.URL, []check{webURL, func(s string) string { return cleartext(s, cp.Insecure) }}},
		{"control_plane.ca", &cp.CA, []check{filePath}},
		{"control_plane.embedded.listen", &cp.Embedded.Listen, []check{address}},
		{"control_plane.embedded.database", &c.database, []check{filePath, plainFile}},
		{"records.path", &c.Records.Path, []check{filePath}},
		{"log.level", &c.Log.Level, []check{oneOf(logLevels...)}},
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
		if f.name != field {
			continue
		}
		for _, check := range f.checks {
			if problem := check(value); problem != "" {
				return fmt.Errorf("%s: %s", field, problem)
			}
		}
		*f.dst = value
		c.derive()
		return nil
	}
	return errors.New(field + ": can't be set from outside the file; what can: " + strings.Join(names, ", "))
}

// derive brings what depends on other fields into line with them.
func (c *Config) derive() {
	c.setDataDir(c.DataDir)
	if cp := &c.ControlPlane; cp.URL != "" {
		cp.URL = trimURL(cp.URL)
		c.settleToken(0)
	}
}

// Fixed returns the paths of the fields that differ in next and can't change while
// the gateway runs.
func (c *Config) Fixed(next *Config) []string {
	var out []string
	differ := func(path string, same bool) {
		if !same {
			out = append(out, path)
		}
	}
	differ("gateway_id", c.GatewayID == next.GatewayID)
	differ("listen", c.Listen == next.Listen)
	differ("operations_listen", c.OperationsListen == next.OperationsListen)
	differ("data_dir", c.DataDir == next.DataDir)
	a, b := &c.ControlPlane, &next.ControlPlane
	differ("control_plane.url", a.URL == b.URL)
	differ("control_plane.token", same(a.Token, b.Token))
	// Elsewhere under the same name when data_dir differs, which is said already.
	differ("control_plane.embedded.database", c.database == next.database)
	differ("control_plane.embedded.listen", a.Embedded.Listen == b.Embedded.Listen)
	differ("control_plane.fresh_for", a.FreshFor == b.FreshFor)
	differ("control_plane.max_stale", a.MaxStale == b.MaxStale)
	differ("control_plane.ca", a.CA == b.CA)
	differ("control_plane.insecure", a.Insecure == b.Insecure)
	return out
}

func same(a, b *SecretRef) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
