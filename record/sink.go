package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
)

// Sink is where records go. Both methods MUST be safe for concurrent use, and
// Write MUST not keep r.
type Sink interface {
	// Write takes one record. An error means that the record is not kept, and that
	// the request must not be served where records are required.
	Write(r *Record) error
	// Close writes what is buffered. Write fails after it.
	Close() error
}

// Mode says what a record is worth.
type Mode string

const (
	// BestEffort never makes a request wait for a disk: a record that finds the
	// buffer full is dropped and counted.
	BestEffort Mode = "best_effort"
	// Required writes within the call: no record, no request.
	Required Mode = "required"
)

const (
	flushEvery  = 100 * time.Millisecond
	firstBuffer = 64 << 10
	roomForOne  = 4 << 10
	maxBuffer   = 4 << 20         // bytes: at 400 a record, 100 ms of 100,000 requests a second
	closeWait   = 2 * time.Second // for a reader of stdout that has stopped reading
)

// File is a sink of JSON lines.
type File struct {
	mode Mode
	out  io.Writer
	shut func() error // closes out

	mu      sync.Mutex
	closed  bool
	buffer  []byte // best effort: what the flusher takes next; required: one line
	dropped uint64
	torn    bool // required: the last write ended inside a line

	stop    chan struct{}
	stopped chan struct{}
	err     error // of the flusher's last writes; read after stopped
}

// OpenFile opens a file to append to, made with permissions 0600, or stdout for
// "-". The caller closes it.
func OpenFile(path string, mode Mode) (*File, error) {
	if mode != BestEffort && mode != Required {
		return nil, fmt.Errorf("open records: mode %q: best_effort or required", mode)
	}
	if path == "-" {
		return newFile(os.Stdout, func() error { return nil }, mode), nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	return newFile(f, f.Close, mode), nil
}

func newFile(out io.Writer, shut func() error, mode Mode) *File {
	f := &File{mode: mode, out: out, shut: shut, stop: make(chan struct{}), stopped: make(chan struct{})}
	if mode == BestEffort {
		go f.flusher()
	} else {
		close(f.stopped)
	}
	return f
}

// Write keeps r: in the buffer, and never with an error but os.ErrClosed (best
// effort); or in the file, before it returns (required).
func (f *File) Write(r *Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("write a record: %w", os.ErrClosed)
	}
	if f.mode == Required {
		return f.writeNow(r)
	}
	f.buffer = Room(f.buffer, roomForOne, maxBuffer+roomForOne)
	if b := append(r.AppendJSON(f.buffer), '\n'); len(b) <= maxBuffer {
		f.buffer = b
	} else {
		f.dropped++
	}
	return nil
}

// Room returns b with room for n bytes more where it has not, and is smaller than most. It
// grows in a few steps: append's quarters would leave several times as much behind as b
// holds, just when a disk stands still.
func Room(b []byte, n, most int) []byte {
	if cap(b)-len(b) >= n || cap(b) >= most {
		return b
	}
	more := max(3*len(b), firstBuffer)
	if more > most/4 {
		more = most - len(b)
	}
	return slices.Grow(b, more)
}

func (f *File) writeNow(r *Record) error {
	b := f.buffer[:0]
	if f.torn {
		b = append(b, '\n') // so that the rest of a failed line spoils no other
	}
	b = append(r.AppendJSON(b), '\n')
	f.buffer = b
	n, err := f.out.Write(b)
	if err != nil {
		f.torn = f.torn && n == 0 || n > 0 && b[n-1] != '\n'
		f.dropped++
		return fmt.Errorf("write a record: %w", err)
	}
	f.torn = false
	return nil
}

// Dropped counts the records that were not kept.
func (f *File) Dropped() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dropped
}

// Close writes what is buffered and closes the file. Its error tells of records
// that could not be written since the last that could. It waits at most 2 s for
// a writer that blocks.
func (f *File) Close() error {
	f.mu.Lock()
	again := f.closed
	f.closed = true
	f.mu.Unlock()
	if again {
		return nil
	}
	close(f.stop)
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-f.stopped:
	case <-t.C:
		return errors.New("close records: the last of them could not be written in time")
	}
	if err := errors.Join(f.err, f.shut()); err != nil {
		return fmt.Errorf("close records: %w", err)
	}
	return nil
}

// flusher owns the file: nobody else waits for it.
func (f *File) flusher() {
	defer close(f.stopped)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var spare []byte
	torn := false
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-f.stop:
			last = true
		}
		f.mu.Lock()
		b := f.buffer
		f.buffer = spare[:0]
		f.mu.Unlock()
		torn = f.flush(b, torn)
		spare = b
	}
}

// flush writes whole lines and counts those that are lost; it says whether the
// file now ends inside a line.
func (f *File) flush(b []byte, torn bool) bool {
	if len(b) == 0 {
		return torn
	}
	if torn {
		if n, err := f.out.Write([]byte{'\n'}); err != nil || n == 0 {
			f.lost(b, err)
			return true
		}
	}
	n, err := f.out.Write(b)
	if err == nil {
		f.err = nil
		return false
	}
	f.lost(b[n:], err)
	return n > 0 && b[n-1] != '\n'
}

func (f *File) lost(b []byte, err error) {
	f.err = err
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped += uint64(bytes.Count(b, []byte{'\n'}))
}
