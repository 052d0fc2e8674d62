package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

// ErrTooOld says that the log of changes does not reach back to the revision that a
// watch would go on from: everything known is to be asked for anew, and the next
// watch to begin FromHead.
var ErrTooOld = errors.New("the control plane's log does not reach back to what is known here")

// ErrSilent says that nothing came on a watch for as long as it may vouch for anything.
var ErrSilent = errors.New("the control plane fell silent")

const (
	watchOpens   = 5 * time.Second // until a watch's answer begins
	watchSilence = 3 * time.Second // without a byte: a head comes every second
	maxEvent     = 4 << 20         // bytes of one event
)

// Watch tells every change after the revision since (FromHead: none that was before)
// to each, one event at a time and in the order of their commits, until ctx ends or
// the stream does, and says why; ErrTooOld, an *APIError, or any other error when
// the control plane did not answer, broke off or fell silent (ErrSilent). The next watch goes on
// from the last event's revision.
func (c *Client) Watch(ctx context.Context, since int64, each func(Event)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(watchOpens, func() { cancel(ErrSilent) })
	defer silence.Stop()
	path := "/v1/runtime/watch"
	if since >= 0 {
		path += "?since=" + strconv.FormatInt(since, 10)
	}
	err := c.stream(ctx, streamed{method: http.MethodGet, path: path, media: eventStream}, func(r io.Reader) error {
		return readEvents(r, func(e Event) {
			each(e)
			silence.Reset(watchSilence)
		})
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var api *APIError
	if errors.As(err, &api) && api.Status == http.StatusGone {
		return ErrTooOld
	}
	return err
}

// readEvents reads server-sent events until r ends, which is an error. Events of an
// unknown kind are passed over: a newer control plane may tell more.
func readEvents(r io.Reader, each func(Event)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), maxEvent)
	var kind, id, data []byte
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) == 0 {
			e, known, err := parseEvent(kind, id, data)
			if err != nil {
				return err
			}
			if known {
				each(e)
			}
			kind, id, data = kind[:0], id[:0], data[:0]
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "event":
			kind = append(kind[:0], value...)
		case "id":
			id = append(id[:0], value...)
		case "data":
			if len(data) > 0 {
				data = append(data, '\n')
			}
			data = append(data, value...)
		}
		if len(data) > maxEvent {
			return errStranger("an event without an end")
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the control plane's events: %w", err)
	}
	return fmt.Errorf("read the control plane's events: %w", io.ErrUnexpectedEOF)
}

// parseEvent reads one event; known is false for one that this version does not know.
func parseEvent(kind, id, data []byte) (e Event, known bool, err error) {
	e.Kind = string(kind)
	switch e.Kind {
	case KindUpsert, KindRevoke, KindHead:
		if e.Revision, err = strconv.ParseInt(string(id), 10, 64); err != nil || e.Revision < 0 || e.Revision == 0 && e.Kind != KindHead {
			return e, false, errStranger("an event without a revision")
		}
	}
	switch e.Kind {
	case KindUpsert:
		known, err = e.readUpsert(data)
	case KindRevoke:
		var w wireRevoke
		if err = json.Unmarshal(data, &w); err == nil {
			e.TokenID, e.At = w.ID, readTime(w.At)
			e.Digest, err = token.ParseDigest(w.Digest)
		}
		known = e.TokenID != ""
	case KindRecall:
		e.Recall = &budget.Recall{}
		err = json.Unmarshal(data, e.Recall)
		known = true
	case KindHead:
		known = true
	}
	if err != nil {
		return e, false, errStranger("an event of another form")
	}
	return e, known, nil
}

// readTime returns zero for what is no time: an older version tells none.
func readTime(s string) time.Time {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return at.UTC().Truncate(time.Microsecond)
}

func (e *Event) readUpsert(data []byte) (known bool, err error) {
	var w struct {
		Kind    string          `json:"kind"`
		Digest  string          `json:"sha256"`
		Profile *abac.Profile   `json:"profile"`
		Budget  json.RawMessage `json:"budget"`
		Team    *abac.Team      `json:"team"`
		At      string          `json:"at"`
	}
	if err := json.Unmarshal(data, &w); err != nil {
		return false, err
	}
	e.At = readTime(w.At)
	switch w.Kind {
	case subjectToken:
		if w.Profile == nil || w.Profile.ID == "" {
			return false, errors.New("no profile")
		}
		e.Profile, e.TokenID = w.Profile, w.Profile.ID
		e.Digest, err = token.ParseDigest(w.Digest)
		return true, err
	case subjectBudget:
		e.Budget = &budget.Record{}
		// One of a later version's making changes nothing here: what is known stays.
		return json.Unmarshal(w.Budget, e.Budget) == nil, nil
	case subjectTeam:
		if w.Team == nil || w.Team.ID == "" {
			return false, errors.New("no team")
		}
		e.Team = w.Team
		return true, nil
	}
	return false, nil
}

// Watch is Client.Watch in process: it ends with ctx, or when the control plane closes.
func (e *Embedded) Watch(ctx context.Context, since int64, each func(Event)) error {
	e.mu.Lock()
	i := e.instance
	e.mu.Unlock()
	w := newWatching(i)
	v := &watch{s: e.s, w: w, told: func(revision int64) { e.s.told.note(w, revision) }, emit: func(events []Event) error {
		for _, event := range events {
			each(event)
		}
		return ctx.Err()
	}}
	end, first, err := v.begin(ctx, since)
	var p *problem
	if errors.As(err, &p) && p.code == "revision_gone" {
		return ErrTooOld
	}
	if err != nil {
		return err
	}
	defer end()
	v.told(v.at)
	defer e.s.told.end(w)
	return v.run(ctx, first)
}
