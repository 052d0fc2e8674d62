package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/proxy"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/tokencache"
)

// leaveWithin bounds how long an ending gateway waits to give its leases back.
const leaveWithin = 5 * time.Second

// knowledge is what a gateway knows of tokens and budgets, and what keeps it so.
type knowledge struct {
	cache     *tokencache.Cache
	ledger    *budget.Ledger
	budgets   *budgets
	teams     *teams
	follower  *follower
	keeper    *keeper // nil: the control plane is this process's, and has its database
	following bool
	keeping   bool
	log       *zap.Logger
}

// know opens it; nothing is watched before follow.
func (g *gateway) know() (*knowledge, error) {
	cfg := g.config
	folder, err := g.data.id()
	if err != nil {
		return nil, err
	}
	k := &knowledge{log: g.log.Logger, teams: &teams{}}
	var away atomic.Pointer[tokencache.Cache] // the ledger asks before the cache is there
	k.ledger, err = budget.Open(budget.Options{
		Authority: g.authority, Dir: g.data.file(leasesFolder), MaxStale: cfg.ControlPlane.MaxStale,
		Away: func() bool { c := away.Load(); return c != nil && c.Away() },
		Log:  g.log.Logger, Registerer: g.registry,
	})
	if err != nil {
		return nil, fmt.Errorf("open the ledger of budgets: %w", err)
	}
	k.budgets = &budgets{ledger: k.ledger}
	var applied atomic.Int64
	var stopped func(string, int64)
	learned := func() {}
	if g.remote != nil {
		k.keeper = newKeeper(&keeper{
			dir: g.data.path, gatewayID: cfg.GatewayID, maxStale: cfg.ControlPlane.MaxStale, identity: g.remote.identity, token: g.remote.token,
			teams: k.teams, budgets: k.budgets, applied: &applied, log: g.log.Logger, now: time.Now,
		}, g.registry)
		stopped, learned, k.teams.told = k.keeper.stopped, k.keeper.changed, k.keeper.deleted
	}
	k.cache, err = tokencache.New(tokencache.Options{
		Profiles: cfg.Cache.Profiles, FreshFor: cfg.ControlPlane.FreshFor, MaxStale: cfg.ControlPlane.MaxStale,
		Loader: loader{g.authority, k.budgets, k.teams, learned}, Registerer: g.registry, Log: g.log.Logger, GatewayID: cfg.GatewayID,
		Stopped: stopped,
	})
	if err != nil {
		k.settle()
		return nil, err
	}
	away.Store(k.cache)
	if k.keeper != nil {
		k.keeper.cache = k.cache
	}
	k.follower = newFollower(&follower{
		from: g.authority, cache: k.cache, ledger: k.ledger, budgets: k.budgets, keeper: k.keeper, applied: &applied, teams: k.teams, profiles: cfg.Cache.Profiles, log: g.log.Logger, changed: func(*abac.Profile) {},
		self: record.Report{Instance: g.instance, Build: build(), MaxStale: cfg.ControlPlane.MaxStale, Folder: folder},
	}, g.registry)
	return k, nil
}

// follow begins to watch. What the server serves is told of changes.
func (k *knowledge) follow(server *proxy.Server) {
	k.follower.changed = server.TokenChanged
	k.following = true
	go k.follower.run()
}

// close ends it all; what was settled stays so.
func (k *knowledge) close() {
	if k.following {
		k.follower.close()
	}
	if k.keeping {
		k.keeper.close()
	}
	k.settle()
	k.cache.Close()
}

// settle gives the leases back, after the drain. What can't be told now is told by
// the journal at the next start.
func (k *knowledge) settle() {
	within := leaveWithin
	unknown := k.keeper != nil && k.keeper.identity.confirmed() == errNotIdentified
	if unknown { // nobody has lent it anything
		within = 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := k.ledger.Close(ctx); err != nil && !unknown {
		k.log.Warn("the leases could not be given back: the next start from this folder does", zap.Error(err))
	}
}
