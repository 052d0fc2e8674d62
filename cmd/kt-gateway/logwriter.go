package main

import (
	"bytes"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/record"
)

const (
	// logHeld is what is kept in bytes for a stderr that does not take it; lines
	// beyond it are dropped and counted.
	logHeld = 4 << 20
	// logCloseWait bounds how long the end waits for a stderr that does not read.
	logCloseWait = 2 * time.Second
)

// logWriter is the log's way to stderr. Writing a line never waits for whoever reads
// stderr: one goroutine writes what has gathered, and where it can't, the log loses
// lines and the gateway serves on. Safe for concurrent use.
type logWriter struct {
	out io.Writer

	mu      sync.Mutex
	closed  bool
	buffer  []byte
	dropped uint64

	full    chan struct{} // has room for one: buffer is worth a write
	stop    chan struct{}
	stopped chan struct{}
}

func newLogWriter(out io.Writer) *logWriter {
	w := &logWriter{out: out, full: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
	go w.run()
	return w
}

// Write takes whole lines, and never fails.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.closed || len(w.buffer)+len(p) > logHeld {
		w.dropped += lines(p)
		w.mu.Unlock()
		return len(p), nil
	}
	before := len(w.buffer)
	w.buffer = append(record.Room(w.buffer, len(p), logHeld), p...)
	due := before < logBuffer && len(w.buffer) >= logBuffer
	w.mu.Unlock()
	if due {
		select {
		case w.full <- struct{}{}:
		default:
		}
	}
	return len(p), nil
}

// Sync is for zap, which calls it before a process ends by its own hand.
func (w *logWriter) Sync() error { return nil }

// Dropped counts the lines that never reached stderr.
func (w *logWriter) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// close writes what is held.
func (w *logWriter) close() {
	w.mu.Lock()
	again := w.closed
	w.closed = true
	w.mu.Unlock()
	if again {
		return
	}
	close(w.stop)
	t := time.NewTimer(logCloseWait)
	defer t.Stop()
	select {
	case <-w.stopped:
	case <-t.C:
	}
}

func (w *logWriter) run() {
	defer close(w.stopped)
	tick := time.NewTicker(logFlushEvery)
	defer tick.Stop()
	var spare []byte
	told := uint64(0)
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-w.full:
		case <-w.stop:
			last = true
		}
		w.mu.Lock()
		b, dropped := w.buffer, w.dropped
		w.buffer, spare = spare[:0], nil
		w.mu.Unlock()
		logged := len(b)
		if dropped > told {
			b = appendDropped(b, dropped-told)
		}
		if len(b) == 0 {
			spare = b
			continue
		}
		if n, err := w.out.Write(b); err != nil {
			w.mu.Lock()
			w.dropped += lines(b[min(n, logged):logged])
			w.mu.Unlock()
		} else {
			told = dropped
		}
		if spare = b; cap(b) > 4*logBuffer {
			spare = nil
		}
	}
}

// appendDropped says in the log what is missing from it.
func appendDropped(b []byte, n uint64) []byte {
	b = time.Now().AppendFormat(append(b, `{"level":"warn","ts":"`...), time.RFC3339Nano)
	b = strconv.AppendUint(append(b, `","msg":"log lines were dropped: stderr did not take them","lines":`...), n, 10)
	return append(b, "}\n"...)
}

func lines(p []byte) uint64 { return uint64(bytes.Count(p, []byte{'\n'})) }
