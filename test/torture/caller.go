package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// leaving is how a client goes before its answer has ended.
type leaving struct {
	when  int           // after so many chunks; 0: before a head; -1: not at all
	after time.Duration // with when 0: after so long
	reset bool          // by a RST, else by a FIN
}

var stays = leaving{when: -1}

// call is one request of a client.
type call struct {
	model  string
	stream bool
	limit  int64 // max_tokens; 0: none
	usage  bool  // asks a stream for usage
	script script
	leaving
}

// answer is what a client was given.
type answer struct {
	status int // 0: none
	code   string
	says   string // the error's message
	chunks int    // of content
	finish string
	done   bool   // the answer was whole
	left   bool   // the client went
	nobody bool   // listened
	output string // x-keeptrusts-output-limit
	err    error
}

func (a *answer) String() string {
	return fmt.Sprintf("%d %s, %d chunks, finish %q, whole %t, %v %s", a.status, a.code, a.chunks, a.finish, a.done, a.err, a.says)
}

// agent is one client: a connection that is kept while all goes well.
type agent struct {
	addr string
	conn net.Conn
	r    *bufio.Reader
}

func (a *agent) close() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// ask makes a call at a gateway.
func (a *agent) ask(ctx context.Context, addr, bearer string, c call) *answer {
	if a.conn != nil && a.addr != addr {
		a.close()
	}
	if a.conn == nil {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return &answer{err: err, nobody: true}
		}
		a.addr, a.conn, a.r = addr, conn, bufio.NewReader(conn)
	}
	stop := context.AfterFunc(ctx, func() { _ = a.conn.SetDeadline(time.Now()) })
	defer stop()
	_ = a.conn.SetDeadline(time.Now().Add(patience))
	var res answer
	if _, res.err = a.conn.Write(c.request(addr, bearer)); res.err == nil {
		a.read(ctx, &c, &res)
	}
	if !res.done && a.conn != nil {
		if tcp, ok := a.conn.(*net.TCPConn); ok && res.left && c.reset {
			_ = tcp.SetLinger(0)
		}
		a.close()
	}
	return &res
}

// away is what a caller is told when the control plane was needed and not there.
const away = "control_plane_unavailable"

// unavailable says that a call was not admitted because nobody could be asked.
func (a *answer) unavailable() bool {
	return a.code == away && a.status == http.StatusServiceUnavailable
}

// as makes a call with a token, which gateways need to know only a second after it
// was minted.
func (a *agent) as(ctx context.Context, g *gateway, t token, c call) *answer {
	for {
		out := a.ask(ctx, g.addr, t.Token, c)
		if out.code != "invalid_api_key" || time.Since(t.minted) > time.Second || ctx.Err() != nil {
			return out
		}
		rig.Pause(ctx, 10*time.Millisecond)
	}
}

func (c *call) request(addr, bearer string) []byte {
	body := map[string]any{"model": c.model, "user": c.script.encode(), "messages": []map[string]string{{"role": "user", "content": "hello"}}}
	if c.stream {
		body["stream"] = true
	}
	if c.usage {
		body["stream_options"] = map[string]any{"include_usage": true}
	}
	if c.limit > 0 {
		body["max_tokens"] = c.limit
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		addr, bearer, len(b), b)
}

func (a *agent) read(ctx context.Context, c *call, res *answer) {
	if c.when == 0 {
		rig.Pause(ctx, c.after)
		res.left = true
		return
	}
	head, err := http.ReadResponse(a.r, nil)
	if err != nil {
		res.err = err
		return
	}
	res.status = head.StatusCode
	res.output = head.Header.Get("x-keeptrusts-output-limit")
	if !strings.HasPrefix(head.Header.Get("Content-Type"), "text/event-stream") {
		if c.when > 0 && head.StatusCode == http.StatusOK {
			res.left = true
			return
		}
		a.whole(head, res)
		return
	}
	lines := bufio.NewReader(head.Body)
	ended := false
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if res.done = ended; !ended {
				res.err = io.ErrUnexpectedEOF
			}
			if head.Close {
				a.close()
			}
			return
		}
		if err != nil {
			res.err = err
			return
		}
		ended = res.event(line) || ended
		if c.when > 0 && res.chunks >= c.when {
			res.left = true
			return
		}
	}
}

func (a *agent) whole(head *http.Response, res *answer) {
	b, err := io.ReadAll(head.Body)
	if err != nil {
		res.err = err
		return
	}
	res.done = true
	if head.Close {
		a.close()
	}
	var e struct {
		Error struct{ Code, Message string }
	}
	if head.StatusCode != http.StatusOK && json.Unmarshal(b, &e) == nil {
		res.code, res.says = e.Error.Code, e.Error.Message
	}
}

var (
	content = []byte(`"content":" tok"`)
	finish  = []byte(`"finish_reason":"`)
)

// event takes a line of a stream; true: the last one.
func (res *answer) event(line []byte) bool {
	switch {
	case bytes.HasPrefix(line, []byte("data: [DONE]")):
		return true
	case bytes.HasPrefix(line, []byte(`data: {"error"`)):
		var e struct{ Error struct{ Code string } }
		if json.Unmarshal(line[len("data: "):], &e) == nil {
			res.code = e.Error.Code
		}
	case bytes.Contains(line, content):
		res.chunks++
	default:
		if _, rest, ok := bytes.Cut(line, finish); ok {
			name, _, _ := bytes.Cut(rest, []byte(`"`))
			res.finish = string(name)
		}
	}
	return false
}

// together runs f for 0 to n-1, all at once.
func together(n int, f func(i int)) {
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() { <-begin; f(i) })
	}
	close(begin)
	all.Wait()
}

// tally counts answers by what they were.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (t *tally) add(word string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]int{}
	}
	t.n[word]++
}

func (t *tally) of(word string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[word]
}

func (t *tally) all() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.n {
		n += k
	}
	return n
}

// word is an answer in one: 200, a code, or what went wrong.
func (a *answer) word() string {
	switch {
	case a.code != "":
		return a.code
	case a.err != nil:
		return "cut"
	case a.status == http.StatusOK && !a.done:
		return "left"
	}
	return strconv.Itoa(a.status)
}
