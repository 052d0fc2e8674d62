package simulator

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// frames takes a chunked body apart.
func frames(t *testing.T, answer string) []string {
	t.Helper()
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	r := bufio.NewReader(strings.NewReader(body))
	var all []string
	for {
		var n int
		if _, err := fmt.Fscanf(r, "%x\r\n", &n); err != nil {
			t.Fatalf("chunk header: %v after %d frames", err, len(all))
		}
		if n == 0 {
			return all
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(r, b); err != nil || string(b[n:]) != "\r\n" {
			t.Fatalf("chunk of %d bytes: %v %q", n, err, b)
		}
		all = append(all, string(b[:n]))
	}
}

func TestOneEventIsOneHTTPChunk(t *testing.T) {
	_, srv := start(t, Options{})
	b, err := raw(t, srv, `{"model":"m","stream":true,`+hi+`,"simulator":{"chunks":4}}`)
	if err != nil {
		t.Fatal(err)
	}
	got := frames(t, b)
	if len(got) != 1+4+1+1 {
		t.Errorf("%d frames", len(got))
	}
	for _, f := range got {
		if !strings.HasPrefix(f, "data: ") || !strings.HasSuffix(f, "\n\n") {
			t.Errorf("frame %q", f)
		}
	}
}

func TestSplitUTF8PartsAChunkInsideACharacter(t *testing.T) {
	_, srv := start(t, Options{})
	b, err := raw(t, srv, `{"model":"m","stream":true,`+hi+`,"simulator":{"content":"日本","split_utf8":true}}`)
	if err != nil {
		t.Fatal(err)
	}
	got := frames(t, b)
	inside := 0
	for _, f := range got {
		if !utf8.ValidString(f) {
			inside++
		}
	}
	if inside != 2 || !strings.Contains(strings.Join(got, ""), `"content":"日本"`) {
		t.Errorf("%d frames part a character: %q", inside, got)
	}
}

func TestACutIsNeverACleanEnd(t *testing.T) {
	for _, tc := range []struct {
		name, give string
		deltas     int // whole ones: the cut comes before the next
		err        error
	}{
		{"stream, fin", `{"model":"m","stream":true,` + hi + `,"simulator":{"cut_after_chunks":2,"chunks":5}}`, 2, nil},
		{"stream, rst", `{"model":"m","stream":true,` + hi + `,"simulator":{"cut_after_chunks":2,"chunks":5,"cut":"rst","chunk_delay_ms":20}}`, 2, syscall.ECONNRESET},
		{"stream, before any piece", `{"model":"m","stream":true,` + hi + `,"simulator":{"cut_after_chunks":0}}`, 0, nil},
		{"whole, fin", `{"model":"m",` + hi + `,"simulator":{"cut":"fin"}}`, 0, nil},
		{"no answer at all", `{"model":"m",` + hi + `,"simulator":{"drop":true}}`, 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, srv := start(t, Options{})
			b, err := raw(t, srv, tc.give)
			if !errors.Is(err, tc.err) {
				t.Errorf("ended by %v, want %v", err, tc.err)
			}
			if strings.HasSuffix(b, "0\r\n\r\n") || strings.Contains(b, "[DONE]") || strings.HasSuffix(b, "}\n") {
				t.Errorf("a clean end: %q", b)
			}
			if got := strings.Count(b, `"delta":{"content"`); got != tc.deltas {
				t.Errorf("%d deltas in %q, want %d", got, b, tc.deltas)
			}
			if !opens(s, 0) || s.Requests()[0].Gone {
				t.Errorf("open %d, recorded %+v", s.Open(), s.Requests()[0])
			}
		})
	}
}

// opens waits until n exchanges are open.
func opens(s *Simulator, n int) bool {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s.Open() == n {
			return true
		}
	}
	return false
}

func TestTheClientReadsACutAsAnError(t *testing.T) {
	_, srv := start(t, Options{})
	for _, give := range []string{
		`{"model":"m","stream":true,` + hi + `,"simulator":{"cut":"fin"}}`,
		`{"model":"m","stream":true,` + hi + `,"simulator":{"cut":"rst"}}`,
		`{"model":"m",` + hi + `,"simulator":{"cut":"fin"}}`,
	} {
		res, err := http.Post(srv.URL+"/v1/chat/completions", "", strings.NewReader(give))
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("a clean end for %s", give)
		}
	}
}

func TestACallerThatLeavesIsNoticedAndCounted(t *testing.T) {
	for name, give := range map[string]string{
		"before the header": `{"model":"m","stream":true,` + hi + `,"simulator":{"delay_ms":60000}}`,
		"mid-stream":        `{"model":"m","stream":true,` + hi + `,"simulator":{"chunks":100000,"chunk_delay_ms":1}}`,
		"between chunks":    `{"model":"m","stream":true,` + hi + `,"simulator":{"chunks":2,"chunk_delay_ms":60000}}`,
	} {
		for _, linger := range []int{-1, 0} {
			t.Run(fmt.Sprint(name, ", linger ", linger), func(t *testing.T) {
				s, srv := start(t, Options{})
				c, err := net.Dial("tcp", srv.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(give), give)
				if !opens(s, 1) {
					t.Fatal("never opened")
				}
				if name != "before the header" {
					if _, err := io.ReadFull(c, make([]byte, 900)); err != nil {
						t.Fatal(err)
					}
				}
				_ = c.(*net.TCPConn).SetLinger(linger)
				c.Close()
				if !opens(s, 0) {
					t.Fatal("still open 5 s after the caller left")
				}
				got := s.Requests()
				if len(got) != 1 || !got[0].Gone || got[0].Ended.IsZero() {
					t.Errorf("recorded %+v", got)
				}
			})
		}
	}
}
