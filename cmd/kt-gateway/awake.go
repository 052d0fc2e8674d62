package main

import (
	"os"
	"strings"
	"syscall"
)

// awakeSetting keeps the runtime's monitor thread from its deep sleep. Between
// 500 and 2,000 requests a second a gateway is idle for moments at a time; each of
// them puts that thread to sleep, and waking it takes a futex call a request,
// which was a third of all CPU. A thread that has a schedule to print does not
// sleep so: it ticks every 10 ms, about 0.3% of a core. The period is 11.5 days,
// in milliseconds, so nothing is printed, but for one line at the start on a host
// that has been up for longer. make bench-peers shows the difference: its gateway
// runs without it under KEEPTRUSTS_SLEEPY=1.
const awakeSetting = "schedtrace=1000000000"

// stayAwake starts a serving process anew, in its place and under its id, with the
// setting in its environment: the runtime reads it before main.
func stayAwake(args, environ []string) {
	if len(args) == 0 || args[0] != "run" && args[0] != "dev" {
		return
	}
	env := make([]string, 0, len(environ)+1)
	setting := awakeSetting
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == "KEEPTRUSTS_SLEEPY" && value != "":
			return
		case name == "GODEBUG" && strings.Contains(value, "schedtrace="):
			return
		case name == "GODEBUG" && value != "":
			setting = value + "," + setting
		default:
			env = append(env, e)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return // it serves as well, at a little more CPU
	}
	_ = syscall.Exec(self, os.Args, append(env, "GODEBUG="+setting))
}
