package controlplane

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// The results of an import's lines.
const (
	ImportCreated  = "created"
	ImportSame     = "same"     // a token with this digest stands, and is what the line says
	ImportConflict = "conflict" // one stands that is not; it is left as it is
	ImportRefused  = "refused"
)

// Imported is the result of one line of an import.
type Imported struct {
	Line   int     `json:"line"` // from 1; blank lines count, and have no result
	ID     *string `json:"id"`   // null: refused
	Result string  `json:"result"`
	Error  *string `json:"error"` // null: created or same
}

const (
	maxImportLine    = 64 << 10 // bytes
	importLines      = 500      // in one transaction
	importBytes      = 4 << 20  // of them
	importIdle       = time.Minute
	maxImportBacklog = 64 << 20 // bytes of results that nobody reads
)

// importLine is one line that is not blank.
type importLine struct {
	n    int
	raw  []byte
	long bool // longer than a line may be; raw is empty
}

// readLines gives the lines of r to take until it returns false. It returns nil at
// r's end.
func readLines(r io.Reader, take func(importLine) bool) error {
	b := bufio.NewReaderSize(r, maxImportLine+1)
	for n := 1; ; n++ {
		raw, err := b.ReadSlice('\n')
		line := importLine{n: n}
		for errors.Is(err, bufio.ErrBufferFull) {
			line.long = true
			_, err = b.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err // a line that was cut is none
		}
		if raw = bytes.TrimSpace(raw); !line.long {
			line.raw = bytes.Clone(raw)
		}
		if (line.long || len(raw) > 0) && !take(line) {
			return nil
		}
		if err != nil {
			return nil
		}
	}
}

// wanted is what a line asks for.
type wanted struct {
	line    int
	profile abac.Profile
	digest  token.Digest
}

// readWanted reads a line: a create body with the string's sha256.
func (s *Server) readWanted(l importLine) (wanted, error) {
	w := wanted{line: l.n}
	if l.long {
		return w, refuse("body_too_large", "The line is longer than %d bytes.", maxImportLine)
	}
	o, problem := readObject(l.raw, s.legacyPrefixes())
	if problem != nil {
		return w, problem
	}
	if _, has := o["token"]; has {
		return w, refuse("unknown_parameter", "A line holds the sha256 of a token's string, not the string: `kt-gateway token import` hashes it where you are.").at("token")
	}
	v, err := required(o, "sha256")
	if err != nil {
		return w, err
	}
	if w.digest, err = token.ParseDigest(v); err != nil {
		return w, refuse("invalid_value", "sha256 must be 64 hexadecimal digits: the SHA-256 of the whole string, without a line's end.").at("sha256")
	}
	if w.digest == s.admin && !s.locked {
		return w, refuse("invalid_value", "This is the admin token, which can't be a token of the data plane too.").at("sha256")
	}
	delete(o, "sha256")
	w.profile, err = newProfile(o)
	w.profile.Hint = "sha256:" + v[:8] + "…"
	return w, err
}

// otherwise names what of a token is not as a line says; nothing when it is the same.
func otherwise(stands, want *abac.Profile) (fields []string) {
	add := func(differs bool, name string) {
		if differs {
			fields = append(fields, name)
		}
	}
	add(stands.Name != want.Name, "name")
	add(stands.Purpose != want.Purpose, "purpose")
	add(stands.PrincipalType != want.PrincipalType, "principal_type")
	add(stands.OrgID != want.OrgID, "org_id")
	add(!sameTime(stands.NotBefore, want.NotBefore), "not_before")
	add(!sameTime(stands.ExpiresAt, want.ExpiresAt), "expires_at")
	a, errA := json.Marshal(stands.Bindings)
	b, errB := json.Marshal(want.Bindings)
	add(errA != nil || errB != nil || !bytes.Equal(a, b), "bindings")
	return fields
}

func sameTime(a, b *time.Time) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Equal(*b))
}

// clashes is the result of a line whose digest a token has already.
func clashes(w *wanted, stands *abac.Profile) Imported {
	r := Imported{Line: w.line, ID: &stands.ID, Result: ImportSame}
	if fields := otherwise(stands, &w.profile); len(fields) > 0 {
		text := "A token with this digest stands, with another " + strings.Join(fields, ", ") + "; it is left as it is."
		r.Result, r.Error = ImportConflict, &text
	}
	return r
}

func refusedLine(line int, err *problem) Imported {
	text := scrub(err.message)
	if err.param != "" {
		text = scrub(err.param) + ": " + text
	}
	text += " (" + err.wireCode() + ")"
	return Imported{Line: line, Result: ImportRefused, Error: &text}
}

// results writes what became of lines while more of them are read: a caller may send
// all before it reads anything.
type results struct {
	w  io.Writer
	rc *http.ResponseController

	mu     sync.Mutex
	moved  *sync.Cond
	queue  []byte
	ended  bool
	failed error
	done   chan struct{}
}

func newResults(w http.ResponseWriter, rc *http.ResponseController) *results {
	o := &results{w: w, rc: rc, done: make(chan struct{})}
	o.moved = sync.NewCond(&o.mu)
	go o.run()
	return o
}

// add takes results; it waits while too much is unread, and gives the caller time.
func (o *results) add(list []Imported) error {
	var b []byte
	for i := range list {
		raw, err := json.Marshal(&list[i])
		if err != nil {
			panic("BUG: a result does not encode: " + err.Error())
		}
		b = append(append(b, raw...), '\n')
	}
	_ = o.rc.SetWriteDeadline(time.Now().Add(importIdle))
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) > maxImportBacklog && o.failed == nil {
		o.moved.Wait()
	}
	o.queue = append(o.queue, b...)
	o.moved.Broadcast()
	return o.failed
}

// end waits until all is written, or gives up at once what is not.
func (o *results) end(whole bool) error {
	o.mu.Lock()
	o.ended = true
	if !whole {
		o.queue = nil
		_ = o.rc.SetWriteDeadline(time.Now())
	} else {
		_ = o.rc.SetWriteDeadline(time.Now().Add(importIdle))
	}
	o.moved.Broadcast()
	o.mu.Unlock()
	<-o.done
	if o.failed == nil {
		_ = o.rc.SetWriteDeadline(time.Time{})
	}
	return o.failed
}

func (o *results) run() {
	defer close(o.done)
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.queue) == 0 && !o.ended {
			o.moved.Wait()
		}
		if len(o.queue) == 0 {
			return
		}
		part := o.queue
		o.queue = nil
		o.mu.Unlock()
		_, err := o.w.Write(part)
		if err == nil {
			err = o.rc.Flush()
		}
		o.mu.Lock()
		if err != nil {
			o.failed = err
			o.moved.Broadcast()
			return
		}
		o.moved.Broadcast()
	}
}

// gather takes the first line and those that are there already, in bounds.
func gather(lines <-chan importLine, batch []importLine) []importLine {
	size := 0
	for i := range batch {
		size += len(batch[i].raw)
	}
	for len(batch) < importLines && size < importBytes {
		select {
		case l, ok := <-lines:
			if !ok {
				return batch
			}
			batch, size = append(batch, l), size+len(l.raw)
		default:
			return batch
		}
	}
	return slices.Clip(batch)
}
