package abac

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// spec is the design's §3 once more, in the order of its sentences, sharing no
// code with Decide. left says which targets stay.
func spec(p *Profile, r *Request) (reason string, left []bool) {
	b := &p.Bindings
	deny := func(bad bool, why string) {
		if bad && reason == "" {
			reason = why
		}
	}
	pair := string(p.Purpose) + "+" + string(p.PrincipalType)
	deny(p.ID == "" || p.OrgID == "", "profile_invalid")
	deny(pair != "general+api_token" && pair != "integration+api_token" && pair != "gateway_runtime+gateway_runtime", "profile_invalid")
	deny(p.Status != "active" && p.Status != "quarantined" && p.Status != "revoked", "profile_invalid")
	deny(p.Purpose == "gateway_runtime" && b.GatewayID == nil, "profile_invalid")
	deny(b.GatewayID != nil && *b.GatewayID == "" || b.TeamID != nil && *b.TeamID == "", "profile_invalid")
	deny(b.Budgets != nil && len(b.Budgets) == 0 || specBadRates(b.RateLimits) || len(b.Invalid) > 0, "profile_invalid")
	deny(slices.ContainsFunc(slices.Concat(b.Models, b.Providers), specBadPattern), "profile_invalid")
	deny(p.Status != "active", "token_revoked")
	deny(p.NotBefore != nil && r.Now.Add(time.Minute).Before(*p.NotBefore), "token_not_yet_valid")
	deny(p.ExpiresAt != nil && r.Now.Compare(*p.ExpiresAt) >= 0, "token_expired")
	deny(p.OrgID != r.OrgID, "invalid_api_key")
	deny(p.Purpose == "gateway_runtime" || r.Action < Execute || r.Action > Self, "purpose_not_allowed")
	deny(b.GatewayID != nil && *b.GatewayID != r.GatewayID, "gateway_mismatch")
	deny(r.Team != "" && (b.TeamID == nil || *b.TeamID != r.Team), "team_mismatch")
	deny(b.TeamID != nil && slices.Contains(specDeleted(r), *b.TeamID), "team_mismatch")
	if reason != "" || r.Action != Execute {
		deny(reason == "", "allowed")
		return reason, nil
	}

	granted := func(list []string, name string) (ok bool) {
		for _, s := range list {
			if exclusion, is := strings.CutPrefix(s, "!"); is && specMatch(exclusion, name) {
				return false
			}
			ok = ok || specMatch(s, name) && s[0] != '!'
		}
		return ok || list == nil && p.Purpose == "general"
	}
	deny(!granted(b.Models, r.Model), "model_not_allowed")
	deny(len(r.Targets) == 0, "model_not_found")
	deny(len(r.Targets) > 64, "profile_invalid")
	left = slices.Repeat([]bool{true}, len(r.Targets))
	narrow := func(why string, keep func(Target) bool) {
		for i, t := range r.Targets {
			left[i] = left[i] && keep(t)
		}
		deny(!slices.Contains(left, true), why)
	}
	narrow("team_mismatch", func(t Target) bool {
		return len(t.Teams) == 0 || b.TeamID != nil && slices.Contains(t.Teams, *b.TeamID)
	})
	narrow("model_not_allowed", func(t Target) bool {
		return t.Model == "" || b.Models == nil || granted(append([]string{"*"}, b.Models...), t.Model)
	})
	narrow("provider_not_allowed", func(t Target) bool { return granted(b.Providers, t.ID) })
	deny(true, "allowed")
	return reason, left
}

// specMatch keeps, for each place in s, whether the pattern read so far reaches it.
func specMatch(pattern, s string) bool {
	reach := make([]bool, len(s)+1)
	reach[0] = true
	for _, c := range []byte(pattern) {
		next := make([]bool, len(s)+1)
		for i := range next {
			if c == '*' {
				next[i] = reach[i] || i > 0 && next[i-1]
			} else {
				next[i] = i > 0 && reach[i-1] && s[i-1] == c
			}
		}
		reach = next
	}
	return reach[len(s)]
}

func specDeleted(r *Request) []string {
	if r.DeletedTeams == nil {
		return nil
	}
	return slices.Collect(maps.Keys(r.DeletedTeams.ids))
}

func specBadPattern(s string) bool {
	s = strings.TrimPrefix(s, "!")
	return s == "" || utf8.RuneCountInString(s) > 128 || strings.Count(s, "*") > 8 ||
		strings.ContainsFunc(s, func(c rune) bool { return c == utf8.RuneError || unicode.Is(unicode.Cc, c) })
}

func specBadRates(r *RateLimits) bool {
	const most = 1_000_000_000_000
	bad := func(n int64) bool { return n < 0 || n > most }
	return r != nil && (*r == RateLimits{} || bad(r.RequestsPerMinute) || bad(r.TokensPerMinute) || bad(r.MaxParallelRequests))
}

// specTargets is left as Decision.Targets writes it.
func specTargets(reason string, left []bool) (set uint64) {
	if reason == "allowed" {
		for i, is := range left {
			if is {
				set |= 1 << i
			}
		}
	}
	return set
}
