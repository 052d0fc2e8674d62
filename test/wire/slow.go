package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// slow attacks with slowhttptest, in its three ways, each with a token that is
// known, while others call as ever.
func slow(ctx context.Context, t *trial) error {
	tool, err := exec.LookPath("slowhttptest")
	if err != nil {
		return errors.New("slowhttptest is not installed (Debian: apt-get install slowhttptest)")
	}
	g, key, err := withKey(ctx, t, layout{})
	if err != nil {
		return err
	}
	g.up.hush()
	for range 200 {
		g.call(ctx, key, call{})
	}
	n, length := t.count(4000, 500), t.count(60, 8)
	for _, way := range []struct{ name, flag, path, more string }{
		{"slow heads", "-H", "/v1/chat/completions", ""},
		{"slow bodies", "-B", "/v1/chat/completions", "-s 100000 -f application/json"},
		{"slow readers", "-X", "/v1/models", "-k 10 -w 1 -y 64 -n 5 -z 1"},
	} {
		if err := g.underSlow(ctx, tool, key, way.name, n, length, append([]string{way.flag, "-u", "http://" + g.addr + way.path}, strings.Fields(way.more)...)); err != nil {
			return err
		}
	}
	g.sound(ctx, key)
	return nil
}

// underSlow measures calls before and under an attack.
func (g *gateway) underSlow(ctx context.Context, tool, key, name string, n, length int, args []string) error {
	t := g.t
	const perSecond, workers = 100, 16
	quiet, stop := context.WithTimeout(ctx, time.Duration(t.count(15, 4))*time.Second)
	base := g.steadily(quiet, key, "", perSecond, workers, true)
	stop()
	// The tool has no flag for a header: the line goes in behind its Accept.
	args = append(args, "-c", fmt.Sprint(n), "-r", fmt.Sprint(n/5), "-i", "5", "-l", fmt.Sprint(length), "-m", "*/*\r\nAuthorization: Bearer "+key)
	log, err := os.Create(t.path("slowhttptest" + args[0] + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(tool, args...)
	cmd.Stdout, cmd.Stderr = log, log
	c, err := t.launch("slowhttptest", log.Name(), cmd)
	if err != nil {
		return err
	}
	var most float64
	load, end := context.WithTimeout(ctx, time.Duration(length)*time.Second)
	defer end()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for load.Err() == nil {
			if open, err := g.metric(ctx, "connections_open"); err == nil {
				most = max(most, open)
			}
			rig.Pause(load, 500*time.Millisecond)
		}
	}()
	under := g.steadily(load, key, "", perSecond, workers, true)
	<-watched
	c.Kill()
	failed, words := under.failures()
	early, _ := base.failures()
	t.figure(int(most) >= n*9/10, "nine tenths", "%s: up to %.0f of %d connections stood", name, most, n)
	t.figure(failed == 0 && early == 0 && under.n > 0, "0", "%s: %d well-behaved calls in %d s, %d failed%s", name, under.n, length, failed, words)
	times := float64(under.at(0.99)) / float64(max(base.at(0.99), 1))
	t.figure(times <= 3, "3 times its base", "%s: p99 %s, %.1f times its base of %s", name, under.at(0.99).Round(10*time.Microsecond), times, base.at(0.99).Round(10*time.Microsecond))
	return nil
}
