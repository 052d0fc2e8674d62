package tokencache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// ErrJournal says that a journal of revocations can't be trusted.
var ErrJournal = errors.New("it holds a record that was changed")

// Stopped is a record of a journal: of a token its least valid revision, of a team the
// one at which it was deleted.
type Stopped struct {
	Team     bool
	ID       string
	Revision int64
}

// Journal keeps revocations in a file: what was appended is in it, and what was synced
// is there after a crash of the machine too. Each record's checksums cover those before
// it, so that none can be taken out, and its length has one of its own, so that only a
// record that was not written to its end looks like one. It is safe for concurrent use.
type Journal struct {
	path string
	sync func(*os.File) error

	syncing sync.Mutex // before mu
	mu      sync.Mutex
	file    *os.File
	records []Stopped
	chain   uint32
	written int64 // records appended since it was opened
	durable int64 // of them, those that a sync has covered
	failed  error // the file may lack something that was written: it has to be made anew
}

const (
	journalMagic = "ktstop1\n"
	recordHead   = 1 + 2 + 8 + 4 // kind, length of the id, revision, checksum of these
	recordTail   = 4             // checksum
	maxStopID    = 1 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenJournal opens the file, or makes it. It returns what the file holds, and whether
// it was there. A last record that was cut short is dropped; anything else that is
// wrong is ErrJournal, and the file is left as it is. sync makes a file's content durable;
// nil is fsync.
func OpenJournal(path string, sync func(*os.File) error) (j *Journal, records []Stopped, found bool, err error) {
	j = newJournal(path, sync)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j, nil, false, j.Reset()
	case err != nil:
		return nil, nil, false, fmt.Errorf("read the revocations: %w", err)
	}
	records, whole, chain, err := readJournal(b)
	if err != nil {
		return nil, nil, true, fmt.Errorf("read the revocations: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, true, fmt.Errorf("open the revocations: %w", err)
	}
	if err = f.Truncate(int64(whole)); err == nil {
		_, err = f.Seek(int64(whole), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, true, fmt.Errorf("open the revocations: %w", err)
	}
	j.file, j.records, j.chain = f, records, chain
	return j, slices.Clone(records), true, nil
}

// NewJournal puts an empty one in the place of whatever is there.
func NewJournal(path string, sync func(*os.File) error) (*Journal, error) {
	j := newJournal(path, sync)
	return j, j.Reset()
}

func newJournal(path string, sync func(*os.File) error) *Journal {
	if sync == nil {
		sync = (*os.File).Sync
	}
	return &Journal{path: path, sync: sync}
}

// readJournal reads records, and how many bytes of b are whole ones.
func readJournal(b []byte) (records []Stopped, whole int, chain uint32, err error) {
	if len(b) < len(journalMagic) || string(b[:len(journalMagic)]) != journalMagic {
		return nil, 0, 0, ErrJournal
	}
	whole = len(journalMagic)
	for {
		r := b[whole:]
		if len(r) < recordHead {
			return records, whole, chain, nil
		}
		n := int(binary.BigEndian.Uint16(r[1:]))
		head := link(chain, r[:recordHead-4])
		if head != binary.BigEndian.Uint32(r[recordHead-4:]) || r[0] > 1 {
			return nil, 0, 0, ErrJournal
		}
		if len(r) < recordHead+n+recordTail {
			return records, whole, chain, nil
		}
		id := r[recordHead : recordHead+n]
		chain = link(head, id)
		if chain != binary.BigEndian.Uint32(r[recordHead+n:]) {
			return nil, 0, 0, ErrJournal
		}
		records = append(records, Stopped{Team: r[0] == 1, ID: string(id), Revision: int64(binary.BigEndian.Uint64(r[3:]))})
		whole += recordHead + n + recordTail
	}
}

func link(chain uint32, b []byte) uint32 {
	var before [4]byte
	binary.BigEndian.PutUint32(before[:], chain)
	return crc32.Update(crc32.Checksum(before[:], castagnoli), castagnoli, b)
}

func appendRecord(b []byte, chain uint32, s *Stopped) ([]byte, uint32) {
	from := len(b)
	kind := byte(0)
	if s.Team {
		kind = 1
	}
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.ID)))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Revision))
	head := link(chain, b[from:])
	b = binary.BigEndian.AppendUint32(b, head)
	b = append(b, s.ID...)
	chain = link(head, []byte(s.ID))
	return binary.BigEndian.AppendUint32(b, chain), chain
}

// Append writes a record. What fails is told by the next Sync.
func (j *Journal) Append(s Stopped) {
	if len(s.ID) > maxStopID {
		s.ID = s.ID[:maxStopID] // no token's and no team's
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records = append(j.records, s)
	j.written++
	if j.failed != nil {
		return
	}
	b, chain := appendRecord(nil, j.chain, &s)
	if _, err := j.file.Write(b); err != nil {
		j.failed = err
		return
	}
	j.chain = chain
}

// Sync returns nil once all that was appended before is on the disk.
func (j *Journal) Sync() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	written, durable, failed, f := j.written, j.durable, j.failed, j.file
	j.mu.Unlock()
	if failed == nil && written == durable {
		return nil
	}
	if failed == nil {
		if failed = j.sync(f); failed == nil {
			j.mu.Lock()
			j.durable = written
			j.mu.Unlock()
			return nil
		}
	}
	// What a sync could not write it may never write: all of it goes to a new file.
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failed = failed
	return j.rewrite(j.records)
}

// Compact drops the records up to that revision: something newer than them is durable.
func (j *Journal) Compact(upTo int64) error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	keep := slices.DeleteFunc(slices.Clone(j.records), func(s Stopped) bool { return s.Revision <= upTo })
	if len(keep) == len(j.records) {
		return nil
	}
	return j.rewrite(keep)
}

// Reset drops all records.
func (j *Journal) Reset() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rewrite(nil)
}

// Len is how many records it holds.
func (j *Journal) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.records)
}

// Close closes the file; nothing is synced.
func (j *Journal) Close() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}

// rewrite puts a file of these records in the place of the one there is; both locks are held.
func (j *Journal) rewrite(records []Stopped) error {
	b, chain := []byte(journalMagic), uint32(0)
	for i := range records {
		b, chain = appendRecord(b, chain, &records[i])
	}
	f, err := j.replace(b)
	if err != nil {
		if j.failed == nil && j.file == nil {
			j.failed = err
		}
		return fmt.Errorf("write the revocations: %w", err)
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.records, j.chain, j.failed = f, records, chain, nil
	j.durable = j.written
	return nil
}

func (j *Journal) replace(content []byte) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(j.path), "."+filepath.Base(j.path)+"-*") // 0600
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(content); err == nil {
		err = j.sync(f)
	}
	if err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err == nil {
		err = SyncDir(filepath.Dir(j.path))
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return nil, err
	}
	return f, nil
}

// SyncDir makes what was made, renamed or removed in a folder durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	return err
}
