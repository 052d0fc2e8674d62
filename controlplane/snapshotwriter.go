package controlplane

import (
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The keys of a snapshot, in their order.
var snapshotKeys = [...]string{"revision", "org_id", "count", "tokens", "budgets", "deleted_teams", "profiles", "complete"}

const (
	keyCount = iota + 2 // in snapshotKeys
	keyTokens
	keyBudgets
	keyTeams
	keyProfiles
	keyComplete
)

// snapshotPart is how much of a snapshot is written at once, in bytes; each such
// part has its own time.
const snapshotPart = 32 << 10

// snapshotWriter writes a snapshot as one JSON object.
type snapshotWriter struct {
	c   *call
	out io.Writer
	zip *gzip.Writer // nil: the reader takes it as it is
	buf []byte
	key int  // of the list that is open
	one bool // the list has an item
}

func newSnapshotWriter(c *call, patience time.Duration) *snapshotWriter {
	w := &snapshotWriter{c: c, out: &patientWriter{w: c.w, rc: http.NewResponseController(c.w), patience: patience}}
	if takesGzip(c.r.Header.Values("Accept-Encoding")) {
		w.zip, _ = gzip.NewWriterLevel(w.out, gzip.BestSpeed) // errs on an unknown level alone
		w.out = w.zip
	}
	return w
}

func (w *snapshotWriter) begin(h SnapshotHead) error {
	header := w.c.w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	if w.zip != nil {
		header.Set("Content-Encoding", "gzip")
	}
	w.c.streams = true
	w.buf = strconv.AppendInt(append(w.buf, `{"revision":`...), h.Revision, 10)
	w.buf = appendString(append(w.buf, `,"org_id":`...), h.OrgID)
	w.buf = strconv.AppendInt(append(w.buf, `,"count":`...), int64(h.Tokens), 10)
	w.key = keyCount
	w.list(keyTokens)
	return nil
}

// list ends the open list and those between, and opens another.
func (w *snapshotWriter) list(key int) {
	for w.key < key {
		if w.key > keyCount {
			w.buf = append(w.buf, ']')
		}
		w.key++
		w.buf = append(append(append(w.buf, `,"`...), snapshotKeys[w.key]...), `":`...)
		if w.key < keyComplete {
			w.buf = append(w.buf, '[')
		}
		w.one = false
	}
}

func (w *snapshotWriter) item(i *SnapshotItem) error {
	switch {
	case i.Token != nil:
		w.next(keyTokens)
		w.buf = appendKnown(w.buf, i.Token)
	case i.Budget != nil:
		return w.encoded(keyBudgets, i.Budget)
	case i.Team != nil:
		return w.encoded(keyTeams, i.Team)
	case i.Profile != nil:
		return w.encoded(keyProfiles, i.Profile)
	}
	return w.flush(snapshotPart)
}

func (w *snapshotWriter) encoded(key int, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.next(key)
	w.buf = append(w.buf, raw...)
	return w.flush(snapshotPart)
}

// next begins an item of a list.
func (w *snapshotWriter) next(key int) {
	w.list(key)
	if w.one {
		w.buf = append(w.buf, ',')
	}
	w.one = true
}

// flush writes what has gathered, unless that is less than least bytes.
func (w *snapshotWriter) flush(least int) error {
	if len(w.buf) < least {
		return nil
	}
	_, err := w.out.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (w *snapshotWriter) end() error {
	w.list(keyComplete)
	w.buf = append(w.buf, "true}"...)
	err := w.flush(0)
	if w.zip != nil {
		err = errors.Join(err, w.zip.Close())
	}
	return err
}

func appendKnown(b []byte, k *Known) []byte {
	b = append(hex.AppendEncode(append(b, `{"sha256":"`...), k.Digest[:]), `","id":`...)
	b = append(appendString(b, k.ID), `,"revision":`...)
	b = append(strconv.AppendInt(b, k.Revision, 10), `,"status":`...)
	b = append(appendString(b, string(k.Status)), `,"purpose":`...)
	b = appendString(b, string(k.Purpose))
	if k.Gateway != "" {
		b = appendString(append(b, `,"gateway_id":`...), k.Gateway)
	}
	return append(b, '}')
}

// appendString appends a JSON string. What needs no escape, as ids do, is quick.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			raw, err := json.Marshal(s)
			if err != nil {
				panic("BUG: a string does not encode: " + err.Error())
			}
			return append(b, raw...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// patientWriter gives each write its own time.
type patientWriter struct {
	w        io.Writer
	rc       *http.ResponseController
	patience time.Duration
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if err := writeBy(p.rc, p.patience); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

// writeBy bounds what is written from now on.
func writeBy(rc *http.ResponseController, patience time.Duration) error {
	err := rc.SetWriteDeadline(time.Now().Add(patience))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// takesGzip says whether an Accept-Encoding takes gzip.
func takesGzip(accept []string) bool {
	takes, named := false, false
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		coding, parameter, _ := strings.Cut(part, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		if coding != "gzip" && (coding != "*" || named) {
			continue
		}
		q := strings.TrimPrefix(strings.ReplaceAll(strings.ToLower(parameter), " ", ""), "q=")
		weight, err := strconv.ParseFloat(q, 64)
		takes, named = parameter == "" || err == nil && weight > 0, named || coding == "gzip"
	}
	return takes
}
