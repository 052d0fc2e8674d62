package tokencache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

var someStops = []Stopped{
	{ID: "tok_1", Revision: 7}, {Team: true, ID: "red", Revision: 8}, {ID: "tok_" + ulid(3)[4:], Revision: 1 << 40}, {ID: "", Revision: 0},
}

func journalOf(t testing.TB, path string, stops ...Stopped) *Journal {
	t.Helper()
	j, _, _, err := OpenJournal(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	for _, s := range stops {
		j.Append(s)
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	return j
}

// holds opens the file anew and compares.
func holds(t testing.TB, path string, want ...Stopped) {
	t.Helper()
	j, got, found, err := OpenJournal(path, nil)
	if err != nil || !found || !slices.Equal(got, want) {
		t.Fatalf("found %v: %v, %v, want %v", found, got, err, want)
	}
	_ = j.Close()
}

func TestAJournalHoldsWhatWasAppended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revocations")
	_, got, found, err := OpenJournal(path, nil)
	if err != nil || found || len(got) != 0 {
		t.Fatalf("a new one: %v, %v, %v", got, found, err)
	}
	j := journalOf(t, path, someStops...)
	holds(t, path, someStops...)
	j.Append(Stopped{ID: "tok_9", Revision: 9}) // not synced: there after a crash of the process all the same
	holds(t, path, append(slices.Clone(someStops), Stopped{ID: "tok_9", Revision: 9})...)
	if err := j.Compact(8); err != nil {
		t.Fatal(err)
	}
	holds(t, path, someStops[2], Stopped{ID: "tok_9", Revision: 9})
	j.Append(someStops[0])
	holds(t, path, someStops[2], Stopped{ID: "tok_9", Revision: 9}, someStops[0])
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", i.Mode(), err)
	}
	if err := j.Reset(); err != nil || j.Len() != 0 {
		t.Fatal(err)
	}
	holds(t, path)
}

func TestATornLastRecordIsDroppedAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revocations")
	journalOf(t, path, someStops...)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ends := []int{len(journalMagic)}
	for _, s := range someStops {
		ends = append(ends, ends[len(ends)-1]+recordHead+len(s.ID)+recordTail)
	}
	for cut := range len(whole) {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		for n < len(someStops) && ends[n+1] <= cut {
			n++
		}
		j, got, _, err := OpenJournal(path, nil)
		if cut < len(journalMagic) {
			if !errors.Is(err, ErrJournal) {
				t.Fatalf("cut to %d bytes: %v", cut, err)
			}
			continue
		}
		if err != nil || !slices.Equal(got, someStops[:n]) {
			t.Fatalf("cut to %d bytes: %v, %v, want %d records", cut, got, err, n)
		}
		j.Append(Stopped{ID: "next", Revision: 3})
		_ = j.Close()
		holds(t, path, append(slices.Clone(someStops[:n]), Stopped{ID: "next", Revision: 3})...)
	}
}

// A changed length must not make a record look as if it had been cut short.
func TestEveryFlippedBitOfAJournalIsSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revocations")
	journalOf(t, path, someStops...)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[i] ^= 1 << bit
			if got, _, _, err := readJournal(bad); !errors.Is(err, ErrJournal) {
				t.Fatalf("byte %d, bit %d: %v, %v", i, bit, got, err)
			}
		}
	}
	// A record that is taken out, or stands twice, breaks the chain.
	first := len(journalMagic) + recordHead + len(someStops[0].ID) + recordTail
	for name, bad := range map[string][]byte{
		"without the first": append(bytes.Clone(whole[:len(journalMagic)]), whole[first:]...),
		"the first twice":   append(append(bytes.Clone(whole[:first]), whole[len(journalMagic):first]...), whole[first:]...),
	} {
		if got, _, _, err := readJournal(bad); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// After a failed fsync the next one may say that all is well of what was never written.
func TestAFailedSyncIsToldAndTheFileMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revocations")
	j := journalOf(t, path, someStops[0])
	broken := errors.New("input/output error")
	j.sync = func(*os.File) error { return broken }
	j.Append(someStops[1])
	if err := j.Sync(); !errors.Is(err, broken) {
		t.Fatalf("synced: %v", err)
	}
	j.Append(someStops[2])
	if err := j.Sync(); !errors.Is(err, broken) {
		t.Fatalf("synced: %v", err)
	}
	before := j.file
	j.sync = (*os.File).Sync
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if j.file == before {
		t.Error("the file that lost something is still in use")
	}
	holds(t, path, someStops[:3]...)
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestManyMayAppendAndSyncAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revocations")
	j := journalOf(t, path)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				j.Append(Stopped{ID: fmt.Sprintf("tok_%d_%d", g, i), Revision: int64(i + 1)})
				if err := j.Sync(); err != nil {
					t.Error(err)
				}
				if i%10 == 0 {
					_ = j.Compact(0)
				}
			}
		})
	}
	wg.Wait()
	_, got, _, err := OpenJournal(path, nil)
	if err != nil || len(got) != 400 {
		t.Errorf("%d records, %v", len(got), err)
	}
}

// Whatever the bytes are: no panic, and what is read is what writes those bytes.
func FuzzReadJournal(f *testing.F) {
	b, chain := []byte(journalMagic), uint32(0)
	f.Add(bytes.Clone(b))
	for i := range someStops {
		b, chain = appendRecord(b, chain, &someStops[i])
		f.Add(bytes.Clone(b))
	}
	huge := binary.BigEndian.AppendUint16(append(bytes.Clone(b), 0), 65535)
	f.Add(huge)
	f.Fuzz(func(t *testing.T, b []byte) {
		records, whole, _, err := readJournal(b)
		if err != nil {
			return
		}
		again, chain := []byte(journalMagic), uint32(0)
		for i := range records {
			again, chain = appendRecord(again, chain, &records[i])
		}
		if !bytes.Equal(again, b[:whole]) {
			t.Error("it was read otherwise than it is written")
		}
	})
}

// Nothing but what was sealed comes out whole, whatever is done to the file.
func FuzzUnseal(f *testing.F) {
	s := sealWith("secret", "gw_1")
	plain := noise(chunkLen + 100)
	file := sealed(f, s, plain)
	f.Add(file, 0, byte(0))
	f.Add(file, 41, byte(1))
	f.Add(file[:len(file)-1], 0, byte(0))
	f.Add(append(bytes.Clone(file), 1), 0, byte(0))
	f.Add([]byte(sealedMagic), 0, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at int, flip byte) {
		b = bytes.Clone(b)
		if at >= 0 && at < len(b) {
			b[at] ^= flip
		}
		got, err := unsealed(s, b)
		if !bytes.HasPrefix(plain, got) {
			t.Error("something else came out")
		}
		if err == nil && len(got) != len(plain) { // file is another in each process, plain is not
			t.Error("a part comes out as the whole")
		}
	})
}
