package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// keys lists every key that the schema allows, as it says itself: each section of
// the full example is given a key that it can't have.
func keys(t *testing.T) (allowed, used []string) {
	t.Helper()
	src, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(src, &doc); err != nil {
		t.Fatal(err)
	}
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		switch n.Kind {
		case yaml.MappingNode:
			if strings.HasSuffix(path, "headers") || strings.HasSuffix(path, "secret_key_ref") || strings.HasSuffix(path, "token") {
				return
			}
			for i := 0; i < len(n.Content); i += 2 {
				key := join(path, n.Content[i].Value)
				used = append(used, key)
				walk(n.Content[i+1], key)
			}
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "zzzzzzzz"}, &yaml.Node{Kind: yaml.ScalarNode, Value: "1"})
		case yaml.SequenceNode:
			for _, e := range n.Content {
				walk(e, path+"[]")
			}
		}
	}
	walk(doc.Content[0], "")
	if src, err = yaml.Marshal(&doc); err != nil {
		t.Fatal(err)
	}
	_, err = Parse("full", src)
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	index := regexp.MustCompile(`\[\d+\]`)
	for _, p := range problems {
		section, isKey := strings.CutSuffix(index.ReplaceAllString(p.Path, "[]"), "zzzzzzzz")
		_, list, isList := strings.Cut(p.Message, "; allowed: ")
		if !isKey || !isList {
			t.Fatalf("another problem: %s", p)
		}
		for _, k := range strings.Split(list, ", ") {
			allowed = append(allowed, section+k)
		}
	}
	slices.Sort(allowed)
	return slices.Compact(allowed), used
}

func TestEveryKeyStandsInTheFullExampleAndInTheDocs(t *testing.T) {
	allowed, used := keys(t)
	if len(allowed) < 60 {
		t.Fatalf("%d keys: the list is broken", len(allowed))
	}
	docs, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range allowed {
		// A price is the same wherever it stands.
		documented := strings.Replace(k, "models[].targets[].price.", "models[].price.", 1)
		if !strings.Contains(string(docs), "| `"+documented+"` |") && !strings.Contains(string(docs), "| **`"+documented+"`** |") {
			t.Errorf("docs/configuration.md has no row for %s", k)
		}
		if !slices.Contains(used, k) && !slices.Contains(used, documented) {
			t.Errorf("testdata/full.yaml does not use %s", k)
		}
	}
	_, table, _ := strings.Cut(string(docs), "\n## Every key\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| \\**`([a-z_.\\[\\]]+)`\\** \\| .*\\| .*\\|$").FindAllStringSubmatch(table, -1)
	if len(rows) < 60 {
		t.Fatalf("%d rows: the table is not where it was", len(rows))
	}
	for _, m := range rows {
		if !slices.Contains(allowed, m[1]) {
			t.Errorf("docs/configuration.md has a row for %s, which is no key", m[1])
		}
	}
}

// The defaults that the docs' table gives make the same configuration as none.
func TestTheDocsGiveTheDefaultsThatHold(t *testing.T) {
	docs, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| `([^`]+)`(: [a-z' ]+)? \\|").FindAllStringSubmatch(string(docs), -1)
	if len(rows) < 25 {
		t.Fatalf("%d rows with a default: the list is broken", len(rows))
	}
	root := map[string]any{}
	for _, row := range rows {
		if row[1] == "control_plane.token" || row[1] == "providers.targets" {
			continue
		}
		at, path := root, strings.Split(row[1], ".")
		for _, section := range path[:len(path)-1] {
			if at[section] == nil {
				at[section] = map[string]any{}
			}
			at = at[section].(map[string]any)
		}
		var v any
		if err := yaml.Unmarshal([]byte(row[2]), &v); err != nil {
			t.Fatal(err)
		}
		at[path[len(path)-1]] = v
	}
	src, err := yaml.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("gateway.yaml", src)
	if err != nil {
		t.Fatal(err)
	}
	var a, b strings.Builder
	dump(&a, "", reflect.ValueOf(*got))
	dump(&b, "", reflect.ValueOf(*Default()))
	if a.String() != b.String() {
		t.Errorf("the docs' defaults make another configuration:\n%s", a.String())
	}
}

func TestTheDocsListEveryProviderWithItsOutputLimit(t *testing.T) {
	docs, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Providers {
		row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| `%s` \\| .*`%s`", p.OutputLimit, p.Name))
		if !row.Match(docs) {
			t.Errorf("%s with %s is not in the table", p.Name, p.OutputLimit)
		}
	}
}

func TestTheExampleToStartFromIsValid(t *testing.T) {
	t.Setenv("OPENAI_API_KEY", "x")
	src, err := os.ReadFile("../deploy/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, string(src))
	if w := c.Warnings(); len(w) != 0 || c.Find("gpt-5.4-mini") == nil {
		t.Errorf("%v", w)
	}
	// What is commented out is there to be used.
	commented := regexp.MustCompile(`(?m)^( *)# ((?:- )?[a-z_]+: .*|  [a-z_]+: .*|control_plane:)$`).ReplaceAllString(string(src), "$1$2")
	t.Setenv(TokenEnv, "x")
	c = parse(t, commented)
	if c.Find("llama3.3") == nil || c.Find("gpt-other") == nil || c.ControlPlane.URL == "" || len(c.Warnings()) != 0 {
		t.Errorf("%v\n%s", c.Warnings(), commented)
	}
}
