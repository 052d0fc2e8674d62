package proxy

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/record"
)

// Reporter takes what a gateway tells the control plane of itself. Safe for
// concurrent use.
type Reporter interface {
	Report(ctx context.Context, r record.Report) error
}

const (
	reportEvery   = 5 * time.Second
	reportTimeout = 3 * time.Second
	// maxPending bounds what waits for a control plane that is away; of what does
	// not fit only the freshest use would be lost.
	maxPending = 100_000
	// usesAReport bounds what one report asks of the control plane: with more tokens
	// in use than that a token's last use is told every few reports, its latest.
	usesAReport = 1000
	// misplacedEvery is how often one misplaced token is logged and noted.
	misplacedEvery = time.Minute
	// misplacedGap is more than the minute in which the control plane takes one of a
	// gateway: the others wait here, each for its own.
	misplacedGap = misplacedEvery + 2*time.Second
)

// usedWithin is how exact a last use is, in seconds.
const usedWithin = 15

// uses notes which tokens were used. A token that was noted in the same window
// costs one load, from its entry.
type uses struct {
	mu      sync.Mutex
	pending map[string]time.Time
}

func (u *uses) note(x *exchange) {
	window := uint32(x.began.Unix() / usedWithin)
	if at := &x.entry.Notes.Used; at.Load() == window || at.Swap(window) == window {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pending == nil {
		u.pending = make(map[string]time.Time)
	}
	if _, known := u.pending[x.entry.ID]; known || len(u.pending) < maxPending {
		u.pending[x.entry.ID] = x.began
	}
}

// take removes up to n uses, any of them.
func (u *uses) take(n int) []record.Use {
	u.mu.Lock()
	defer u.mu.Unlock()
	n = min(n, len(u.pending))
	if n == 0 {
		return nil
	}
	all := make([]record.Use, 0, n)
	for id, at := range u.pending {
		if len(all) == n {
			break
		}
		all = append(all, record.Use{TokenID: id, At: at})
		delete(u.pending, id)
	}
	return all
}

// putBack keeps what could not be reported, unless something later is known.
func (u *uses) putBack(all []record.Use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, use := range all {
		if at, ok := u.pending[use.TokenID]; !ok && len(u.pending) < maxPending || ok && use.At.After(at) {
			if u.pending == nil {
				u.pending = make(map[string]time.Time)
			}
			u.pending[use.TokenID] = use.At
		}
	}
}

// reporter sends reports every 5 s and signs off at the end.
type reporter struct {
	s    *Server
	to   Reporter
	base record.Report
	stop chan struct{}
	done chan struct{}

	mu        sync.Mutex
	misplaced []record.Misplaced
	noted     map[string]time.Time // digest → when it was last noted
	// toldMisplaced is when one was last reported.
	toldMisplaced time.Time
}

func newReporter(s *Server, o Options) *reporter {
	r := &reporter{
		s: s, to: o.Reporter, noted: make(map[string]time.Time),
		base: record.Report{Instance: o.Instance, Build: o.Build, MaxStale: o.Config.ControlPlane.MaxStale},
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	if r.to == nil {
		close(r.done)
		return r
	}
	go r.run()
	return r
}

// close sends the last report, which signs the instance off.
func (r *reporter) close() {
	close(r.stop)
	<-r.done
}

func (r *reporter) run() {
	defer close(r.done)
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	r.send(false)
	for {
		select {
		case <-tick.C:
			r.send(false)
		case <-r.stop:
			r.send(true)
			return
		}
	}
}

func (r *reporter) send(signOff bool) {
	defer func() {
		if v := recover(); v != nil {
			r.s.faulted(v)
		}
	}()
	report := r.base
	report.SignOff = signOff
	uses := usesAReport
	if signOff {
		uses = maxPending
	}
	report.LastUsed = r.s.used.take(uses)
	r.mu.Lock()
	if len(r.misplaced) > 0 && time.Since(r.toldMisplaced) >= misplacedGap {
		report.Misplaced, r.misplaced = r.misplaced[:1:1], r.misplaced[1:]
		r.toldMisplaced = time.Now()
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	if err := r.to.Report(ctx, report); err != nil {
		r.s.log.Debug("report to the control plane", zap.Error(err))
		r.s.used.putBack(report.LastUsed)
		r.mu.Lock()
		if len(report.Misplaced) > 0 {
			r.misplaced, r.toldMisplaced = append(report.Misplaced, r.misplaced...), time.Time{}
		}
		r.mu.Unlock()
	}
}

// noteMisplaced logs and reports a runtime token met on the data plane, once a
// minute a token: whoever holds it may be a loop.
func (s *Server) noteMisplaced(x *exchange) {
	digest := x.entry.Digest.String()
	r := s.reporter
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.noted[digest]; ok && x.began.Sub(at) < misplacedEvery {
		return
	}
	if len(r.noted) > 10_000 {
		clear(r.noted)
	}
	r.noted[digest] = x.began
	client := ""
	if x.client != nil {
		client = x.client.remote
	}
	s.log.Warn("misplaced credential: a gateway's runtime token was used on the data plane; rotate it",
		zap.String("token_id", x.entry.ID), zap.String("client", client), zap.String("request_id", string(x.id[:])))
	waits := slices.ContainsFunc(r.misplaced, func(m record.Misplaced) bool { return m.Digest == digest })
	if r.to != nil && !waits && len(r.misplaced) < 1000 {
		r.misplaced = append(r.misplaced, record.Misplaced{Digest: digest, Client: client, At: x.began})
	}
}
