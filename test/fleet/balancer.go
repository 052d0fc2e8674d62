package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// One process, since a worker would outlive a master that is killed.
const nginxConf = `%[1]s
daemon off;
master_process off;
pid %[2]s/nginx.pid;
error_log %[2]s/nginx-error.log error;
events { worker_connections 8192; }
stream {
    upstream planes {
        server %[3]s max_fails=1 fail_timeout=1s;
        server %[4]s max_fails=1 fail_timeout=1s;
    }
    server {
        listen %[5]s;
        proxy_connect_timeout 1s;
        proxy_timeout 1h;
        proxy_pass planes;
    }
}
`

// nginx is one that balances TCP.
type nginx struct{ binary, module string } // module is a line that loads what it needs, or nothing

// findNginx looks for nginx with a stream module, linked into it or beside it.
func findNginx() (n nginx, err error) {
	if n.binary, err = exec.LookPath("nginx"); err != nil {
		if n.binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			return n, errors.New("nginx is not installed (Debian: nginx-light and libnginx-mod-stream; make deps): it balances the control plane's replicas")
		}
	}
	built, err := exec.Command(n.binary, "-V").CombinedOutput()
	if err != nil {
		return n, fmt.Errorf("nginx -V: %w", err)
	}
	options := " " + strings.ReplaceAll(string(built), "\n", " ") + " "
	if strings.Contains(options, " --with-stream ") {
		return n, nil
	}
	folder := "/usr/lib/nginx/modules"
	if _, rest, ok := strings.Cut(options, "--modules-path="); ok {
		folder, _, _ = strings.Cut(rest, " ")
	}
	module := filepath.Join(folder, "ngx_stream_module.so")
	if _, err := os.Stat(module); err != nil {
		return n, fmt.Errorf("nginx has no stream module (Debian: libnginx-mod-stream; make deps): %w", err)
	}
	n.module = "load_module " + module + ";"
	return n, nil
}

// startBalancer puts nginx before the two replicas.
func (f *fleet) startBalancer(ctx context.Context) error {
	addr, err := f.t.ports.free()
	if err != nil {
		return err
	}
	dir := f.t.path("nginx")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Appendf(nil, nginxConf, f.t.nginx.module, dir, f.planes[0].addr, f.planes[1].addr, addr)
	if err := os.WriteFile(conf, text, 0o600); err != nil {
		return err
	}
	c, err := f.t.start("nginx", nil, f.t.nginx.binary, "-p", dir, "-c", conf, "-e", filepath.Join(dir, "nginx-error.log"))
	if err != nil {
		return err
	}
	f.balancer = addr
	for deadline := time.Now().Add(10 * time.Second); ; rig.Pause(ctx, 10*time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if !c.Alive() || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("nginx does not listen: %w\n%s", err, c.Tail())
		}
	}
}
