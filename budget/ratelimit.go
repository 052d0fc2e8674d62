package budget

import "time"

// Rates are the rate limits of a token. 0: none.
type Rates struct{ RequestsPerMinute, TokensPerMinute, MaxParallel int64 }

// RateState is what is left of a token's rate limits, for the headers of an answer.
type RateState struct {
	LimitRequests, RemainingRequests int64 // a minute
	LimitTokens, RemainingTokens     int64
	ResetRequests, ResetTokens       time.Duration // until all is there again
	RetryAfter                       time.Duration // of a refusal
	Which                            string        // that refused: "requests", "tokens", "parallel"
}

// Limiters are the limiters of a gateway, one a token.
type Limiters struct{}

// NewLimiters makes an empty set.
func NewLimiters() *Limiters { return &Limiters{} }

// Of returns the limiter of a token.
func (ls *Limiters) Of(tokenID string, r Rates) *Limiter { return &Limiter{} }

// Limiter is the rate limits of one token at this gateway.
type Limiter struct{}

// Take admits a call, or takes nothing.
func (l *Limiter) Take(now time.Time, input int64) (RateState, bool) { return RateState{}, true }

// Undo gives back what Take took: the call was refused after it.
func (l *Limiter) Undo(input int64) {}

// Done is the end of an admitted call.
func (l *Limiter) Done(now time.Time, output int64) {}
