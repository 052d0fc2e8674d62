package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const (
	devModel         = "gpt-5.4-mini"
	devDearModel     = "gpt-5.4-pro"
	simulatorKeyFile = "simulator-key"
	openAI           = "https://api.openai.com/v1"
)

// upstream is the one target that dev has.
type upstream struct {
	id              string
	url             string // "" until the simulator listens
	keyEnv, keyFile string // at most one is set
}

func (u *upstream) simulated() bool { return u.id == "simulator" }

// resolveUpstream takes the target from the flags; without them it is the simulator.
func (f *devFlags) resolveUpstream(env func(string) (string, bool)) (*upstream, error) {
	if f.upstream == "" {
		if f.upstreamKeyEnv != "" {
			return nil, misused("--upstream-key-env goes with --upstream")
		}
		return &upstream{id: "simulator"}, nil
	}
	u := &upstream{id: "upstream", url: f.upstream, keyEnv: f.upstreamKeyEnv}
	if f.upstream == "openai" {
		u.url = openAI
		if u.keyEnv == "" {
			u.keyEnv = "OPENAI_API_KEY"
		}
	}
	parsed, err := url.Parse(u.url)
	if err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
		return nil, misused("--upstream: it is neither openai nor a URL like http://127.0.0.1:11434")
	}
	if parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "" {
		return nil, misused("--upstream: a URL without credentials, query and fragment is wanted; the key goes by --upstream-key-env NAME")
	}
	if strings.Trim(parsed.Path, "/") == "" {
		parsed.Path = "/v1"
	}
	u.url = parsed.String()
	if u.keyEnv == "" {
		return u, nil
	}
	if s, _ := env(u.keyEnv); s != "" {
		return u, nil
	}
	if s, _ := env(u.keyEnv + "_FILE"); s != "" {
		return u, nil
	}
	if f.upstream == "openai" && f.upstreamKeyEnv == "" {
		return nil, errors.New("--upstream openai needs OPENAI_API_KEY in the environment")
	}
	return nil, fmt.Errorf("--upstream-key-env: %s is not set", u.keyEnv)
}

const devMiniTerms = `    context: 400000
    max_output: 128000
    price: {input: 0.25, cached_input: 0.025, output: 2.00}
`

// config writes what dev runs, in a form that `run -c` takes too.
func (u *upstream) config(gatewayID string, l devListeners) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by kt-gateway dev at each start.\n")
	fmt.Fprintf(&b, "gateway_id: %q\nlisten: %q\noperations_listen: %q\ndata_dir: .\n", gatewayID, l.gateway.Addr(), l.operations.Addr())
	fmt.Fprintf(&b, "control_plane:\n  embedded: {listen: %q}\n", l.plane.Addr())
	fmt.Fprintf(&b, "providers:\n  targets:\n    - id: %s\n      provider: openai\n      base_url: %q\n", u.id, u.url)
	switch {
	case u.keyEnv != "":
		fmt.Fprintf(&b, "      secret_key_ref: {env: %q}\n", u.keyEnv)
	case u.keyFile != "":
		fmt.Fprintf(&b, "      secret_key_ref: {file: %q}\n", u.keyFile)
	}
	fmt.Fprintf(&b, "models:\n")
	fmt.Fprintf(&b, "  - name: %s\n    targets: [{id: %s, model: %s}]\n%s", devModel, u.id, devModel, devMiniTerms)
	fmt.Fprintf(&b, "  - name: %s\n    targets: [{id: %s, model: %s}]\n    context: 400000\n    max_output: 128000\n"+
		"    price: {input: 15.00, cached_input: 1.50, output: 120.00}\n", devDearModel, u.id, devDearModel)
	if !u.simulated() {
		fmt.Fprintf(&b, "  - name: \"*\"\n    targets: [{id: %s}]\n%s", u.id, devMiniTerms)
	}
	fmt.Fprintf(&b, "limits: {lame_duck: 0s}\n")
	return []byte(b.String())
}
