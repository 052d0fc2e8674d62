package main

import (
	"os"
	"strings"
	"syscall"
)

// awakeSetting keeps the runtime's monitor thread from its deep sleep. Between
// 500 and 2,000 requests a second a gateway is idle for moments at a time; each of
// them puts that thread to sleep, and waking it costs a futex call a request. A
// runtime that has a schedule to print does not let it: it ticks every 10 ms. The
// period is 11.5 days, in milliseconds, so nothing is printed, but for one line at
// the start on a host that has been up for longer.
const awakeSetting = "schedtrace=1000000000"

// stayAwake starts a serving process anew, in its place and under its id, with the
// setting in its environment: the runtime reads it before main. See
// docs/decisions/0005-awake.md.
func stayAwake(args, environ []string) {
	env, ok := awakeEnv(args, environ)
	if !ok {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return // it serves as well, at a little more CPU
	}
	_ = syscall.Exec(self, os.Args, env)
}

// awakeEnv returns the environment with the setting; false: the command does not
// serve, or a schedtrace is set already (GODEBUG=schedtrace=0 turns this off).
func awakeEnv(args, environ []string) ([]string, bool) {
	if len(args) == 0 || args[0] != "run" && args[0] != "dev" {
		return nil, false
	}
	env := make([]string, 0, len(environ)+1)
	setting := awakeSetting
	for _, e := range environ {
		value, isDebug := strings.CutPrefix(e, "GODEBUG=")
		switch {
		case !isDebug:
			env = append(env, e)
		case strings.Contains(value, "schedtrace="):
			return nil, false
		case value != "":
			setting = value + "," + setting
		}
	}
	return append(env, "GODEBUG="+setting), true
}
