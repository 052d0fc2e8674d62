package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/test/postgres"
	"github.com/keeptrusts/gateway/token"
)

// imports sends lines as the administrator and returns the results.
func (p *plane) imports(body io.Reader) []Imported {
	p.t.Helper()
	c, err := NewClient(ClientOptions{URL: p.url, Token: func() (token.Secret, error) { return token.NewSecret(adminToken), nil }})
	if err != nil {
		p.t.Fatal(err)
	}
	var list []Imported
	if err := c.Import(context.Background(), body, func(r Imported) { list = append(list, r) }); err != nil {
		p.t.Fatal(err)
	}
	return list
}

func importable(secret, more string) string {
	return fmt.Sprintf(`{"name":"n","purpose":"general","sha256":"%s"%s}`, sha(secret), more)
}

func TestEachLineOfAnImportHasItsResult(t *testing.T) {
	p := newPlane(t)
	_, minted := p.mint("general", nil, fields{"name": "n"})
	p.must(201, "PUT", "/v1/budgets/b_day", fields{"unit": "usd", "window": "day", "limit": "1"})
	known := importable("kt_ak_known00000000000000", "")
	p.imports(strings.NewReader(known))
	const b = `,"bindings":{"budgets":[{"id":"%s","limit":"%s","unit":"usd","window":"day"}]}`
	secret := "kt_live_" + strings.Repeat("0", 43) + "1jIOm5"
	lines := []struct{ line, result, says string }{
		{importable("1", ""), "created", ""},
		{importable("1", ""), "same", ""},
		{importable("1", `,"org_id":"org_b"`), "conflict", "another org_id"},
		{known, "same", ""},
		{importable("kt_ak_known00000000000000", `,"expires_at":"2027-01-01T00:00:00Z"`), "conflict", "expires_at"},
		{importable("kt_ak_known00000000000000", `,"bindings":{"models":["x"]}`), "conflict", "bindings"},
		{importable(minted, ""), "same", ""},
		{"", "", ""},
		{" \t\r", "", ""},
		{`{"name":"n","sha256":"` + sha("2") + `"}`, "refused", "purpose is required"},
		{`{"name":"n","purpose":"general"}`, "refused", "sha256 is required"},
		{`{"name":"n","purpose":"general","sha256":"12"}`, "refused", "64 hexadecimal"},
		{`{"name":"n","purpose":"general","token":"` + secret + `"}`, "refused", "token"},
		{`{"name":"n","purpose":"general","token":"sk-0123456789"}`, "refused", "hashes it where you are"},
		{`{"name":"` + secret + `","purpose":"general","sha256":"` + sha("3") + `"}`, "refused", "holds a token"},
		{importable(adminToken, ""), "refused", "admin token"},
		{`{"name":`, "refused", "invalid_json"},
		{`[]`, "refused", "must be a JSON object"},
		{importable("4", `,"typo":1`), "refused", "typo: Unknown key"},
		{importable("4", `,"purpose":"general"`), "refused", "ambiguous_key"},
		{importable("4", `,"note":"`+strings.Repeat("x", maxImportLine)+`"`), "refused", "longer than"},
		{importable("5", fmt.Sprintf(b, "b_new", "2")), "created", ""},
		{importable("6", fmt.Sprintf(b, "b_new", "2")), "created", ""},
		{importable("7", fmt.Sprintf(b, "b_day", "2")), "refused", "budget_conflict"},
		{importable("8", `,"bindings":{"budgets":[{"id":"b_first","limit":"1","unit":"usd","window":"day"},{"id":"b_none"}]}`), "refused", "unknown_budget"},
		{importable("9", `,"bindings":{"team_id":"platform","models":["a*"]}`), "created", ""},
		{`{"name":"g","purpose":"gateway_runtime","sha256":"` + sha("10") + `"}`, "refused", "gateway_id is required"},
		{importable("11", ""), "created", ""}, // and no line's end
	}
	var body []string
	for _, l := range lines {
		body = append(body, l.line)
	}
	for again, created := range []string{"created", "same"} {
		got := p.imports(strings.NewReader(strings.Join(body, "\n")))
		n := 0
		for i, l := range lines {
			if l.result == "" {
				continue
			}
			want := l.result
			if want == "created" {
				want = created
			}
			if n >= len(got) {
				t.Fatalf("no result of line %d", i+1)
			}
			r := got[n]
			n++
			if r.Line != i+1 || r.Result != want || (r.ID == nil) != (want == "refused") || (r.Error != nil) != (l.says != "") {
				t.Errorf("again %d, line %d: %+v, want %s", again, i+1, r, want)
			} else if r.Error != nil && !strings.Contains(*r.Error, l.says) {
				t.Errorf("line %d: %s, want %s", i+1, *r.Error, l.says)
			}
			if r.Error != nil && (strings.Contains(*r.Error, secret) || strings.Contains(*r.Error, "sk-")) {
				t.Errorf("line %d repeats the string: %s", i+1, *r.Error)
			}
		}
		if n != len(got) {
			t.Errorf("%d results too many", len(got)-n)
		}
	}
	if strings.Contains(p.logs.String(), secret) || strings.Contains(p.logs.String(), "sk-") {
		t.Error("a log line holds a string that was sent")
	}
	// A line that was refused left nothing behind; what was created is there, and audited.
	p.must(404, "GET", "/v1/budgets/b_first", nil)
	p.must(200, "GET", "/v1/budgets/b_new", nil)
	a := p.must(200, "POST", "/v1/tokens/identify", fields{"sha256": sha("9")})
	profile := a.body["profile"].(map[string]any)
	if profile["status"] != "active" || profile["hint"] != "sha256:"+sha("9")[:8]+"…" {
		t.Errorf("%v", profile)
	}
	entries := p.must(200, "GET", "/v1/audit?event=token.imported&limit=1000", nil).body["data"].([]any)
	if len(entries) != 6 {
		t.Errorf("%d entries of the audit log", len(entries))
	}
	for _, v := range entries {
		e := v.(map[string]any)
		if after := e["after"].(map[string]any); e["actor"] != "administrator" || e["before"] != nil || after["id"] != e["subject"] ||
			p.must(200, "GET", "/v1/tokens/"+e["subject"].(string), nil).body["revision"] != after["revision"] {
			t.Errorf("%v", e)
		}
	}
}

// A result comes when its line was sent, not when all were.
func TestAnImportAnswersWhileItIsSent(t *testing.T) {
	p := newPlane(t)
	r, w := io.Pipe()
	req, err := http.NewRequest("POST", p.url+"/v1/tokens/import", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	go func() { _, _ = fmt.Fprintln(w, importable("1", "")) }()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	answers := bufio.NewReader(res.Body)
	for n := 1; n <= 3; n++ {
		line, err := answers.ReadString('\n')
		var got Imported
		if err != nil || json.Unmarshal([]byte(line), &got) != nil || got.Line != n || got.Result != ImportCreated {
			t.Fatalf("%q, %v", line, err)
		}
		if n < 3 {
			_, _ = fmt.Fprintln(w, importable(fmt.Sprint(n+1), ""))
		}
	}
	_ = w.Close()
	if rest, err := io.ReadAll(answers); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// A caller that reads nothing before it has sent all is no deadlock.
func TestAnImportTakesAllBeforeAnythingIsRead(t *testing.T) {
	p := newPlane(t)
	const n = 100_000 // whose results are more than sockets hold
	body := strings.Repeat(importable("1", "")+"\n", n)
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := fmt.Fprintf(conn, "POST /v1/tokens/import HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", adminToken, len(body), body); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(res.Body)
	if got := strings.Count(string(answer), `"result":"same"`); err != nil || res.StatusCode != 200 || got != n-1 {
		t.Fatalf("%d results, %v", got, err)
	}
}

// What breaks off ends as a failure, and what was answered is there.
func TestAnImportThatBreaksOffDoesNotLookWhole(t *testing.T) {
	p := newPlane(t)
	r, w := io.Pipe()
	go func() { _, _ = fmt.Fprintln(w, importable("1", "")) }()
	c, err := NewClient(ClientOptions{URL: p.url, Token: func() (token.Secret, error) { return token.NewSecret(adminToken), nil }})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = c.Import(context.Background(), r, func(Imported) {
		n++
		_ = p.store.Close()
		go func() { _, _ = fmt.Fprintln(w, importable("2", "")) }()
	})
	if n != 1 || err == nil {
		t.Fatalf("%d results, %v", n, err)
	}
}

// BenchmarkImport imports b.N lines: -benchtime 100000x.
func BenchmarkImport(b *testing.B) {
	server, err := postgres.New()
	if err != nil {
		b.Fatal(err)
	}
	defer server.Stop()
	for _, name := range []string{"sqlite", "postgres"} {
		b.Run(name, func(b *testing.B) {
			var body strings.Builder
			for i := range b.N {
				fmt.Fprintf(&body, `{"name":"app-%d","purpose":"general","sha256":"%s","bindings":{"team_id":"t%d","models":["gpt-*"]}}`+"\n", i, sha(fmt.Sprint(i)), i%50)
			}
			p := &plane{t: b, file: filepath.Join(b.TempDir(), "k.db"), logs: &logBuffer{}, at: time.Now()}
			if name == "postgres" {
				if p.dsn, err = server.Database(); err != nil {
					b.Fatal(err)
				}
			}
			p.open()
			b.ResetTimer()
			if got := p.imports(strings.NewReader(body.String())); len(got) != b.N || got[b.N-1].Result != ImportCreated {
				b.Fatalf("%d results", len(got))
			}
		})
	}
}

func TestAnImportOverPostgres(t *testing.T) {
	server, err := postgres.New()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	p := &plane{t: t, logs: &logBuffer{}, at: time.Now()}
	if p.dsn, err = server.Database(); err != nil {
		t.Fatal(err)
	}
	p.open()
	defer func() { _ = p.store.Close() }()
	var body strings.Builder
	for i := range 1200 {
		more := ""
		switch {
		case i%100 == 7:
			more = `,"bindings":{"budgets":[{"id":"b_first","limit":"1","unit":"usd","window":"day"},{"id":"b_none"}]}`
		case i%100 == 8:
			more = `,"bindings":{"budgets":[{"id":"b_day","limit":"1","unit":"usd","window":"day"}]}`
		}
		fmt.Fprintln(&body, importable(fmt.Sprint(i), more))
	}
	for _, created := range []string{ImportCreated, ImportSame} {
		counts := map[string]int{}
		for _, r := range p.imports(strings.NewReader(body.String())) {
			counts[r.Result]++
		}
		if counts[created] != 1188 || counts[ImportRefused] != 12 {
			t.Errorf("%v", counts)
		}
	}
	head, err := p.store.Head(context.Background())
	if err != nil || head != 1189 { // and a budget
		t.Errorf("head %d, %v", head, err)
	}
	log, err := p.store.AuditLog(context.Background(), store.AuditFilter{Limit: 2000})
	if err != nil || len(log) != 1189 || log[0].Seq != 1189 {
		t.Errorf("%d entries, %v", len(log), err)
	}
}
