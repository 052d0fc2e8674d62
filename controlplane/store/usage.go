package store

import (
	"context"
	"time"
)

// UsageFilter says what usage is asked for; a zero field does not narrow.
type UsageFilter struct {
	OrgID   string
	TokenID string
	TeamID  string
	Model   string
	From    time.Time // the first day, UTC
	To      time.Time // the last day, UTC
	By      []string  // of "token", "team", "model", "target", "day": what rows are told apart by
	Limit   int       // at most so many rows; 0: all
	After   *UsageRow // rows after this one of the same filter; nil: from the first
}

// UsageRow is a sum of settlements. What it is not told apart by is "".
type UsageRow struct {
	TokenID, TeamID, Model, Target string
	Day                            string // "2026-11-24", UTC

	Requests                       int64
	Input, CachedInput, CacheWrite int64 // tokens, disjoint
	Output, Reasoning              int64
	AudioInput, AudioOutput        int64
	Cost                           int64 // nano-USD
	Unpriced                       int64 // of Requests: a part had no price and counts 0
	Estimated                      int64 // of Requests: the provider told no usage
}

// Usage sums settlements, in the order of By's values.
func (s *Store) Usage(ctx context.Context, f UsageFilter) ([]UsageRow, error) {
	return nil, errNotYet
}
