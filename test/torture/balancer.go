package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// One process, since a worker would outlive a master that is killed. A replica that
// refuses a connection is asked again at the next one: it may be back.
const balancerConf = `%[1]s
daemon off;
master_process off;
pid %[2]s/balancer.pid;
error_log %[2]s/balancer-error.log error;
events { worker_connections 4096; }
stream {
    upstream plane {
        random;
        server %[3]s max_fails=0;
        server %[4]s max_fails=0;
    }
    server {
        listen %[5]s;
        proxy_pass plane;
        proxy_connect_timeout 1s;
        proxy_timeout 1h;
    }
}
`

// newBalancer spreads TCP connections at random over two replicas, with nginx where it can do
// that, else in this program; it says which. Its address is returned.
func newBalancer(ctx context.Context, t *trial, one, two string) (string, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return "", err
	}
	nginx, ok := streaming()
	if !ok {
		t.figure("balancer: in this program, there is no nginx with its stream module (Debian: nginx-light, libnginx-mod-stream)")
		return addr, newRelay(t, addr, one, two)
	}
	t.figure("balancer: nginx, stream")
	path := t.path("balancer.conf")
	text := fmt.Sprintf(balancerConf, nginx.module, t.dir, one, two, addr)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", err
	}
	c, err := t.spawn("balancer", exec.Command(nginx.binary, "-p", t.dir, "-c", path, "-e", t.path("balancer-error.log")))
	if err != nil {
		return "", err
	}
	return addr, ready(ctx, c, "http://"+addr+"/readyz")
}

// streamer is an nginx that has its stream module.
type streamer struct{ binary, module string } // module is a line that loads it, or nothing

// streaming looks for nginx with a stream module, linked into it or beside it.
func streaming() (n streamer, ok bool) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			n.binary = path
			break
		}
	}
	if n.binary == "" {
		return n, false
	}
	built, err := exec.Command(n.binary, "-V").CombinedOutput()
	if err != nil {
		return n, false
	}
	options := " " + strings.ReplaceAll(string(built), "\n", " ") + " "
	if strings.Contains(options, " --with-stream ") {
		return n, true
	}
	folder := "/usr/lib/nginx/modules"
	if _, rest, ok := strings.Cut(options, "--modules-path="); ok {
		folder, _, _ = strings.Cut(rest, " ")
	}
	module := filepath.Join(folder, "ngx_stream_module.so")
	if _, err := os.Stat(module); err != nil {
		return n, false
	}
	n.module = "load_module " + module + ";"
	return n, true
}

// relay hands connections to its targets at random, to the next where one refuses.
type relay struct {
	targets []string
	passing sync.WaitGroup
}

func newRelay(t *trial, addr string, targets ...string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &relay{targets: targets}
	r.passing.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			r.passing.Go(func() { r.pass(ctx, conn) })
		}
	})
	t.closers = append(t.closers, func() { stop(); ln.Close(); r.passing.Wait() })
	return nil
}

// pass copies both ways until either end closes.
func (r *relay) pass(ctx context.Context, client net.Conn) {
	defer client.Close()
	target, err := r.dial(ctx)
	if err != nil {
		return
	}
	defer target.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); target.Close() })
	defer stop()
	ended := make(chan struct{}, 2)
	way := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // how it ends is for the two to see
		ended <- struct{}{}
	}
	go way(target, client)
	go way(client, target)
	<-ended
}

func (r *relay) dial(ctx context.Context) (conn net.Conn, err error) {
	first := rand.IntN(len(r.targets))
	for i := range r.targets {
		dialer := net.Dialer{Timeout: time.Second}
		conn, err = dialer.DialContext(ctx, "tcp", r.targets[(first+i)%len(r.targets)])
		if err == nil {
			return conn, nil
		}
	}
	return nil, err
}
