package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/abac"
)

func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(seeds) < 20 {
		f.Fatalf("%d seeds, %v: the corpus is gone", len(seeds), err)
	}
	for _, name := range seeds {
		src, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src, "gpt-5.4-mini")
	}
	f.Add([]byte(someModels), "gpt-5-mini")
	f.Add([]byte("models: &m [*m]"), "*")
	f.Add([]byte("a: &a [*a]\nlimits: *a\n<<: *a"), "")
	f.Add([]byte("? {a: b}\n: c\n? [d]\n: e\n? |\n  f\n: >\n  g"), "\xff")
	f.Fuzz(func(t *testing.T, src []byte, model string) {
		c, err := Parse("gateway.yaml", src)
		again, err2 := Parse("gateway.yaml", src)
		if !reflect.DeepEqual(err, err2) || !reflect.DeepEqual(c, again) {
			t.Fatal("the same content is read in two ways")
		}
		if err != nil {
			saneProblems(t, src, err)
			return
		}
		saneConfig(t, c, model)
	})
}

func saneProblems(t *testing.T, src []byte, err error) {
	var problems Problems
	if !errors.As(err, &problems) || len(problems) == 0 || len(problems) > maxProblems+1 {
		t.Fatalf("%T of %d", err, len(problems))
	}
	// YAML counts CR, NEL, LS and PS as line breaks too.
	lines := bytes.Count(src, []byte("\n")) + bytes.Count(src, []byte("\r")) + bytes.Count(src, []byte("\u0085")) +
		bytes.Count(src, []byte("\u2028")) + bytes.Count(src, []byte("\u2029")) + 2
	last := 0
	for _, p := range problems {
		if p.Line < 1 && !strings.HasPrefix(p.Message, "and ") && !strings.HasPrefix(p.Message, "larger than ") {
			t.Errorf("without a line: %s", p)
		}
		if p.Line > lines || p.Line < last && p.Line > 0 {
			t.Errorf("line %d of %d, after %d: %s", p.Line, lines, last, p)
		}
		last = p.Line
		if s := p.String(); strings.ContainsAny(s, "\n\r") || p.Message == "" {
			t.Errorf("not one line: %q", s)
		}
	}
}

func saneConfig(t *testing.T, c *Config, model string) {
	for i := range c.Models {
		m := &c.Models[i]
		if n := len(m.Targets); n < 1 || n > abac.MaxTargets || len(m.AbacTargets()) != n {
			t.Errorf("%q has %d targets", m.Name, n)
		}
		if got := c.Find(m.Name); !m.Pattern() && got != m || got == nil {
			t.Errorf("%q is not found by its name", m.Name)
		}
		for _, mt := range m.Targets {
			if c.Target(mt.ID) == nil || mt.Weight < 0 {
				t.Errorf("%q: %+v", m.Name, mt)
			}
		}
	}
	for i := range c.Targets {
		tg := &c.Targets[i]
		if webURL(tg.BaseURL) != "" || strings.HasSuffix(tg.BaseURL, "/") || len(tg.Dialects) == 0 || c.Target(tg.ID) != tg {
			t.Errorf("%+v", tg)
		}
		if tg.Model != "" && c.Find(tg.Model) == nil {
			t.Errorf("a target's own model %q is not served", tg.Model)
		}
	}
	if c.ControlPlane.URL != "" && c.ControlPlane.Token == nil || c.ControlPlane.MaxStale < c.ControlPlane.FreshFor {
		t.Errorf("%+v", c.ControlPlane)
	}
	if m := c.Find(model); m != nil && m.Name != model && !m.Pattern() {
		t.Errorf("%q is served by %q", model, m.Name)
	}
	if fixed := c.Fixed(c); fixed != nil {
		t.Errorf("differs from itself: %v", fixed)
	}
}
