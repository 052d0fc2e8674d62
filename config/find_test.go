package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func parse(t testing.TB, src string) *Config {
	t.Helper()
	c, err := Parse("gateway.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const someModels = `
providers:
  targets:
    - {id: a, base_url: "https://a.example", teams: [platform]}
    - {id: b, base_url: "https://b.example", model: own}
models:
  - {name: "*", targets: [{id: a}, {id: b, model: fallback}]}
  - {name: "gpt-*", targets: [{id: a}]}
  - {name: "gpt-*-mini", targets: [{id: a}]}
  - {name: "gpt-5*", targets: [{id: a}]}
  - {name: "*-audio", targets: [{id: b}]}
  - {name: "gpt-5-pro", targets: [{id: a}, {id: b, model: upstream}]}
`

func TestFindPrefersTheExactThenTheLongestPrefixThenTheFirst(t *testing.T) {
	c := parse(t, someModels)
	for _, tt := range []struct{ give, want string }{
		{"gpt-5-pro", "gpt-5-pro"},
		{"own", "own"},
		{"gpt-5-mini", "gpt-5*"},
		{"gpt-4-mini", "gpt-*"},
		{"gpt-", "gpt-*"},
		{"gpt-5", "gpt-5*"},
		{"some-audio", "*"},
		{"GPT-5-pro", "*"},
		{"", "*"},
		{"*", "*"},
		{"gpt-*", "gpt-*"},
	} {
		if m := c.Find(tt.give); m == nil || m.Name != tt.want {
			t.Errorf("%q: got %+v, want %s", tt.give, m, tt.want)
		}
	}
	if m := parse(t, strings.Replace(someModels, `"*", targets`, `"z*", targets`, 1)).Find("other"); m != nil {
		t.Errorf("a name that nothing covers: %s", m.Name)
	}
	if m := Default().Find("gpt-5-pro"); m != nil {
		t.Errorf("without models: %s", m.Name)
	}
}

func TestAbacTargetsNameWhatTheUpstreamWouldBeAsked(t *testing.T) {
	c := parse(t, someModels)
	for _, tt := range []struct{ give, want string }{
		{"gpt-5-pro", "[{a gpt-5-pro [platform]} {b upstream []}]"},
		{"anything", "[{a  [platform]} {b fallback []}]"},
		{"own", "[{b own []}]"},
	} {
		if got := fmt.Sprint(c.Find(tt.give).AbacTargets()); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.give, got, tt.want)
		}
	}
	if !c.Find("anything").Pattern() || c.Find("own").Pattern() {
		t.Error("Pattern tells names and patterns apart")
	}
	if c.Target("a") != &c.Targets[0] || c.Target("c") != nil {
		t.Error("Target finds by id")
	}
}

func TestATargetsOwnModelIsSharedByAtMostMaxTargets(t *testing.T) {
	var b strings.Builder
	b.WriteString("providers:\n  targets:\n")
	for i := range 65 {
		fmt.Fprintf(&b, "    - {id: t%d, base_url: \"https://a.example\", model: m}\n", i)
	}
	_, err := Parse("gateway.yaml", []byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "gateway.yaml:67: providers.targets[64].model: ") {
		t.Errorf("65 targets of one name: %v", err)
	}
}

func TestEveryTargetOfAnEntryCountsToTheBound(t *testing.T) {
	src := func(n int) []byte {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("{id: a, model: m%d}", i)
		}
		return []byte("providers: {targets: [{id: a, base_url: \"https://a.example\"}]}\nmodels: [{name: m, targets: [" + strings.Join(list, ", ") + "]}]")
	}
	if _, err := Parse("f", src(64)); err != nil {
		t.Error(err)
	}
	if _, err := Parse("f", src(65)); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("%v", err)
	}
}

func TestPathsAreTakenFromTheFilesFolder(t *testing.T) {
	const src = `
data_dir: data
control_plane: {url: "https://c.example", token: {file: token}, ca: ca.pem, embedded: {database: x/p.db}}
records: {path: out/records}
providers: {targets: [{id: a, base_url: "https://a.example", secret_key_ref: {file: /abs/key}}]}
`
	c, err := Parse("/etc/kt/gateway.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ what, got, want string }{
		{"data_dir", c.DataDir, "/etc/kt/data"},
		{"database", c.ControlPlane.Embedded.Database, "/etc/kt/data/x/p.db"},
		{"token", c.ControlPlane.Token.File, "/etc/kt/token"},
		{"ca", c.ControlPlane.CA, "/etc/kt/ca.pem"},
		{"records", c.Records.Path, "/etc/kt/out/records"},
		{"an absolute path", c.Targets[0].Secret.File, "/abs/key"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.what, tt.got, tt.want)
		}
	}
}

func TestFilesThatAreNoConfigurationAreOneClearProblem(t *testing.T) {
	deep := strings.Repeat("[", 20_000)
	// Ten lists of ten aliases each to the one before: 10¹⁰ values.
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	for _, tt := range []struct{ name, give, want string }{
		{"too large", strings.Repeat("#", maxFile+1), "larger than 1MiB"},
		{"nested too deep", deep, "not YAML: exceeded max depth"},
		{"binary", "a: \x00", "a control character"},
		{"UTF-16", "\xff\xfea\x00", "not UTF-8"},
		{"aliases of aliases", bomb + "models: *a9\n", "want a mapping"},
		{"a list that holds itself", "models: &m [*m]", "want a mapping"},
		{"a mapping that holds itself", "models: [&m {name: a, targets: [*m]}]", "unknown key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.give))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestAliasesCountAsAllTheyStandFor(t *testing.T) {
	targets := "{id: a}" + strings.Repeat(", {id: a}", 63)
	src := "providers: {targets: [{id: a, base_url: \"https://a.example\"}]}\nmodels: [&m {name: m, targets: [" + targets + "]}" + strings.Repeat(", *m", 50_000) + "]"
	_, err := Parse("f", []byte(src))
	if err == nil || !strings.Contains(err.Error(), "more than 250000 values") {
		t.Fatalf("%.200v", err)
	}
	if n := len(strings.Split(err.Error(), "\n")); n > maxProblems+1 {
		t.Errorf("%d problems shown", n)
	}
}

func TestMain(m *testing.M) {
	// A developer's shell must not decide what a file means.
	for _, name := range []string{TokenEnv, TokenEnv + "_FILE"} {
		if err := os.Unsetenv(name); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
