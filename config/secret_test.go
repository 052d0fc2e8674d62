package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretsAreReadWhereTheirReferencePoints(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", "from-file\n")
	for _, tt := range []struct {
		name           string
		env, envFile   string
		file           string
		want, mustName string
	}{
		{name: "a file, its newline is not part of it", file: good, want: "from-file"},
		{name: "a file from elsewhere, with a carriage return", file: write("crlf", "x\r\n"), want: "x"},
		{name: "a variable", env: "from-env", want: "from-env"},
		{name: "a variable in its FILE form", envFile: good, want: "from-file"},
		{name: "both: the variable wins", env: "from-env", envFile: good, want: "from-env"},
		{name: "neither", mustName: "CONFIG_TEST_KEY"},
		{name: "a file that is not there", file: filepath.Join(dir, "none"), mustName: "none"},
		{name: "a FILE form that is not there", envFile: filepath.Join(dir, "none"), mustName: "none"},
		{name: "an empty file", file: write("empty", "\n"), mustName: "empty"},
		{name: "two lines", file: write("lines", "s3cr3t\nliteral\n"), mustName: "lines"},
		{name: "a space inside", env: "s3cr3t literal", mustName: "CONFIG_TEST_KEY"},
		{name: "a byte beyond ASCII", env: "s3cr3t\u00e9", mustName: "CONFIG_TEST_KEY"},
		{name: "a file in FILE form with a space inside", envFile: write("space", "s3cr3t x"), mustName: "CONFIG_TEST_KEY_FILE"},
		{name: "a folder", file: dir, mustName: dir},
		{name: "a huge file", file: write("huge", strings.Repeat("s3cr3t", 20_000)), mustName: "huge"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("CONFIG_TEST_KEY", tt.env)
			t.Setenv("CONFIG_TEST_KEY_FILE", tt.envFile)
			ref := &SecretRef{Env: "CONFIG_TEST_KEY", File: tt.file}
			if tt.file != "" {
				ref.Env = ""
			}
			got, err := ref.Resolve()
			if got != tt.want || (err != nil) != (tt.mustName != "") {
				t.Fatalf("got %q, %v", got, err)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.mustName) || strings.Contains(err.Error(), "s3cr3t")) {
				t.Errorf("the error must name the reference and no content: %v", err)
			}
		})
	}
}

func TestTheRuntimeTokenMayComeFromTheEnvironmentAlone(t *testing.T) {
	c := parse(t, `control_plane: {url: "https://c.example"}`)
	if err := c.MissingToken(); err == nil || !strings.HasPrefix(err.Error(), "gateway.yaml:1: control_plane.token: missing; a control plane wants a runtime token: ") {
		t.Errorf("without a token: %v", err)
	}
	const want = "gateway.yaml:1: warning: control_plane.token: environment variable KEEPTRUSTS_API_TOKEN is not set (nor KEEPTRUSTS_API_TOKEN_FILE)"
	if w := c.Warnings(); len(w) != 1 || w[0].String() != want {
		t.Errorf("without a token: %v", w)
	}
	t.Setenv(TokenEnv, "kt-whatever")
	if s, err := c.ControlPlane.Token.Resolve(); s != "kt-whatever" || err != nil {
		t.Errorf("%q %v", s, err)
	}
	if w, err := c.Warnings(), c.MissingToken(); len(w) != 0 || err != nil {
		t.Errorf("%v %v", w, err)
	}
}

func TestTheRuntimeTokenOfTheEnvironmentWinsOverTheFile(t *testing.T) {
	const variable = "environment variable " + TokenEnv
	for _, tt := range []struct {
		name, token       string
		env, envFile, url string // url: the control plane that a flag names
		want              string
		warnings          int
	}{
		{name: "the variable over a variable of the file", token: "env: CONFIG_TEST_OTHER", env: "x", want: variable},
		{name: "over a file of the file", token: "file: none", env: "x", want: variable},
		{name: "over the file, at a control plane named by a flag", token: "file: none", env: "x", url: "https://d.example", want: variable},
		{name: "in its FILE form", token: "file: none", envFile: "testdata/ca.pem", want: variable, warnings: 1}, // no token, but what counts
		{name: "empty: the file's own reference holds", token: "env: CONFIG_TEST_OTHER", want: "environment variable CONFIG_TEST_OTHER", warnings: 1},
		{name: "empty, at a control plane named by a flag", token: "file: none", url: "https://d.example", want: "file none", warnings: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(TokenEnv, tt.env)
			t.Setenv(TokenEnv+"_FILE", tt.envFile)
			url := `url: "https://c.example", `
			if tt.url != "" {
				url = ""
			}
			c := parse(t, "control_plane: {"+url+"token: {secret_key_ref: {"+tt.token+"}}}")
			if tt.url != "" {
				if err := c.Override("control_plane.url", tt.url); err != nil {
					t.Fatal(err)
				}
			}
			w := c.Warnings()
			if got := c.ControlPlane.Token.String(); got != tt.want || len(w) != tt.warnings || c.MissingToken() != nil {
				t.Errorf("got %s, %v, %v", got, w, c.MissingToken())
			}
		})
	}
}

func TestWarningsFollowTheEnvironment(t *testing.T) {
	c := parse(t, `providers: {targets: [{id: a, base_url: "https://a.example", secret_key_ref: {env: CONFIG_TEST_KEY}}]}`)
	w := c.Warnings()
	if len(w) != 1 || !w[0].Warning || w[0].String() != "gateway.yaml:1: warning: providers.targets[0].secret_key_ref: environment variable CONFIG_TEST_KEY is not set (nor CONFIG_TEST_KEY_FILE)" {
		t.Errorf("%v", w)
	}
	t.Setenv("CONFIG_TEST_KEY", "x")
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("%v", w)
	}
}
