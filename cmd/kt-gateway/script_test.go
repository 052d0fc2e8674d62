package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a script waits for what must come. It is no measure of speed.
const patience = 20 * time.Second

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
			"start": start, "end": end, "listening": listening, "http": call, "json": pick, "logged": logged, "listdir": listDir, "exits": exits, "port": port, "until": until, "paste": paste, "var": variable, "expand": expand, "tofile": toFile, "metric": metric,
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
	"KEEPTRUSTS_API_TOKEN_FILE", "KEEPTRUSTS_API_URL", "KEEPTRUSTS_GATEWAY_ID", "KEEPTRUSTS_DATA", "KEEPTRUSTS_CONFIG", "KEEPTRUSTS_LISTEN",
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

// listening NAME WHAT VAR: waits for "WHAT is listening" in NAME's log and sets VAR to its URL.
func listening(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: listening NAME WHAT VAR")
	}
	eventually(ts, args[1]+" to listen", func() bool {
		log, _ := os.ReadFile(ts.MkAbs(args[0] + ".log"))
		for _, line := range bytes.Split(log, []byte("\n")) {
			var entry struct{ Msg, Addr string }
			if json.Unmarshal(line, &entry) == nil && strings.HasPrefix(entry.Msg, args[1]) && entry.Addr != "" {
				ts.Setenv(args[2], baseURL(entry.Addr))
				return true
			}
		}
		select {
		case <-running(ts)[args[0]].ended:
			ts.Fatalf("%s ended; its log:\n%s", args[0], log)
		default:
		}
		return false
	})
}

// logged NAME PATTERN: waits for a line in NAME's log.
func logged(ts *testscript.TestScript, neg bool, args []string) {
	pattern := regexp.MustCompile(args[1])
	found := func() bool {
		log, _ := os.ReadFile(ts.MkAbs(args[0] + ".log"))
		return pattern.Match(log)
	}
	if neg {
		if found() {
			ts.Fatalf("%s logged %s", args[0], args[1])
		}
		return
	}
	eventually(ts, args[1]+" in the log of "+args[0], found)
}

// http [-t TOKEN] [-d BODY] [-H HEADER] [-until STATUS] METHOD URL: prints status, headers and
// body. With -until it asks again until it gets the status.
func call(ts *testscript.TestScript, neg bool, args []string) {
	set := flag.NewFlagSet("http", flag.ContinueOnError)
	token, body, header := set.String("t", "", ""), set.String("d", "", ""), set.String("H", "", "")
	until := set.Int("until", 0, "")
	if err := set.Parse(args); err != nil || set.NArg() != 2 || neg {
		ts.Fatalf("usage: http [flags] METHOD URL")
	}
	once := func() (int, error) {
		req, err := http.NewRequest(set.Arg(0), set.Arg(1), strings.NewReader(*body))
		ts.Check(err)
		if *token != "" {
			req.Header.Set("Authorization", "Bearer "+*token)
		}
		if *body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if k, v, ok := strings.Cut(*header, ": "); ok {
			req.Header.Set(k, v)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		res, err := http.DefaultClient.Do(req.WithContext(ctx))
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			return 0, err
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%d\n", res.StatusCode)
		for _, k := range slices.Sorted(maps.Keys(res.Header)) {
			fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(res.Header[k], ", "))
		}
		fmt.Fprintf(&b, "\n%s", answer)
		if res.StatusCode >= 400 || strings.HasSuffix(set.Arg(1), "/metrics") {
			keep(ts, b.Bytes()) // what must hold no secret is searched at the end
		}
		if *until == 0 || *until == res.StatusCode {
			_, _ = ts.Stdout().Write(b.Bytes())
		}
		return res.StatusCode, nil
	}
	if *until == 0 {
		_, err := once()
		ts.Check(err)
		return
	}
	eventually(ts, fmt.Sprintf("%d from %s", *until, set.Arg(1)), func() bool {
		got, err := once()
		return err == nil && got == *until
	})
}

func keep(ts *testscript.TestScript, b []byte) {
	f, err := os.OpenFile(ts.MkAbs("answers.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer f.Close()
	_, err = f.Write(append(b, '\n'))
	ts.Check(err)
}

// json FILE PATH VAR: sets VAR to what stands at a dotted path; FILE may be stdout.
func pick(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: json FILE PATH VAR")
	}
	text := ts.ReadFile(args[0])
	if _, body, ok := strings.Cut(text, "\n\n"); ok && !strings.HasPrefix(text, "{") {
		text = body
	}
	var v any
	ts.Check(json.Unmarshal([]byte(text), &v))
	for _, key := range strings.Split(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i >= len(at) {
				ts.Fatalf("%s has %d elements", args[1], len(at))
			}
			v = at[i]
		}
	}
	if v == nil {
		ts.Fatalf("nothing at %s in %s", args[1], text)
	}
	ts.Setenv(args[2], fmt.Sprint(v))
}

// exits CODE PROGRAM ARGS…: runs it as exec does, and wants the exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s ended with %d, want %d\n%s", strings.Join(args[1:], " "), got, want, ts.ReadFile("stderr"))
	}
}

// port VAR PORT: sets PORT to the port of the URL in VAR.
func port(ts *testscript.TestScript, neg bool, args []string) {
	u, err := url.Parse(ts.Getenv(args[0]))
	ts.Check(err)
	ts.Setenv(args[1], u.Port())
}

// until FILE PATTERN: waits for it.
func until(ts *testscript.TestScript, neg bool, args []string) {
	pattern := regexp.MustCompile(args[1])
	eventually(ts, args[1]+" in "+args[0], func() bool {
		b, _ := os.ReadFile(ts.MkAbs(args[0]))
		return pattern.Match(b)
	})
}

// paste FILE PREFIX: runs the line of FILE that opens with PREFIX, as a shell would.
func paste(ts *testscript.TestScript, neg bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, args[1]) {
			ts.Check(ts.Exec("sh", "-c", line))
			return
		}
	}
	ts.Fatalf("no line opens with %s", args[1])
}

// var NAME FILE: sets NAME to the text of FILE, without the newline.
func variable(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// expand FILE: puts variables into it.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// tofile FILE TEXT: writes it.
func toFile(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(args[1]+"\n"), 0o600))
}

// metric OPERATIONS LINE: waits until /metrics has the line.
func metric(ts *testscript.TestScript, neg bool, args []string) {
	eventually(ts, args[1], func() bool {
		res, err := http.Get(args[0] + "/metrics")
		ts.Check(err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return err == nil && bytes.Contains(b, []byte("\n"+args[1]+"\n"))
	})
}

// listdir DIR: prints the names in a folder.
func listDir(ts *testscript.TestScript, neg bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), ".") // without a word, what stood on stdout before would stay
	for _, e := range entries {
		fmt.Fprintln(ts.Stdout(), e.Name())
	}
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
