package config

import "fmt"

// Override sets a field from a flag or the environment.
func (c *Config) Override(field, value string) error {
	return fmt.Errorf("%s: can't be set from outside the file", field)
}

// Fixed names the fields that differ and can't change at run time.
func (c *Config) Fixed(next *Config) []string {
	var out []string
	differ := func(path string, a, b any) {
		if a != b {
			out = append(out, path)
		}
	}
	differ("gateway_id", c.GatewayID, next.GatewayID)
	differ("listen", c.Listen, next.Listen)
	differ("operations_listen", c.OperationsListen, next.OperationsListen)
	differ("data_dir", c.DataDir, next.DataDir)
	a, b := &c.ControlPlane, &next.ControlPlane
	differ("control_plane.url", a.URL, b.URL)
	differ("control_plane.token", ref(a.Token), ref(b.Token))
	differ("control_plane.embedded.database", a.Embedded.Database, b.Embedded.Database)
	differ("control_plane.embedded.listen", a.Embedded.Listen, b.Embedded.Listen)
	differ("control_plane.fresh_for", a.FreshFor, b.FreshFor)
	differ("control_plane.max_stale", a.MaxStale, b.MaxStale)
	differ("control_plane.ca", a.CA, b.CA)
	differ("control_plane.insecure", a.Insecure, b.Insecure)
	return out
}

func ref(r *SecretRef) SecretRef {
	if r == nil {
		return SecretRef{}
	}
	return *r
}
