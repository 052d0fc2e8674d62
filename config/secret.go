package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// SecretRef says where a secret is: in an environment variable or in a file. One
// of the two is set. The secret itself is never part of a Config.
type SecretRef struct {
	Env, File string
}

// secretUse is a reference and where the file makes it.
type secretUse struct {
	ref  *SecretRef
	line int
	path string
}

const maxSecret = 64 << 10 // bytes

// Resolve reads the secret now. The variable X may instead be given as X_FILE, the
// path of a file; X wins. Newlines at the end are not part of it. What is left must
// be printable ASCII without spaces. The error names the reference, never content.
func (r *SecretRef) Resolve() (string, error) {
	if r.File == "" {
		if v, ok := os.LookupEnv(r.Env); ok && v != "" {
			return clean(v, "environment variable "+r.Env)
		}
	}
	path := r.path()
	if path == "" {
		return "", fmt.Errorf("environment variable %s is not set (nor %s_FILE)", r.Env, r.Env)
	}
	b, err := readAtMost(path, maxSecret)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	what := "file " + path
	if r.File == "" {
		what += " (named by " + r.Env + "_FILE)"
	}
	return clean(string(b), what)
}

// path is the file that the secret is in, "" when there is none.
func (r *SecretRef) path() string {
	if r.File != "" {
		return r.File
	}
	if os.Getenv(r.Env) != "" {
		return ""
	}
	return os.Getenv(r.Env + "_FILE")
}

// String names the reference.
func (r *SecretRef) String() string {
	if r.File != "" {
		return "file " + r.File
	}
	return "environment variable " + r.Env
}

func clean(s, what string) (string, error) {
	s = strings.TrimRight(s, "\r\n")
	if s == "" {
		return "", fmt.Errorf("%s is empty", what)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return "", fmt.Errorf("%s holds a space, a control character or one beyond ASCII: no secret of an API does", what)
		}
	}
	return s, nil
}

// readAtMost reads a whole file, and fails on one of more than limit bytes.
func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("larger than " + sizeText(limit))}
	}
	return b, nil
}
