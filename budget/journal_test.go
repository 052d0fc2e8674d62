package budget

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func records() []ClosedLease {
	return []ClosedLease{
		{Budget: "b_day", Window: "2026-11-24.0", Mark: 5_200_000, Overrun: 0},
		{Budget: "b_team", Window: "total.0", Mark: 1, Overrun: 7},
	}
}

func TestAJournalSaysTheLargestMarkOfEachLease(t *testing.T) {
	dir := t.TempDir()
	j, err := newJournal(dir, "ls_1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	later := records()
	later[0].Mark = 9_000_000
	earlier := records()
	earlier[1].Overrun = 3
	for _, list := range [][]ClosedLease{records(), later, earlier} {
		if err := j.append(list); err != nil {
			t.Fatal(err)
		}
	}
	want := []ClosedLease{{"b_day", "2026-11-24.0", 9_000_000, 0}, {"b_team", "total.0", 1, 7}}
	for range 2 {
		got, err := ReadJournal(dir, "ls_1")
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
		// Written anew it says the same.
		if err := j.renew(want); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAJournalCutOrChangedAnywhereIsLost(t *testing.T) {
	dir := t.TempDir()
	j, err := newJournal(dir, "ls_1", records())
	if err != nil {
		t.Fatal(err)
	}
	j.close()
	whole, err := os.ReadFile(journalPath(dir, "ls_1"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := readJournal(whole[:n], "ls_1"); !errors.Is(err, errJournal) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
		damaged := slices.Clone(whole)
		damaged[n] ^= 0x20
		if list, err := readJournal(damaged, "ls_1"); !errors.Is(err, errJournal) {
			t.Errorf("byte %d changed: %v, %v", n, list, err)
		}
	}
	if _, err := readJournal(whole, "ls_2"); !errors.Is(err, errJournal) {
		t.Errorf("another session's: %v", err)
	}
	// A write that was not finished stands behind the length: nothing rests on it.
	if list, err := readJournal(append(slices.Clone(whole), "half a rec"...), "ls_1"); err != nil || !slices.Equal(list, records()) {
		t.Errorf("%v, %v", list, err)
	}
}

func TestAJournalThatCannotBeWrittenIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	j, err := newJournal(dir, "ls_1", nil)
	if err != nil {
		t.Fatal(err)
	}
	j.file.Close()
	if err := j.append(records()); err == nil || !j.full(2) {
		t.Fatalf("written to a closed file: %v, full %v", err, j.full(2))
	}
	if err := j.renew(records()); err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if got, err := ReadJournal(dir, "ls_1"); err != nil || !slices.Equal(got, records()) || j.full(2) {
		t.Errorf("%v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func FuzzReadJournal(f *testing.F) {
	body, sum := appendRecords(nil, 0, records())
	whole := append(header("ls_1", int64(headerLength+len(body)), sum), body...)
	f.Add(whole, false)
	f.Add(whole[:len(whole)-3], false)
	f.Add(whole[:headerLength], false)
	f.Add(append(header("ls_1", 1<<62, sum), body...), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend && len(b) >= headerLength {
			// Past the header's checksum, to where the records are read.
			n := headerLength - 4
			binary.BigEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
		}
		list, err := readJournal(b, "ls_1")
		if err != nil {
			return
		}
		// What is accepted says the same when it is written again, and cut it is lost.
		body, sum := appendRecords(nil, 0, list)
		again, err := readJournal(append(header("ls_1", int64(headerLength+len(body)), sum), body...), "ls_1")
		if err != nil || !slices.Equal(list, again) {
			t.Fatalf("%v, %v: read again %v", list, err, again)
		}
		length := binary.BigEndian.Uint64(b[headerLength-16:])
		if _, err := readJournal(b[:length-1], "ls_1"); err == nil {
			t.Fatal("cut, and not lost")
		}
	})
}
