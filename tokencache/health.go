package tokencache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/keeptrusts/gateway/token"
)

const probeEvery = time.Second

// health is whether the control plane answers. It is away from the moment an ask
// fails until any ask is answered.
type health struct {
	isAway atomic.Bool // read on every request that asks; written under mu

	mu        sync.Mutex
	answer    time.Time // the last one
	nextProbe time.Time
	unheard   token.Digest // what was asked for when the absence began
}

// answered notes an answer and says whether it ended an absence.
func (h *health) answered(at time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at.After(h.answer) {
		h.answer = at
	}
	return h.isAway.CompareAndSwap(true, false)
}

// failed notes an ask for d without an answer and says whether it began an absence.
func (h *health) failed(d token.Digest, began, at time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if began.Before(h.answer) {
		return false // a later ask than this one has been answered since
	}
	if !h.isAway.CompareAndSwap(false, true) {
		return false
	}
	h.nextProbe, h.unheard = at.Add(probeEvery), d
	return true
}

// missed is what an absence that goes on began with.
func (h *health) missed() (d token.Digest, away bool) {
	if !h.isAway.Load() {
		return d, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unheard, h.isAway.Load()
}

// probe says whether it is time to ask one of the tokens that are waited for,
// once a second.
func (h *health) probe(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isAway.Load() || now.Before(h.nextProbe) {
		return false
	}
	h.nextProbe = now.Add(probeEvery)
	return true
}

func (h *health) lastAnswer() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answer
}
