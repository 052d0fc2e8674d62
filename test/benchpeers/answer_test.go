package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// pieces is a connection from which each Read gives one piece.
type pieces struct {
	net.Conn
	left []string
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(b, p.left[0])
	p.left[0] = p.left[0][n:]
	if p.left[0] == "" {
		p.left = p.left[1:]
	}
	return n, nil
}

func read(r *reader) error {
	if err := r.head(); err != nil {
		return err
	}
	for {
		if end, err := r.more(); end || err != nil {
			return err
		}
	}
}

// cut gives s in pieces of n bytes.
func cut(s string, n int) []string {
	var all []string
	for len(s) > n {
		all, s = append(all, s[:n]), s[n:]
	}
	return append(all, s)
}

func TestAnAnswerIsTheSameHoweverItComes(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\ncontent-type: x\r\n"
	stream := "Transfer-Encoding: chunked\r\n\r\n" + httpChunk(roleEvent) + httpChunk(contentEvent[:7]) + httpChunk(contentEvent[7:]) + httpChunk(doneEvent) + "0\r\n\r\n"
	for _, tc := range []struct {
		name, give   string
		body, events int
	}{
		{"whole", head + "Content-Length: 5\r\n\r\nhello", 5, 0},
		{"empty", head + "content-length: 0\r\n\r\n", 0, 0},
		{"stream", head + stream, len(roleEvent + contentEvent + doneEvent), 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for n := 1; n <= len(tc.give); n++ {
				r := &reader{conn: &pieces{left: cut(tc.give, n)}}
				if err := read(r); err != nil || r.body != tc.body || r.events != tc.events {
					t.Fatalf("in pieces of %d: %v, %d bytes, %d events", n, err, r.body, r.events)
				}
			}
			for n := range len(tc.give) {
				if err := read(&reader{conn: &pieces{left: cut(tc.give[:n], 1000)}}); err == nil {
					t.Fatalf("cut after %d bytes: a whole answer", n)
				}
			}
		})
	}
}

func TestWhatIsNoAnswerIsAnError(t *testing.T) {
	for _, give := range []string{
		"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 10000),
	} {
		if err := read(&reader{conn: &pieces{left: []string{give}}}); err == nil {
			t.Errorf("taken: %.60q", give)
		}
	}
}

func TestARoundsRatioIsOfItsOwnRound(t *testing.T) {
	costs := func(us ...float64) (all []result) {
		for _, c := range us {
			all = append(all, result{requests: 1000, cpu: time.Duration(c * 1e6)})
		}
		return all
	}
	tab := &table{options: options{only: "request", gate: true}, peers: []string{"bare", "kt"}, results: map[string][]result{
		"closed bare": costs(10, 20, 40), "closed kt": costs(13, 25, 60),
		"paced bare": costs(10), "paced kt": costs(90),
	}}
	if err := tab.ratios(); err != nil { // 1.3, 1.25 and 1.5; the paced load has no gate
		t.Errorf("at the gate: %v", err)
	}
	tab.results["closed kt"] = costs(14, 25, 60)
	if err := tab.ratios(); err == nil {
		t.Error("1.40 passed the gate of 1.30")
	}
	tab.results["paced kt"] = nil
	tab.options.gate = false
	if err := tab.ratios(); err == nil {
		t.Error("no ratio, and no error")
	}
	tab.results["paced kt"] = costs(1)
	tab.results["paced kt"][0].failed = 1
	if tab.failures() == nil {
		t.Error("a failed request was not told of")
	}
}
