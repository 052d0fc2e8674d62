package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// term NAME: sends SIGTERM and does not wait.
func term(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(running(ts)[args[0]].cmd.Process.Signal(syscall.SIGTERM))
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

// http [-t TOKEN] [-d BODY] [-H HEADER] [-until STATUS] [-told PATTERN] METHOD URL: prints status,
// headers and body. It asks again until it gets the status, and a body with the pattern.
func call(ts *testscript.TestScript, neg bool, args []string) {
	set := flag.NewFlagSet("http", flag.ContinueOnError)
	token, body, header := set.String("t", "", ""), set.String("d", "", ""), set.String("H", "", "")
	until, told := set.Int("until", 0, ""), set.String("told", "", "")
	if err := set.Parse(args); err != nil || set.NArg() != 2 || neg {
		ts.Fatalf("usage: http [flags] METHOD URL")
	}
	pattern, err := regexp.Compile(*told)
	ts.Check(err)
	once := func() (bool, error) {
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
			return false, err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			return false, err
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%d\n", res.StatusCode)
		if res.Close {
			res.Header.Set("Connection", "close") // the client takes it out
		}
		for _, k := range slices.Sorted(maps.Keys(res.Header)) {
			fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(res.Header[k], ", "))
		}
		fmt.Fprintf(&b, "\n%s", answer)
		if res.StatusCode >= 400 || strings.HasSuffix(set.Arg(1), "/metrics") {
			keep(ts, b.Bytes()) // what must hold no secret is searched at the end
		}
		ok := (*until == 0 || *until == res.StatusCode) && pattern.Match(answer)
		if ok {
			_, _ = ts.Stdout().Write(b.Bytes())
		}
		return ok, nil
	}
	if *until == 0 && *told == "" {
		_, err := once()
		ts.Check(err)
		return
	}
	eventually(ts, fmt.Sprintf("%d %s from %s", *until, *told, set.Arg(1)), func() bool {
		ok, err := once()
		return err == nil && ok
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

// told PATTERN PROGRAM ARGS…: runs it as exec does, again until its stdout matches.
func told(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: told PATTERN PROGRAM ARGS…")
	}
	pattern := regexp.MustCompile("(?m)" + args[0])
	eventually(ts, args[0]+" on stdout", func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout"))
	})
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
