package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

func TestBalancersSpreadConnectionsAndLeaveOutWhoIsDown(t *testing.T) {
	for name, balance := range map[string]func(t *trial, one, two string) (string, error){
		"the one that this machine has": func(t *trial, one, two string) (string, error) {
			return newBalancer(context.Background(), t, one, two)
		},
		"this program's": func(t *trial, one, two string) (string, error) {
			addr, err := rig.FreeAddr()
			if err != nil {
				return "", err
			}
			return addr, newRelay(t, addr, one, two)
		},
	} {
		t.Run(name, func(t *testing.T) {
			mine := &trial{harness: &harness{}, dir: t.TempDir()}
			t.Cleanup(mine.close)
			targets := map[string]*httptest.Server{}
			for _, id := range []string{"one", "two"} {
				targets[id] = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, id) }))
				defer targets[id].Close()
			}
			addr, err := balance(mine, targets["one"].Listener.Addr().String(), targets["two"].Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			seen := asked(t, addr, 100)
			if seen["one"] < 20 || seen["two"] < 20 || seen["one"]+seen["two"] != 100 {
				t.Errorf("of 100 connections: %v", seen)
			}
			targets["two"].Close()
			if seen := asked(t, addr, 20); seen["one"] != 20 {
				t.Errorf("of 20 with one target: %v", seen)
			}
		})
	}
}

// asked makes n connections and counts who answers.
func asked(t *testing.T, addr string, n int) map[string]int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	seen := map[string]int{}
	for range n {
		res, err := client.Get("http://" + addr + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		seen[string(b)]++
	}
	return seen
}

// A replica that dies must be seen at once by who is connected to it.
func TestTheBalancerClosesWhatItsTargetCloses(t *testing.T) {
	mine := &trial{harness: &harness{}}
	defer mine.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	addr, err := rig.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	if err := newRelay(mine, addr, ln.Addr().String(), ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	var said strings.Builder
	if _, err := io.Copy(&said, conn); err != nil || said.String() != "hello" {
		t.Errorf("%q, %v", said.String(), err)
	}
}

func TestAReplicaThatFailsACallIsFoundInItsLog(t *testing.T) {
	const lease = `{"level":"info","msg":"request","endpoint":"POST /v1/runtime/leases","status":200}` + "\n"
	const failed = `{"level":"error","msg":"request failed","error":"begin: no"}` + "\n"
	for _, tc := range []struct {
		name, one, two string
		befallen       int
		fails          string
	}{
		{"all is well", lease, lease + lease, 0, ""},
		{"one call failed", lease, lease + failed, 0, "replica-2 failed 1 calls"},
		{"one call failed in trouble", lease, lease + failed, 1, ""},
		{"nothing is told", "", "", 0, "no log"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mine := &trial{harness: &harness{}, dir: t.TempDir()}
			p := &plane{t: mine, befallen: tc.befallen}
			for name, text := range map[string]string{"replica-1": tc.one, "replica-2": tc.two} {
				if err := os.WriteFile(mine.path(name+".log"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p.replicas = []*replica{{name: "replica-1"}, {name: "replica-2"}}
			err := p.account()
			if (err == nil) != (tc.fails == "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("%v, want %q", err, tc.fails)
			}
		})
	}
}
