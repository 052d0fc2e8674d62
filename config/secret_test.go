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
	const src = `control_plane: {url: "https://c.example"}`
	if _, err := Parse("f", []byte(src)); err == nil || !strings.Contains(err.Error(), "f:1: control_plane.token: missing") {
		t.Errorf("without a token: %v", err)
	}
	t.Setenv(TokenEnv, "kt-whatever")
	c := parse(t, src)
	if s, err := c.ControlPlane.Token.Resolve(); s != "kt-whatever" || err != nil {
		t.Errorf("%q %v", s, err)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("%v", w)
	}
	c = parse(t, `control_plane: {url: "https://c.example", token: {secret_key_ref: {env: CONFIG_TEST_OTHER}}}`)
	if c.ControlPlane.Token.Env != "CONFIG_TEST_OTHER" || len(c.Warnings()) != 1 {
		t.Errorf("the file's own reference holds: %v %v", c.ControlPlane.Token, c.Warnings())
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
