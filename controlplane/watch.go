package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// The kinds of events on a watch.
const (
	KindUpsert = "upsert" // a token that may serve, a budget or a team is as it is told
	KindRevoke = "revoke" // a token is revoked or quarantined
	KindRecall = "recall" // idle money is wanted back, or limit or window changed
	KindHead   = "head"   // every change up to this revision has been told
)

// Event is one event of a watch.
type Event struct {
	Kind     string
	Revision int64     // rises from event to event; 0 for a recall, which has none
	At       time.Time // when the change was made, by the control plane's clock, in whole microseconds; zero: not told

	Digest  token.Digest  // of an upsert or revoke of a token
	TokenID string        // of the same
	Profile *abac.Profile // of an upsert of a token, as this gateway may see it
	Budget  *budget.Record
	Team    *abac.Team
	Recall  *budget.Recall
}

const (
	headEvery    = time.Second
	changesAPart = 500             // entries of the log that are read at once
	writeWithin  = 5 * time.Second // a reader that takes longer is cut
)

var (
	errEnded     = errors.New("the watch's own token stands no more")
	errSignedOff = errors.New("the instance signed off")
)

// watch is one watch on its way: how far it is, and who takes what it tells.
type watch struct {
	s    *Server
	w    *watching
	own  *store.Token // whose standing it needs; nil: it is this process's own
	at   int64        // all up to here has been told
	emit func([]Event) error
	told func(int64) // nil: nobody waits for it
}

// FromHead is a since that leaves out all that was before.
const FromHead = -1

// begin makes the watch live and reads the first part of the log, so that a since
// that can't be served is refused before anything is told.
func (v *watch) begin(ctx context.Context, since int64) (end func(), first store.Changes, err error) {
	s := v.s
	if err := s.join(v.w); err != nil {
		return nil, first, err
	}
	i := v.w.instance
	i.WatchedUntil, i.Revision = s.now().Add(liveFor), max(since, 0)
	// Before the first look: a revocation that comes between the two waits for this instance.
	if err := s.store.Note(ctx, s.now(), func(tx *store.Tx) error { return tx.Hear(ctx, i) }); err != nil {
		s.log.Warn("a watch could not be noted", zap.String("gateway_id", i.GatewayID), zap.Error(err))
	}
	v.w.noted.Store(true)
	if since == FromHead {
		if since, err = s.store.Head(ctx); err == nil {
			first.UpTo = since
		}
	} else {
		first, err = s.store.Changes(ctx, i.OrgID, since, changesAPart)
	}
	if errors.Is(err, store.ErrGone) {
		err = refuse("revision_gone", "The log of changes does not reach back to revision %d, or never had it: ask for every profile anew, and watch from the head.", since)
	}
	if err != nil {
		s.leave(v.w)
		return nil, first, err
	}
	v.at = since
	return func() { s.leave(v.w) }, first, nil
}

// run tells everything after the first part until ctx ends, the server closes, the
// reader fails or the token that it came with stands no more.
func (v *watch) run(ctx context.Context, part store.Changes) error {
	tick := time.NewTicker(headEvery)
	defer tick.Stop()
	due := true
	if err := v.tell(ctx, part); err != nil {
		return err
	}
	for {
		behind, err := v.catchUp(ctx)
		if err != nil {
			return err
		}
		recalls, err := v.w.taken()
		if err == nil && len(recalls) > 0 {
			err = v.emit(recalls)
		}
		if err != nil {
			return err
		}
		if head, now := v.s.hub.latest(); due && !behind && now && head.revision <= v.at {
			due = false
			if err := v.emit([]Event{{Kind: KindHead, Revision: v.at}}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-v.s.hub.quit:
			return errClosing
		case <-v.w.end:
			return errSignedOff
		case <-v.w.wake:
		case <-tick.C:
			due = true
			if err := v.standing(); err != nil {
				return err
			}
		}
	}
}

// catchUp tells what the log has up to the head, and says whether it could not.
func (v *watch) catchUp(ctx context.Context) (behind bool, err error) {
	for {
		head, _ := v.s.hub.latest()
		if head.revision <= v.at {
			return false, nil
		}
		part, err := v.s.store.Changes(ctx, v.w.instance.OrgID, v.at, changesAPart)
		switch {
		case errors.Is(err, store.ErrGone):
			return true, err
		case err != nil: // the feed tells of a database that is away
			return true, ctx.Err()
		}
		if err := v.tell(ctx, part); err != nil {
			return true, err
		}
	}
}

// tell emits a part of the log.
func (v *watch) tell(ctx context.Context, part store.Changes) error {
	events := make([]Event, 0, len(part.List))
	for i := range part.List {
		e, err := v.event(ctx, &part.List[i])
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		events = append(events, e)
	}
	if len(events) > 0 {
		if err := v.emit(events); err != nil {
			return err
		}
	}
	v.at = part.UpTo
	if v.told != nil {
		v.told(v.at)
	}
	for i := range part.List {
		if t := part.List[i].Token; t != nil && v.own != nil && t.Profile.ID == v.own.Profile.ID {
			v.own = t
			if err := v.standing(); err != nil {
				return err
			}
		}
	}
	return nil
}

// standing says whether the watch may go on.
func (v *watch) standing() error {
	if v.own == nil {
		return nil
	}
	p := &v.own.Profile
	if v.s.authorise(caller{token: v.own}, runtime) != nil || *p.Bindings.GatewayID != v.w.instance.GatewayID {
		return errEnded
	}
	return nil
}

// event is a change as this watch's gateway may see it.
func (v *watch) event(ctx context.Context, c *store.Change) (Event, error) {
	e := Event{Kind: KindUpsert, Revision: c.Revision, At: c.At}
	if c.Team != nil {
		told := c.Team.Told()
		e.Team = &told
		return e, nil
	}
	if c.Token == nil {
		b, err := v.s.store.Budget(ctx, v.w.instance.OrgID, c.Subject)
		e.Budget = &b.Record
		return e, err
	}
	p := visible(&c.Token.Profile, v.w.instance.GatewayID)
	e.Digest, e.TokenID = c.Token.Digest, p.ID
	if p.Status == abac.Active {
		e.Profile = &p
	} else {
		e.Kind = KindRevoke
	}
	return e, nil
}

// visible is what a gateway may know of a token.
func visible(p *abac.Profile, gateway string) abac.Profile {
	if g := p.Bindings.GatewayID; g != nil && *g != gateway {
		less := reduced(p)
		// Else what was known of the token before it was bound elsewhere would outlast this.
		less.Revision = p.Revision
		return less
	}
	return *p
}

// watchRuntime is GET /v1/runtime/watch.
func (s *Server) watchRuntime(c *call) (int, any, error) {
	since, err := watchSince(c)
	if err != nil {
		return 0, nil, err
	}
	i, err := s.instanceFrom(c)
	if err != nil {
		return 0, nil, err
	}
	if c.r.Method == http.MethodHead {
		c.w.Header().Set("Content-Type", eventStream)
		return statusWritten, nil, nil
	}
	out := &eventWriter{w: c.w, rc: http.NewResponseController(c.w), patience: s.patience}
	v := &watch{s: s, w: newWatching(i), own: c.who.token, emit: out.write}
	ctx := c.r.Context()
	end, first, err := v.begin(ctx, since)
	if err != nil {
		return 0, nil, err
	}
	defer end()
	c.streams = true
	if err := out.begin(); err != nil {
		return statusWritten, nil, nil
	}
	err = v.run(ctx, first)
	s.log.Debug("a watch ended", zap.String("request_id", c.id), zap.String("gateway_id", i.GatewayID), zap.Error(err))
	return statusWritten, nil, nil
}

// statusWritten is the status of an answer that the handler wrote itself.
const statusWritten = 0

const eventStream = "text/event-stream"

// watchSince reads since, else what an EventSource sends when it connects again;
// neither: from the head.
func watchSince(c *call) (int64, error) {
	q, err := query(c, "since")
	if err != nil {
		return 0, err
	}
	text, param := q.get("since"), "since"
	if text == "" {
		text, param = c.r.Header.Get("Last-Event-ID"), "Last-Event-ID"
	}
	if text == "" {
		return FromHead, nil
	}
	since, err := strconv.ParseInt(text, 10, 64)
	if err != nil || since < 0 {
		return 0, refuse("invalid_value", "%s must be a revision: a whole number from 0 on.", param).at(param)
	}
	return since, nil
}

// eventWriter writes events as server-sent events.
type eventWriter struct {
	w        http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration
	buf      []byte
}

func (o *eventWriter) begin() error {
	h := o.w.Header()
	h.Set("Content-Type", eventStream)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	if err := writeBy(o.rc, o.patience); err != nil {
		return err
	}
	o.w.WriteHeader(http.StatusOK)
	return o.rc.Flush()
}

func (o *eventWriter) write(events []Event) error {
	o.buf = o.buf[:0]
	for i := range events {
		o.buf = appendEvent(o.buf, &events[i])
	}
	if err := writeBy(o.rc, o.patience); err != nil {
		return err
	}
	if _, err := o.w.Write(o.buf); err != nil {
		return err
	}
	return o.rc.Flush()
}

// What the data of each kind of event is.
type (
	wireUpsert struct {
		Kind    string         `json:"kind"` // token, budget, team
		Digest  string         `json:"sha256,omitempty"`
		Profile *abac.Profile  `json:"profile,omitempty"`
		Budget  *budget.Record `json:"budget,omitempty"`
		Team    *abac.Team     `json:"team,omitempty"`
		At      string         `json:"at,omitempty"`
	}
	wireRevoke struct {
		ID       string `json:"id"`
		Digest   string `json:"sha256"`
		Revision int64  `json:"revision"`
		At       string `json:"at,omitempty"`
	}
	wireHead struct {
		Revision int64 `json:"revision"`
	}
)

// changeTime is RFC 3339 in whole microseconds, as the log of changes has them.
const changeTime = "2006-01-02T15:04:05.000000Z07:00"

const (
	subjectToken  = "token"
	subjectBudget = "budget"
	subjectTeam   = "team"
)

func appendEvent(b []byte, e *Event) []byte {
	var data any
	at := ""
	if !e.At.IsZero() {
		at = e.At.UTC().Format(changeTime)
	}
	switch e.Kind {
	case KindUpsert:
		switch {
		case e.Budget != nil:
			data = wireUpsert{Kind: subjectBudget, Budget: e.Budget, At: at}
		case e.Team != nil:
			data = wireUpsert{Kind: subjectTeam, Team: e.Team, At: at}
		default:
			data = wireUpsert{Kind: subjectToken, Digest: e.Digest.String(), Profile: e.Profile, At: at}
		}
	case KindRevoke:
		data = wireRevoke{e.TokenID, e.Digest.String(), e.Revision, at}
	case KindRecall:
		data = e.Recall
	case KindHead:
		data = wireHead{e.Revision}
	}
	raw, err := json.Marshal(data)
	if err != nil {
		panic("BUG: an event does not encode: " + err.Error())
	}
	b = append(append(b, "event: "...), e.Kind...)
	if e.Revision > 0 || e.Kind == KindHead {
		b = strconv.AppendInt(append(b, "\nid: "...), e.Revision, 10)
	}
	return append(append(append(b, "\ndata: "...), raw...), "\n\n"...)
}
