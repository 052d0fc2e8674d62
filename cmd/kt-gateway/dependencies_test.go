package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// directDependencies gives the modules that a go.mod requires for code of its own
// and for its tools. A tool's module is the longest required path above the tool.
func directDependencies(goMod string) (direct []string) {
	var required []string
	block := ""
	for line := range strings.Lines(goMod) {
		code, comment, _ := strings.Cut(line, "//")
		f := strings.Fields(code)
		switch {
		case len(f) == 2 && f[1] == "(":
			block = f[0]
			continue
		case len(f) == 1 && f[0] == ")":
			block = ""
			continue
		case block != "":
			f = append([]string{block}, f...)
		}
		switch {
		case len(f) == 3 && f[0] == "require":
			required = append(required, f[1])
			if strings.TrimSpace(comment) != "indirect" {
				direct = append(direct, f[1])
			}
		case len(f) == 2 && f[0] == "tool":
			direct = append(direct, "tool "+f[1])
		}
	}
	for i, d := range direct {
		tool, ok := strings.CutPrefix(d, "tool ")
		if !ok {
			continue
		}
		direct[i] = tool
		longest := ""
		for _, r := range required {
			if strings.HasPrefix(tool, r+"/") && len(r) > len(longest) {
				longest, direct[i] = r, r
			}
		}
	}
	slices.Sort(direct)
	return slices.Compact(direct)
}

var dependencyRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|.*\\S.*\\|.*\\S.*\\|$")

func TestEveryDirectDependencySaysWhatItEarns(t *testing.T) {
	goMod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	direct := directDependencies(string(goMod))
	if len(direct) < 8 {
		t.Fatalf("go.mod has %d direct dependencies: this can't be all of them; is it tidy?", len(direct))
	}
	var rows []string
	for _, m := range dependencyRow.FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, m[1])
	}
	for _, d := range direct {
		if !slices.Contains(rows, d) {
			t.Errorf("docs/dependencies.md has no row for %s", d)
		}
	}
	for _, r := range rows {
		if !slices.Contains(direct, r) {
			t.Errorf("docs/dependencies.md has a row for %s, which go.mod does not require directly", r)
		}
	}
}

func TestDirectDependenciesOfAModuleFile(t *testing.T) {
	got := directDependencies(`module m

go 1.26.0

require one.example/a v1.0.0

require (
	two.example/b v1.0.0
	three.example/c v1.0.0 // indirect
	three.example/c/d v1.0.0 // indirect
)

tool three.example/c/d/cmd/x
`)
	want := []string{"one.example/a", "three.example/c/d", "two.example/b"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
