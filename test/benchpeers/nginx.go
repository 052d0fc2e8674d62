package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const nginxConf = `daemon off;
%[1]s
worker_processes 2;
pid %[2]s/nginx.pid;
error_log %[2]s/nginx-error.log error;
events { worker_connections 8192; }
http {
    access_log %[2]s/nginx-access.log combined buffer=64k flush=100ms;
    client_body_temp_path %[2]s/body;
    proxy_temp_path %[2]s/proxy;
    fastcgi_temp_path %[2]s/fastcgi;
    uwsgi_temp_path %[2]s/uwsgi;
    scgi_temp_path %[2]s/scgi;
    tcp_nodelay on;
    keepalive_requests 100000000;
    upstream provider {
        server %[3]s;
        keepalive 512;
        keepalive_requests 100000000;
    }
    server {
        listen %[4]s;
        location / {
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer %[5]s";
            proxy_buffering off;
        }
    }
}
`

// startNginx runs Debian's nginx; nil without an error means that there is none.
func startNginx(b *bench) (*peer, error) {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			return nil, nil
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // its workers must reach the temporary folder
	}
	conf := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, user, b.dir, b.mockAddr, addr, providerKey), 0o600); err != nil {
		return nil, err
	}
	c, err := b.start("nginx", exec.Command(binary, "-p", b.dir, "-c", conf, "-e", filepath.Join(b.dir, "nginx-error.log")), syscall.SIGTERM)
	if err != nil {
		return nil, err
	}
	if err := c.accepts(addr); err != nil {
		return nil, err
	}
	var pids []int
	for end := time.Now().Add(5 * time.Second); len(pids) != 3; { // it listens before it has its workers
		if pids, err = family(c.cmd.Process.Pid); err != nil {
			return nil, err
		}
		if len(pids) != 3 && time.Now().After(end) {
			return nil, fmt.Errorf("nginx: %d processes, want a master and 2 workers", len(pids))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return &peer{name: "nginx", addr: addr, pids: pids, tokens: []string{placeholder}}, nil
}
