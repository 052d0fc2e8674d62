package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
)

// What is written is read as it was, whatever the chunks; what is not is refused
// without a panic, and never told as an event without its parts.
func FuzzEventsAreReadWhole(f *testing.F) {
	p := &abac.Profile{ID: "tok_1", Name: "a\nb: c", OrgID: "o", Purpose: abac.General, Status: abac.Active, Revision: 4}
	var all []byte
	for _, e := range []Event{
		{Kind: KindUpsert, Revision: 4, Digest: token.Sum([]byte("x")), TokenID: p.ID, Profile: p, At: time.Unix(1, 1000)},
		{Kind: KindUpsert, Revision: 5, Budget: &budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce, Limit: 7}},
		{Kind: KindRevoke, Revision: 6, Digest: token.Sum([]byte("x")), TokenID: p.ID, At: time.Unix(1, 2000)},
		{Kind: KindRecall, Recall: &budget.Recall{Budget: "b", Window: "w", Phase: 3}},
		{Kind: KindHead, Revision: 6},
	} {
		one := appendEvent(nil, &e)
		f.Add(one)
		all = append(all, one...)
	}
	f.Add(all)
	f.Add([]byte(": comment\nretry: 5\n\nevent: later\ndata: {}\n\nevent:head\nid:9\ndata\n\r\n"))
	f.Add([]byte("event: head\nid: -1\n\n"))
	f.Add([]byte("event: upsert\nid: 1\ndata: {\"kind\":\"team\"}\n\nevent: upsert\nid: 1\ndata: {\"kind\":\"token\"}\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		read := func(r io.Reader) (events []Event, failed bool) {
			err := readEvents(r, func(e Event) { events = append(events, e) })
			if err == nil {
				t.Fatal("a stream that ends is no error")
			}
			return events, !errors.Is(err, io.ErrUnexpectedEOF)
		}
		events, failed := read(bytes.NewReader(raw))
		again, failedAgain := read(iotest.OneByteReader(bytes.NewReader(raw)))
		if failed != failedAgain || len(events) != len(again) {
			t.Fatalf("by chunks: %v, %v and %v, %v", events, failed, again, failedAgain)
		}
		var written []byte
		for i := range events {
			e := &events[i]
			whole := e.Kind == KindHead || e.Kind == KindRecall && e.Recall != nil || e.Kind == KindRevoke && e.TokenID != "" ||
				e.Kind == KindUpsert && (e.Budget != nil || e.Profile != nil && e.Profile.ID != "")
			if !whole || e.Revision < 0 {
				t.Fatalf("told %+v", e)
			}
			written = appendEvent(written, e)
		}
		back, _ := read(bytes.NewReader(written))
		if fmt.Sprint(len(back)) != fmt.Sprint(len(events)) {
			t.Fatalf("%d events, written and read %d", len(events), len(back))
		}
		for i := range back {
			if back[i].Kind != events[i].Kind || back[i].Revision != events[i].Revision || back[i].Digest != events[i].Digest || back[i].TokenID != events[i].TokenID || !back[i].At.Equal(events[i].At) {
				t.Fatalf("%+v came back as %+v", events[i], back[i])
			}
		}
	})
}
