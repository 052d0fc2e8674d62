package proxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// A provider may tell more of its limits than fits into any array.
func TestEveryAllowedHeaderOfAnAnswerPassesHoweverManyThereAre(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("anthropic-ratelimit-%02d: %d", i, i))
	}
	u := answering(t, whole(429, `{"error":{"message":"Slow down."}}`, append(lines, "retry-after: 9", "x-should-retry: false")...))
	g := start(t, plainConfig(u.url))
	r := g.do(call(g.key, plainBody))
	for i := range 40 {
		if got := r.header[fmt.Sprintf("Anthropic-Ratelimit-%02d", i)]; len(got) != 1 || got[0] != fmt.Sprint(i) {
			t.Errorf("header %d: %q", i, got)
		}
	}
	if r.header.Get("Retry-After") != "9" || r.header.Get("X-Should-Retry") != "false" {
		t.Errorf("%v", r.header)
	}
}

func TestWhatATargetsConfigSetsAClientDoesNotSend(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, strings.Replace(plainConfig(u.url), "secret_key_ref: {file: target-secret}",
		`secret_key_ref: {file: target-secret}, headers: {User-Agent: ours, OpenAI-Beta: ours, anthropic-version: ours, X-Stainless-Lang: ours}`, 1))
	r := g.do(call(g.key, plainBody, "User-Agent: theirs", "openai-beta: theirs", "Anthropic-Version: theirs", "x-stainless-lang: theirs", "x-stainless-os: theirs",
		"OpenAI_Beta: under", "x_stainless_os: under", "anthropic_version: under", "User_Agent: under", "X_Client_Request_Id: under"))
	if r.status != 200 {
		t.Fatalf("%d %q", r.status, r.body)
	}
	sent := u.seen()[0]
	if strings.Contains(sent, "under") {
		t.Errorf("a name with an underscore went up: %q", sent)
	}
	for name, value := range map[string]string{"user-agent": "ours", "openai-beta": "ours", "anthropic-version": "ours", "x-stainless-lang": "ours", "x-stainless-os": "theirs"} {
		if n := strings.Count(strings.ToLower(sent), "\r\n"+name+":"); n != 1 || !strings.Contains(strings.ToLower(sent), name+": "+value+"\r\n") {
			t.Errorf("%s stands %d times: %q", name, n, sent)
		}
	}
}

// Under a name that is not its own a content type is none: the provider gets the default.
func TestAContentTypeWithAnUnderscoreIsNone(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	if r := g.do(call(g.key, plainBody, "Content_Type: application/json")); r.status != 200 {
		t.Fatalf("%d %q", r.status, r.body)
	}
	if sent := u.seen()[0]; strings.Contains(sent, "Content_Type") || strings.Count(sent, "Content-Type: application/json\r\n") != 1 {
		t.Errorf("sent up: %q", sent)
	}
}

func TestATargetThatStandsTwiceIsCalledOnce(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(500, `{"error":{"message":"No."}}`))
	g := start(t, strings.Replace(plainConfig(u.url), "{name: mapped, targets: [{id: main, model: other}]}",
		"{name: mapped, targets: [{id: main, model: a}, {id: main, model: b}]}", 1))
	if r := g.do(call(g.key, strings.Replace(plainBody, "chat", "mapped", 1))); r.status != 500 {
		t.Errorf("%d %q", r.status, r.body)
	}
	if n := len(u.seen()); n != 1 {
		t.Errorf("it got %d calls", n)
	}
}

func TestARefusalRepeatsNoKeyThatMayBeAToken(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	const legacy = "kt_ak_zzzzzzzzzzzzzzzzzzzz"
	r := g.do(call(g.key, `{"model":"chat","`+legacy+`":1,"`+legacy+`":2}`))
	if r.status != 400 || strings.Contains(string(r.body), legacy) || r.problem().Code != "ambiguous_key" {
		t.Errorf("%d %q", r.status, r.body)
	}
}

// A decision is counted where one was made.
func TestDecisionsAreCountedOnceTheyAreMade(t *testing.T) {
	t.Parallel()
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	for _, raw := range []string{
		call(g.key, plainBody),                                        // allowed
		call(g.key, `{"messages":[]}`),                                // no model: none
		call(g.key, `{`),                                              // none
		call(g.key, plainBody, "Content-Type: text/plain"),            // none
		call("", plainBody),                                           // invalid_api_key
		call("kt_live_x", plainBody),                                  // invalid_api_key
		call(token.Mint().Reveal(), plainBody),                        // invalid_api_key
		call(g.key, strings.Replace(plainBody, "chat", "nothing", 1)), // model_not_found
		get("/v1/models", g.key),                                      // allowed
		get("/v1/nothing", g.key),                                     // none
		strings.Replace(get("/v1/models", g.key), "GET", "DELETE", 1), // allowed: the method is another matter
	} {
		g.do(raw)
	}
	for reason, want := range map[string]float64{abac.Allowed.String(): 3, "invalid_api_key": 3, "model_not_found": 1} {
		if got := g.metric("keeptrusts_gateway_decisions_total", "reason="+reason); got != want {
			t.Errorf("%s: %v, want %v", reason, got, want)
		}
	}
	eventually(t, "a refused credential's line has its reason", func() bool {
		for _, l := range g.log.lines() {
			if l["code"] == "invalid_api_key" {
				return l["reason"] == "invalid_api_key"
			}
		}
		return false
	})
}
