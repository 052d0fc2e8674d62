package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestSQLite(t *testing.T) {
	contract(t, func(t *testing.T) *Store { return open(t, filepath.Join(t.TempDir(), "a b?c%d#.db")) })
}

func open(t *testing.T, file string) *Store {
	t.Helper()
	s, err := Open(context.Background(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// contract is what every backend must do; fresh opens an empty database.
func contract(t *testing.T, fresh func(*testing.T) *Store) {
	for _, tt := range slices.Concat([]scenario{
		{"a token comes back as it was put in", comesBack},
		{"a digest and an id are taken once", takenOnce},
		{"a change keeps what can't change", keepsWhatCantChange},
		{"bindings that are not understood are never rewritten", keepsUnknownBindings},
		{"revoked is final", revokedIsFinal},
		{"an update that fails leaves nothing", failsWhole},
		{"a list is filtered and paged in order", listed},
		{"a use is the latest one, and no change", used},
		{"the audit log is only added to", appendOnly},
		{"instances are forgotten after their own time", instances},
		{"revisions rise in the order of commits under parallel writers", ordered},
	}, leasing, shortages, recalling, endings, limits, accounts, standings, watched, snapshots) {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, fresh(t)) })
	}
}

func update(t *testing.T, s *Store, f func(*Tx) error) {
	t.Helper()
	if err := s.Update(context.Background(), noon, f); err != nil {
		t.Fatal(err)
	}
}

func sample(s *Store, name string) Token {
	id := s.NewID(noon)
	return Token{Digest: token.Sum([]byte(id)), Profile: abac.Profile{
		ID: id, Name: name, OrgID: "org", Purpose: abac.General, PrincipalType: abac.PrincipalAPIToken, Status: abac.Active,
		Hint: "kt_live_…abcd", CreatedAt: noon,
	}}
}

func insert(t *testing.T, s *Store, n Token) Token {
	t.Helper()
	update(t, s, func(tx *Tx) error { return tx.Insert(context.Background(), &n) })
	return n
}

func pointer[T any](v T) *T { return &v }

func comesBack(t *testing.T, s *Store) {
	ctx := context.Background()
	n := sample(s, "näme \"quoted\"'")
	p := &n.Profile
	p.NotBefore, p.ExpiresAt = pointer(noon.Add(1500*time.Nanosecond)), pointer(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))
	p.Bindings = abac.Bindings{GatewayID: pointer("gw"), TeamID: pointer("red"), Providers: []string{}, Models: []string{"a*", "!b"},
		Budgets:    []abac.BudgetBinding{{ID: "b", Limit: "0.10", Unit: "usd", Window: "day", Mode: "observe"}},
		RateLimits: &abac.RateLimits{RequestsPerMinute: 1 << 39}}
	n = insert(t, s, n)
	if !n.Profile.NotBefore.Equal(noon.Add(time.Microsecond)) || n.Profile.Revision != 1 {
		t.Errorf("what storing does was not told: %+v", n.Profile)
	}
	got, err := s.Token(ctx, n.Profile.ID)
	if err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("by id: %+v, %v\nwant %+v", got, err, n)
	}
	insert(t, s, sample(s, "another"))
	got, head, err := s.ByDigest(ctx, n.Digest)
	if err != nil || head != 2 || !reflect.DeepEqual(got, n) {
		t.Errorf("by digest: %+v, head %d, %v", got, head, err)
	}
	if _, err := s.Token(ctx, "tok_none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown id: %v", err)
	}
	if _, _, err := s.ByDigest(ctx, token.Digest{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown digest: %v", err)
	}
	rotated := sample(s, "next")
	rotated.Profile.RotatedFrom = &n.Profile.ID
	rotated = insert(t, s, rotated)
	if got, err := s.Token(ctx, rotated.Profile.ID); err != nil || *got.Profile.RotatedFrom != n.Profile.ID {
		t.Errorf("rotated: %+v, %v", got, err)
	}
}

func takenOnce(t *testing.T, s *Store) {
	n := insert(t, s, sample(s, "first"))
	for name, twin := range map[string]Token{
		"id":     {Digest: token.Sum([]byte("x")), Profile: n.Profile},
		"digest": {Digest: n.Digest, Profile: sample(s, "second").Profile},
	} {
		err := s.Update(context.Background(), noon, func(tx *Tx) error { return tx.Insert(context.Background(), &twin) })
		if !errors.Is(err, ErrExists) {
			t.Errorf("the same %s: %v", name, err)
		}
	}
	if head, err := s.Head(context.Background()); err != nil || head != 1 {
		t.Errorf("a refused insert took revision %d, %v", head, err)
	}
}

func keepsWhatCantChange(t *testing.T, s *Store) {
	ctx := context.Background()
	n := insert(t, s, sample(s, "first"))
	changed := n
	p := &changed.Profile
	p.Name, p.ExpiresAt, p.Bindings.TeamID = "second", pointer(noon), pointer("red")
	p.Purpose, p.OrgID, p.Hint, p.CreatedAt = abac.Integration, "other", "…", noon.Add(time.Hour)
	update(t, s, func(tx *Tx) error { return tx.Change(ctx, &changed, "token.updated") })
	want := n
	want.Profile.Name, want.Profile.ExpiresAt, want.Profile.Bindings.TeamID, want.Profile.Revision = "second", pointer(noon), pointer("red"), 2
	if got, err := s.Token(ctx, n.Profile.ID); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	gone := sample(s, "gone")
	if err := s.Update(ctx, noon, func(tx *Tx) error { return tx.Change(ctx, &gone, "token.updated") }); !errors.Is(err, ErrNotFound) {
		t.Errorf("a token that is not there: %v", err)
	}
}

func keepsUnknownBindings(t *testing.T, s *Store) {
	ctx := context.Background()
	n := insert(t, s, sample(s, "n"))
	if _, err := s.write.ExecContext(ctx, `UPDATE tokens SET bindings = '{"source_cidrs":["10.0.0.0/8"]}' WHERE id = $1`, n.Profile.ID); err != nil {
		t.Fatal(err)
	}
	for _, status := range []abac.Status{abac.Quarantined, abac.Active} {
		update(t, s, func(tx *Tx) error {
			n, err := tx.Token(ctx, n.Profile.ID)
			if err != nil {
				return err
			}
			n.Profile.Status = status
			return tx.Change(ctx, &n, "token.changed")
		})
	}
	var kept string
	if err := s.read.QueryRow(`SELECT bindings FROM tokens WHERE id = $1`, n.Profile.ID).Scan(&kept); err != nil || !strings.Contains(kept, "10.0.0.0/8") {
		t.Errorf("a later version would read %s, %v", kept, err)
	}
	got, err := s.Token(ctx, n.Profile.ID)
	if err != nil || len(got.Profile.Bindings.Invalid) != 1 || abac.Compile(&got.Profile).Problem() == "" {
		t.Errorf("the unknown restriction is lost: %+v, %v", got.Profile.Bindings, err)
	}
}

func revokedIsFinal(t *testing.T, s *Store) {
	ctx := context.Background()
	n := insert(t, s, sample(s, "n"))
	n.Profile.Status = abac.Revoked
	update(t, s, func(tx *Tx) error { return tx.Change(ctx, &n, "token.revoked") })
	n.Profile.Status = abac.Active
	if err := s.Update(ctx, noon, func(tx *Tx) error { return tx.Change(ctx, &n, "token.released") }); err == nil {
		t.Error("a revoked token became active")
	}
	if _, err := s.write.ExecContext(ctx, `DELETE FROM tokens`); err == nil {
		t.Error("tokens can be deleted")
	}
}

func failsWhole(t *testing.T, s *Store) {
	ctx := context.Background()
	boom := errors.New("boom")
	n := sample(s, "n")
	err := s.Update(ctx, noon, func(tx *Tx) error {
		if err := tx.Insert(ctx, &n); err != nil {
			return err
		}
		if err := tx.Audit(ctx, Entry{Actor: "a", Event: "e", Subject: n.Profile.ID}); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	head, err := s.Head(ctx)
	log, logErr := s.AuditLog(ctx, AuditFilter{Limit: 9})
	_, tokenErr := s.Token(ctx, n.Profile.ID)
	if head != 0 || err != nil || len(log) != 0 || logErr != nil || !errors.Is(tokenErr, ErrNotFound) {
		t.Errorf("something stayed: head %d, %d entries, %v %v %v", head, len(log), err, logErr, tokenErr)
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.Update(ctx, noon, func(*Tx) error { panic("boom") })
	}()
	insert(t, s, n) // a panic must not keep the one writer's connection
}

func listed(t *testing.T, s *Store) {
	ctx := context.Background()
	var ids []string
	for i := range 6 {
		n := sample(s, fmt.Sprint(i))
		n.Profile.CreatedAt = noon.Add(time.Duration(i) * time.Hour)
		if i%2 == 0 {
			n.Profile.Purpose, n.Profile.Bindings.TeamID = abac.Integration, pointer("red")
		}
		if i == 5 {
			n.Profile.OrgID, n.Profile.Status = "other", abac.Quarantined
		}
		ids = append(ids, insert(t, s, n).Profile.ID)
	}
	if !slices.IsSorted(ids) {
		t.Errorf("ids do not sort in the order of their making: %v", ids)
	}
	for _, tt := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, "012345"}, {Filter{Limit: 2}, "01"}, {Filter{After: ids[3]}, "45"}, {Filter{Purpose: abac.Integration}, "024"},
		{Filter{TeamID: "red", After: ids[0]}, "24"}, {Filter{TeamID: "r"}, ""}, {Filter{OrgID: "other"}, "5"},
		{Filter{Status: abac.Quarantined}, "5"}, {Filter{UnusedSince: noon.Add(2 * time.Hour)}, "01"},
	} {
		if tt.f.Limit == 0 {
			tt.f.Limit = 100
		}
		list, err := s.Tokens(ctx, tt.f)
		got := ""
		for _, n := range list {
			got += n.Profile.Name
		}
		if err != nil || got != tt.want || list == nil {
			t.Errorf("%+v: got %q, %v, want %q", tt.f, got, err, tt.want)
		}
	}
}

func used(t *testing.T, s *Store) {
	ctx := context.Background()
	n := insert(t, s, sample(s, "n"))
	bound := sample(s, "bound")
	bound.Profile.Bindings.GatewayID = pointer("gw_2")
	bound = insert(t, s, bound)
	use := func(id, org, gateway string, at time.Time) {
		update(t, s, func(tx *Tx) error {
			return tx.Used(ctx, Use{TokenID: id, OrgID: org, GatewayID: gateway, At: at})
		})
	}
	use(n.Profile.ID, "org", "gw_1", noon)
	use(n.Profile.ID, "org", "gw_2", noon.Add(-time.Second))
	use(n.Profile.ID, "other", "gw_3", noon.Add(time.Second))
	use(bound.Profile.ID, "org", "gw_1", noon)
	got, head, err := s.ByDigest(ctx, n.Digest)
	if err != nil || !got.Profile.LastUsedAt.Equal(noon) || got.LastUsedGateway != "gw_1" || got.Profile.Revision != 1 || head != 2 {
		t.Errorf("got %+v, head %d, %v", got, head, err)
	}
	if got, err := s.Token(ctx, bound.Profile.ID); err != nil || got.Profile.LastUsedAt != nil {
		t.Errorf("used at a gateway that it is not bound to: %+v, %v", got, err)
	}
}

func appendOnly(t *testing.T, s *Store) {
	ctx := context.Background()
	for i := range 5 {
		update(t, s, func(tx *Tx) error {
			return tx.Audit(ctx, Entry{Actor: "a", Event: fmt.Sprintf("e%d", i%2), Subject: fmt.Sprint(i), After: []byte(`{"i":1}`)})
		})
	}
	for _, tt := range []struct {
		f    AuditFilter
		want string
	}{
		{AuditFilter{}, "43210"}, {AuditFilter{Limit: 2}, "43"}, {AuditFilter{Before: 3}, "10"}, {AuditFilter{Event: "e1"}, "31"}, {AuditFilter{Subject: "2"}, "2"},
	} {
		if tt.f.Limit == 0 {
			tt.f.Limit = 100
		}
		list, err := s.AuditLog(ctx, tt.f)
		got := ""
		for _, e := range list {
			got += e.Subject
			if e.Before != nil || string(e.After) != `{"i":1}` || !e.At.Equal(noon) {
				t.Errorf("entry %+v", e)
			}
		}
		if err != nil || got != tt.want {
			t.Errorf("%+v: got %q, %v, want %q", tt.f, got, err, tt.want)
		}
	}
	for _, q := range []string{`DELETE FROM audit WHERE seq = 1`, `UPDATE audit SET actor = 'b'`} {
		if _, err := s.write.ExecContext(ctx, q); err == nil {
			t.Errorf("%s was taken", q)
		}
	}
}

func instances(t *testing.T, s *Store) {
	ctx := context.Background()
	hear := func(at time.Duration, i Instance) {
		t.Helper()
		if err := s.Update(ctx, noon.Add(at), func(tx *Tx) error { return tx.Hear(ctx, i) }); err != nil {
			t.Fatal(err)
		}
	}
	names := func(at time.Duration, org string) string {
		list, err := s.Instances(ctx, org, noon.Add(at))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range list {
			names = append(names, i.GatewayID+"/"+i.ID+i.Build)
		}
		return strings.Join(names, " ")
	}
	hear(0, Instance{OrgID: "a", GatewayID: "g2", ID: "i", Build: "1", MaxStale: time.Minute})
	hear(0, Instance{OrgID: "a", GatewayID: "g1", ID: "i", Build: "1", MaxStale: time.Hour})
	hear(0, Instance{OrgID: "b", GatewayID: "g1", ID: "i", Build: "1", MaxStale: time.Hour})
	if got := names(0, "a"); got != "g1/i1 g2/i1" {
		t.Errorf("got %s", got)
	}
	if got := names(0, ""); got != "g1/i1 g1/i1 g2/i1" {
		t.Errorf("of all orgs: %s", got)
	}
	if a, b := names(time.Minute+HearEvery, "a"), names(time.Minute+HearEvery+time.Microsecond, "a"); a != "g1/i1 g2/i1" || b != "g1/i1" {
		t.Errorf("at its end %s, after it %s", a, b)
	}
	hear(30*time.Second, Instance{OrgID: "a", GatewayID: "g2", ID: "i", Build: "2", MaxStale: time.Minute})
	if got := names(80*time.Second, "a"); got != "g1/i1 g2/i2" {
		t.Errorf("heard again: %s", got)
	}
	update(t, s, func(tx *Tx) error { return tx.Forget(ctx, "a", "g1", "i") })
	if got := names(80*time.Second, "a"); got != "g2/i2" {
		t.Errorf("signed off: %s", got)
	}
	hear(time.Hour, Instance{OrgID: "a", GatewayID: "g3", ID: "i", MaxStale: time.Minute})
	var rows int
	if err := s.read.QueryRow(`SELECT COUNT(*) FROM instances WHERE org_id = 'a'`).Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%d rows are kept, %v", rows, err)
	}
}

// ordered lets writers race while a reader follows the changes as a watch would:
// whoever has read up to a revision must never find one below it later.
func ordered(t *testing.T, s *Store) {
	const writers, each = 8, 25
	ctx := context.Background()
	shared := insert(t, s, sample(s, "shared"))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				err := s.Update(ctx, noon, func(tx *Tx) error {
					n, err := tx.Token(ctx, shared.Profile.ID)
					if err != nil {
						return err
					}
					n.Profile.Name += "x" // a lost update shows in its length
					return tx.Change(ctx, &n, "token.updated")
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	last := int64(0)
	for finished := false; !finished; {
		select {
		case <-done:
			finished = true
		default:
		}
		rows, err := s.read.QueryContext(ctx, `SELECT revision FROM changes WHERE revision > $1 ORDER BY revision`, last)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var r int64
			if err := rows.Scan(&r); err != nil || r != last+1 {
				t.Fatalf("after revision %d came %d, %v", last, r, err)
			}
			last = r
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
	}
	got, head, err := s.ByDigest(ctx, shared.Digest)
	if err != nil || head != writers*each+1 || last != head || len(got.Profile.Name) != len("shared")+writers*each || got.Profile.Revision != head {
		t.Errorf("head %d, read up to %d, name of %d, revision %d, %v", head, last, len(got.Profile.Name), got.Profile.Revision, err)
	}
}

func TestIDsSortAndNeverRepeat(t *testing.T) {
	s := &Store{}
	seen := map[string]bool{}
	last := ""
	for i := range 10_000 {
		at := noon.Add(time.Duration(i%7) * time.Millisecond) // the clock steps back, too
		id := s.NewID(at)
		if len(id) != IDLen || id <= last || seen[id] || strings.Trim(id[len(IDPrefix):], crockford) != "" {
			t.Fatalf("%q after %q", id, last)
		}
		seen[id], last = true, id
	}
	if got := encodeID([16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); got != "7ZZZZZZZZZZZZZZZZZZZZZZZZZ" {
		t.Errorf("the largest id: %s", got)
	}
	if got := encodeID([16]byte{15: 33}); got != "00000000000000000000000011" {
		t.Errorf("33: %s", got)
	}
}

func TestTheFileIsItsOwnersAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "k.db")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, file)
	insert(t, s, sample(s, "n"))
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 2 {
		t.Fatalf("%v %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", e.Name(), info.Mode(), err)
		}
	}
}

func TestTheDatabaseIsDurable(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "k.db"))
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		var w, r string
		if err := errors.Join(s.write.QueryRow("PRAGMA "+pragma).Scan(&w), s.read.QueryRow("PRAGMA "+pragma).Scan(&r)); err != nil || w != want || r != want {
			t.Errorf("%s: writing %s, reading %s, want %s: %v", pragma, w, r, want, err)
		}
	}
	if _, err := s.read.Exec(`UPDATE head SET revision = 0`); err == nil {
		t.Error("a reader's connection writes")
	}
}
