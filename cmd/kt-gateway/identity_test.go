package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

// scriptedPlane answers as its fields say; mu is for those that change while it is asked.
type scriptedPlane struct {
	mu          sync.Mutex
	profile     abac.Profile
	whoami      error
	load        error
	report      error
	watch       error
	lease       error
	settle      error
	whoamis     int
	loads       int
	silentUntil time.Time // no answer before
	snapshots   atomic.Int64
	snapshot    func(n int) (controlplane.SnapshotHead, []controlplane.SnapshotItem, error) // the n-th; nil: an empty one at revision 1
}

func (s *scriptedPlane) Snapshot(_ context.Context, _ int, begin func(controlplane.SnapshotHead) error, each func(*controlplane.SnapshotItem) error) error {
	n := int(s.snapshots.Add(1) - 1)
	if s.snapshot == nil {
		return begin(controlplane.SnapshotHead{Revision: 1, OrgID: "org_1"})
	}
	h, items, err := s.snapshot(n)
	if h.Revision > 0 {
		if err := begin(h); err != nil {
			return err
		}
	}
	for i := range items {
		if err := each(&items[i]); err != nil {
			return err
		}
	}
	return err
}

func (s *scriptedPlane) Whoami(ctx context.Context) (*abac.Profile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whoamis++
	if time.Now().Before(s.silentUntil) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p := s.profile
	return &p, s.whoami
}

func (s *scriptedPlane) answers(whoami error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whoami = whoami
}

func (s *scriptedPlane) Resolve(context.Context, token.Digest) (controlplane.Resolved, error) {
	s.loads++
	return controlplane.Resolved{Profile: &abac.Profile{ID: "tok_app"}}, s.load
}

func (s *scriptedPlane) Report(context.Context, record.Report) error { return s.report }

func (s *scriptedPlane) Watch(context.Context, int64, func(controlplane.Event)) error { return s.watch }

func (s *scriptedPlane) Leases(context.Context, *budget.Call) (*budget.Answer, error) {
	return nil, s.lease
}

func (s *scriptedPlane) Settle(context.Context, []budget.Settlement) error { return s.settle }

func refusedWith(status int, code string) error {
	return &controlplane.APIError{Status: status, Code: code, Message: "No."}
}

func runtimeProfile(change func(*abac.Profile)) abac.Profile {
	gw := "gw_here"
	p := abac.Profile{
		ID: "tok_rt", OrgID: "org_1", Purpose: abac.GatewayRuntime, PrincipalType: abac.PrincipalGatewayRuntime,
		Status: abac.Active, Bindings: abac.Bindings{GatewayID: &gw},
	}
	if change != nil {
		change(&p)
	}
	return p
}

func testIdentity(s *scriptedPlane) *identity {
	return newIdentity(&identity{
		remote: s, gatewayID: "gw_here", url: "https://plane", tokenFrom: "file /run/token",
		maxStale: time.Minute, log: zap.NewNop(), now: time.Now,
	})
}

func TestOnlyThisGatewaysIdentityIsTaken(t *testing.T) {
	other, past := "gw_far", time.Now().Add(-time.Second)
	for _, tt := range []struct {
		name string
		give *scriptedPlane
		want string // in the refusal; "" confirms
	}{
		{"its own", &scriptedPlane{profile: runtimeProfile(nil)}, ""},
		{"an app's", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.Purpose = abac.General })}, "of purpose general"},
		{"a principal that does not fit", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.PrincipalType = abac.PrincipalAPIToken })}, "of purpose gateway_runtime"},
		{"another gateway's", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.Bindings.GatewayID = &other })}, `identifies gateway "gw_far", but this is "gw_here"`},
		{"no gateway's", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.Bindings.GatewayID = nil })}, `identifies gateway ""`},
		{"revoked", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.Status = abac.Revoked })}, "has been revoked"},
		{"quarantined", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.Status = abac.Quarantined })}, "release it"},
		{"of a status that does not exist", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.Status = "" })}, "release it"},
		{"expired", &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.ExpiresAt = &past })}, "expired at"},
		{"unknown to the control plane", &scriptedPlane{whoami: refusedWith(http.StatusUnauthorized, "invalid_api_key")}, "is not known to the control plane at https://plane"},
		{"expired, as the control plane says", &scriptedPlane{whoami: refusedWith(http.StatusUnauthorized, "token_expired")}, "has expired"},
		{"the admin token", &scriptedPlane{whoami: controlplane.ErrAdministrator}, "is the control plane's admin token"},
		{"early, as the control plane says", &scriptedPlane{whoami: refusedWith(http.StatusUnauthorized, "token_not_yet_valid")}, "is not valid yet"},
		{"refused for a reason of a later version", &scriptedPlane{whoami: refusedWith(http.StatusForbidden, "region_mismatch")}, "region_mismatch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := testIdentity(tt.give)
			err := i.start(t.Context())
			if tt.want == "" {
				if err != nil || i.ready() != nil || i.orgID() != "org_1" {
					t.Errorf("start: %v, ready: %v, org %q", err, i.ready(), i.orgID())
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "the runtime token in file /run/token ") {
				t.Errorf("start: %v, want %q in it", err, tt.want)
			}
			if i.ready() == nil {
				t.Error("ready all the same")
			}
		})
	}
}

func TestNothingIsLoadedBeforeTheIdentityIsConfirmed(t *testing.T) {
	s := &scriptedPlane{whoami: errors.New("connection refused")}
	i := testIdentity(s)
	if err := i.start(t.Context()); err != nil {
		t.Fatalf("a silence is final: %v", err)
	}
	if _, err := i.Resolve(t.Context(), token.Digest{}); err == nil || s.loads != 0 {
		t.Errorf("%d loads, error %v", s.loads, err)
	}
	if i.ready() == nil || i.orgID() != "" {
		t.Error("ready, or of an org that nobody named")
	}
}

func TestASilentControlPlaneIsWaitedForTwoSecondsAndThenTriedUntilItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &scriptedPlane{profile: runtimeProfile(nil), silentUntil: began.Add(30 * time.Second)}
		i := testIdentity(s)
		if err := i.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != identityWait {
			t.Errorf("the start took %v, want %v", waited, identityWait)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go i.keep(ctx)
		time.Sleep(30*time.Second - time.Since(began))
		synctest.Wait()
		if i.ready() == nil {
			t.Fatal("ready before there was an answer")
		}
		time.Sleep(identityWait + identityRetry)
		synctest.Wait()
		if err := i.ready(); err != nil {
			t.Errorf("not ready one pause after the control plane came back: %v", err)
		}
		s.mu.Lock()
		tries := s.whoamis
		s.mu.Unlock()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s.whoamis != tries {
			t.Errorf("it asked %d times more once it was confirmed", s.whoamis-tries)
		}
		cancel()
	})
}

func TestARefusalMetAnywhereEndsReadinessUntilItIsLifted(t *testing.T) {
	for _, tt := range []struct {
		name string
		meet func(*scriptedPlane, *identity)
	}{
		{"in a report", func(s *scriptedPlane, i *identity) {
			s.report = refusedWith(http.StatusUnauthorized, "token_revoked")
			_ = i.Report(context.Background(), record.Report{})
		}},
		{"in a load", func(s *scriptedPlane, i *identity) {
			s.load = refusedWith(http.StatusUnauthorized, "token_revoked")
			_, _ = i.Resolve(context.Background(), token.Digest{})
		}},
		{"on a watch", func(s *scriptedPlane, i *identity) {
			s.watch = refusedWith(http.StatusUnauthorized, "token_revoked")
			_ = i.Watch(context.Background(), 0, nil)
		}},
		{"in a snapshot", func(s *scriptedPlane, i *identity) {
			s.snapshot = func(int) (h controlplane.SnapshotHead, _ []controlplane.SnapshotItem, _ error) {
				return h, nil, refusedWith(http.StatusUnauthorized, "token_revoked")
			}
			_ = i.Snapshot(context.Background(), 0, nil, nil)
		}},
		{"in a call for leases", func(s *scriptedPlane, i *identity) {
			s.lease = refusedWith(http.StatusUnauthorized, "token_revoked")
			_, _ = i.Leases(context.Background(), nil)
		}},
		{"in settlements", func(s *scriptedPlane, i *identity) {
			s.settle = refusedWith(http.StatusUnauthorized, "token_revoked")
			_ = i.Settle(context.Background(), nil)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scriptedPlane{profile: runtimeProfile(nil)}
				i := testIdentity(s)
				if err := i.start(t.Context()); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				go i.keep(ctx)
				s.answers(refusedWith(http.StatusUnauthorized, "token_revoked"))
				tt.meet(s, i)
				if err := i.ready(); err == nil || !strings.Contains(err.Error(), "revoked") {
					t.Fatalf("ready: %v", err)
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if i.ready() == nil {
					t.Fatal("ready again while it is refused")
				}
				s.answers(nil) // a new token stands in the file
				time.Sleep(identityWait + identityRetry)
				synctest.Wait()
				if err := i.ready(); err != nil {
					t.Errorf("not ready after the refusal was lifted: %v", err)
				}
				cancel()
			})
		})
	}
}

func TestReadinessEndsMaxStaleAfterTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scriptedPlane{profile: runtimeProfile(nil)}
		i := testIdentity(s)
		if err := i.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := i.ready(); err != nil {
			t.Errorf("not ready at max_stale: %v", err)
		}
		if got := i.stale(); got != time.Minute {
			t.Errorf("stale for %v, want a minute", got)
		}
		s.report = errors.New("connection refused")
		_ = i.Report(t.Context(), record.Report{})
		time.Sleep(time.Nanosecond)
		if i.ready() == nil {
			t.Error("ready past max_stale")
		}
		s.load = token.ErrUnknown // an answer
		_, _ = i.Resolve(t.Context(), token.Digest{})
		if err := i.ready(); err != nil {
			t.Errorf("not ready after an answer: %v", err)
		}
	})
}

// What is no control plane ends a start; what stands before one that is away does not.
func TestAStrangerEndsAStartAndAFailingProxyDoesNot(t *testing.T) {
	for _, tt := range []struct {
		err   error
		final bool
	}{
		{&controlplane.StrangerError{Status: 200}, true},
		{&controlplane.StrangerError{Status: 404}, true},
		{refusedWith(http.StatusNotFound, "unknown_endpoint"), true},
		{&controlplane.StrangerError{Status: 429}, false},
		{&controlplane.StrangerError{Status: 502}, false},
		{&controlplane.StrangerError{}, false},
		{refusedWith(http.StatusServiceUnavailable, "database_unavailable"), false},
		{context.DeadlineExceeded, false},
	} {
		i := testIdentity(&scriptedPlane{whoami: tt.err})
		err := i.start(t.Context())
		if (err != nil) != tt.final || err != nil && !strings.HasPrefix(err.Error(), "at https://plane there is no kt-gateway control plane (it answers with status ") {
			t.Errorf("%v: %v", tt.err, err)
		}
		if i.ready() == nil {
			t.Errorf("%v: ready all the same", tt.err)
		}
	}
}

func TestReadinessEndsWithTheRuntimeToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := time.Now().Add(10 * time.Second)
		s := &scriptedPlane{profile: runtimeProfile(func(p *abac.Profile) { p.ExpiresAt = &ends })}
		i := testIdentity(s)
		if err := i.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Second - time.Nanosecond)
		if err := i.ready(); err != nil {
			t.Errorf("not ready before: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := i.ready(); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("ready after it expired, in silence: %v", err)
		}
	})
}

// The watch tells of the runtime token as of every other.
func TestWhatAWatchTellsOfTheRuntimeTokenCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scriptedPlane{profile: runtimeProfile(nil)}
		i := testIdentity(s)
		if err := i.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ends := time.Now().Add(time.Minute)
		next := runtimeProfile(func(p *abac.Profile) { p.ExpiresAt = &ends })
		i.told(&controlplane.Event{Kind: controlplane.KindUpsert, Revision: 5, TokenID: "tok_app", Profile: &abac.Profile{ID: "tok_app"}})
		i.told(&controlplane.Event{Kind: controlplane.KindUpsert, Revision: 6, TokenID: "tok_rt", Profile: &next})
		if i.own().ExpiresAt != &ends {
			t.Errorf("%+v", i.own())
		}
		i.told(&controlplane.Event{Kind: controlplane.KindRevoke, Revision: 7, TokenID: "tok_app"})
		if err := i.ready(); err != nil {
			t.Errorf("another token's revocation: %v", err)
		}
		i.told(&controlplane.Event{Kind: controlplane.KindRevoke, Revision: 8, TokenID: "tok_rt"})
		if i.ready() == nil || !i.refused() || i.own() != nil {
			t.Error("ready after it was revoked")
		}
	})
}

func TestASavedIdentityIsCheckedLikeAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		past, at := time.Now().Add(-time.Second), time.Now().Add(-20*time.Second)
		silent := func() *identity {
			i := testIdentity(&scriptedPlane{whoami: errors.New("connection refused")})
			if err := i.start(t.Context()); err != nil {
				t.Fatal(err)
			}
			return i
		}
		for name, change := range map[string]func(*abac.Profile){
			"expired":           func(p *abac.Profile) { p.ExpiresAt = &past },
			"another gateway's": func(p *abac.Profile) { p.Bindings.GatewayID = nil },
			"an app's":          func(p *abac.Profile) { p.Purpose = abac.General },
			"revoked":           func(p *abac.Profile) { p.Status = abac.Revoked },
		} {
			i, p := silent(), runtimeProfile(change)
			if i.resume(&p, at) == nil || i.ready() == nil {
				t.Errorf("%s: taken", name)
			}
		}
		i, p := silent(), runtimeProfile(nil)
		if err := i.resume(&p, at); err != nil || i.ready() != nil || i.orgID() != "org_1" || i.settled() {
			t.Fatalf("%v, ready: %v", err, i.ready())
		}
		time.Sleep(40 * time.Second) // of max_stale, 20 s had passed
		if err := i.ready(); err != nil {
			t.Errorf("not ready at max_stale: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if i.ready() == nil {
			t.Error("ready past max_stale of what was saved")
		}
		refused := testIdentity(&scriptedPlane{whoami: refusedWith(http.StatusUnauthorized, "token_revoked")})
		if refused.start(t.Context()) == nil || refused.resume(&p, at) == nil || refused.ready() == nil {
			t.Error("a refusal is undone by what was saved")
		}
	})
}
