package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

const (
	// snapshotSilence is how long a snapshot may bring nothing: it may wait for its turn,
	// and then for a busy database to sort.
	snapshotSilence = time.Minute
	maxSnapshotItem = 4 << 20 // bytes of one item, unpacked
)

// Snapshot asks for all that this gateway may know, as of one moment, with at most so
// many profiles. begin is called once, then each for one item at a time, which it may
// keep; an error of theirs ends the call and is returned. What they were told is a
// snapshot only once Snapshot returns nil: one that ends early is an error, as is one
// that brings nothing for a minute (ErrSilent). A refusal is an *APIError, of status 503
// where many others ask.
func (c *Client) Snapshot(ctx context.Context, profiles int, begin func(SnapshotHead) error, each func(*SnapshotItem) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(snapshotSilence, func() { cancel(ErrSilent) })
	defer silence.Stop()
	path := "/v1/runtime/snapshot?profiles=" + strconv.Itoa(profiles)
	err := c.stream(ctx, streamed{method: http.MethodGet, path: path, media: "application/json", gzip: true}, func(r io.Reader) error {
		return readSnapshot(&heardReader{r, func() { silence.Reset(snapshotSilence) }}, snapshotTold{begin, each})
	})
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return cause
	}
	return err
}

// heardReader calls heard whenever something came.
type heardReader struct {
	r     io.Reader
	heard func()
}

func (h *heardReader) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	if n > 0 {
		h.heard()
	}
	return n, err
}

var errItemTooLong = errors.New("an item without an end")

// boundedReader reads at most left bytes, and keeps the error that reading ended with.
type boundedReader struct {
	r    io.Reader
	left int
	err  error
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errItemTooLong
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	if err != nil {
		b.err = err
	}
	return n, err
}

// snapshotReader reads what snapshotWriter writes.
type snapshotReader struct {
	in   *boundedReader
	json *json.Decoder
	head SnapshotHead
	told snapshotTold
	key  int // the last of snapshotKeys that was met
	read int // entries of the index
}

// readSnapshot reads a snapshot to its end. What a later version tells beside is
// passed over; whatever else is missing, out of place or behind it is an error.
func readSnapshot(r io.Reader, told snapshotTold) error {
	in := &boundedReader{r: r, left: maxSnapshotItem}
	s := &snapshotReader{in: in, json: json.NewDecoder(in), told: told, key: -1}
	err := s.object()
	var theirs *toldError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &theirs):
		return theirs.err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read the control plane's snapshot: it ends early: %w", io.ErrUnexpectedEOF)
	case in.err != nil && !errors.Is(in.err, io.EOF):
		return fmt.Errorf("read the control plane's snapshot: %w", in.err)
	}
	return errStranger("a snapshot of another form")
}

// errForm says that a snapshot is not what it should be.
var errForm = errors.New("another form")

// toldError is an error of who takes the snapshot.
type toldError struct{ err error }

func (e *toldError) Error() string { return e.err.Error() }

func toldErr(err error) error {
	if err == nil {
		return nil
	}
	return &toldError{err}
}

func (s *snapshotReader) object() error {
	if err := s.delim('{'); err != nil {
		return err
	}
	for s.json.More() {
		if err := s.member(); err != nil {
			return err
		}
	}
	if err := s.delim('}'); err != nil {
		return err
	}
	if s.key != keyComplete || s.read != s.head.Tokens {
		return errForm
	}
	// To the end: what packs it may have a sum behind it.
	s.in.left = maxSnapshotItem
	if _, err := s.json.Token(); !errors.Is(err, io.EOF) {
		return errors.Join(errForm, err)
	}
	return nil
}

func (s *snapshotReader) delim(want json.Delim) error {
	s.in.left = maxSnapshotItem
	t, err := s.json.Token()
	if err == nil && t != want {
		err = errForm
	}
	return err
}

func (s *snapshotReader) decode(v any) error {
	s.in.left = maxSnapshotItem
	return s.json.Decode(v)
}

func (s *snapshotReader) member() error {
	s.in.left = maxSnapshotItem
	t, err := s.json.Token()
	if err != nil {
		return err
	}
	name, _ := t.(string)
	key := slices.Index(snapshotKeys[:], name)
	if key < 0 {
		return s.skip()
	}
	if key != s.key+1 {
		return errForm
	}
	s.key = key
	switch key {
	case keyTokens:
		if s.head.Revision < 0 || s.head.Tokens < 0 || s.head.OrgID == "" {
			return errForm
		}
		if err := s.told.begin(s.head); err != nil {
			return toldErr(err)
		}
		return s.list(s.token)
	case keyBudgets:
		return s.list(s.budget)
	case keyTeams:
		return s.list(s.team)
	case keyProfiles:
		return s.list(s.profile)
	case keyComplete:
		var complete bool
		if err := s.decode(&complete); err != nil || !complete {
			return errors.Join(errForm, err)
		}
		return nil
	}
	return s.decode([]any{&s.head.Revision, &s.head.OrgID, &s.head.Tokens}[key])
}

// skip passes over a value.
func (s *snapshotReader) skip() error {
	for depth := 0; ; {
		s.in.left = maxSnapshotItem
		t, err := s.json.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

func (s *snapshotReader) list(item func() (*SnapshotItem, error)) error {
	if err := s.delim('['); err != nil {
		return err
	}
	for s.json.More() {
		i, err := item()
		if err != nil {
			return err
		}
		if i == nil {
			continue
		}
		if err := s.told.each(i); err != nil {
			return toldErr(err)
		}
	}
	return s.delim(']')
}

func (s *snapshotReader) token() (*SnapshotItem, error) {
	var w struct {
		Digest   token.Digest `json:"sha256"`
		ID       string       `json:"id"`
		Revision int64        `json:"revision"`
		Status   abac.Status  `json:"status"`
		Purpose  abac.Purpose `json:"purpose"`
		Gateway  string       `json:"gateway_id"`
	}
	if err := s.decode(&w); err != nil {
		return nil, err
	}
	if s.read++; s.read > s.head.Tokens || w.Digest == (token.Digest{}) || w.ID == "" || w.Status == "" || !s.given(w.Revision) {
		return nil, errForm
	}
	return &SnapshotItem{Token: &Known{w.Digest, w.ID, w.Revision, w.Status, w.Purpose, w.Gateway}}, nil
}

// given says whether a revision was given by the moment that the snapshot is of.
func (s *snapshotReader) given(revision int64) bool {
	return revision > 0 && revision <= s.head.Revision
}

func (s *snapshotReader) budget() (*SnapshotItem, error) {
	var raw json.RawMessage
	if err := s.decode(&raw); err != nil {
		return nil, err
	}
	b := &budget.Record{}
	if json.Unmarshal(raw, b) != nil {
		return nil, nil // of a later version's making, as on the watch
	}
	return &SnapshotItem{Budget: b}, nil
}

func (s *snapshotReader) team() (*SnapshotItem, error) {
	t := &abac.Team{}
	if err := s.decode(t); err != nil {
		return nil, err
	}
	if t.ID == "" || !t.Deleted || !s.given(t.Revision) {
		return nil, errForm
	}
	return &SnapshotItem{Team: t}, nil
}

func (s *snapshotReader) profile() (*SnapshotItem, error) {
	p := &Profiled{}
	if err := s.decode(p); err != nil {
		return nil, err
	}
	if p.Digest == (token.Digest{}) || p.Profile == nil || p.Profile.ID == "" || !s.given(p.Profile.Revision) {
		return nil, errForm
	}
	return &SnapshotItem{Profile: p}, nil
}
