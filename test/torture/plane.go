package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/keeptrusts/gateway/test/postgres"
	"github.com/keeptrusts/gateway/test/rig"
)

// The databases that a control plane is tortured over.
const (
	onSQLite   = "sqlite"
	onPostgres = "postgres"
)

// plane is a fleet's control plane: one process over SQLite, or two replicas over
// PostgreSQL behind a balancer. It may be mistreated by one goroutine at a time.
type plane struct {
	t        *trial
	addr     string           // where gateways and the administrator find it
	database string           // as its command takes it
	admin    string           // the administrator's token
	server   *postgres.Server // nil: SQLite
	replicas []*replica

	befallen int           // troubles so far
	slowest  time.Duration // until changes were taken after one
}

// replica is one process of a control plane, over all its lives.
type replica struct {
	name, addr string
	child      *rig.Process
}

// newPlane starts the control plane that the trial's database is for.
func newPlane(ctx context.Context, t *trial, admin string) (*plane, error) {
	p := &plane{t: t, admin: admin, database: "sqlite:" + t.path("plane.db")}
	t.planes = append(t.planes, p)
	names := []string{"plane"}
	if t.database == onPostgres {
		names = []string{"replica-1", "replica-2"}
		var err error
		if p.server, err = t.cluster(); err != nil {
			return nil, err
		}
		if p.database, err = p.server.Database(); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		addr, err := rig.FreeAddr()
		if err != nil {
			return nil, err
		}
		p.replicas = append(p.replicas, &replica{name: name, addr: addr})
	}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	p.addr = p.replicas[0].addr
	if len(p.replicas) == 1 {
		return p, nil
	}
	var err error
	p.addr, err = newBalancer(ctx, t, p.replicas[0].addr, p.replicas[1].addr)
	return p, err
}

// start starts the replicas that are down, all at once, and waits until they serve.
func (p *plane) start(ctx context.Context) error {
	var errs []error
	var started []*replica
	for _, r := range p.replicas {
		if r.child != nil && r.child.Alive() {
			continue
		}
		started = append(started, r)
		var err error
		r.child, err = p.t.start(r.name, []string{"KEEPTRUSTS_ADMIN_TOKEN=" + p.admin},
			"control-plane", "--database", p.database, "--listen", r.addr)
		if err != nil {
			return err
		}
	}
	for _, r := range started {
		errs = append(errs, ready(ctx, r.child, "http://"+r.addr+"/readyz"))
	}
	return errors.Join(errs...)
}

// back starts the replicas, which are down, over a copy of a database as it was.
func (p *plane) back(ctx context.Context, was string) (err error) {
	if p.database, err = p.server.Copy(was); err != nil {
		return err
	}
	return p.start(ctx)
}

// kill ends every replica with -9.
func (p *plane) kill() {
	for _, r := range p.replicas {
		r.child.Kill()
	}
}

// worked is what a replica's log says of it.
type worked struct{ leases, settlements, failed int }

// work reads what each replica did.
func (p *plane) work() ([]worked, error) {
	list := make([]worked, len(p.replicas))
	for i, r := range p.replicas {
		b, err := os.ReadFile(p.t.path(r.name + ".log"))
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			switch line := lines.Bytes(); {
			case bytes.Contains(line, []byte(`"POST /v1/runtime/leases"`)):
				list[i].leases++
			case bytes.Contains(line, []byte(`"POST /v1/runtime/settlements"`)):
				list[i].settlements++
			case bytes.Contains(line, []byte(`"request failed"`)):
				list[i].failed++
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("read %s's log: %w", r.name, err)
		}
	}
	return list, nil
}
