package controlplane

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

const ndjson = "application/x-ndjson"

// importTokens is POST /v1/tokens/import: a line in, a result out, many lines in one
// transaction. What it answered is durable, so that the same lines can be sent again
// after it broke off.
func (s *Server) importTokens(c *call) (int, any, error) {
	if c.r.Header.Get("Content-Encoding") != "" {
		return 0, nil, refuse("unsupported_media_type", "A body must come without Content-Encoding.")
	}
	rc := http.NewResponseController(c.w)
	// HTTP/1.1 is read and written in turns unless asked otherwise; HTTP/2 needs no asking.
	if err := rc.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, nil, err
	}
	c.streams = true
	c.w.Header().Set("Content-Type", ndjson)
	c.w.Header().Set("Cache-Control", "no-store")
	counts, err := s.importAll(c, rc)
	s.log.Info("tokens were imported", zap.String("request_id", c.id), zap.Int("created", counts[ImportCreated]), zap.Int("same", counts[ImportSame]),
		zap.Int("conflict", counts[ImportConflict]), zap.Int("refused", counts[ImportRefused]), zap.Bool("whole", err == nil))
	if err != nil {
		s.log.Error("an import broke off", zap.String("request_id", c.id), zap.String("error", scrub(err.Error())))
		panic(http.ErrAbortHandler) // an end that looked like one would hide the lines left
	}
	if len(counts) == 0 {
		c.w.WriteHeader(http.StatusOK)
	}
	return statusWritten, nil, nil
}

// importAll reads and imports until the body's end, and counts the results.
func (s *Server) importAll(c *call, rc *http.ResponseController) (counts map[string]int, err error) {
	lines, read, stop := make(chan importLine, importLines), make(chan error, 1), make(chan struct{})
	body := &deadlineReader{r: c.r.Body, rc: rc}
	go func() {
		defer close(lines)
		read <- readLines(body, func(l importLine) bool {
			select {
			case lines <- l:
				return true
			case <-stop:
				return false
			}
		})
	}()
	out := newResults(c.w, rc)
	defer func() {
		close(stop)
		if err != nil {
			body.stop()
		}
		for range lines { // the body's reader must not outlive the handler
		}
		err = errors.Join(err, out.end(err == nil))
	}()
	counts = map[string]int{}
	for l := range lines {
		list, err := s.importBatch(c, gather(lines, []importLine{l}))
		if err != nil {
			return counts, err
		}
		if err := out.add(list); err != nil {
			return counts, err
		}
		for i := range list {
			counts[list[i].Result]++
		}
	}
	return counts, <-read
}

// deadlineReader gives each read its own time, until it is stopped.
type deadlineReader struct {
	r  io.Reader
	rc *http.ResponseController

	mu      sync.Mutex
	stopped bool
}

func (d *deadlineReader) Read(b []byte) (int, error) {
	if !d.extend() {
		return 0, io.ErrClosedPipe
	}
	return d.r.Read(b)
}

func (d *deadlineReader) extend() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stopped {
		_ = d.rc.SetReadDeadline(time.Now().Add(importIdle))
	}
	return !d.stopped
}

// stop ends a read under way, and with it the connection.
func (d *deadlineReader) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
	_ = d.rc.SetReadDeadline(time.Now())
}

// importBatch imports lines in one transaction.
func (s *Server) importBatch(c *call, batch []importLine) ([]Imported, error) {
	results := make([]Imported, len(batch))
	var list []wanted
	var digests []token.Digest
	place := map[int]int{} // of a line's result
	for i, l := range batch {
		w, err := s.readWanted(l)
		var p *problem
		if errors.As(err, &p) {
			results[i] = refusedLine(l.n, p)
			continue
		}
		if err != nil {
			return nil, err
		}
		place[l.n] = i
		list, digests = append(list, w), append(digests, w.digest)
	}
	if len(list) == 0 {
		return results, nil
	}
	recalls := map[string][]budget.Recall{} // by org
	err := s.store.Update(c.r.Context(), s.now(), func(tx *store.Tx) error {
		clear(recalls)
		b := importing{s: s, c: c, tx: tx, recalls: recalls}
		done, err := b.run(c.r.Context(), list, digests)
		for _, r := range done {
			results[place[r.Line]] = r
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for org, r := range recalls {
		s.recall(org, r...)
	}
	return results, nil
}

// importing is one transaction of an import.
type importing struct {
	s       *Server
	c       *call
	tx      *store.Tx
	recalls map[string][]budget.Recall
	fresh   []store.Token
}

func (b *importing) run(ctx context.Context, list []wanted, digests []token.Digest) ([]Imported, error) {
	known, err := b.tx.ByDigests(ctx, digests)
	if err != nil {
		return nil, err
	}
	stands := make(map[token.Digest]*abac.Profile, len(list))
	for d, t := range known {
		stands[d] = &t.Profile
	}
	results := make([]Imported, 0, len(list))
	for i := range list {
		w := &list[i]
		if p := stands[w.digest]; p != nil {
			results = append(results, clashes(w, p))
			continue
		}
		t := b.token(w)
		if len(t.Profile.Bindings.Budgets) > 0 {
			err := b.tx.Try(ctx, func() error { return b.insert(ctx, &t) })
			var p *problem
			if errors.As(err, &p) {
				results = append(results, refusedLine(w.line, p))
				continue
			}
			if err != nil {
				return nil, err
			}
		} else {
			b.fresh = append(b.fresh, t)
		}
		id := t.Profile.ID
		stands[w.digest] = &w.profile
		w.profile.ID = id
		results = append(results, Imported{Line: w.line, ID: &id, Result: ImportCreated})
	}
	return results, b.insertAll(ctx)
}

func (b *importing) token(w *wanted) store.Token {
	now := b.s.now()
	t := store.Token{Profile: w.profile, Digest: w.digest}
	t.Profile.ID, t.Profile.Status, t.Profile.CreatedAt = b.s.store.NewID(now), abac.Active, now
	return t
}

// insert adds one token with the budgets that its bindings bring.
func (b *importing) insert(ctx context.Context, t *store.Token) error {
	recalls, err := b.s.bound(b.c, b.tx, &t.Profile)
	if err != nil {
		return err
	}
	if err := b.tx.Insert(ctx, t); err != nil {
		return err
	}
	if err := audit(ctx, b.tx, change{b.c.who.name(), eventImported, nil, &t.Profile}); err != nil {
		return err
	}
	org := t.Profile.OrgID
	b.recalls[org] = append(b.recalls[org], recalls...)
	return nil
}

func (b *importing) insertAll(ctx context.Context) error {
	if err := b.tx.InsertAll(ctx, b.fresh); err != nil {
		return err
	}
	entries := make([]store.Entry, len(b.fresh))
	for i := range b.fresh {
		p := &b.fresh[i].Profile
		entries[i] = store.Entry{Actor: b.c.who.name(), Event: eventImported, Subject: p.ID, After: encode(p)}
	}
	return b.tx.AuditAll(ctx, entries)
}
