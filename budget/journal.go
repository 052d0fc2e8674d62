package budget

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
)

// A journal is the file of one session: a header (magic, session, the length of
// all that counts, a checksum), then records that each carry the checksum of
// everything from the first record on. A file that is shorter than its header says,
// or does not check, is lost. What stands behind the length was never durable, and
// nothing was forwarded on it.
const (
	journalMagic  = "ktlease1"
	journalSuffix = ".journal"
	nameRoom      = 48
	headerLength  = len(journalMagic) + nameRoom + 8 + 4 + 4
	recordLength  = 2 + 2 + 8 + 8 + 4 // and the two names
	compactAbove  = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errJournal says that a journal is lost: what it bounded can't be known.
var errJournal = errors.New("the journal does not check")

// journal is an open file. It is used by one goroutine at a time.
type journal struct {
	dir, session string
	file         *os.File
	length       int64
	sum          uint32
	broken       bool // what is in the file is not known: it must be written anew
}

// path is that of a session's journal.
func journalPath(dir, session string) string { return filepath.Join(dir, session+journalSuffix) }

// newJournal makes a session's file: durable, with these records, in place of the
// one that may be there.
func newJournal(dir, session string, list []ClosedLease) (*journal, error) {
	if len(session) > nameRoom {
		return nil, errors.New("a session's id is too long")
	}
	path := journalPath(dir, session)
	f, err := os.OpenFile(path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{dir: dir, session: session, file: f, length: int64(headerLength)}
	if err = j.append(list); err == nil {
		if err = os.Rename(path+".tmp", path); err == nil {
			err = syncDir(dir)
		}
	}
	if err != nil {
		f.Close()
		os.Remove(path + ".tmp")
		return nil, err
	}
	return j, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// append makes records durable: one write behind the length, the header, one sync.
func (j *journal) append(list []ClosedLease) error {
	b, sum := appendRecords(nil, j.sum, list)
	if err := j.write(b, sum); err != nil {
		// After a failed sync nobody knows what the disk holds.
		j.broken = true
		return err
	}
	j.length += int64(len(b))
	j.sum = sum
	return nil
}

func (j *journal) write(b []byte, sum uint32) error {
	if _, err := j.file.WriteAt(b, j.length); err != nil {
		return err
	}
	if _, err := j.file.WriteAt(header(j.session, j.length+int64(len(b)), sum), 0); err != nil {
		return err
	}
	return j.file.Sync()
}

// renew writes the file anew with what counts now, and swaps it in.
func (j *journal) renew(list []ClosedLease) error {
	fresh, err := newJournal(j.dir, j.session, list)
	if err != nil {
		return err
	}
	j.file.Close()
	*j = *fresh
	return nil
}

// full says that most of the file is out of date.
func (j *journal) full(leases int) bool {
	const usual = recordLength + 64
	return j.broken || j.length > compactAbove && j.length > 4*int64(leases)*usual
}

func (j *journal) close() { j.file.Close() }

func (j *journal) remove() error {
	j.file.Close()
	return os.Remove(journalPath(j.dir, j.session))
}

func header(session string, length int64, sum uint32) []byte {
	b := make([]byte, headerLength)
	n := copy(b, journalMagic)
	copy(b[n:n+nameRoom], session)
	n += nameRoom
	binary.BigEndian.PutUint64(b[n:], uint64(length))
	binary.BigEndian.PutUint32(b[n+8:], sum)
	binary.BigEndian.PutUint32(b[n+12:], crc32.Checksum(b[:n+12], castagnoli))
	return b
}

func appendRecords(b []byte, sum uint32, list []ClosedLease) ([]byte, uint32) {
	for _, r := range list {
		if len(r.Budget) > math.MaxUint16 || len(r.Window) > math.MaxUint16 {
			panic("BUG: a name that no journal holds")
		}
		start := len(b)
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.Budget)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.Window)))
		b = binary.BigEndian.AppendUint64(b, uint64(r.Mark))
		b = binary.BigEndian.AppendUint64(b, uint64(r.Overrun))
		b = append(append(b, r.Budget...), r.Window...)
		sum = crc32.Update(sum, castagnoli, b[start:])
		b = binary.BigEndian.AppendUint32(b, sum)
	}
	return b, sum
}

// readJournal reads what a session's journal says of its leases: the largest mark
// and overrun of each, in the order of their first record. An error: it is lost, and
// what is returned are the records that still checked.
func readJournal(b []byte, session string) ([]ClosedLease, error) {
	if len(b) < headerLength {
		return nil, fmt.Errorf("%w: shorter than a header", errJournal)
	}
	n := headerLength - 16
	length := binary.BigEndian.Uint64(b[n:])
	want := binary.BigEndian.Uint32(b[n+8:])
	name := string(bytes.TrimRight(b[len(journalMagic):n], "\x00"))
	switch {
	case string(b[:len(journalMagic)]) != journalMagic,
		crc32.Checksum(b[:n+12], castagnoli) != binary.BigEndian.Uint32(b[n+12:]):
		return nil, fmt.Errorf("%w: its header is damaged", errJournal)
	case name != session:
		return nil, fmt.Errorf("%w: it is another session's", errJournal)
	case length < uint64(headerLength):
		return nil, fmt.Errorf("%w: its header is damaged", errJournal)
	}
	body := b[headerLength:]
	short := uint64(len(b)) < length
	if !short {
		body = b[headerLength:length]
	}
	list, sum, err := readRecords(body)
	switch {
	case short:
		return list, fmt.Errorf("%w: shorter than its header says", errJournal)
	case err != nil:
		return list, err
	case sum != want:
		return list, fmt.Errorf("%w: it is not what its header says", errJournal)
	}
	return list, nil
}

func readRecords(b []byte) ([]ClosedLease, uint32, error) {
	var list []ClosedLease
	at := map[key]int{}
	sum := uint32(0)
	for len(b) > 0 {
		if len(b) < recordLength {
			return list, sum, fmt.Errorf("%w: a record is cut", errJournal)
		}
		budget, window := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
		end := recordLength - 4 + budget + window
		if len(b) < end+4 {
			return list, sum, fmt.Errorf("%w: a record is cut", errJournal)
		}
		sum = crc32.Update(sum, castagnoli, b[:end])
		r := ClosedLease{Budget: string(b[20 : 20+budget]), Window: string(b[20+budget : end]),
			Mark: int64(binary.BigEndian.Uint64(b[4:])), Overrun: int64(binary.BigEndian.Uint64(b[12:]))}
		if binary.BigEndian.Uint32(b[end:]) != sum || r.Mark < 0 || r.Overrun < 0 {
			return list, sum, fmt.Errorf("%w: a record is damaged", errJournal)
		}
		k := key{r.Budget, r.Window}
		if i, ok := at[k]; ok {
			list[i].Mark, list[i].Overrun = max(list[i].Mark, r.Mark), max(list[i].Overrun, r.Overrun)
		} else {
			at[k] = len(list)
			list = append(list, r)
		}
		b = b[end+4:]
	}
	return list, sum, nil
}
