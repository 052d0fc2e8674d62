package main

import (
	"os/exec"

	"github.com/keeptrusts/gateway/test/rig"
)

// start runs the binary under test.
func (t *trial) start(name string, env []string, args ...string) (*rig.Process, error) {
	cmd := exec.Command(t.binary, args...)
	cmd.Env = rig.Environ(env...)
	return t.spawn(name, cmd)
}

// spawn starts a command with its output appended to a file.
func (t *trial) spawn(name string, cmd *exec.Cmd) (*rig.Process, error) {
	c, err := rig.Start(name, t.path(name+".log"), cmd)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.children = append(t.children, c)
	t.mu.Unlock()
	return c, nil
}
