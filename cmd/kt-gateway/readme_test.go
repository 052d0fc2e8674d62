package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keeptrusts/gateway/config"
)

// readmeConfig gives the configuration that the README has its readers start from.
func readmeConfig(t *testing.T) string {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllSubmatch(readme, -1)
	if len(blocks) != 1 {
		t.Fatalf("README.md has %d blocks of YAML, 1 is wanted", len(blocks))
	}
	return string(blocks[0][1])
}

func TestReadmeConfigIsFreeOfProblemsAndWarnings(t *testing.T) {
	t.Setenv("OPENAI_API_KEY", "sk-for-this-test")
	cfg, err := config.Parse(filepath.Join(t.TempDir(), "gateway.yaml"), []byte(readmeConfig(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range cfg.Warnings() {
		t.Errorf("warning: %s", w)
	}
	if m := cfg.Find(devModel); m == nil || m.Price == nil {
		t.Errorf("it has no priced entry for %s, which the README's call asks for", devModel)
	}
}

// TestReadmeConfigInFrontOfAnotherGateway runs the README's file with nothing
// changed but where its provider is.
func TestReadmeConfigInFrontOfAnotherGateway(t *testing.T) {
	const provider = "base_url: https://api.openai.com/v1\n"
	yaml := readmeConfig(t)
	if strings.Count(yaml, provider) != 1 {
		t.Fatalf("the README's file has no line %q", provider)
	}
	testscript.Run(t, testscript.Params{
		Files:               []string{filepath.Join("testdata", "readme.txtar")},
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Values["processes"] = processes{}
			text := strings.Replace(yaml, provider, "base_url: $inner_gateway\n", 1)
			return os.WriteFile(filepath.Join(env.WorkDir, "gateway.yaml"), []byte(text), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "end": end, "listening": listening, "http": call, "logged": logged, "var": variable, "expand": expand,
		},
	})
}

var markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestEveryLinkOfTheDocsLeadsSomewhere(t *testing.T) {
	root := filepath.Join("..", "..")
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := filepath.Glob(filepath.Join(root, "docs", "decisions", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages = append(append(pages, decisions...), filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md"))
	links := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), target)); err != nil {
				t.Errorf("%s: %s leads nowhere", filepath.Base(page), m[1])
			}
		}
	}
	if links < 5 {
		t.Errorf("%d links seen: these are not all the docs", links)
	}
}
