// Package record is the decision record of every request, and where it goes.
package record

import "time"

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

	LastUsed  []Use       `json:"last_used,omitempty"`
	Misplaced []Misplaced `json:"misplaced,omitempty"`
}
