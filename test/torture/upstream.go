package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// script is what the provider does with one call. It travels in the body's user.
type script struct {
	id     string
	do     string // whole, stream, error, cut, silent, stall, garbage, empty
	delay  time.Duration
	input  int64 // tokens, truly
	output int64 // tokens, truly: one a chunk of a stream
	gap    time.Duration
	at     int64 // the chunk after which a stream is cut or stalls
	status int
	usage  string // "" as it is; none: not told; zero: told as 0, and so it is
	reset  bool   // a cut is a RST
}

func (s script) encode() string {
	v := url.Values{}
	v.Set("id", s.id)
	v.Set("do", s.do)
	v.Set("delay", s.delay.String())
	v.Set("in", strconv.FormatInt(s.input, 10))
	v.Set("out", strconv.FormatInt(s.output, 10))
	v.Set("gap", s.gap.String())
	v.Set("at", strconv.FormatInt(s.at, 10))
	v.Set("status", strconv.Itoa(s.status))
	v.Set("usage", s.usage)
	v.Set("reset", strconv.FormatBool(s.reset))
	return v.Encode()
}

func readScript(text string) (script, error) {
	v, err := url.ParseQuery(text)
	if err != nil || v.Get("id") == "" {
		return script{}, fmt.Errorf("no script: %.100q", text)
	}
	// What is missing is 0: scripts are this program's own.
	integer := func(name string) int64 { n, _ := strconv.ParseInt(v.Get(name), 10, 64); return n }
	duration := func(name string) time.Duration { d, _ := time.ParseDuration(v.Get(name)); return d }
	return script{
		id: v.Get("id"), do: v.Get("do"), delay: duration("delay"), input: integer("in"), output: integer("out"),
		gap: duration("gap"), at: integer("at"), status: int(integer("status")), usage: v.Get("usage"), reset: v.Get("reset") == "true",
	}, nil
}

// served is what the provider knows of one call.
type served struct {
	calls         int   // how often it came
	input, output int64 // tokens that it would bill
	limit         int64 // of output, as it was asked; 0: none
}

// upstream is the provider: it does what each call's script says and records what
// was truly used.
type upstream struct {
	ln   net.Listener
	addr string

	mu    sync.Mutex
	calls map[string]*served
}

func newUpstream(t *trial) (*upstream, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	u := &upstream{ln: ln, addr: addr, calls: map[string]*served{}}
	t.closers = append(t.closers, func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go u.serve(conn)
		}
	}()
	return u, nil
}

// of returns what is known of a call, zero when it never came.
func (u *upstream) of(id string) served {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.calls[id]; s != nil {
		return *s
	}
	return served{}
}

// sum adds up the calls whose id has a prefix.
func (u *upstream) sum(prefix string) (all served) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, s := range u.calls {
		if strings.HasPrefix(id, prefix) {
			all.calls += s.calls
			all.input += s.input
			all.output += s.output
		}
	}
	return all
}

func (u *upstream) note(id string, f func(*served)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.calls[id]
	if s == nil {
		s = &served{}
		u.calls[id] = s
	}
	f(s)
}

// wanted is what the provider reads of a call.
type wanted struct {
	User                string
	Stream              bool
	Options             *includes `json:"stream_options"`
	MaxTokens           int64     `json:"max_tokens"`
	MaxCompletionTokens int64     `json:"max_completion_tokens"`
}

type includes struct {
	Usage bool `json:"include_usage"`
}

func (u *upstream) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		var w wanted
		if err := json.Unmarshal(body, &w); err != nil {
			return
		}
		s, err := readScript(w.User)
		if err != nil {
			return
		}
		a := &answering{u: u, conn: conn, script: s, wanted: w}
		if !a.do() {
			return
		}
	}
}
