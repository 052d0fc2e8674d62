package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

// Each file gives its effective configuration and warnings, or every problem.
func TestFilesReadAsTheirGoldens(t *testing.T) {
	noEnvironment(t)
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v: the corpus is gone", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			got := outcome(file)
			if strings.Contains(got, "s3cr3t-literal") || strings.Contains(got, "1jIOm5") {
				t.Errorf("a value of the file is repeated:\n%s", got)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("differs from %s (-update writes it anew):\n%s", golden, got)
			}
		})
	}
}

func outcome(file string) string {
	c, err := Load(file)
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, w := range c.Warnings() {
		fmt.Fprintln(&b, w)
	}
	dump(&b, "", reflect.ValueOf(*c))
	return b.String()
}

// dump writes a line for each value that is not at its zero.
func dump(b *strings.Builder, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			dump(b, path, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				dump(b, strings.TrimPrefix(path+"."+f.Name, "."), v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			dump(b, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			dump(b, path+"."+k.String(), v.MapIndex(k))
		}
	default:
		if d, ok := v.Interface().(time.Duration); ok {
			fmt.Fprintf(b, "%s = %s\n", path, durationText(d))
		} else {
			fmt.Fprintf(b, "%s = %v\n", path, v.Interface())
		}
	}
}

// noEnvironment takes away what a developer's shell may have set.
func noEnvironment(t *testing.T) {
	for _, name := range []string{TokenEnv, "EAST_KEY", "OPENAI_API_KEY"} {
		t.Setenv(name, "")
		t.Setenv(name+"_FILE", "")
	}
}

func TestAllProblemsComeAtOnceInTheOrderOfTheFile(t *testing.T) {
	_, err := Load("testdata/bad-types.yaml")
	var problems Problems
	if !errors.As(err, &problems) || len(problems) < 15 {
		t.Fatalf("%v", err)
	}
	for i, p := range problems {
		if p.File != "testdata/bad-types.yaml" || p.Line < 1 || p.Path == "" || p.Message == "" {
			t.Errorf("incomplete: %+v", p)
		}
		if i > 0 && p.Line < problems[i-1].Line {
			t.Errorf("line %d stands after line %d", p.Line, problems[i-1].Line)
		}
	}
}

func TestAFileThatIsNotThereIsNoProblemOfItsContent(t *testing.T) {
	_, err := Load("testdata/none.yaml")
	var problems Problems
	if !errors.Is(err, os.ErrNotExist) || errors.As(err, &problems) {
		t.Errorf("%v", err)
	}
}

func TestTheDefaultIsWhatAnEmptyFileMeans(t *testing.T) {
	for _, src := range []string{"", "\n", "# nothing\n", "---\n", "{}", "null", "~\n"} {
		c, err := Parse("gateway.yaml", []byte(src))
		if err != nil {
			t.Errorf("%q: %v", src, err)
			continue
		}
		var got, want strings.Builder
		dump(&got, "", reflect.ValueOf(*c))
		dump(&want, "", reflect.ValueOf(*Default()))
		if got.String() != want.String() {
			t.Errorf("%q:\n%s", src, got.String())
		}
	}
}
