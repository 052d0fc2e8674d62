package config

import (
	"slices"
	"strings"
	"testing"
)

func TestFlagsWinOverTheFileAndAreCheckedLikeIt(t *testing.T) {
	get := map[string]func(*Config) string{
		"listen":                          func(c *Config) string { return c.Listen },
		"operations_listen":               func(c *Config) string { return c.OperationsListen },
		"gateway_id":                      func(c *Config) string { return c.GatewayID },
		"data_dir":                        func(c *Config) string { return c.DataDir + " " + c.ControlPlane.Embedded.Database },
		"control_plane.url":               func(c *Config) string { return c.ControlPlane.URL },
		"control_plane.ca":                func(c *Config) string { return c.ControlPlane.CA },
		"control_plane.embedded.listen":   func(c *Config) string { return c.ControlPlane.Embedded.Listen },
		"control_plane.embedded.database": func(c *Config) string { return c.ControlPlane.Embedded.Database },
		"records.path":                    func(c *Config) string { return c.Records.Path },
		"log.level":                       func(c *Config) string { return c.Log.Level },
	}
	for _, tt := range []struct{ field, value, want string }{
		{"listen", "127.0.0.1:0", "127.0.0.1:0"},
		{"listen", "s3cr3t", ""},
		{"operations_listen", ":9", ":9"},
		{"operations_listen", "", ""},
		{"gateway_id", "gw_2", "gw_2"},
		{"gateway_id", "gw 2", ""},
		{"data_dir", "/data", "/data /data/kt-gateway.db"},
		{"data_dir", "", ""},
		{"control_plane.url", "https://c.example/", "https://c.example"},
		{"control_plane.url", "http://127.0.0.1:41004", "http://127.0.0.1:41004"},
		{"control_plane.url", "http://localhost:41004", "http://localhost:41004"},
		{"control_plane.url", "http://c.example", ""},
		{"control_plane.url", "https://u:s3cr3t@c.example", ""},
		{"control_plane.ca", "ca.pem", "ca.pem"},
		{"control_plane.embedded.listen", "127.0.0.1:1", "127.0.0.1:1"},
		{"control_plane.embedded.listen", "1", ""},
		{"control_plane.embedded.database", "x.db", "etc/x.db"},
		{"control_plane.embedded.database", "postgres://s3cr3t", ""},
		{"records.path", "-", "-"},
		{"log.level", "debug", "debug"},
		{"log.level", "s3cr3t", ""},
		{"limits.drain", "1s", ""},
		{"", "", ""},
	} {
		c, err := Parse("etc/gateway.yaml", nil)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Override(tt.field, tt.value)
		if tt.want == "" {
			if err == nil || !strings.HasPrefix(err.Error(), tt.field+": ") || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%s=%s: %v", tt.field, tt.value, err)
			}
			continue
		}
		if err != nil || get[tt.field](c) != tt.want {
			t.Errorf("%s=%s: got %s, %v", tt.field, tt.value, get[tt.field](c), err)
		}
	}
}

func TestAControlPlaneNamedByAFlagTakesTheTokenOfTheEnvironment(t *testing.T) {
	c := Default()
	if err := c.Override("control_plane.url", "https://c.example"); err != nil {
		t.Fatal(err)
	}
	if c.ControlPlane.Token == nil || c.ControlPlane.Token.Env != TokenEnv || len(c.Warnings()) != 1 {
		t.Errorf("%v %v", c.ControlPlane.Token, c.Warnings())
	}
}

func TestFixedNamesWhatAReloadCantChange(t *testing.T) {
	const base = `
gateway_id: a
listen: :1
operations_listen: :2
data_dir: d
control_plane: {url: "https://c.example", token: {env: A}, embedded: {database: x, listen: ":3"}, fresh_for: 1s, max_stale: 2s, ca: a, insecure: false}
limits: {drain: 10s}
log: {level: info}
`
	for _, tt := range []struct{ old, new, want string }{
		{"", "", ""},
		{"gateway_id: a", "gateway_id: b", "gateway_id"},
		{"listen: :1", "listen: :4", "listen"},
		{"operations_listen: :2", "operations_listen: :4", "operations_listen"},
		{"data_dir: d", "data_dir: e", "data_dir"},
		{"//c.example", "//d.example", "control_plane.url"},
		{"{env: A}", "{env: B}", "control_plane.token"},
		{"{env: A}", "{file: A}", "control_plane.token"},
		{"database: x", "database: y", "control_plane.embedded.database"},
		{":3", ":4", "control_plane.embedded.listen"},
		{"fresh_for: 1s", "fresh_for: 2s", "control_plane.fresh_for"},
		{"max_stale: 2s", "max_stale: 3s", "control_plane.max_stale"},
		{"ca: a", "ca: b", "control_plane.ca"},
		{"insecure: false", "insecure: true", "control_plane.insecure"},
		{"drain: 10s", "drain: 20s", ""},
		{"level: info", "level: debug", ""},
		{"limits:", "cache: {profiles: 7}\nlimits:", ""},
	} {
		got := parse(t, base).Fixed(parse(t, strings.Replace(base, tt.old, tt.new, 1)))
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s → %s: got %v", tt.old, tt.new, got)
		}
	}
	all := parse(t, base).Fixed(Default())
	if !slices.Contains(all, "gateway_id") || !slices.Contains(all, "control_plane.token") || len(all) < 9 {
		t.Errorf("%v", all)
	}
}
