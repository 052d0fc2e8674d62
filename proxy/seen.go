package proxy

import (
	"strconv"
	"time"

	"github.com/keeptrusts/gateway/budget"
)

var (
	headOutputLimit     = []byte("X-Keeptrusts-Output-Limit")
	headBudgetRemaining = []byte("X-Keeptrusts-Budget-Remaining")

	headLimitRequests     = []byte("X-Ratelimit-Limit-Requests")
	headRemainingRequests = []byte("X-Ratelimit-Remaining-Requests")
	headResetRequests     = []byte("X-Ratelimit-Reset-Requests")
	headLimitTokens       = []byte("X-Ratelimit-Limit-Tokens")
	headRemainingTokens   = []byte("X-Ratelimit-Remaining-Tokens")
	headResetTokens       = []byte("X-Ratelimit-Reset-Tokens")
)

// tell tells in an answer's head what the call's admission left.
func (x *exchange) tell(put func(name, value []byte)) {
	if x.most.limit > 0 {
		put(headOutputLimit, strconv.AppendInt(x.text[:0], x.most.limit, 10))
	}
	if x.spends.counted {
		if b := x.s.ledger.AppendRemaining(x.text[:0], x.spends.set); len(b) > 0 {
			put(headBudgetRemaining, b)
		}
	}
	x.tellRates(put)
}

// tellRates tells of the rate limits that the token has, in OpenAI's headers.
func (x *exchange) tellRates(put func(name, value []byte)) {
	r := &x.rates
	if r.LimitRequests > 0 {
		put(headLimitRequests, strconv.AppendInt(x.text[:0], r.LimitRequests, 10))
		put(headRemainingRequests, strconv.AppendInt(x.text[:0], max(0, r.RemainingRequests), 10))
		put(headResetRequests, appendReset(x.text[:0], r.ResetRequests))
	}
	if r.LimitTokens > 0 {
		put(headLimitTokens, strconv.AppendInt(x.text[:0], r.LimitTokens, 10))
		put(headRemainingTokens, strconv.AppendInt(x.text[:0], max(0, r.RemainingTokens), 10))
		put(headResetTokens, appendReset(x.text[:0], r.ResetTokens))
	}
}

// appendReset writes a duration as OpenAI does: 20ms, 1.5s, 6m0s; rounded up to a
// millisecond.
func appendReset(b []byte, d time.Duration) []byte {
	ms := int64((max(d, 0) + time.Millisecond - 1) / time.Millisecond)
	if ms < 1000 {
		return append(strconv.AppendInt(b, ms, 10), "ms"...)
	}
	if m := ms / 60_000; m > 0 {
		if m >= 60 {
			b = append(strconv.AppendInt(b, m/60, 10), 'h')
		}
		b = append(strconv.AppendInt(b, m%60, 10), 'm')
		ms %= 60_000
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	if f := ms % 1000; f > 0 {
		b = append(b, '.', byte('0'+f/100))
		if f %= 100; f > 0 {
			b = append(b, byte('0'+f/10))
			if f %= 10; f > 0 {
				b = append(b, byte('0'+f))
			}
		}
	}
	return append(b, 's')
}

// overBudget says which budget does not bear the call, what is left of it, when it
// reopens and whom to ask.
func (x *exchange) overBudget(d *budget.Denied) *refusal {
	u, id := d.Record.Unit, x.entry.ID
	if d.Held {
		x.denied = codeBudgetHeld
		f := refuse(codeBudgetHeld, "Budget %s of token %s has %s left, and this call may take up to %s: the rest is held by calls that run, or by other gateways. Send it again.", d.Record.ID, id, amount(u, d.Left), amount(u, d.Need))
		f.retryAfter = 1
		return f
	}
	x.denied = codeBudgetExceeded
	opens := "It does not reopen by itself"
	if d.ReopensIn > 0 {
		opens = "It reopens at " + reopens(time.Now().Add(d.ReopensIn)).Format(time.RFC3339)
	}
	f := refuse(codeBudgetExceeded, "Budget %s of token %s (%s, window %s) has %s left, and this call may take up to %s. %s; ask for less, or ask your administrator to raise it or top it up.", d.Record.ID, id, amount(u, d.Record.Limit), d.Record.Window, amount(u, d.Left), amount(u, d.Need), opens)
	f.final, f.retryAfter = true, seconds(d.ReopensIn)
	return f
}

func (x *exchange) overRate() *refusal {
	x.denied = codeRateLimited
	r := x.policy.Profile().Bindings.RateLimits
	limit, of := r.RequestsPerMinute, "requests a minute"
	switch x.rates.Which {
	case "tokens":
		limit, of = r.TokensPerMinute, "tokens a minute"
	case "parallel":
		limit, of = r.MaxParallelRequests, "requests in parallel"
	}
	f := refuse(codeRateLimited, "Token %s may make %d %s at this gateway, and they are used up. Send it again after Retry-After, or ask your administrator to raise the limit.", x.entry.ID, limit, of)
	f.retryAfter = max(1, seconds(x.rates.RetryAfter))
	return f
}

// amount writes an amount with its unit, for people.
func amount(u budget.Unit, n int64) string { return u.Format(n) + " " + string(u) }

// seconds rounds up.
func seconds(d time.Duration) int {
	if d <= 0 {
		return 0
	}
	return int((d + time.Second - 1) / time.Second)
}
