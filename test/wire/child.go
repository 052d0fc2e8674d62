package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// start runs the binary with its output appended to a file.
func (t *trial) start(name string, env []string, args ...string) (*rig.Process, error) {
	return t.startTo(name, t.path(name+".log"), nil, env, args...)
}

// startTo runs the binary with its output to a file of the caller's; nil: to the log.
func (t *trial) startTo(name, log string, out *os.File, env []string, args ...string) (*rig.Process, error) {
	cmd := exec.Command(t.binary, args...)
	cmd.Env = rig.Environ(env...)
	if out != nil {
		cmd.Stdout, cmd.Stderr = out, out
	}
	return t.launch(name, log, cmd)
}

// launch starts any program as a child of the trial.
func (t *trial) launch(name, log string, cmd *exec.Cmd) (*rig.Process, error) {
	c, err := rig.Start(name, log, cmd)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.children = append(t.children, c)
	t.mu.Unlock()
	return c, nil
}

// descriptors are how many files and sockets the process has open.
func descriptors(c *rig.Process) (int, error) {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
	return len(all), err
}

// ready waits until url answers 200.
func ready(ctx context.Context, c *rig.Process, url string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := get(ctx, http.DefaultClient, url)
		if err == nil {
			return nil
		}
		if !c.Alive() || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", c.Name, err, c.Tail())
		}
		rig.Pause(ctx, 20*time.Millisecond)
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, res.StatusCode)
	}
	return b, err
}
