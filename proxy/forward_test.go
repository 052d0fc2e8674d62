package proxy

import "testing"

func TestAPlainCallPasses(t *testing.T) {
	url, sim := simulated(t)
	g := start(t, plainConfig(url))
	r := g.do(call(g.key, plainBody))
	if r.status != 200 || r.header.Get("X-Keeptrusts-Target") != "main" {
		t.Fatalf("answered %d: %s", r.status, r.body)
	}
	if n := len(sim.Requests()); n != 1 {
		t.Fatalf("the upstream got %d requests", n)
	}
	if line := g.line(r.header.Get("X-Request-Id")); line["model"] != "chat" {
		t.Errorf("log line %v", line)
	}
	if n := g.metric("keeptrusts_gateway_decisions_total", "reason=allowed"); n != 1 {
		t.Errorf("decisions_total{allowed} = %v", n)
	}
	up := answering(t, whole(200, completion))
	g2 := start(t, plainConfig(up.url))
	w := g2.dial()
	w.send(call(g2.key, plainBody))
	if r := w.must(); r.status != 200 || !w.alive() {
		t.Errorf("answered %d", r.status)
	}
}
