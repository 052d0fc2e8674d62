package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const defaultOperations = "127.0.0.1:41003"

func healthCommand() *command {
	c := newCommand("health", "", "asks a running gateway whether it is alive; for probes without a shell")
	var url, listen string
	c.text(&url, "url", "URL", "", "what to ask; by default /healthz of the operations listener")
	c.text(&listen, "operations-listen", "ADDR", defaultOperations, "where the operations listener is, when there is no --url")
	c.run = func(ctx context.Context, p program) error {
		if url == "" {
			url = baseURL(listen) + "/healthz"
		}
		return health(ctx, p, url)
	}
	return c
}

func health(ctx context.Context, p program, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil || req.URL.Host == "" {
		return misused("--url: %q is not a URL", url)
	}
	// A probe asks the process beside it: a proxy of the environment would answer for itself.
	res, err := (&http.Transport{}).RoundTrip(req)
	if err != nil {
		return fmt.Errorf("nothing answers at %s: %w", url, plain(err))
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, 512))
	said := strings.TrimSpace(string(body))
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", url, res.Status, said)
	}
	_, err = fmt.Fprintln(p.stdout, said)
	return err
}

// baseURL is where a client on this machine finds a listener; an address that
// stands for every interface is reached at loopback.
func baseURL(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "http://" + addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// plain gives the cause that a person can act on, without the layers above it.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
