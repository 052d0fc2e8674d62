package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
)

// Check 7 as far as it can be told from here. What a call may cost at most is known
// to the gateway that reads it, and so are the rates that a token has reached there.

const atAdmission = "at admission"

// budgets asks where the budgets stand that the token's calls are charged to.
func (q *question) budgets(ctx context.Context, p program, a *adminFlags) ([]counted, error) {
	all, err := listAll(ctx, p, a, "/v1/budgets", url.Values{"token_id": {q.tokenID}})
	if err != nil {
		return nil, err
	}
	return decodeAll[counted](all)
}

// reserve adds check 7 to what abac said, in the order in which a gateway meets it.
func (v *verdict) reserve(cfg *config.Config, profile *abac.Profile, list []counted) {
	v.Budgets = list
	reached := v.Allowed
	add := func(name, code, detail string) {
		switch {
		case !reached:
			v.Checks = append(v.Checks, checkResult{name, "not reached", detail})
		case code == "":
			v.Checks = append(v.Checks, checkResult{name, "ok", detail})
		default:
			v.Checks = append(v.Checks, checkResult{name, "denied", detail})
			v.deny(code, detail)
		}
	}
	for _, b := range profile.Bindings.Budgets {
		if !names(list, b.ID) {
			add("budget "+b.ID, "profile_invalid", "the token names it, and there is none with this id")
		}
	}
	if spendsUSD(list) {
		code, detail := v.prices(cfg)
		add("price", code, detail)
	}
	if profile.Bindings.RateLimits == nil || !reached {
		add("rate_limits", "", v.rates.Detail)
	} else {
		v.Checks = append(v.Checks, checkResult{"rate_limits", atAdmission, v.rates.Detail + ", by each gateway for itself"})
	}
	if len(list) == 0 {
		add("budgets", "", "none")
	}
	for i := range list {
		code, detail := list[i].spendable()
		add("budget "+list[i].ID, code, detail)
	}
}

// deny notes the first reason.
func (v *verdict) deny(code, detail string) {
	if !v.Allowed {
		return
	}
	v.Allowed, v.Code, v.Detail, v.Targets = false, code, detail, []string{}
	v.Status = http.StatusForbidden
	if code == "budget_exceeded" || code == "budget_held" {
		v.Status = http.StatusTooManyRequests
	}
}

func names(list []counted, id string) bool {
	for i := range list {
		if list[i].ID == id {
			return true
		}
	}
	return false
}

func spendsUSD(list []counted) bool {
	for i := range list {
		if list[i].Unit == budget.USD && list[i].Mode == string(budget.Enforce) {
			return true
		}
	}
	return false
}

// prices says whether every target that is left has a price for text.
func (v *verdict) prices(cfg *config.Config) (code, detail string) {
	entry := cfg.Find(v.Model)
	if entry == nil {
		return "", "no entry, so no price"
	}
	var missing []string
	for _, r := range pricesOf(entry) {
		for _, id := range v.Targets {
			if note := r.missing(); r.Target == id && note != "" {
				missing = append(missing, note)
			}
		}
	}
	if missing != nil {
		return "price_unknown", "the file lacks " + strings.Join(missing, "; ")
	}
	return "", "known at every target that is left"
}

// spendable says whether anything of a budget can still be spent: what is left, and
// what gateways hold idle, which they give back.
func (b *counted) spendable() (code, detail string) {
	detail = fmt.Sprintf("%s of %s %s a %s left, %s settled, %s held, %s leased", b.Left, b.limitText(), b.Unit, b.Window, b.Settled, b.Held, b.Leased)
	if b.Window == string(budget.Total) {
		detail = strings.Replace(detail, " a total", " in total", 1)
	}
	if b.ReopensAt != nil {
		detail += "; reopens " + moment(b.ReopensAt, "")
	}
	switch {
	case b.Mode != string(budget.Enforce):
		return "", "observed, denies nothing: " + detail
	case some(b.Left), some(b.Leased):
		return "", detail
	case some(b.Held):
		return "budget_held", detail
	}
	return "budget_exceeded", detail
}

// some says whether an amount is above zero; one that is not understood opens nothing.
func some(amount string) bool {
	return strings.ContainsAny(amount, "123456789") && strings.Trim(amount, "0123456789.") == ""
}
