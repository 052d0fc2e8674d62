package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
	kt "github.com/keeptrusts/gateway/token"
)

// expect looks at bodies that are not wanted: asked for only where they are, refused
// after 8 KiB at most, and refused so that a client that is still sending is told.
func expect(ctx context.Context, t *trial) error {
	g, err := newGateway(ctx, t, layout{limits: "request_body: 1MiB"})
	if err != nil {
		return err
	}
	key, err := g.admin.mint(ctx, minting{})
	if err != nil {
		return err
	}
	other, err := g.admin.mint(ctx, minting{bindings: map[string]any{"gateway_id": "gw_other"}})
	if err != nil {
		return err
	}
	refusals := []struct {
		name, auth string
		want       int
	}{
		{"no token", "", 401}, {"a token that nobody has", "Authorization: Bearer " + kt.Mint().Reveal() + "\r\n", 401},
		{"another gateway's token", "Authorization: Bearer " + other.Token + "\r\n", 403},
		{"two tokens", "api-key: " + key.Token + "\r\nAuthorization: Bearer " + key.Token + "\r\n", 400},
	}
	asked, unread, told := 0, 0, 0
	for _, r := range refusals {
		head := "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\n" + r.auth
		if a := g.first(ctx, head+"Expect: 100-continue\r\nContent-Length: 500000\r\n\r\n"); a.status == r.want && a.closes {
			asked++
		} else {
			t.miss("%s, Expect: %v", r.name, a)
		}
		for _, framing := range []string{"Content-Length: 500000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n7a120\r\n"} {
			if a := g.first(ctx, head+framing+strings.Repeat(" ", 8<<10)); a.status == r.want && a.closes {
				unread++
			} else {
				t.miss("%s, after 8 KiB: %v", r.name, a)
			}
			for i := range 10 {
				if a := g.sendAll(ctx, head+framing, 500_000, i%2 == 0); a.status == r.want && a.whole {
					told++
				} else {
					t.miss("%s, to a client that sends on: %v", r.name, a)
				}
			}
		}
	}
	n := len(refusals)
	t.figure(asked == n, "all", "%d of %d refusals by credential come instead of 100 Continue", asked, n)
	t.figure(unread == 2*n, "all", "%d of %d come after 8 KiB of a body of 500,000 bytes", unread, 2*n)
	t.figure(told == 20*n, "all", "%d of %d reach a client that goes on sending", told, 20*n)
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return err
	}
	defer w.Close()
	fmt.Fprintf(w, "POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer %s\r\n%sExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", key.Token, script{id: "asked"}.header(), len(framedBody))
	first := w.take(http.MethodPost, nil)
	before := len(g.up.of("asked"))
	_, _ = io.WriteString(w, framedBody)
	second := w.take(http.MethodPost, nil)
	t.figure(first.status == 100 && before == 0 && second.status == 200, "100, then 200", "a sound call: %d, then %d", first.status, second.status)
	g.sound(ctx, key.Token)
	return nil
}

// first sends bytes and takes the first answer.
func (g *gateway) first(ctx context.Context, text string) *answered {
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return &answered{err: err}
	}
	defer w.Close()
	if _, err := io.WriteString(w, text); err != nil {
		return &answered{err: err}
	}
	return w.take(http.MethodPost, nil)
}

// sendAll sends a head and the whole of its body before it reads, at once or piece by
// piece, as most clients do.
func (g *gateway) sendAll(ctx context.Context, head string, n int, atOnce bool) *answered {
	w, err := dial(ctx, g.addr, "")
	if err != nil {
		return &answered{err: err}
	}
	defer w.Close()
	_, err = io.WriteString(w, head)
	for piece := strings.Repeat(" ", 50_000); n > 0 && err == nil; n -= len(piece) {
		_, err = io.WriteString(w, piece)
		if !atOnce {
			rig.Pause(ctx, 5*time.Millisecond)
		}
	}
	// An error of writing is the gateway's close: the answer must be there all the same.
	return w.take(http.MethodPost, nil)
}
