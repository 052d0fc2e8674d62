package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

// A saved snapshot is a file of two sealed parts, which open with the runtime token and
// for this gateway only: when the control plane last vouched for it, in a place of fixed
// length that is written over, and what it vouched for, in frames: a kind, a length and
// that many bytes. The first part is bound to the second's salt.

const (
	savedVersion = "1"
	savedStamp   = 8 + 32 + 8 + 16 // bytes of the first part
	savedFrame   = 16 << 20        // bytes of a frame, at most
)

// The kinds of frames, in the order in which they come.
const (
	frameHead    = 'h'
	frameToken   = 't'
	frameBudget  = 'b'
	frameTeam    = 'd' // a deleted one
	frameProfile = 'p'
	frameEnd     = 'e'
)

var (
	errSavedForm   = errors.New("its form is not one that this version reads")
	errSavedStale  = errors.New("it is older than control_plane.max_stale")
	errSavedFuture = errors.New("it is from the future: this machine's clock was set back, or the file was not written here")
)

// savedHead is what a saved snapshot begins with.
type savedHead struct {
	Revision int64         `json:"revision"`
	OrgID    string        `json:"org_id"`
	Tokens   int           `json:"tokens"`
	Identity *abac.Profile `json:"identity"` // of the runtime token
}

// savedSeal says how a saved snapshot is sealed.
type savedSeal struct {
	secret  token.Secret
	gateway string
}

func (s savedSeal) body() tokencache.Seal {
	return tokencache.Seal{Secret: s.secret, Bound: []string{"snapshot " + savedVersion, s.gateway}}
}

func (s savedSeal) stamp(body tokencache.Salt) tokencache.Seal {
	return tokencache.Seal{Secret: s.secret, Bound: []string{"vouched " + savedVersion, s.gateway, string(body[:])}}
}

// savedWriter writes a saved snapshot aside; commit puts it in its place.
type savedWriter struct {
	path   string
	seal   savedSeal
	file   *os.File
	out    *bufio.Writer
	sealed *tokencache.Sealer
	frames *bufio.Writer
	buf    []byte
}

func newSavedWriter(path string, seal savedSeal) (*savedWriter, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return nil, err
	}
	w := &savedWriter{path: path, seal: seal, file: f, out: bufio.NewWriterSize(f, 256<<10)}
	_, err = w.out.Write(make([]byte, savedStamp))
	if err == nil {
		w.sealed, err = seal.body().Writer(w.out)
	}
	if err != nil {
		w.abandon()
		return nil, err
	}
	w.frames = bufio.NewWriterSize(w.sealed, 64<<10)
	return w, nil
}

func (w *savedWriter) frame(kind byte, payload []byte) error {
	if len(payload) > savedFrame {
		return fmt.Errorf("a frame of %d bytes", len(payload))
	}
	var head [5]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	if _, err := w.frames.Write(head[:]); err != nil {
		return err
	}
	_, err := w.frames.Write(payload)
	return err
}

func (w *savedWriter) json(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.frame(kind, b)
}

func (w *savedWriter) token(d token.Digest, k *tokencache.Known) error {
	b := append(w.buf[:0], d[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(k.Revision))
	for _, s := range []string{string(k.Status), string(k.Purpose), k.ID, k.Gateway} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	w.buf = b
	return w.frame(frameToken, b)
}

func (w *savedWriter) profile(d token.Digest, p *abac.Profile) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	w.buf = append(append(w.buf[:0], d[:]...), b...)
	return w.frame(frameProfile, w.buf)
}

// commit ends the file, says when it was vouched for and makes it the snapshot, durably.
func (w *savedWriter) commit(vouched time.Time) (tokencache.Salt, error) {
	err := w.frame(frameEnd, nil)
	if err == nil {
		err = w.frames.Flush()
	}
	if err == nil {
		err = w.sealed.Close()
	}
	if err == nil {
		err = w.out.Flush()
	}
	if err == nil {
		err = writeStamp(w.file, w.seal, w.sealed.Salt, vouched)
	}
	if err == nil {
		err = w.file.Sync()
	}
	if err == nil {
		err = w.file.Close()
	}
	if err == nil {
		err = os.Rename(w.file.Name(), w.path)
	}
	if err == nil {
		err = tokencache.SyncDir(filepath.Dir(w.path))
	}
	if err != nil {
		w.abandon()
	}
	return w.sealed.Salt, err
}

func (w *savedWriter) abandon() {
	_ = w.file.Close()
	_ = os.Remove(w.file.Name())
}

// writeStamp writes when the control plane last vouched for the body with that salt.
func writeStamp(f *os.File, seal savedSeal, body tokencache.Salt, vouched time.Time) error {
	var b bytes.Buffer
	w, err := seal.stamp(body).Writer(&b)
	if err != nil {
		return err
	}
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(vouched.UnixNano()))); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if b.Len() != savedStamp {
		panic("BUG: a stamp of another length")
	}
	_, err = f.WriteAt(b.Bytes(), 0)
	return err
}

// restamp writes over when the snapshot was vouched for.
func restamp(path string, seal savedSeal, body tokencache.Salt, vouched time.Time) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err = writeStamp(f, seal, body, vouched); err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// saved is a snapshot that was read whole and found authentic.
type saved struct {
	savedHead
	vouched time.Time
	salt    tokencache.Salt
	file    io.ReadSeeker
	seal    savedSeal
}

// openSaved reads a saved snapshot from its beginning to its end.
func openSaved(file io.ReadSeeker, seal savedSeal) (*saved, error) {
	k := &saved{file: file, seal: seal}
	stamp := make([]byte, savedStamp)
	if _, err := io.ReadFull(file, stamp); err != nil {
		return nil, shortIs(err)
	}
	body, err := seal.body().Reader(file)
	if err != nil {
		return nil, err
	}
	k.salt = body.Salt
	if k.vouched, err = unstamp(stamp, seal, k.salt); err != nil {
		return nil, err
	}
	whole := false
	err = readFrames(body, func(kind byte, payload []byte) error {
		switch kind {
		case frameHead:
			return json.Unmarshal(payload, &k.savedHead)
		case frameEnd:
			whole = true
		}
		return nil
	})
	if err == nil && (!whole || k.Identity == nil) {
		err = errSavedForm
	}
	return k, err
}

func shortIs(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return tokencache.ErrNotSealed
	}
	return err
}

// unstamp reads when the body with that salt was vouched for.
func unstamp(b []byte, seal savedSeal, body tokencache.Salt) (time.Time, error) {
	r, err := seal.stamp(body).Reader(bytes.NewReader(b))
	if err != nil {
		return time.Time{}, err
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return time.Time{}, err
	}
	if len(plain) != 8 {
		return time.Time{}, errSavedForm
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(plain))), nil
}

// readFrames calls each with every frame, to the end; the payload is the callee's for
// the call only.
func readFrames(r io.Reader, each func(kind byte, payload []byte) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var payload []byte
	for {
		var head [5]byte
		switch _, err := io.ReadFull(in, head[:]); {
		case err == io.EOF:
			return nil
		case err == io.ErrUnexpectedEOF:
			return errSavedForm
		case err != nil:
			return err
		}
		n := int(binary.BigEndian.Uint32(head[1:]))
		if n > savedFrame {
			return errSavedForm
		}
		if cap(payload) < n {
			payload = make([]byte, n+n/2)
		}
		payload = payload[:n]
		if _, err := io.ReadFull(in, payload); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return errSavedForm
			}
			return err
		}
		if err := each(head[0], payload); err != nil {
			return err
		}
	}
}

// savedInto takes what a saved snapshot holds. A kind that is nil is passed over.
type savedInto struct {
	token   func(token.Digest, tokencache.Known) error
	budget  func(budget.Record)
	team    func(abac.Team)
	profile func(token.Digest, *abac.Profile)
}

// read reads it again, and hands over what it holds.
func (k *saved) read(into savedInto) error {
	if _, err := k.file.Seek(savedStamp, io.SeekStart); err != nil {
		return err
	}
	body, err := k.seal.body().Reader(k.file)
	if err != nil {
		return err
	}
	return readFrames(body, into.frame)
}

func (into *savedInto) frame(kind byte, b []byte) error {
	switch kind {
	case frameHead, frameEnd:
	case frameToken:
		d, k, err := parseToken(b)
		if err != nil {
			return err
		}
		return into.token(d, k)
	case frameBudget:
		var r budget.Record
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		into.budget(r)
	case frameTeam:
		var t abac.Team
		if err := json.Unmarshal(b, &t); err != nil {
			return err
		}
		into.team(t)
	case frameProfile:
		var d token.Digest
		var p abac.Profile
		if len(b) < len(d) {
			return errSavedForm
		}
		if err := json.Unmarshal(b[copy(d[:], b):], &p); err != nil {
			return err
		}
		into.profile(d, &p)
	default:
		return errSavedForm // it may narrow
	}
	return nil
}

func parseToken(b []byte) (d token.Digest, k tokencache.Known, err error) {
	if len(b) < len(d)+8 {
		return d, k, errSavedForm
	}
	b = b[copy(d[:], b):]
	k.Revision = int64(binary.BigEndian.Uint64(b))
	b = b[8:]
	var parts [4]string
	for i := range parts {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return d, k, errSavedForm
		}
		parts[i], b = string(b[size:size+int(n)]), b[size+int(n):]
	}
	if len(b) > 0 {
		return d, k, errSavedForm
	}
	k.Status, k.Purpose, k.ID, k.Gateway = abac.Status(parts[0]), abac.Purpose(parts[1]), parts[2], parts[3]
	return d, k, nil
}
