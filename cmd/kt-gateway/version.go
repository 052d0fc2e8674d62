package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set when a release is linked: -X main.version=v1.2.3.
var version = "devel"

func versionCommand() *command {
	c := newCommand("version", "", "prints what this binary was built from")
	c.run = func(_ context.Context, p program) error {
		_, err := fmt.Fprintln(p.stdout, "kt-gateway "+build())
		return err
	}
	return c
}

// build is what a gateway tells its control plane of its binary.
func build() string {
	s := version
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, kv := range info.Settings {
			if kv.Key == "vcs.revision" && len(kv.Value) >= 12 {
				s += " " + kv.Value[:12]
			}
			if kv.Key == "vcs.modified" && kv.Value == "true" {
				s += "+changed"
			}
		}
	}
	return s + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
