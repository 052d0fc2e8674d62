package proxy

import (
	"strings"
	"testing"
)

// What a client's Connection names is for this connection alone (RFC 9110 §7.6.1),
// wherever the header stands, however it is spelt and divided.
func TestWhatConnectionNominatesDoesNotPass(t *testing.T) {
	t.Parallel()
	up := answering(t, whole(200, completion))
	g := start(t, plainConfig(up.url))
	for _, tt := range []struct{ name, headers, gone, stays string }{
		{"behind", "User-Agent: a\r\nConnection: user-agent\r\n", "user-agent", ""},
		{"before", "Connection: keep-alive, USER-AGENT\r\nUser-Agent: a\r\nAccept: b\r\n", "user-agent", "accept"},
		{"twice", "Connection: close\r\nUser-Agent: a\r\nAccept: b\r\nConnection: ,accept ,\tuser-agent,,\r\n", "user-agent accept", ""},
		{"several of a name", "X-Stainless-Os: a\r\nX-Stainless-Os: b\r\nConnection: x-stainless-os\r\n", "x-stainless-os", ""},
		{"a part of a name", "User-Agent: a\r\nConnection: user, agent, user-agents\r\n", "", "user-agent"},
		{"the body's type", "Content-Type: application/json\r\nConnection: content-type\r\n", "", "content-type"},
		{"more than anyone needs", "User-Agent: a\r\nAccept: b\r\nContent-Type: application/json\r\nConnection: " + strings.Repeat("x,", 33) + "user-agent\r\n", "user-agent accept", "content-type"},
		{"nothing", "User-Agent: a\r\nConnection:\r\n", "", "user-agent"},
		{"keep-alive alone", "User-Agent: a\r\nConnection: Keep-Alive\r\n", "", "user-agent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(up.seen())
			raw := strings.Replace(call(g.key, plainBody), "Content-Type: application/json\r\n", "", 1)
			if r := g.do(strings.Replace(raw, "Content-Length", tt.headers+"Content-Length", 1)); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			_, h, _ := parts(up.seen()[before])
			for _, name := range strings.Fields(tt.gone) {
				if len(h[name]) != 0 {
					t.Errorf("%s passed: %q", name, h[name])
				}
			}
			for _, name := range strings.Fields(tt.stays) {
				if len(h[name]) != 1 {
					t.Errorf("%s did not pass", name)
				}
			}
			if len(h["connection"]) != 0 {
				t.Errorf("connection passed: %q", h["connection"])
			}
		})
	}
}
