package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// devReady is what dev prints once all is ready; as JSON it is a contract.
type devReady struct {
	Gateway      string    `json:"gateway"`
	Operations   string    `json:"operations"`
	ControlPlane string    `json:"control_plane"`
	AdminToken   string    `json:"admin_token"`
	Tokens       devTokens `json:"tokens"`
	Models       []string  `json:"models"`

	config, target, gatewayID string
	kept                      bool
}

func (r *devReady) print(p program, asJSON bool) error {
	if asJSON {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.stdout, "%s\n", b)
		return err
	}
	_, err := fmt.Fprint(p.stdout, r.String())
	return err
}

func (r *devReady) String() string {
	var b strings.Builder
	gone := " (gone at the end; --data DIR keeps it)"
	if r.kept {
		gone = ""
	}
	fmt.Fprint(&b, "The gateway is ready.\n\n", columns(
		cells("gateway", r.Gateway), cells("operations", r.Operations+"/metrics"), cells("control plane", r.ControlPlane), cells("config", r.config+gone)))
	fmt.Fprint(&b, "\n", columns(
		cells("PROFILE", "TOKEN", "MAY CALL"),
		cells("general", r.Tokens.General, "every model"),
		cells("integration", r.Tokens.Integration, devModel+" at "+r.target),
		cells("gateway_runtime", r.Tokens.GatewayRuntime, "no model: it identifies gateway "+r.gatewayID)))
	fmt.Fprintf(&b, "\nAn allowed call:\n%s\n", r.curl("curl", r.Tokens.General, devModel, ""))
	fmt.Fprintf(&b, "\nA streamed one:\n%s\n", r.curl("curl -N", r.Tokens.General, devModel, `"stream":true,`))
	fmt.Fprintf(&b, "\nA denied one (403 model_not_allowed):\n%s\n", r.curl("curl -i", r.Tokens.Integration, devDearModel, ""))
	fmt.Fprintf(&b, "\nFor the admin commands, as `kt-gateway token list`, in another shell:\nexport KEEPTRUSTS_API_URL=%s\nexport KEEPTRUSTS_ADMIN_TOKEN=%s\n",
		r.ControlPlane, quote(r.AdminToken))
	return b.String()
}

func (r *devReady) curl(curl, token, model, stream string) string {
	return fmt.Sprintf(`  %s %s/v1/chat/completions -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' -d '{"model":"%s",%s"messages":[{"role":"user","content":"Say hello."}]}'`,
		curl, r.Gateway, token, model, stream)
}

// quote makes a string safe to paste into a shell.
func quote(s string) string {
	if strings.Trim(s, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
