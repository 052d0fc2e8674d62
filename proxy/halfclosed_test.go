package proxy

import (
	"net/http"
	"testing"
)

// A client that has closed its side is taken for one that left; what the log says of
// it is no status of HTTP's, and no client may read it as an answer.
func TestAClientThatHasClosedItsSideIsNeverAnswered499(t *testing.T) {
	t.Parallel()
	u := scripted(t, func(c *callee) {
		if c.request() != "" {
			c.gone()
		}
	})
	g := start(t, plainConfig(u.url))
	w := g.dial()
	w.send(call(g.key, plainBody))
	eventually(t, "the call is under way", func() bool { return g.s.streams.Load() == 1 })
	_ = w.CloseWrite()
	if res, err := http.ReadResponse(w.r, &http.Request{Method: "POST"}); err == nil {
		t.Errorf("answered %s", res.Status)
	}
	eventually(t, "the connection is gone", func() bool { return g.s.conns.Load() == 0 && g.s.open.Load() == 0 })
}
