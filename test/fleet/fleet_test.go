package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/token"
)

func TestEveryScenarioIsInExactlyOnePart(t *testing.T) {
	for n := 1; n <= 12; n++ {
		seen := map[string]int{}
		for i := range n {
			mine, err := choose(scenarios(), options{part: fmt.Sprintf("%d/%d", i+1, n)})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range mine {
				seen[s.name]++
			}
		}
		for _, s := range scenarios() {
			if seen[s.name] != 1 {
				t.Errorf("of %d parts, %d have %s", n, seen[s.name], s.name)
			}
		}
	}
}

func TestAPartOfThreeFitsIntoEightMinutes(t *testing.T) {
	for i := range 3 {
		sum := 0
		mine, err := choose(scenarios(), options{part: fmt.Sprintf("%d/3", i+1)})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range mine {
			sum += s.seconds
		}
		if sum > 8*60 {
			t.Errorf("part %d/3: %d s", i+1, sum)
		}
	}
}

func TestWrongPartsAndScenariosAreRefused(t *testing.T) {
	for _, o := range []options{{part: "0/1"}, {part: "2/1"}, {part: "1"}, {part: "1/2/3"}, {part: "x/y"}, {part: "1/1", only: "nothing"}} {
		if chosen, err := choose(scenarios(), o); err == nil {
			t.Errorf("%+v: %d scenarios", o, len(chosen))
		}
	}
}

// scene is a trial that starts no process.
func scene(t *testing.T) *trial {
	mine := &trial{harness: &harness{}, dir: t.TempDir(), out: io.Discard}
	t.Cleanup(mine.close)
	return mine
}

func TestAFigureOutOfItsBoundFailsTheScenario(t *testing.T) {
	s := scene(t)
	s.within(true, "a", "b", "c")
	s.none(0, "d")
	if s.failed != 0 {
		t.Errorf("%d failed", s.failed)
	}
	s.within(false, "a", "b", "c")
	s.none(1, "d")
	s.fail("e")
	if s.failed != 3 {
		t.Errorf("%d failed, want 3", s.failed)
	}
}

// echo answers each line with itself.
func echo(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	return ln.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

// through sends text and reads as much back.
func through(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

func TestARelayIsCutAsItIsTold(t *testing.T) {
	r, err := newRelay(scene(t), echo(t))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, r.addr())
	if err := through(c, "hello"); err != nil {
		t.Fatal(err)
	}

	r.turnTo(silent)
	if _, err := io.WriteString(c, "later"); err != nil {
		t.Fatal(err)
	}
	var b [5]byte
	_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
	var late net.Error
	if n, err := c.Read(b[:]); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("silent: %d bytes, %v", n, err)
	}
	r.turnTo(open)
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "later" {
		t.Errorf("open again: %q, %v", b, err)
	}

	r.turnTo(closed)
	if err := through(c, "hello"); err == nil {
		t.Error("closed: a connection that was there still passes")
	}
	if c, err := net.Dial("tcp", r.addr()); err == nil { // it may be reset at once
		defer c.Close()
		if through(c, "hello") == nil {
			t.Error("closed: a new connection passes")
		}
	}
	r.turnTo(open)

	c = dial(t, r.addr())
	r.cutAfter(7)
	if _, err := io.WriteString(c, "0123456789"); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(c)
	if string(got) != "0123456" || r.cuts.Load() != 1 {
		t.Errorf("cut after 7 bytes: %q, %d cuts", got, r.cuts.Load())
	}
	if err := through(dial(t, r.addr()), "hello, once more"); err != nil {
		t.Errorf("after a cut: %v", err)
	}
}

// answering is a control plane that knows one answer.
func answering(t *testing.T) (*between, string) {
	plane := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "is")
		if strings.HasSuffix(r.URL.Path, "/watch") {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(plane.Close)
	b, addr, err := newBetween(scene(t), strings.TrimPrefix(plane.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return b, "http://" + addr
}

func TestWhatIsBetweenCountsHoldsAndFalsifies(t *testing.T) {
	b, url := answering(t)
	ask := func(digest string) string {
		res, err := http.Post(url+"/v1/runtime/resolve", "application/json", strings.NewReader(`{"sha256":"`+digest+`"}`))
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return string(body)
	}
	b.past = map[string]kept{"aa": {status: 200, body: []byte("was")}}
	if got := ask("aa") + ask("bb"); got != "wasis" {
		t.Errorf("told %q", got)
	}
	let := make(chan struct{})
	b.mu.Lock()
	b.hold = func(d string) <-chan struct{} {
		if d == "cc" {
			return let
		}
		return nil
	}
	b.mu.Unlock()
	held := make(chan string)
	go func() { held <- ask("cc") }()
	for b.underWay.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if got := ask("dd"); got != "is" {
		t.Errorf("beside one that is held: %q", got)
	}
	close(let)
	if got := <-held; got != "is" || b.lookups.Load() != 4 || b.most.Load() != 2 {
		t.Errorf("held: %q; %d look-ups, at most %d at once", got, b.lookups.Load(), b.most.Load())
	}
}

func TestWithoutAWatchThereIsNone(t *testing.T) {
	b, url := answering(t)
	watch := func(within time.Duration) (*http.Response, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		t.Cleanup(cancel)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/runtime/watch", nil)
		if err != nil {
			t.Fatal(err)
		}
		return http.DefaultClient.Do(req)
	}
	res, err := watch(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b.withoutWatch(true)
	if got, err := io.ReadAll(res.Body); err == nil || string(got) != "is" {
		t.Errorf("the watch that was there: %q, %v", got, err)
	}
	if res, err := watch(100 * time.Millisecond); err == nil {
		res.Body.Close()
		t.Error("a new watch begins")
	}
	b.withoutWatch(false)
	res, err = watch(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}

func TestAnAgentReadsWhatItIsAnswered(t *testing.T) {
	p, err := newProvider(scene(t))
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{addr: p.addr}
	defer a.close()
	for range 3 {
		if s := a.call("kt_live_x"); !s.ok() || !bytes.Equal(a.body, []byte(wholeAnswer)) {
			t.Errorf("whole: %+v %s", s, a.body)
		}
	}
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(401)
		fmt.Fprint(w, `{"error":{"message":"m","code":"token_revoked"}}`)
		w.(http.Flusher).Flush() // chunked
	}))
	defer refusing.Close()
	b := &agent{addr: strings.TrimPrefix(refusing.URL, "http://")}
	defer b.close()
	for range 2 {
		if s := b.call("kt_live_x"); s.ok() || s.word() != "token_revoked" {
			t.Errorf("refused: %+v", s)
		}
	}
	ending := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, chunk+`data: {"error":{"code":"token_expired"}}`+"\n\n")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer ending.Close()
	began := false
	e := (&agent{addr: strings.TrimPrefix(ending.URL, "http://")}).stream("kt_live_x", func() { began = true })
	if !began || !e.first.ok() || e.code != "token_expired" || e.done || e.at.IsZero() {
		t.Errorf("stream: %+v", e)
	}
	if s := (&agent{addr: "127.0.0.1:1"}).call("kt_live_x"); s.ok() || s.word() != "cut" {
		t.Errorf("nobody listens: %+v", s)
	}
}

func TestAnOutageIsJudgedByWhatWasAnsweredWhen(t *testing.T) {
	stopped := time.Now()
	w := window{stopped, stopped.Add(40 * time.Second), 30 * time.Second}
	at := func(s float64, ok bool) sample {
		sent := stopped.Add(time.Duration(s * float64(time.Second)))
		return sample{sent, sent.Add(time.Millisecond), ok, "x"}
	}
	j := w.judge([]sample{at(-2, false), at(-1, true), at(1, true), at(30, true), at(31, false), at(32, true), at(41, false), at(42, true)})
	if j.early != 1 || j.last != 32*time.Second || j.first != 31*time.Second || j.after != 1 || j.back.Round(time.Second) != time.Second || len(j.waits) != 3 {
		t.Errorf("%+v", j)
	}
}

func TestSharesOfSpans(t *testing.T) {
	var s spans
	for i := range 200 {
		s = append(s, time.Duration(200-i))
	}
	if s.at(0) != 1 || s.at(0.5) != 101 || s.at(0.99) != 199 || s.at(1) != 200 || spans(nil).at(1) != 0 {
		t.Error(s.at(0), s.at(0.5), s.at(0.99), s.at(1))
	}
}

func TestNoAddressIsGivenTwice(t *testing.T) {
	var p ports
	seen := map[string]bool{}
	for range 500 {
		addr, err := p.free()
		if err != nil || seen[addr] {
			t.Fatalf("%s: %v", addr, err)
		}
		seen[addr] = true
		if _, port, _ := net.SplitHostPort(addr); len(port) != 5 || port >= "32768" {
			t.Errorf("%s is one of those that connections take", addr)
		}
	}
}

func TestAFolderIsReadAndWrittenAsItWas(t *testing.T) {
	dir := t.TempDir()
	if _, err := readFolder(dir); err == nil {
		t.Error("an empty folder has a snapshot")
	}
	give := folder{"snapshot": []byte("abc"), "revocations": nil}
	if err := give.write(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/kt-gateway.lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readFolder(dir)
	if err != nil || len(got) != 2 || string(got["snapshot"]) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
	c := got.clone()
	c["snapshot"][0] = 'x'
	if string(got["snapshot"]) != "abc" {
		t.Error("a clone is the same")
	}
}

func TestStrangersAreOfTheirKind(t *testing.T) {
	x := &strangers{revoked: []minted{{Token: "revoked"}}}
	for i := range 300 {
		s := x.stranger(i)
		_, err := token.Parse(s, nil)
		if want := i%3 == 1; (err == nil) != want || i%3 == 0 && len(s) != token.Len || i%3 == 2 && s != "revoked" {
			t.Errorf("%d: %q: %v", i, s, err)
		}
	}
}

func TestRoundsAreTakenApart(t *testing.T) {
	a, b := &cost{}, &cost{}
	a.took(0, 1)
	a.took(1, 10)
	b.took(2, 3)
	b.took(1, 30)
	a.merge(b)
	if base, flooded := a.p99(); len(base) != 2 || base[0] != 1 || base[1] != 3 || len(flooded) != 1 || flooded[0] != 30 {
		t.Errorf("%v %v", base, flooded)
	}
}
