package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var _ Sink = (*File)(nil)

// disk is a writer that can be full, or stuck.
type disk struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	room  int // bytes it still takes; negative: all
	stuck chan struct{}
}

func (d *disk) Write(p []byte) (int, error) {
	if d.stuck != nil {
		<-d.stuck
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room >= 0 && len(p) > d.room {
		n, _ := d.buf.Write(p[:d.room])
		d.room = 0
		return n, syscall.ENOSPC
	}
	if d.room >= 0 {
		d.room -= len(p)
	}
	return d.buf.Write(p)
}

func (d *disk) set(room int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = room
}

// read gives the request ids of the whole lines, and how many lines are torn.
func (d *disk) read() (ids []string, torn int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for line := range strings.Lines(d.buf.String()) {
		var r struct {
			ID string `json:"request_id"`
		}
		if json.Unmarshal([]byte(line), &r) != nil || !strings.HasSuffix(line, "\n") {
			torn++
			continue
		}
		ids = append(ids, r.ID)
	}
	return ids, torn
}

func noClose() error { return nil }

func write(t *testing.T, f *File, id string) error {
	t.Helper()
	return f.Write(&Record{RequestID: id})
}

func TestAFileIsAppendedToAndPrivate(t *testing.T) {
	for _, mode := range []Mode{BestEffort, Required} {
		path := filepath.Join(t.TempDir(), "records")
		for _, id := range []string{"a", "b"} {
			f, err := OpenFile(path, mode)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(write(t, f, id), f.Close(), f.Close()); err != nil {
				t.Fatal(err)
			}
			if err := write(t, f, "late"); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: after Close: %v", mode, err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil || strings.Count(string(b), "\n") != 2 || !strings.Contains(string(b), `"request_id":"b"`) {
			t.Errorf("%s: %v, %s", mode, err, b)
		}
		if s, _ := os.Stat(path); s.Mode().Perm() != 0o600 {
			t.Errorf("%s: permissions %v", mode, s.Mode())
		}
	}
}

func TestWhatCannotBeOpenedIsAnError(t *testing.T) {
	if _, err := OpenFile(t.TempDir(), Required); err == nil {
		t.Error("a folder was opened")
	}
	if _, err := OpenFile("-", "perhaps"); err == nil {
		t.Error("an unknown mode was taken")
	}
}

func TestRequiredIsInTheFileWhenWriteReturns(t *testing.T) {
	d := &disk{room: -1}
	f := newFile(d, noClose, Required)
	if err := write(t, f, "a"); err != nil {
		t.Fatal(err)
	}
	if ids, _ := d.read(); len(ids) != 1 {
		t.Errorf("in the file: %q", ids)
	}
}

func TestRequiredTellsOfAFullDiskAndRecovers(t *testing.T) {
	d := &disk{room: 10}
	f := newFile(d, noClose, Required)
	for range 2 { // once inside the line, once with nothing written
		if err := write(t, f, "lost"); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("full: %v", err)
		}
	}
	d.set(-1)
	if err := errors.Join(write(t, f, "a"), write(t, f, "b")); err != nil {
		t.Fatal(err)
	}
	ids, torn := d.read()
	if strings.Join(ids, " ") != "a b" || torn != 1 || f.Dropped() != 2 {
		t.Errorf("in the file: %q, torn %d, dropped %d", ids, torn, f.Dropped())
	}
}

func TestBestEffortFlushesEvery100ms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{room: -1}
		f := newFile(d, noClose, BestEffort)
		if err := write(t, f, "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(99 * time.Millisecond)
		synctest.Wait()
		if ids, _ := d.read(); len(ids) != 0 {
			t.Errorf("after 99 ms: %q", ids)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if ids, _ := d.read(); len(ids) != 1 {
			t.Errorf("after 101 ms: %q", ids)
		}
		if err := errors.Join(write(t, f, "b"), f.Close()); err != nil {
			t.Fatal(err)
		}
		if ids, _ := d.read(); strings.Join(ids, " ") != "a b" {
			t.Errorf("after Close: %q", ids)
		}
	})
}

func TestBestEffortCountsWhatAFullDiskLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := len((&Record{RequestID: "a"}).AppendJSON(nil)) + 1
		d := &disk{room: one + 10}
		f := newFile(d, noClose, BestEffort)
		for _, id := range []string{"a", "b", "c"} {
			if err := write(t, f, id); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(150 * time.Millisecond)
		_ = write(t, f, "d")
		time.Sleep(100 * time.Millisecond)
		d.set(-1)
		_ = write(t, f, "e")
		if err := f.Close(); err != nil {
			t.Errorf("close after recovery: %v", err)
		}
		ids, torn := d.read()
		if strings.Join(ids, " ") != "a e" || torn != 1 || f.Dropped() != 3 {
			t.Errorf("in the file: %q, torn %d, dropped %d", ids, torn, f.Dropped())
		}
	})
}

func TestBestEffortNeverWaitsAndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{room: -1, stuck: make(chan struct{})}
		f := newFile(d, noClose, BestEffort)
		begin := time.Now()
		long := &Record{RequestID: strings.Repeat("x", 1<<20)}
		_ = f.Write(long)
		time.Sleep(flushEvery + 1) // the flusher is stuck with the first
		for range 5 {
			if err := f.Write(long); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(begin) != flushEvery+1 {
			t.Errorf("waited %v", time.Since(begin))
		}
		if f.Dropped() != 2 { // three lines of a little more than 1 MiB fit
			t.Errorf("dropped %d", f.Dropped())
		}
		if err := f.Close(); err == nil || time.Since(begin) > closeWait+time.Second {
			t.Errorf("closed by %v after %v", err, time.Since(begin))
		}
		close(d.stuck)
		<-f.stopped
	})
}

func TestManyWritersLoseNothing(t *testing.T) {
	for _, mode := range []Mode{BestEffort, Required} {
		d := &disk{room: -1}
		f := newFile(d, noClose, mode)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 500 {
					if f.Write(&Record{RequestID: "a"}) != nil {
						t.Error("not written")
					}
				}
			})
		}
		all.Wait()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if ids, torn := d.read(); len(ids) != 4000 || torn != 0 || f.Dropped() != 0 {
			t.Errorf("%s: %d lines, torn %d, dropped %d", mode, len(ids), torn, f.Dropped())
		}
	}
}

// What a buffer leaves behind as it grows stays resident for minutes.
func TestABufferGrowsInFewSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{room: -1, stuck: make(chan struct{})}
		f := newFile(d, noClose, BestEffort)
		left := 0
		for range 3 * maxBuffer / 200 {
			before := cap(f.buffer)
			if err := f.Write(&Record{RequestID: "req_1"}); err != nil {
				t.Fatal(err)
			}
			if cap(f.buffer) != before {
				left += before
			}
		}
		if f.Dropped() == 0 || left > maxBuffer/2 || cap(f.buffer) > maxBuffer+maxBuffer/8 {
			t.Errorf("%d dropped, %d bytes left behind by %d", f.Dropped(), left, cap(f.buffer))
		}
		_ = f.Close()
		close(d.stuck)
		<-f.stopped
	})
}
