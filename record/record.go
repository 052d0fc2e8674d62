// Package record is the decision record of every request, and where it goes.
package record

import (
	"time"

	"go.uber.org/zap"
)

// Record is what is kept of one request: its line in the log, and its line in the
// sink. Whoever fills it copies every string that would otherwise point into a
// request's buffers, and bounds the claims. It may be reused once Write and the
// logger have returned. Not safe for concurrent use, not even to be read: writing
// it uses space inside it.
type Record struct {
	Time      time.Time // when the request came
	RequestID string
	TokenID   string // "" where no token was found
	Purpose   string
	Team      string
	Model     string // the entry's name in the config; "" where none was found
	Target    string // the last that was tried; "" where none was
	Status    int    // as sent; 0 where the client left before any was
	Code      string // of the refusal, or of what ended the answer; "" when all was well
	Stream    bool

	Duration  time.Duration // from the first byte in to the last byte out
	Upstream  time.Duration // of it, time spent with upstreams
	FirstByte time.Duration // until the answer's first byte went out

	InputTokens  int64
	OutputTokens int64
	Cost         int64  // nano-USD, as charged
	Estimated    bool   // tokens and cost are bounds: the provider did not tell
	Client       string // the source address

	// What the client claims of itself. Nobody has checked it.
	ClientRequestID string
	AgentID         string

	Action    string
	GatewayID string
	Reason    string // of the decision

	// Identity is what AppendIdentity makes, kept for a token's next requests; nil:
	// it is made anew.
	Identity []byte

	text   [24]byte // a cost being written
	fields [1]zap.Field
}

// Use is the last time that a token was used at a gateway.
type Use struct {
	TokenID string    `json:"token_id"`
	At      time.Time `json:"at"`
}

// Misplaced is a runtime token met on the data plane, where it should never be.
type Misplaced struct {
	Digest string    `json:"sha256"`
	Client string    `json:"client"` // the source address
	At     time.Time `json:"at"`
}

// Report is what a gateway tells the control plane of itself every 5 s.
type Report struct {
	Instance string        `json:"instance"`  // random, made at the process's start
	Build    string        `json:"build"`     // what `kt-gateway version` prints
	MaxStale time.Duration `json:"max_stale"` // nanoseconds; unheard for longer, the instance is forgotten
	SignOff  bool          `json:"sign_off,omitempty"`
	Revision int64         `json:"revision,omitempty"` // up to which every change is applied; 0: not known
	Folder   string        `json:"folder,omitempty"`   // names the data folder: whoever ran from it before is gone

	LastUsed  []Use       `json:"last_used,omitempty"`
	Misplaced []Misplaced `json:"misplaced,omitempty"`
}
