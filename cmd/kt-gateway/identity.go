package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

const (
	identityWait  = 2 * time.Second // how long a start waits for the control plane
	identityRetry = 2 * time.Second // the longest pause between two tries
)

var (
	errStarting      = errors.New("starting")
	errNotIdentified = errors.New("the control plane has not confirmed this gateway's identity yet")
)

// remote is what identity asks of a control plane; its client answers over HTTP.
type remote interface {
	Whoami(ctx context.Context) (*abac.Profile, error)
	Resolve(ctx context.Context, d token.Digest) (controlplane.Resolved, error)
	Report(ctx context.Context, r record.Report) error
	Watch(ctx context.Context, since int64, each func(controlplane.Event)) error
	Snapshot(ctx context.Context, profiles int, begin func(controlplane.SnapshotHead) error, each func(*controlplane.SnapshotItem) error) error
	budget.Authority
}

// identity is this gateway's standing with a control plane elsewhere: nothing is
// loaded before it is confirmed, and a refusal is seen wherever it comes. Safe
// for concurrent use.
type identity struct {
	remote    remote
	gatewayID string
	url       string // for messages
	tokenFrom string // where the runtime token comes from, for messages
	maxStale  time.Duration
	log       *zap.Logger
	now       func() time.Time

	again chan struct{} // a refusal was met: verify again

	org atomic.Pointer[string] // nil before the identity is confirmed; read at each request

	mu         sync.Mutex
	err        error         // nil: confirmed
	unverified bool          // confirmed by a saved snapshot, or with another token than there is now: to be verified
	profile    *abac.Profile // of the runtime token, once it is confirmed
	answer     time.Time
}

// newIdentity takes the fields above the lock, set.
func newIdentity(i *identity) *identity {
	i.again = make(chan struct{}, 1)
	i.err = errNotIdentified
	return i
}

// start verifies once. Its error is final; without an answer it returns nil, and
// keep goes on trying.
func (i *identity) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, identityWait)
	defer cancel()
	err := i.verify(ctx)
	var refused refusedError
	if errors.As(err, &refused) {
		return err
	}
	if what := stranger(err); what != "" {
		return strangerError("at " + i.url + " there is no kt-gateway control plane (" + what + "): set control_plane.url, or KEEPTRUSTS_API_URL, to the address of one")
	}
	if err != nil {
		i.log.Warn("the control plane does not answer: not ready until it does", zap.String("url", i.url), zap.Error(err))
	}
	return nil
}

// strangerError says that what answers is no control plane. It ends a start, unless a
// saved snapshot says that there was one.
type strangerError string

func (e strangerError) Error() string { return string(e) }

// stranger says what answered in place of a control plane; "" when it may be one, or
// a proxy that can't reach it.
func stranger(err error) string {
	var other *controlplane.StrangerError
	var api *controlplane.APIError
	switch {
	case errors.As(err, &other) && other.DataPlane:
		return "it is a gateway's data plane"
	case errors.As(err, &other) && other.NoHTTP:
		return "it does not speak HTTP"
	case errors.As(err, &other) && other.Status > 0 && other.Status < http.StatusInternalServerError && other.Status != http.StatusTooManyRequests:
		return fmt.Sprintf("it answers with status %d, and not as one does", other.Status)
	case errors.As(err, &api) && (api.Status == http.StatusNotFound || api.Status == http.StatusMethodNotAllowed):
		return fmt.Sprintf("it answers with status %d, %s", api.Status, api.Code)
	}
	return ""
}

// keep verifies until it is confirmed, and again after a refusal, until ctx ends.
func (i *identity) keep(ctx context.Context) {
	pause := 100 * time.Millisecond
	for {
		if i.settled() {
			pause = 100 * time.Millisecond
			select {
			case <-ctx.Done():
				return
			case <-i.again:
			}
		}
		// Jitter: gateways that lost their control plane together must not return together.
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		before := i.confirmed()
		try, cancel := context.WithTimeout(ctx, identityWait)
		err := i.verify(try)
		cancel()
		var refused refusedError
		switch {
		case err == nil:
			i.log.Info("the control plane has confirmed this gateway's identity", zap.String("url", i.url))
		case errors.As(err, &refused) && (before == nil || before.Error() != err.Error()):
			i.log.Error("the control plane refuses this gateway's identity: not ready", zap.Error(err))
		}
		pause = min(2*pause, identityRetry)
	}
}

// verify asks whose token the runtime token is and keeps the answer. Its error is
// a refusedError when there was an answer.
func (i *identity) verify(ctx context.Context) error {
	p, err := i.remote.Whoami(ctx)
	if err == nil {
		err = i.check(p)
	} else {
		err = i.refusal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var refused refusedError
	if err == nil || errors.As(err, &refused) {
		i.answer, i.err = i.now(), err
	}
	if err == nil {
		i.unverified, i.profile = false, p
		i.org.Store(&p.OrgID)
	}
	return err
}

// resume takes the identity from a snapshot for which the control plane last vouched at
// that time, unless it has been verified by now. It goes on being verified.
func (i *identity) resume(p *abac.Profile, vouched time.Time) error {
	if err := i.check(p); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.err == nil && i.profile.OrgID != p.OrgID:
		return errors.New("it is of another org")
	case i.err == nil:
		return nil
	case i.err != errNotIdentified:
		return i.err
	}
	i.err, i.unverified, i.profile, i.answer = nil, true, p, vouched
	i.org.Store(&p.OrgID)
	return nil
}

// forget undoes resume.
func (i *identity) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err == nil && i.unverified {
		i.err, i.unverified = errNotIdentified, false
		i.org.Store(nil)
	}
}

// renewed notes that there is another runtime token now.
func (i *identity) renewed() {
	i.mu.Lock()
	i.unverified = true
	i.mu.Unlock()
	i.verifyAgain()
}

func (i *identity) verifyAgain() {
	select {
	case i.again <- struct{}{}:
	default:
	}
}

// own is the runtime token's profile; nil unless the identity is confirmed.
func (i *identity) own() *abac.Profile {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil
	}
	return i.profile
}

// refused says whether the last answer refused this gateway's identity.
func (i *identity) refused() bool {
	var refused refusedError
	return errors.As(i.confirmed(), &refused)
}

// settled says whether the identity is confirmed and nothing waits to be verified.
func (i *identity) settled() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err == nil && !i.unverified
}

// refusedError is a final answer: this runtime token does not identify this gateway.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// check says whether a profile is this gateway's identity.
func (i *identity) check(p *abac.Profile) error {
	mint := "mint one with `kt-gateway token create --type gateway --gateway-id " + i.gatewayID + "`"
	bound := ""
	if p.Bindings.GatewayID != nil {
		bound = *p.Bindings.GatewayID
	}
	switch {
	case p.Purpose != abac.GatewayRuntime || p.PrincipalType != abac.PrincipalGatewayRuntime:
		return i.refuse("is %s, a token of purpose %s, but a gateway identifies itself with one of purpose gateway_runtime: %s", p.ID, p.Purpose, mint)
	case bound != i.gatewayID:
		return i.refuse("is %s, which identifies gateway %q, but this is %q: set gateway_id to it, or %s", p.ID, bound, i.gatewayID, mint)
	case p.Status == abac.Revoked:
		return i.refuse("is %s, which has been revoked: %s", p.ID, mint)
	case p.Status != abac.Active:
		return i.refuse("is %s, which is %s: release it with `kt-gateway token release %s`, or %s", p.ID, p.Status, p.ID, mint)
	case p.ExpiresAt != nil && !p.ExpiresAt.After(i.now()):
		return i.refuse("is %s, which expired at %s: %s", p.ID, p.ExpiresAt.UTC().Format(time.RFC3339), mint)
	}
	return nil
}

func (i *identity) refuse(format string, args ...any) error {
	return refusedError("the runtime token in " + i.tokenFrom + " " + fmt.Sprintf(format, args...))
}

// refusal makes a refusedError of an answer that refuses the token; other errors
// stay what they are.
func (i *identity) refusal(err error) error {
	var api *controlplane.APIError
	mint := "mint one with `kt-gateway token create --type gateway --gateway-id " + i.gatewayID + "`"
	if errors.Is(err, controlplane.ErrAdministrator) {
		return i.refuse("is the control plane's admin token, but a gateway identifies itself with one of purpose gateway_runtime: %s", mint)
	}
	if !errors.As(err, &api) || api.Status != http.StatusUnauthorized && api.Status != http.StatusForbidden {
		return err
	}
	is, purpose := named(api.Message)
	switch api.Code {
	case "token_expired":
		return i.refuse("%shas expired: %s", is, mint)
	case "token_revoked":
		return i.refuse("%shas been revoked or quarantined: %s", is, mint)
	case "token_not_yet_valid":
		return i.refuse("%sis not valid yet: wait, or %s", is, mint)
	case "purpose_not_allowed":
		return i.refuse("%sis a token of purpose %s, but a gateway identifies itself with one of purpose gateway_runtime: %s", is, purpose, mint)
	case "invalid_api_key":
		return i.refuse("is not known to the control plane at %s: %s, or set control_plane.url where that is the address of something else", i.url, mint)
	}
	return i.refuse("is refused by the control plane at %s (%s): %s", i.url, api.Code, mint)
}

// named takes from a control plane's refusal which token it is about, as the middle of a
// sentence, and of what purpose that is.
func named(message string) (is, purpose string) {
	words := strings.Fields(message)
	purpose = "other than gateway_runtime"
	if len(words) > 1 && words[0] == "Token" && strings.HasPrefix(words[1], "tok_") {
		is = "is " + words[1] + ", which "
	}
	if len(words) > 4 && words[2] == "has" && words[3] == "purpose" {
		purpose = strings.TrimSuffix(words[4], ":")
	}
	return is, purpose
}

// confirmed is nil once the identity is verified.
func (i *identity) confirmed() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// orgID is the gateway's org; "" before the identity is confirmed.
func (i *identity) orgID() string {
	if org := i.org.Load(); org != nil {
		return *org
	}
	return ""
}

// ready is nil while the identity is confirmed and the control plane has
// answered within max_stale.
func (i *identity) ready() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return i.err
	}
	if at := i.profile.ExpiresAt; at != nil && !at.After(i.now()) { // no message is needed for that
		return i.refuse("expired at %s", at.UTC().Format(time.RFC3339))
	}
	if away := i.now().Sub(i.answer); away > i.maxStale {
		return fmt.Errorf("the control plane has not answered for %s", away.Round(time.Second))
	}
	return nil
}

// stale is how long ago the control plane last answered; 0: it never did.
func (i *identity) stale() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.answer.IsZero() {
		return 0
	}
	return i.now().Sub(i.answer)
}

// Resolve asks for a token's profile, once the identity is confirmed.
func (i *identity) Resolve(ctx context.Context, d token.Digest) (controlplane.Resolved, error) {
	if err := i.confirmed(); err != nil {
		return controlplane.Resolved{}, err
	}
	r, err := i.remote.Resolve(ctx, d)
	i.observe(err)
	return r, err
}

// Watch tells of changes, once the identity is confirmed.
func (i *identity) Watch(ctx context.Context, since int64, each func(controlplane.Event)) error {
	if err := i.confirmed(); err != nil {
		return err
	}
	err := i.remote.Watch(ctx, since, func(e controlplane.Event) {
		i.told(&e)
		each(e)
	})
	i.observe(err)
	return err
}

// told takes what a watch tells of the control plane and of the runtime token.
func (i *identity) told(e *controlplane.Event) {
	if e.Kind == controlplane.KindHead {
		i.observe(nil)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if e.TokenID == "" || i.profile == nil || i.profile.ID != e.TokenID {
		return
	}
	switch e.Kind {
	case controlplane.KindUpsert:
		i.profile = e.Profile
	case controlplane.KindRevoke:
		if i.err == nil {
			i.err = i.refuse("has been revoked or quarantined")
			i.log.Error("the control plane refuses this gateway's identity: not ready", zap.Error(i.err))
			i.verifyAgain()
		}
	}
}

// Snapshot tells all that there is, once the identity is confirmed.
func (i *identity) Snapshot(ctx context.Context, profiles int, begin func(controlplane.SnapshotHead) error, each func(*controlplane.SnapshotItem) error) error {
	if err := i.confirmed(); err != nil {
		return err
	}
	err := i.remote.Snapshot(ctx, profiles, begin, each)
	i.observe(err)
	return err
}

// Leases makes one call of the ledger's, once the identity is confirmed.
func (i *identity) Leases(ctx context.Context, c *budget.Call) (*budget.Answer, error) {
	if err := i.confirmed(); err != nil {
		return nil, err
	}
	a, err := i.remote.Leases(ctx, c)
	i.observe(err)
	return a, err
}

// Settle tells who spent, once the identity is confirmed.
func (i *identity) Settle(ctx context.Context, list []budget.Settlement) error {
	if err := i.confirmed(); err != nil {
		return err
	}
	err := i.remote.Settle(ctx, list)
	i.observe(err)
	return err
}

// Report tells the control plane of this gateway.
func (i *identity) Report(ctx context.Context, r record.Report) error {
	err := i.remote.Report(ctx, r)
	i.observe(err)
	return err
}

// observe keeps when the control plane last answered, and whether it refused us.
func (i *identity) observe(err error) {
	refused := refusedError("")
	answered := err == nil || errors.Is(err, token.ErrUnknown) || errors.Is(err, budget.ErrClosed) ||
		errors.Is(err, controlplane.ErrTooOld)
	denied := errors.As(i.refusal(err), &refused)
	if !answered && !denied {
		return
	}
	i.mu.Lock()
	i.answer = i.now()
	was := i.err
	if denied {
		i.err = refused
	}
	i.mu.Unlock()
	if !denied || was != nil {
		return
	}
	i.log.Error("the control plane refuses this gateway's identity: not ready", zap.Error(refused))
	i.verifyAgain()
}
