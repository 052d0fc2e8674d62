package controlplane

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/keeptrusts/gateway/controlplane/store"
	"github.com/keeptrusts/gateway/token"
)

// TestNoTokenIsInTheDatabaseOrTheLog uses tokens in every right place and in many
// wrong ones, then looks for their bytes.
func TestNoTokenIsInTheDatabaseOrTheLog(t *testing.T) {
	p := newPlane(t)
	id, general := p.mint("general", fields{"team_id": "red"})
	_, runtime := p.mint("gateway_runtime", fields{"gateway_id": "gw"})
	rotated := p.must(201, "POST", "/v1/tokens/"+id+"/rotate", nil).text("token")
	secrets := []string{general, runtime, rotated}

	for _, s := range secrets {
		for _, c := range []struct{ bearer, method, path, body string }{
			{s, "GET", "/v1/whoami", ""},
			{s, "GET", "/v1/whoami?key=" + s, ""},
			{"", "GET", "/v1/whoami?key=" + s, ""},
			{adminToken, "GET", "/v1/tokens/" + s, ""},
			{adminToken, "GET", "/" + s, ""},
			{adminToken, "GET", "/v1/tokens?cursor=" + s, ""},
			{adminToken, "GET", "/v1/tokens?team_id=" + s, ""},
			{adminToken, "POST", "/v1/tokens/identify", `{"sha256":"` + s + `"}`},
			{runtime, "POST", "/v1/runtime/resolve", `{"sha256":"` + sha(s) + `"}`},
			{runtime, "POST", "/v1/runtime/report", `{"instance":"i","misplaced":[{"sha256":"` + sha(s) + `","client":"10.0.0.1"}]}`},
			{runtime, "POST", "/v1/runtime/report", `{"instance":"i","build":"` + s + `"}`},
		} {
			a := p.call(c.bearer, c.method, c.path, c.body)
			if a.status == 500 || strings.Contains(a.raw, s) {
				t.Errorf("%s %s: %d, the answer may hold the token", c.method, c.path, a.status)
			}
		}
	}
	for _, s := range secrets {
		for _, header := range []string{"X-Keeptrusts-Instance", "X-Keeptrusts-Build"} {
			if a := p.call(runtime, "POST", "/v1/runtime/resolve", fields{"sha256": sha(s)}, header, s); a.status != 400 {
				t.Errorf("a token as %s: %d", header, a.status)
			}
		}
		for _, body := range []string{
			`{"name":"` + s + `","purpose":"general"}`, `{"name":"n","purpose":"` + s + `"}`, `{"` + s + `":1}`,
			`{"name":"n","purpose":"general","bindings":{"models":["` + s + `"]}}`,
			`{"name":"n","purpose":"general","bindings":{"` + s + `":1}}`, `{"name":"kt_\u006cive_` + s[8:] + `","purpose":"general"}`,
		} {
			if a := p.admin("POST", "/v1/tokens", body); a.status != 400 || strings.Contains(a.raw, s) {
				t.Errorf("%s: %d %s", body, a.status, a.raw)
			}
		}
	}
	search := func(where string, data []byte) {
		t.Helper()
		for _, s := range secrets {
			if bytes.Contains(data, []byte(adminToken)) || bytes.Contains(data, []byte(s[8:])) {
				t.Errorf("%s holds a token", where)
			}
		}
	}
	search("the log", []byte(p.logs.String()))
	if !strings.Contains(p.logs.String(), `"endpoint":"POST /v1/tokens/{id}/rotate"`) {
		t.Error("the log has no line for a request")
	}
	files, err := filepath.Glob(p.file + "*")
	if err != nil || len(files) < 2 {
		t.Fatalf("files %v %v", files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		search(f, data)
	}
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(p.file)
	if err != nil {
		t.Fatal(err)
	}
	search("the closed database", data)
	if !bytes.Contains(data, []byte(sha(general))) {
		t.Error("the closed database does not even hold the digest: nothing was searched")
	}
}

func TestAPanicIsAnErrorInShape(t *testing.T) {
	p := newPlane(t)
	secret := token.Mint().Reveal()
	p.server.routes = append(p.server.routes, route{"GET", "/v1/panic", administrator, nothing, func(*Server, *call) (int, any, error) {
		panic("with " + secret)
	}})
	a := p.admin("GET", "/v1/panic", nil)
	if a.status != 500 || a.code() != "internal_error" || strings.Contains(a.raw, secret) || strings.Contains(p.logs.String(), secret) {
		t.Errorf("%d %s\n%s", a.status, a.raw, p.logs)
	}
	if !strings.Contains(p.logs.String(), `"status":500`) || !strings.Contains(p.logs.String(), `"stack"`) {
		t.Errorf("log: %s", p.logs)
	}
}

func TestTheAdminToken(t *testing.T) {
	s, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "k.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for admin, ok := range map[string]bool{
		strings.Repeat("a", 23): false, strings.Repeat("a", 24): true, strings.Repeat("a", 23) + " ": false, strings.Repeat("a", 23) + "ä": false,
	} {
		_, err := New(Options{Store: s, AdminToken: token.NewSecret(admin), Log: zap.NewNop()})
		if (err == nil) != ok || err != nil && strings.Contains(err.Error(), admin) {
			t.Errorf("%q: %v", admin, err)
		}
	}
	// Without one nobody is the administrator, not even with an empty bearer.
	p := newPlane(t)
	if p.server, err = New(Options{Store: p.store}); err != nil {
		t.Fatal(err)
	}
	for _, bearer := range []string{"", " ", adminToken} {
		c := &call{r: newRequest(t, bearer)}
		if who, err := p.server.identify(c.r); err == nil || who.admin {
			t.Errorf("bearer %q is %+v", bearer, who)
		}
	}
}
