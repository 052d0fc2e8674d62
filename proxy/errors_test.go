package proxy

import (
	"github.com/keeptrusts/gateway/abac"
)

// boundTo binds a token to a gateway.
func boundTo(gateway string) func(*abac.Profile) {
	return func(p *abac.Profile) { p.Bindings.GatewayID = &gateway }
}
