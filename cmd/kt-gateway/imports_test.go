package main

import (
	"errors"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/keeptrusts/gateway"

// arrow is what one package may import: of ours, and of outside libraries those
// that it owns (a trailing slash takes the packages below).
type arrow struct{ ours, owns []string }

// arrows is DESIGN §2's table. A package that is not here may not exist.
var arrows = map[string]arrow{
	"abac":            {},
	"budget":          {},
	"record":          {},
	"token":           {},
	"proxy/dialect":   {},
	"proxy/simulator": {},
	"config":          {[]string{"abac"}, []string{"gopkg.in/yaml.v3"}},
	"tokencache":      {[]string{"abac", "token"}, []string{"github.com/dgraph-io/ristretto/v2"}},
	"controlplane/store": {[]string{"abac", "budget", "token"},
		[]string{"modernc.org/sqlite", "modernc.org/sqlite/", "github.com/jackc/pgx/v5", "github.com/jackc/pgx/v5/"}},
	"controlplane": {[]string{"abac", "budget", "controlplane/store", "record", "token"}, nil},
	"proxy":        {[]string{"abac", "budget", "config", "proxy/dialect", "record", "token", "tokencache"}, []string{"github.com/valyala/fasthttp", "github.com/valyala/fasthttp/"}},
	"cmd/kt-gateway": {[]string{"abac", "budget", "config", "controlplane", "controlplane/store", "proxy", "proxy/dialect", "proxy/simulator",
		"record", "token", "tokencache"}, nil},
}

// free are the outside libraries that have no owner.
var free = []string{"go.uber.org/zap", "go.uber.org/zap/", "github.com/prometheus/client_golang/"}

// problem says why a package may not import a path; "" when it may.
func (a arrow) problem(path string) string {
	if ours, ok := strings.CutPrefix(path, module+"/"); ok {
		if !slices.Contains(a.ours, ours) {
			return "the design has no arrow to " + ours
		}
		return ""
	}
	first, _, _ := strings.Cut(path, "/")
	if !strings.Contains(first, ".") && path != "C" {
		return "" // the standard library
	}
	for _, allowed := range slices.Concat(free, a.owns) {
		if path == allowed || strings.HasSuffix(allowed, "/") && strings.HasPrefix(path, allowed) {
			return ""
		}
	}
	return "it does not own " + path
}

func TestEveryImportIsAnArrowOfTheDesign(t *testing.T) {
	files, seen := 0, map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if rel == "test" || d.Name() == "testdata" || rel != "." && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		dir := filepath.ToSlash(filepath.Dir(rel))
		a, ok := arrows[dir]
		if !ok {
			t.Errorf("%s: the design has no package %s", rel, dir)
			return nil
		}
		seen[dir] = true
		for _, spec := range f.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if problem := a.problem(imported); problem != "" {
				t.Errorf("%s: %s", rel, problem)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 || !seen["proxy"] || !seen["cmd/kt-gateway"] {
		t.Fatalf("%d files of %d packages seen: this is not the whole tree", files, len(seen))
	}
}

func TestTopLevelHasOnlyTheRoomsOfTheDesign(t *testing.T) {
	rooms := strings.Fields("abac budget cmd config controlplane deploy docs proxy record test testdata token tokencache")
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(rooms, e.Name()) {
			t.Errorf("%s is no room of the design", e.Name())
		}
	}
}

func TestAWrongArrowIsSeen(t *testing.T) {
	for _, tt := range []struct{ name, from, imports, want string }{
		{"config may not know the proxy", "config", module + "/proxy", "the design has no arrow to proxy"},
		{"abac is pure", "abac", module + "/token", "the design has no arrow to token"},
		{"fasthttp belongs to the proxy", "tokencache", "github.com/valyala/fasthttp", "it does not own github.com/valyala/fasthttp"},
		{"a library's part belongs to its owner", "proxy", "github.com/valyala/fasthttp/fasthttputil", ""},
		{"zap is free", "token", "go.uber.org/zap/zapcore", ""},
		{"the standard library is free", "abac", "net/http/pprof", ""},
		{"cgo is no standard library", "abac", "C", "it does not own C"},
		{"a name that only opens like an owned one is another", "config", "gopkg.in/yaml.v3x", "it does not own gopkg.in/yaml.v3x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := arrows[tt.from].problem(tt.imports); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
