package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/test/rig"
)

// edited is what watchCut goes through.
type edited struct {
	*fleet
	tokens  []minted
	done    atomic.Int64 // edits
	retried atomic.Int64 // calls to the control plane that were sent again
	words   tally        // of the calls at gateways meanwhile
}

// watchCut cuts watches while profiles are edited, and kills a replica: in the end every
// gateway must know what the control plane does.
func watchCut(ctx context.Context, t *trial) error {
	x := &edited{}
	var err error
	if x.fleet, err = newFleet(ctx, t, layout{gateways: t.gateways, fresh: 30 * time.Second, stale: 10 * time.Minute}); err != nil {
		return err
	}
	edits, cuts := of(t, 10_000, 300), of(t, 100, 6)
	if x.tokens, err = x.admin.mintAll(ctx, of(t, 200, 24)); err != nil {
		return err
	}
	steady, err := x.admin.mint(ctx, nil)
	if err != nil {
		return err
	}
	if err := x.usable(ctx, append(x.tokens, steady)...); err != nil {
		return err
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for _, g := range x.gateways {
		asking.Go(func() {
			a := g.agent()
			defer a.close()
			every(250*time.Millisecond, stop, func(int) { x.words.add(a.call(steady.Token).word()) })
		})
	}
	began := time.Now()
	editing := make(chan error, 1)
	go func() { editing <- x.edit(ctx, edits) }()
	troubling := x.trouble(ctx, edits, cuts)
	if err = <-editing; err == nil {
		err = troubling
	}
	took := time.Since(began)
	rig.Pause(ctx, 5*time.Second)
	close(stop)
	asking.Wait()
	if err != nil {
		return err
	}
	var cut int64
	for _, g := range x.gateways {
		cut += g.way.cuts.Load()
	}
	what := fmt.Sprintf("%d edits of %d profiles in %.0f s", x.done.Load(), len(x.tokens), took.Seconds())
	t.within(cut >= int64(cuts), what+", watches cut at random offsets", fmt.Sprintf("≥ %d", cuts), "%d", cut)
	t.figure("a replica killed with -9 and started again", "%d calls of the administrator sent again", x.retried.Load())
	t.none(x.words.but("200"), "calls at gateways that failed meanwhile ("+x.words.String()+")")
	return x.compare(ctx)
}

// edit changes profiles, some at once; each is changed by one at a time.
func (x *edited) edit(ctx context.Context, edits int) error {
	const editors = 8
	return together(editors, editors, func(n int) error {
		for i := n; i < edits && ctx.Err() == nil; i += editors {
			mine := rand.IntN((len(x.tokens)-n-1)/editors+1)*editors + n
			if err := x.change(ctx, x.tokens[mine].ID); err != nil {
				return err
			}
			x.done.Add(1)
		}
		return ctx.Err()
	})
}

// change makes one edit. What a killed replica left unanswered is sent again: an edit is
// the same twice.
func (x *edited) change(ctx context.Context, id string) error {
	path := "/v1/tokens/" + id
	method, body := http.MethodPatch, map[string]any(nil)
	switch k := rand.IntN(200); {
	case k == 0:
		method, path = http.MethodPost, path+"/quarantine"
	case k == 1 && rand.IntN(4) == 0:
		method, path = http.MethodPost, path+"/revoke"
	case k < 40:
		body = map[string]any{"expires_at": time.Now().Add(time.Hour + rand.N(time.Hour)).UTC().Format(time.RFC3339)}
	case k < 80:
		body = map[string]any{"bindings": map[string]any{"models": nil}, "widen": true}
	case k < 120:
		body = map[string]any{"bindings": map[string]any{"models": []string{"m", "x-*"}}}
	default:
		body = map[string]any{"bindings": map[string]any{"models": []string{"other", "!m"}}}
	}
	var err error
	for try := range 20 {
		var give any
		if body != nil {
			give = body
		}
		if err = x.admin.ask(ctx, method, path, give, nil); err == nil {
			return nil
		}
		var told *refusedError
		if errors.As(err, &told) && told.status == http.StatusConflict {
			return nil // it is revoked for good
		}
		if told != nil && told.status < http.StatusInternalServerError {
			return err
		}
		x.retried.Add(1)
		rig.Pause(ctx, time.Duration(50*(try+1))*time.Millisecond)
	}
	return err
}

// trouble cuts a watch whenever another share of the edits is made, and kills a replica
// in the middle.
func (x *edited) trouble(ctx context.Context, edits, cuts int) error {
	share := int64(edits / (cuts + cuts/10 + 1))
	killed, back := false, false
	for next := share; x.done.Load() < int64(edits)*99/100 && ctx.Err() == nil; rig.Pause(ctx, 2*time.Millisecond) {
		done := x.done.Load()
		if done >= next {
			g := x.gateways[int(next/share)%len(x.gateways)]
			g.way.cutAfter(1 + rand.Int64N(1500))
			next += share
		}
		switch {
		case !killed && done > int64(edits)*2/5:
			killed = true
			x.planes[0].child.Kill()
			x.t.tell("killed %s", x.planes[0].name)
		case !back && done > int64(edits)*3/5:
			back = true
			if err := x.startPlane(ctx, x.planes[0]); err != nil {
				return err
			}
			x.t.tell("%s is back", x.planes[0].name)
		}
	}
	return ctx.Err()
}

// compare asks every gateway for every token and wants what the control plane says.
func (x *edited) compare(ctx context.Context) error {
	truth := make([]profile, len(x.tokens))
	err := together(len(x.tokens), 8, func(i int) error {
		return x.admin.ask(ctx, http.MethodGet, "/v1/tokens/"+x.tokens[i].ID, nil, &truth[i])
	})
	if err != nil {
		return err
	}
	var compared, different atomic.Int64
	var once sync.Once
	err = x.each(func(g *gateway) error {
		a := g.agent()
		defer a.close()
		for i, tok := range x.tokens {
			compared.Add(1)
			if why := differs(a, tok, truth[i]); why != "" {
				different.Add(1)
				once.Do(func() { x.t.tell("%s, %s: %s", g.name, tok.ID, why) })
			}
		}
		return ctx.Err()
	})
	x.t.none(int(different.Load()), fmt.Sprintf("differences 5 s after the last edit, of %d gateways × profiles", compared.Load()))
	return err
}

// profile is what is compared of one.
type profile struct {
	ID, Status string
	Revision   int64
	Expires    string `json:"expires_at"`
	Bindings   struct{ Models []string }
}

// grants says whether the profile lets model m be called.
func (p *profile) grants() bool {
	return p.Bindings.Models == nil || len(p.Bindings.Models) > 0 && p.Bindings.Models[0] == "m"
}

// differs says how a gateway takes a token otherwise than it should; "": not at all.
func differs(a *agent, tok minted, want profile) string {
	who := a.get("/v1/whoami", tok.Token)
	var got profile
	if who.ok() {
		if err := json.Unmarshal(a.body, &got); err != nil {
			return err.Error()
		}
	}
	called := a.call(tok.Token).word()
	if want.Status != "active" {
		if who.word() != "token_revoked" || called != "token_revoked" {
			return fmt.Sprintf("%s, want token_revoked: it is %s", who.word(), want.Status)
		}
		return ""
	}
	expect := "200"
	if !want.grants() {
		expect = "model_not_allowed"
	}
	if !reflect.DeepEqual(got, want) || called != expect {
		return fmt.Sprintf("%s %+v, a call is %s; want %+v and %s", who.word(), got, called, want, expect)
	}
	return ""
}
