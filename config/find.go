package config

import (
	"path/filepath"
	"slices"

	"github.com/keeptrusts/gateway/abac"
)

// Find returns the entry that serves a model: an exact name beats patterns, among
// those the longest literal prefix wins, then the first in the file. nil: none.
// It does not allocate.
func (c *Config) Find(model string) *Model {
	if m := c.names[model]; m != nil {
		return m
	}
	for _, m := range c.patterns {
		if m.pattern.Match(model) {
			return m
		}
	}
	return nil
}

// Target returns the target with an id; nil: none.
func (c *Config) Target(id string) *Target { return c.targets[id] }

// Pattern says whether the entry's name holds a *, so that it serves many names
// and is no model of its own.
func (m *Model) Pattern() bool { return m.isPattern }

// AbacTargets returns the entry's targets as a decision takes them, in the order
// of m.Targets. Model is "" where a pattern's target names none. Shared: read only.
func (m *Model) AbacTargets() []abac.Target { return m.abac }

// index builds what Find and Target read. The content must be valid.
func (c *Config) index() {
	c.targets = make(map[string]*Target, len(c.Targets))
	for i := range c.Targets {
		c.targets[c.Targets[i].ID] = &c.Targets[i]
	}
	c.names = make(map[string]*Model, len(c.Models))
	c.patterns = nil
	for i := range c.Models {
		m := &c.Models[i]
		if m.isPattern {
			c.patterns = append(c.patterns, m)
		} else {
			c.names[m.Name] = m
		}
		m.abac = make([]abac.Target, len(m.Targets))
		for j, t := range m.Targets {
			name := t.Model
			if name == "" && !m.isPattern {
				name = m.Name
			}
			m.abac[j] = abac.Target{ID: t.ID, Model: name, Teams: c.targets[t.ID].Teams}
		}
	}
	slices.SortStableFunc(c.patterns, func(a, b *Model) int {
		return b.pattern.LiteralPrefixLen() - a.pattern.LiteralPrefixLen()
	})
}

// imply adds an entry for each target's own model that no entry names.
func (c *Config) imply() {
	named := make(map[string]bool, len(c.Models))
	for _, m := range c.Models {
		named[m.Name] = true
	}
	at := make(map[string]int)
	for _, t := range c.Targets {
		if t.Model == "" || named[t.Model] {
			continue
		}
		i, ok := at[t.Model]
		if !ok {
			i = len(c.Models)
			at[t.Model] = i
			c.Models = append(c.Models, Model{Name: t.Model})
		}
		c.Models[i].Targets = append(c.Models[i].Targets, ModelTarget{ID: t.ID, Model: t.Model, Weight: 1})
	}
}

// under makes p relative to dir, unless it is absolute.
func under(dir, p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}
