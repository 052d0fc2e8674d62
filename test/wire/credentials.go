package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
)

// presented is one way of writing a credential into a head.
type presented struct {
	line string
	good bool // it is a known token, alone
}

// presentations writes a token that is known and others that are not.
func presentations(key string) []presented {
	unknown := key[:8] + strings.Repeat("0", 43) + "1jIOm5" // well formed, and nobody's
	bad := []string{"Authorization:", "Authorization: Bearer", "Authorization: Bearer ", "Authorization: Basic " + key, "Authorization: " + key, "Authorization: Bearer\t" + key,
		"Authorization: Bearer Bearer " + key, "Authorization: Bearer " + key + "a", "Authorization: Bearer " + key[:len(key)-1], "Authorization: Bearer \"" + key + "\"", "Authorization: Bearer " + key + ", Bearer " + key,
		"Authorization: Bearer " + key + " x", "Authorization: Bearer " + strings.ToUpper(key), "Authorization: Bearer " + unknown, "Authorization: Bearer sk-proj-0123456789abcdefghijklmnop", "Authorization: Token " + key,
		"api-key:", "api-key: Bearer " + key, "x-api-key: " + unknown, "X-Api-Key: kt_ak_0123456789abcdef", "Authorization: Bearer kt_zz_0123456789abcdef"}
	good := []string{"Authorization: Bearer " + key, "authorization: bearer " + key, "AUTHORIZATION:BEARER  " + key + " \t", "api-key: " + key, "Api-Key:\t" + key, "x-api-key: " + key, "X-API-KEY: " + key}
	var all []presented
	for _, l := range good {
		all = append(all, presented{l, true})
	}
	for _, l := range bad {
		all = append(all, presented{l, false})
	}
	return all
}

// queries hold a token in every disguise that some parser undoes; sound ones do not.
func queries(key string) (holding, sound []string) {
	percent := func(s string, times int) string {
		for range times {
			var b strings.Builder
			for i := range len(s) {
				if i%3 == 0 || s[i] == '%' {
					fmt.Fprintf(&b, "%%%02x", s[i])
				} else {
					b.WriteByte(s[i])
				}
			}
			s = b.String()
		}
		return s
	}
	for _, k := range []string{key, percent(key, 1), percent(key, 2), strings.ToUpper(percent(key[:1], 1)) + key[1:], "%6b%74%5Flive_" + key[8:]} {
		for _, q := range []string{"key=%s", "%s", "%s=1", "a=b&key=%s", "a=b;key=%s", "key=%s&a=b", "key=x%s", "key=Bearer+%s", "key=Bearer%%20%s", "a=%%zz&key=%s", "a=%%zz%s", "key=%%00%s", "api-version=1&api_key=%s&a", "?%s", "key[]=%s", "{\"k\":\"%s\"}"} {
			if q := fmt.Sprintf(q, k); !strings.ContainsAny(q, " \x00") {
				holding = append(holding, q)
			}
		}
	}
	return holding, []string{"", "api-version=2024-10-21", "a=b&c=%2f%20+", "a=kt_live_&b=kt_live_short", "a=%zz&b=%", "kt_ak_short", "a=" + url.QueryEscape("https://x/?y=z")}
}

// presenting is one case: lines of credentials, and a query.
type presenting struct {
	lines []presented
	query string
	holds bool // the query holds a token
}

// want is the code that a case is refused with, "" where it is served, and another
// one that will do.
func (c *presenting) want() (code, or string) {
	switch {
	case len(c.lines) == 0:
		return "invalid_api_key", ""
	case c.holds && len(c.lines) > 1:
		return "credential_in_query", "multiple_credentials"
	case c.holds:
		return "credential_in_query", ""
	case len(c.lines) > 1:
		return "multiple_credentials", ""
	case !c.lines[0].good:
		return "invalid_api_key", ""
	}
	return "", ""
}

func everyPresenting(key string) (all []presenting) {
	lines := presentations(key)
	holding, sound := queries(key)
	for i := range lines {
		all = append(all, presenting{lines: lines[i : i+1]})
		for j := range lines {
			all = append(all, presenting{lines: []presented{lines[i], lines[j]}})
		}
	}
	all = append(all, presenting{}, presenting{lines: lines[:3]})
	for _, q := range holding {
		all = append(all, presenting{query: q, holds: true}, presenting{lines: lines[:1], query: q, holds: true}, presenting{lines: lines[3:4], query: q, holds: true})
	}
	for _, q := range sound {
		all = append(all, presenting{query: q}, presenting{lines: lines[:1], query: q}, presenting{lines: lines[len(lines)-1:], query: q})
	}
	return all
}

// credentials presents tokens in every way and has the provider witness that none
// passes.
func credentials(ctx context.Context, t *trial) error {
	g, err := newGateway(ctx, t, layout{})
	if err != nil {
		return err
	}
	key, err := g.admin.mint(ctx, minting{})
	if err != nil {
		return err
	}
	cases := everyPresenting(key.Token)
	var wrong, leaked, served atomic.Int64
	secrets := []string{key.Token, targetSecret, key.Token[12:40]}
	together(len(cases), 16, func(i int) {
		c := &cases[i]
		id := fmt.Sprintf("credential/%d", i)
		target := "/v1/chat/completions"
		if c.query != "" {
			target += "?" + c.query
		}
		var lines strings.Builder
		for _, l := range c.lines {
			lines.WriteString(l.line + "\r\n")
		}
		raw := strings.Replace(call{script: script{id: id}, more: lines.String()}.text(""), "/v1/chat/completions", target, 1)
		got := g.deliver(ctx, raw, 0, &verdict{served: []string{""}})
		if len(got.answers) != 1 {
			t.miss("%q: %d answers", raw, len(got.answers))
			wrong.Add(1)
			return
		}
		a := got.answers[0]
		if text := fmt.Sprint(a.head) + a.body; holdsAny(text, secrets) {
			leaked.Add(1)
			t.miss("%q: a secret stands in the answer", raw)
		}
		want, or := c.want()
		if a.code != want && (or == "" || a.code != or) || want == "" && a.status != 200 || (a.status == 401) != (a.head.Get("WWW-Authenticate") == "Bearer") {
			wrong.Add(1)
			t.miss("%q ?%s: want %q, got %v", lines.String(), c.query, want, a)
		}
		seen := g.up.of(id)
		if len(seen) > 1 || (len(seen) == 1) != (want == "") {
			wrong.Add(1)
			t.miss("%q: %d calls went upstream", raw, len(seen))
		}
		for _, r := range seen {
			served.Add(1)
			auth := r.req.get("Authorization")
			if len(auth) != 1 || auth[0] != "Bearer "+targetSecret || r.req.get("api-key") != nil || r.req.get("x-api-key") != nil || holdsAny(string(r.raw), []string{key.Token, key.Token[12:40]}) || r.req.target != target {
				leaked.Add(1)
				t.miss("went upstream: %q", r.raw)
			}
		}
	})
	log, err := os.ReadFile(g.child.Log)
	if err != nil {
		return err
	}
	t.figure(len(cases) >= 300, "at least 300", "%d ways of presenting a credential, in headers and queries", len(cases))
	t.figure(wrong.Load() == 0, "0", "%d answered otherwise than DESIGN §5 says; %d served", wrong.Load(), served.Load())
	t.figure(leaked.Load() == 0, "0", "%d tokens upstream, or secrets in an answer", leaked.Load())
	t.figure(!holdsAny(string(log), secrets), "none", "no secret in %d bytes of log", len(log))
	g.sound(ctx, key.Token)
	return nil
}

func holdsAny(text string, secrets []string) bool {
	for _, s := range secrets {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}
