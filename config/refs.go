package config

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// TokenEnv is the variable that holds the runtime token. Where it is set, or its
// FILE form, it wins over the file's reference.
const TokenEnv = "KEEPTRUSTS_API_TOKEN"

const (
	refForm   = "{env: NAME} or {file: PATH}"
	tokenForm = "token: {secret_key_ref: {env: NAME}} or token: {secret_key_ref: {file: PATH}}"
)

// settleToken refers to the environment's runtime token, where there is one or the
// file has no reference of its own.
func (c *Config) settleToken(line int) {
	cp := &c.ControlPlane
	if cp.Token != nil && (cp.Token.Env == TokenEnv || !tokenInEnv()) {
		return
	}
	// What nobody will resolve is neither watched nor warned of.
	c.secrets = slices.DeleteFunc(c.secrets, func(s secretUse) bool { return s.ref == cp.Token })
	cp.Token = &SecretRef{Env: TokenEnv}
	c.secrets = append(c.secrets, secretUse{cp.Token, line, "control_plane.token"})
}

func tokenInEnv() bool { return os.Getenv(TokenEnv) != "" || os.Getenv(TokenEnv+"_FILE") != "" }

// MissingToken is Problems where the file names a control plane, and neither it nor
// the environment a runtime token. A gateway can't start then; to all else the file
// is valid.
func (c *Config) MissingToken() error {
	if c.tokenless == 0 || tokenInEnv() {
		return nil
	}
	return Problems{{File: c.file, Line: c.tokenless, Path: "control_plane.token",
		Message: fmt.Sprintf("missing; a control plane wants a runtime token: %s, or set %s", tokenForm, TokenEnv)}}
}

// secretRef reads {env: NAME} or {file: PATH}. What it finds instead may be the
// secret itself, so nothing of it is shown.
func (r *reader) secretRef(c *Config, dst **SecretRef) read {
	return r.reference(c, dst, "secret_key_ref: "+refForm)
}

// token reads {secret_key_ref: …}, or the reference itself.
func (r *reader) token(c *Config) read {
	dst := &c.ControlPlane.Token
	return func(n *yaml.Node, path string) {
		m := n
		if m.Kind == yaml.AliasNode {
			m = m.Alias
		}
		if m.Kind == yaml.MappingNode && len(m.Content) == 2 && m.Content[0].Value == "secret_key_ref" {
			r.lines[path] = n.Line
			r.reference(c, dst, tokenForm)(m.Content[1], join(path, "secret_key_ref"))
			return
		}
		r.reference(c, dst, tokenForm)(n, path)
	}
}

func (r *reader) reference(c *Config, dst **SecretRef, form string) read {
	return func(n *yaml.Node, path string) {
		want := "a secret stands by reference only, never as itself; write " + form
		if null(n) {
			r.add(n.Line, path, "no value; write %s, or remove the key", form)
			return
		}
		var ref SecretRef
		before := len(r.problems)
		r.mapping(n, path, want, func(k, v *yaml.Node) {
			switch k.Value {
			case "env":
				r.text(&ref.Env, envName)(v, join(path, "env"))
			case "file":
				r.pathOf(c, func(p string) { ref.File = p })(v, join(path, "file"))
			default:
				r.add(k.Line, path, "unknown key; %s", want)
			}
		})
		switch {
		case len(r.problems) > before || r.dropped > 0:
		case ref.Env == "" && ref.File == "":
			r.add(n.Line, path, "names nothing; write %s", form)
		case ref.Env != "" && ref.File != "":
			r.add(n.Line, path, "env and file at once: give one of them")
		default:
			*dst = &ref
			c.secrets = append(c.secrets, secretUse{&ref, n.Line, path})
		}
	}
}

// envName is the form of a variable's name. A token has it too, hence the rest.
func envName(s string) string {
	const want = "want the name of an environment variable: 1 to 128 of A-Z a-z 0-9 _, not the secret itself"
	ok := s != "" && len(s) <= 128 && (s[0] < '0' || s[0] > '9')
	for _, c := range []byte(s) {
		ok = ok && (alphanumeric(c) || c == '_')
	}
	for _, p := range []string{"kt_", "sk_", "pk_", "gsk_", "xai_"} {
		ok = ok && !strings.HasPrefix(s, p)
	}
	if !ok {
		return want
	}
	return ""
}
