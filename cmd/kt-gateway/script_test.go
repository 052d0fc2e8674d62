package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a script waits for what must come. It is no measure of speed.
const patience = 60 * time.Second

// atRaceExit shortens what a program under the race detector sleeps as it ends, for
// goroutines that race still: by default a second, which was most of a script.
const atRaceExit = "atexit_sleep_ms=20"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kt-gateway": main})
}

// TestScripts runs the manual: every script drives the program as its users do.
// At a script's end, nothing that it left behind may hold a secret.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			env.Values["processes"] = processes{}
			env.Setenv("GORACE", atRaceExit)
			env.Defer(func() {
				found, err := leaks(env.WorkDir)
				if err != nil {
					t.Error(err)
				}
				for _, leak := range found {
					t.Errorf("%s: %s", filepath.Base(env.WorkDir), leak)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "end": end, "listening": listening, "http": call, "json": pick, "logged": logged, "listdir": listDir, "exits": exits, "told": told, "port": port, "until": until, "paste": paste, "var": variable, "expand": expand, "tofile": toFile, "metric": metric, "term": term,
		},
	})
}

// process is a program that a script started.
type process struct {
	cmd   *exec.Cmd
	ended chan error
}

type processes map[string]*process

func running(ts *testscript.TestScript) processes { return ts.Value("processes").(processes) }

// settings are the variables of a script that a started process gets.
var settings = []string{
	"PATH", "HOME", "TMPDIR", "OPENAI_API_KEY", "UPSTREAM_KEY", "KEEPTRUSTS_ADMIN_TOKEN", "KEEPTRUSTS_ADMIN_TOKEN_FILE", "KEEPTRUSTS_API_TOKEN",
	"KEEPTRUSTS_API_TOKEN_FILE", "KEEPTRUSTS_API_URL", "KEEPTRUSTS_GATEWAY_ID", "KEEPTRUSTS_DATA", "KEEPTRUSTS_CONFIG", "KEEPTRUSTS_LISTEN", "GORACE",
}

// start NAME ARGS…: runs kt-gateway with stdout to NAME.out and stderr to NAME.log.
// With dev --json it waits for the line and sets $gateway, $operations, $control_plane,
// $admin_token, $general, $integration and $gateway_runtime, each with NAME_ before it.
func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start NAME ARGS…")
	}
	name := args[0]
	stdout, err := os.Create(ts.MkAbs(name + ".out"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.OpenFile(ts.MkAbs(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	defer stderr.Close()
	path, err := exec.LookPath("kt-gateway")
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), stdout, stderr
	for _, k := range settings {
		if v := ts.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	ts.Check(cmd.Start())
	p := &process{cmd, make(chan error, 1)}
	go func() { p.ended <- cmd.Wait() }()
	running(ts)[name] = p
	ts.Defer(func() { _ = cmd.Process.Kill() })
	if args[1] == "dev" && strings.Contains(strings.Join(args, " "), "--json") {
		waitForDev(ts, name)
	}
}

func waitForDev(ts *testscript.TestScript, name string) {
	var line []byte
	eventually(ts, "the line of dev --json", func() bool {
		line, _ = os.ReadFile(ts.MkAbs(name + ".out"))
		return bytes.HasSuffix(line, []byte("\n"))
	})
	var ready devReady
	ts.Check(json.Unmarshal(line, &ready))
	for k, v := range map[string]string{
		"gateway": ready.Gateway, "operations": ready.Operations, "control_plane": ready.ControlPlane, "admin_token": ready.AdminToken,
		"general": ready.Tokens.General, "integration": ready.Tokens.Integration, "gateway_runtime": ready.Tokens.GatewayRuntime,
	} {
		ts.Setenv(name+"_"+k, v)
	}
}

// end NAME [SIGNAL [CODE]]: sends SIGTERM, or another, and wants the exit code, 0 by default.
// With the signal "none" it only waits; HUP is sent, and nothing waited for.
func end(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: end NAME [SIGNAL [CODE]]")
	}
	p := running(ts)[args[0]]
	if p == nil {
		ts.Fatalf("%s was not started", args[0])
	}
	args = append(args, []string{"", "TERM", "0"}[min(len(args), 3):]...)
	switch args[1] {
	case "TERM":
		ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	case "INT":
		ts.Check(p.cmd.Process.Signal(syscall.SIGINT))
	case "HUP":
		ts.Check(p.cmd.Process.Signal(syscall.SIGHUP))
		return
	case "KILL":
		ts.Check(p.cmd.Process.Kill())
	case "none":
	default:
		ts.Fatalf("unknown signal %s", args[1])
	}
	want, err := strconv.Atoi(args[2])
	ts.Check(err)
	select {
	case <-p.ended:
	case <-time.After(patience):
		ts.Fatalf("%s did not end", args[0])
	}
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		log, _ := os.ReadFile(ts.MkAbs(args[0] + ".log"))
		ts.Fatalf("%s ended with %d (%s), want %d; its log:\n%s", args[0], got, p.cmd.ProcessState, want, log)
	}
	delete(running(ts), args[0])
}

func eventually(ts *testscript.TestScript, what string, ok func() bool) {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("waited in vain for %s", what)
		}
	}
}

// mayHold are the files that are there to hold a secret: what a command printed, and
// what its owner alone can read.
var mayHold = regexp.MustCompile(`\.(out|secret)$|^(admin-token|simulator-key)$`)

// secrets are the forms of what must be found nowhere else.
var secrets = regexp.MustCompile(`kt_live_[0-9A-Za-z]{49}|kt_admin_[0-9A-Za-z]{20,}|sk-[0-9A-Za-z-]{20,}|admin-secret-[0-9a-z]{12,}`)

// leaks searches the files below dir, databases and logs with them, for secrets.
func leaks(dir string) (found []string, err error) {
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a temporary folder that is going
		}
		if err != nil || !d.Type().IsRegular() || mayHold.MatchString(d.Name()) {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, m := range secrets.FindAll(b, 3) {
			rel, _ := filepath.Rel(dir, path)
			found = append(found, fmt.Sprintf("%s holds a secret: %.12s…", rel, m))
		}
		return nil
	})
	return found, err
}

func TestASecretInAFileIsFound(t *testing.T) {
	const minted = "kt_live_" + "0000000000000000000000000000000000000000000" + "1jIOm5"
	for _, tt := range []struct {
		name, file, content string
		want                int
	}{
		{"a token in a log", "gw.log", `{"msg":"` + minted + `"}`, 1},
		{"a token inside a database", "kt-gateway.db", "\x00\x01" + minted + "\x00", 1},
		{"a provider's key in metrics", "answers.txt", "x{k=\"sk-simulated-abcdefghijklmnop\"} 1", 1},
		{"an admin token in a log", "gw.log", "kt_admin_abcdefghijklmnopqrstuvwxyz", 1},
		{"a hint is none", "gw.log", `kt_live_…1jIOm5`, 0},
		{"what a command printed may hold it", "dev.out", minted, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := leaks(dir)
			if err != nil || len(found) != tt.want {
				t.Errorf("found %v, %v; want %d", found, err, tt.want)
			}
		})
	}
}
