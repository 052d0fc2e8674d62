package controlplane

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/keeptrusts/gateway/token"
)

func TestATokenIsMintedResolvedAndRevoked(t *testing.T) {
	p := newPlane(t)
	id, secret := p.mint("general", fields{"models": []string{"gpt-*"}})
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw_local"})

	a := p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha(secret)})
	if a.status != 200 || a.body["profile"].(map[string]any)["id"] != id {
		t.Fatalf("resolve: %d %s", a.status, a.raw)
	}
	e := p.server.Embedded("gw_local")
	got, err := e.Resolve(context.Background(), token.Sum([]byte(secret)))
	if err != nil || got.Profile.ID != id {
		t.Fatalf("load in process: %v %v", got, err)
	}
	if _, err := e.Resolve(context.Background(), token.Sum([]byte("x"))); !errors.Is(err, token.ErrUnknown) {
		t.Fatalf("unknown: %v", err)
	}
	a = p.must(http.StatusOK, "POST", "/v1/tokens/"+id+"/revoke", nil)
	if a.text("status") != "revoked" || a.body["confirmed"] != 0.0 {
		t.Fatalf("revoke: %s", a.raw)
	}
	a = p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha(secret)})
	if a.body["profile"].(map[string]any)["status"] != "revoked" {
		t.Fatalf("resolve after revoke: %s", a.raw)
	}
}
