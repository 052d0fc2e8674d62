package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// stderr is a writer that can be stuck, or full.
type brokenStderr struct {
	mu    sync.Mutex
	b     bytes.Buffer
	fails bool
	stuck chan struct{}
}

func (s *brokenStderr) Write(p []byte) (int, error) {
	if s.stuck != nil {
		<-s.stuck
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails {
		return 0, errors.New("no space left on device")
	}
	return s.b.Write(p)
}

func TestAStuckStderrCostsLinesAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &brokenStderr{stuck: make(chan struct{})}
		w := newLogWriter(out)
		line := []byte(strings.Repeat("x", 999) + "\n")
		began := time.Now()
		const n = 20_000 // 20 MB
		room := func() int { w.mu.Lock(); defer w.mu.Unlock(); return cap(w.buffer) }
		left := 0 // what the buffer leaves behind as it grows, which stays resident for minutes
		for range n {
			before := room()
			if m, err := w.Write(line); m != len(line) || err != nil {
				t.Fatalf("%d %v", m, err)
			}
			if room() > before {
				left += before
			}
		}
		if left > logHeld/2 {
			t.Errorf("%d bytes are left behind", left)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("writers waited %v", d)
		}
		synctest.Wait()
		w.mu.Lock()
		held := cap(w.buffer)
		w.mu.Unlock()
		if held > 2*logHeld || w.Dropped() < n-2*logHeld/1000 || w.Dropped() >= n {
			t.Errorf("%d bytes are held, %d lines dropped", held, w.Dropped())
		}
		dropped := w.Dropped()
		close(out.stuck)
		time.Sleep(time.Second)
		_, _ = w.Write([]byte("after\n"))
		w.close()
		w.close()
		text := out.b.String()
		if !strings.HasSuffix(text, "after\n") || strings.Count(text, "\n") != n-int(dropped)+2 || w.Dropped() != dropped {
			t.Errorf("%d lines were written, %d dropped: …%s", strings.Count(text, "\n"), w.Dropped(), text[max(0, len(text)-200):])
		}
		if !strings.Contains(text, fmt.Sprintf(`"lines":%d}`, dropped)) {
			t.Errorf("the log does not say that %d lines are missing", dropped)
		}
	})
}

func TestTheEndDoesNotWaitForAStuckStderr(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &brokenStderr{stuck: make(chan struct{})}
		w := newLogWriter(out)
		_, _ = w.Write([]byte("a\n"))
		began := time.Now()
		w.close()
		if d := time.Since(began); d != logCloseWait {
			t.Errorf("waited %v", d)
		}
		_, _ = w.Write([]byte("late\n"))
		if w.Dropped() != 1 {
			t.Errorf("%d dropped", w.Dropped())
		}
		close(out.stuck)
	})
}

func TestLinesComeWithin100msAndWhatFailsIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &brokenStderr{}
		w := newLogWriter(out)
		_, _ = w.Write([]byte("a\n"))
		time.Sleep(logFlushEvery + 1)
		synctest.Wait()
		if out.b.String() != "a\n" {
			t.Errorf("after 100 ms: %q", out.b.String())
		}
		out.fails = true
		_, _ = w.Write([]byte("b\nc\n"))
		time.Sleep(logFlushEvery)
		synctest.Wait()
		out.fails = false
		if w.Dropped() != 2 {
			t.Errorf("%d dropped", w.Dropped())
		}
		_, _ = w.Write([]byte("d\n"))
		w.close()
		if s := out.b.String(); !strings.HasPrefix(s, "a\nd\n{") || !strings.HasSuffix(s, `"lines":2}`+"\n") {
			t.Errorf("%q", s)
		}
	})
}

func TestManyWritersLoseNoLine(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	w := newLogWriter(f)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 1000 {
				_, _ = w.Write([]byte(strings.Repeat("y", 300) + "\n"))
			}
		})
	}
	wait.Wait()
	w.close()
	b, err := os.ReadFile(f.Name())
	if err != nil || bytes.Count(b, []byte{'\n'}) != 8000 || w.Dropped() != 0 {
		t.Errorf("%v, %d lines, %d dropped", err, bytes.Count(b, []byte{'\n'}), w.Dropped())
	}
	_ = f.Close()
}
