package token

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/yaml.v3"
)

const hint = "kt_live_…IOm5"

type holder struct {
	Exported Secret
	hidden   Secret
	Pointer  *Secret
}

func held() holder {
	s := NewSecret(vector)
	return holder{Exported: s, hidden: s, Pointer: &s}
}

// leaks finds the secret's random part and checksum, plainly, quoted, in hex and
// as decimal bytes.
func leaks(out string) bool {
	for _, part := range []string{vector[len(Prefix):], "1jIOm5"} {
		decimal := strings.Trim(fmt.Sprint([]byte(part)), "[]")
		low, high := fmt.Sprintf("%x", part), fmt.Sprintf("%X", part)
		for _, s := range []string{part, low, high, fmt.Sprintf("% x", part), decimal} {
			if strings.Contains(out, s) {
				return true
			}
		}
	}
	return false
}

func TestLeaksIsAbleToFind(t *testing.T) {
	for _, format := range []string{"%s", "%q", "%x", "%X", "% x", "%#v"} {
		if !leaks(fmt.Sprintf(format, vector)) || !leaks(fmt.Sprintf(format, []byte(vector))) && format != "%#v" {
			t.Errorf("%s of the string itself is not found", format)
		}
	}
}

func TestEveryVerbPrintsTheHint(t *testing.T) {
	s := NewSecret(vector)
	for _, flags := range []string{"", "+", "#", " ", "-", "0", "80", "-80.3", "+#", ".99"} {
		for verb := 'A'; verb <= 'z'; verb++ {
			format := "%" + flags + string(verb)
			if got := fmt.Sprintf(format, s); got != hint && strings.ContainsRune("vsqxXdoObcUegGEFft", verb) {
				t.Errorf("%s: %s, want %s", format, got, hint)
			}
			for _, v := range []any{s, &s, held(), []Secret{s}, map[string]Secret{"k": s}, [1]Secret{s}, struct{ s Secret }{s}, error(failure{s})} {
				if got := fmt.Sprintf(format, v); leaks(got) {
					t.Errorf("%s of %T prints the secret", format, v)
				}
			}
		}
	}
	for _, v := range []any{s, &s} {
		if got := fmt.Sprint(v); got != hint {
			t.Errorf("Sprint of %T: %s", v, got)
		}
	}
	if s.GoString() != hint || s.String() != hint {
		t.Error("String and GoString differ from the hint")
	}
}

type failure struct{ secret Secret }

func (f failure) Error() string { return fmt.Sprintf("use %v: %s", f.secret, f.secret) }

func TestErrorsAndEncodingsPrintTheHint(t *testing.T) {
	s := NewSecret(vector)
	check := func(name, got string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if leaks(got) || !strings.Contains(got, hint) {
			t.Errorf("%s: no hint, or more than it", name)
		}
	}
	check("error", fmt.Errorf("wrapped: %w", failure{s}).Error(), nil)
	check("joined error", errors.Join(failure{s}, fmt.Errorf("%+v", held())).Error(), nil)

	b, err := json.Marshal(held())
	check("json", string(b), err)
	b, err = json.Marshal(map[string]any{"k": s})
	check("json value", string(b), err)
	b, err = yaml.Marshal(map[string]any{"k": held()})
	check("yaml", string(b), err)
	b, err = xml.Marshal(held())
	check("xml", string(b), err)

	var buf bytes.Buffer
	err = template.Must(template.New("").Parse("{{.}} {{.Exported}} {{printf `%q` .Exported}}")).Execute(&buf, held())
	check("template", buf.String(), err)

	buf.Reset()
	slog.New(slog.NewTextHandler(&buf, nil)).Info("m", "k", s, "all", held())
	check("slog text", buf.String(), nil)
	buf.Reset()
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("m", "k", s, "all", held())
	check("slog json", buf.String(), nil)

	buf.Reset()
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&buf), zap.DebugLevel)
	log := zap.New(core)
	log.Info("m", zap.Any("k", s), zap.Stringer("s", s), zap.Reflect("all", held()), zap.Error(failure{s}))
	log.Sugar().Infof("%v %+v", s, held())
	check("zap", buf.String(), nil)

	buf.Reset()
	if err := gob.NewEncoder(&buf).Encode(struct{ A Secret }{s}); err == nil && leaks(buf.String()) {
		t.Error("gob holds the secret")
	}
	if err := json.Unmarshal([]byte(`{"Exported":"kt_live_x"}`), new(holder)); err == nil {
		t.Error("a secret is read from JSON: a hint could be taken for it")
	}
}

// The runtime prints the value of a panic that nobody recovers, by rules of its
// own: this needs a process of its own.
func TestPanicsPrintNoMoreThanTheHint(t *testing.T) {
	const key = "TOKEN_TEST_PANIC"
	values := map[string]any{
		"secret":  NewSecret(vector),
		"pointer": func() *Secret { s := NewSecret(vector); return &s }(),
		"holder":  held(),
		"error":   failure{NewSecret(vector)},
		"wrapped": fmt.Errorf("wrapped: %w", failure{NewSecret(vector)}),
		"printed": fmt.Sprintf("%#v", held()),
	}
	if name := os.Getenv(key); name != "" {
		panic(values[name])
	}
	for name := range values {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), key+"="+name)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(string(out), "panic: ") {
			t.Errorf("%s: did not panic: %v", name, err)
		}
		if leaks(string(out)) {
			t.Errorf("%s: the panic prints the secret", name)
		}
	}
}

func TestHint(t *testing.T) {
	tests := []struct{ name, give, want string }{
		{"a minted token", vector, hint},
		{"a legacy key", "kt_ak_1234567890abcd", "kt_ak_…abcd"},
		{"an administrator's token", "kt_admin_1234567890abcd", "kt_admin_…abcd"},
		{"a short string", "kt_ak_1234567890abc", "…"},
		{"empty", "", "…"},
		{"a provider's credential", "sk-proj-1234567890abcdefghij", "…"},
		{"a phrase with underscores", "correct_horse_battery_staple", "…"},
		{"no second underscore", "kt_1234567890abcdefghij", "…"},
		{"an underscore late in the randomness", "kt_123456789_abcdefghij", "…"},
	}
	for _, tt := range tests {
		if got := NewSecret(tt.give).Hint(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if got := (Secret{}).Hint(); got != "…" {
		t.Errorf("zero: %s", got)
	}
}

func TestTheZeroSecretIsEmpty(t *testing.T) {
	var s Secret
	if !s.Empty() || s.Reveal() != "" || s.Digest() != Sum(nil) || !NewSecret("").Empty() {
		t.Error("not empty")
	}
	if NewSecret("x").Empty() {
		t.Error("a secret of one character is empty")
	}
}
