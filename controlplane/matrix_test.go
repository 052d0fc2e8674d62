package controlplane

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// matrix is what every caller may do at every endpoint. A row is an endpoint, a
// column a caller; a cell is a status, and for a refusal its code's short form.
const matrix = `
                                 admin      none garbage unknown general integration runtime other early expired revoked quarantined
POST   /v1/tokens                201        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/tokens                200        401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/tokens/identify       200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/tokens/{id}           200        401  401     401     403     403         403     403   nyv   exp     rev     rev
PATCH  /v1/tokens/{id}           200        401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/tokens/{id}/rotate    201        401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/tokens/{id}/quarantine 200       401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/tokens/{id}/release   200        401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/tokens/{id}/revoke    200        401  401     401     403     403         403     403   nyv   exp     rev     rev
DELETE /v1/tokens/{id}           200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/budgets               200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/budgets/{id}          200        401  401     401     403     403         403     403   nyv   exp     rev     rev
PUT    /v1/budgets/{id}          200        401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/budgets/{id}/top-up   200        401  401     401     403     403         403     403   nyv   exp     rev     rev
POST   /v1/tokens/import         200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/teams                 200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/teams/{id}            200        401  401     401     403     403         403     403   nyv   exp     rev     rev
PUT    /v1/teams/{id}            200        401  401     401     403     403         403     403   nyv   exp     rev     rev
DELETE /v1/teams/{id}            200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/usage                 200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/gateways              200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/gateways/{id}         200        401  401     401     403     403         403     403   nyv   exp     rev     rev
PUT    /v1/gateways/{id}         200        401  401     401     403     403         403     403   nyv   exp     rev     rev
DELETE /v1/gateways/{id}         200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/audit                 200        401  401     401     403     403         403     403   nyv   exp     rev     rev
GET    /v1/whoami                200        401  401     401     403     200         200     200   nyv   exp     rev     rev
GET    /v1/whoami/usage          403        401  401     401     403     200         403     403   nyv   exp     rev     rev
POST   /v1/runtime/resolve       403        401  401     401     403     403         200     200   nyv   exp     rev     rev
GET    /v1/runtime/watch         403        401  401     401     403     403         200     200   nyv   exp     rev     rev
POST   /v1/runtime/report        403        401  401     401     403     403         200     200   nyv   exp     rev     rev
POST   /v1/runtime/leases        403        401  401     401     403     403         200     200   nyv   exp     rev     rev
POST   /v1/runtime/settlements   403        401  401     401     403     403         200     200   nyv   exp     rev     rev
GET    /v1/runtime/snapshot      403        401  401     401     403     403         200     200   nyv   exp     rev     rev
GET    /v1/runtime               404        401  401     401     404     404         404     404   404   404     404     404
POST   /v1/budgets               405        401  401     401     405     405         405     405   405   405     405     405
DELETE /v1/budgets/{id}          405        401  401     401     405     405         405     405   405   405     405     405
GET    /                         404        401  401     401     404     404         404     404   404   404     404     404
GET    //v1/tokens               404        401  401     401     404     404         404     404   404   404     404     404
GET    /v1/tokens/               404        401  401     401     404     404         404     404   404   404     404     404
GET    /v1/./tokens              404        401  401     401     404     404         404     404   404   404     404     404
GET    /v1/%74okens              404        401  401     401     404     404         404     404   404   404     404     404
GET    /V1/tokens                404        401  401     401     404     404         404     404   404   404     404     404
PUT    /v1/tokens                405        401  401     401     405     405         405     405   405   405     405     405
GET    /v1/runtime/resolve       405        401  401     401     405     405         405     405   405   405     405     405
GET    /v1/tokens/identify       405        401  401     401     405     405         405     405   405   405     405     405
`

var cells = map[string]string{
	"200": "200 ", "201": "201 ",
	"401": "401 invalid_api_key", "403": "403 purpose_not_allowed", "404": "404 unknown_endpoint", "405": "405 method_not_allowed",
	"nyv": "401 token_not_yet_valid", "exp": "401 token_expired", "rev": "401 token_revoked",
}

func TestEveryProfileCanDoWhatTheMatrixSaysAndNothingElse(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(matrix), "\n")
	callers := strings.Fields(lines[0])
	met := map[string]bool{}
	p := newPlane(t)
	bearers := map[string]string{}
	for _, name := range callers {
		bearers[name] = p.callerNamed(name)
	}
	for _, line := range lines[1:] {
		row := strings.Fields(line)
		method, path := row[0], row[1]
		met[method+" "+path] = true
		var id, secret, before string // what is asked of, and what it is; a refused call leaves it so
		for i, name := range callers {
			bearer := bearers[name]
			t.Run(fmt.Sprintf("%s %s as %s", method, path, name), func(t *testing.T) {
				things := func() string {
					return p.must(200, "GET", "/v1/tokens/"+id, nil).raw + p.must(200, "GET", "/v1/budgets/"+id, nil).raw +
						p.must(200, "GET", "/v1/teams/"+id, nil).raw + gateway(p, id)
				}
				if id == "" {
					id, secret = p.mint("general", nil)
					if strings.HasSuffix(path, "/release") {
						p.must(200, "POST", "/v1/tokens/"+id+"/quarantine", nil)
					}
					p.must(201, "PUT", "/v1/teams/"+id, nil)
					p.must(201, "PUT", "/v1/gateways/"+id, nil)
					p.must(201, "PUT", "/v1/budgets/"+id, fields{"unit": "usd", "window": "day", "limit": "1"})
					before = things()
				}
				body := map[string]any{
					"POST /v1/tokens":          fields{"name": "n", "purpose": "general"},
					"POST /v1/tokens/identify": fields{"sha256": sha(secret)},
					"PATCH /v1/tokens/{id}":    fields{"name": "other"},
					"POST /v1/runtime/resolve": fields{"sha256": sha(secret)},
					"POST /v1/runtime/report":  fields{"instance": "i"},

					"POST /v1/tokens/import": fields{"name": "n", "purpose": "general", "sha256": sha("imported " + name)},

					"PUT /v1/budgets/{id}":         fields{"limit": "2"},
					"POST /v1/budgets/{id}/top-up": fields{"amount": "1", "key": "k"},

					"POST /v1/runtime/leases": fields{"session": "ls_" + name, "seq": 1,
						"needs": [][]fields{{{"budget": id, "window": "current", "amount": 1}}}},
					"POST /v1/runtime/settlements": fields{"settlements": []fields{{"id": name, "at": p.now(), "token_id": id,
						"requests": 1, "budgets": []fields{{"budget": id, "amount": 1}}}}},
				}[method+" "+path]
				a := p.call(bearer, method, strings.ReplaceAll(path, "{id}", id), body)
				if got := fmt.Sprintf("%d %s", a.status, a.code()); got != cells[row[2+i]] {
					t.Fatalf("got %s, want %s: %s", got, cells[row[2+i]], a.raw)
				}
				checkShape(t, a)
				if a.status < 400 {
					id = ""
				} else if after := things(); after != before {
					t.Fatalf("a refused call changed the token or the budget:\n%s\n%s", before, after)
				}
			})
		}
	}
	for _, r := range routes() {
		if !met[r.method+" "+r.path] {
			t.Errorf("the matrix has no row for %s %s", r.method, r.path)
		}
	}
}

// A parameter that is not understood may have been meant to restrain.
func TestAnUnknownParameterIsRefusedEverywhereAndChangesNothing(t *testing.T) {
	p := newPlane(t)
	bearers := map[who]string{administrator: adminToken, runtime: p.callerNamed("runtime"), integration: p.callerNamed("integration")}
	id, _ := p.mint("general", nil)
	budget := fields{"unit": "usd", "window": "day", "limit": "1"}
	p.must(201, "PUT", "/v1/teams/"+id, nil)
	p.must(201, "PUT", "/v1/gateways/"+id, nil)
	p.must(201, "PUT", "/v1/budgets/"+id, budget)
	bodies := map[string]fields{
		"POST /v1/tokens":              {"name": "n", "purpose": "general"},
		"PUT /v1/budgets/{id}":         budget,
		"POST /v1/budgets/{id}/top-up": {"amount": "1", "key": "k"},
	}
	things := func() string {
		return p.must(200, "GET", "/v1/tokens", nil).raw + p.must(200, "GET", "/v1/budgets/"+id, nil).raw +
			p.must(200, "GET", "/v1/teams/"+id, nil).raw + gateway(p, id)
	}
	before := things()
	for _, r := range routes() {
		bearer := bearers[r.open&-r.open]
		for query, want := range map[string]string{"dry_run=1": "unknown_parameter dry_run", "dry_run": "unknown_parameter dry_run", "a=%zz": "invalid_request "} {
			body := bodies[r.method+" "+r.path]
			if body == nil {
				body = fields{}
			}
			a := p.call(bearer, r.method, strings.ReplaceAll(r.path, "{id}", id)+"?"+query, body)
			if got := a.code() + " " + a.param(); a.status != 400 || got != want {
				t.Errorf("%s %s?%s: got %d %s, want 400 %s", r.method, r.path, query, a.status, got, want)
			}
		}
	}
	if after := things(); after != before {
		t.Errorf("a refused call changed something:\n%s\n%s", before, after)
	}
	p.must(200, "GET", "/v1/tokens/"+id+"?", nil) // an empty query has none
}

// gateway is what is answered of a record, if there is one.
func gateway(p *plane, id string) string { return p.admin("GET", "/v1/gateways/"+id, nil).raw }

// callerNamed makes the credential of a column.
func (p *plane) callerNamed(name string) string {
	var id, secret string
	bound := fields{"gateway_id": "gw_local"}
	switch name {
	case "admin":
		return adminToken
	case "none":
		return ""
	case "garbage":
		return "kt_live_garbage"
	case "unknown":
		return "kt_live_" + strings.Repeat("0", 43) + "1jIOm5"
	case "general":
		_, secret = p.mint("general", nil)
	case "integration":
		_, secret = p.mint("integration", nil)
	case "runtime":
		_, secret = p.mint("gateway_runtime", bound)
	case "other":
		_, secret = p.mint("gateway_runtime", fields{"gateway_id": "gw_other"})
	case "early":
		_, secret = p.mint("gateway_runtime", bound, fields{"not_before": p.now().Add(61 * time.Second)})
	case "expired":
		_, secret = p.mint("gateway_runtime", bound, fields{"expires_at": p.now()})
	case "revoked":
		id, secret = p.mint("gateway_runtime", bound)
		p.must(200, "POST", "/v1/tokens/"+id+"/revoke", nil)
	case "quarantined":
		id, secret = p.mint("gateway_runtime", bound)
		p.must(200, "POST", "/v1/tokens/"+id+"/quarantine", nil)
	}
	return secret
}

// checkShape holds every answer to what all have in common.
func checkShape(t *testing.T, a answer) {
	t.Helper()
	want := map[bool]string{true: "application/json", false: eventStream}[a.body != nil]
	if a.body["result"] != nil {
		want = ndjson
	}
	if a.header.Get("X-Request-Id") == "" || a.header.Get("Content-Type") != want {
		t.Errorf("headers: %v", a.header)
	}
	if got, want := a.header.Get("Www-Authenticate"), map[bool]string{true: "Bearer"}[a.status == 401]; got != want {
		t.Errorf("%d: WWW-Authenticate %q", a.status, got)
	}
	if (a.header.Get("Allow") != "") != (a.status == 405) {
		t.Errorf("%d: Allow %q", a.status, a.header.Get("Allow"))
	}
	if a.status < 400 {
		return
	}
	e, _ := a.body["error"].(map[string]any)
	wantType := map[bool]string{true: "permission_error", false: "invalid_request_error"}[a.status == 403]
	if _, ok := e["param"]; !ok || e["message"] == "" || e["type"] != wantType || len(e) != 4 {
		t.Errorf("not an error's shape: %s", a.raw)
	}
}

func TestCredentialsAreTakenUnderTheDataPlanesRules(t *testing.T) {
	p := newPlane(t)
	_, secret := p.mint("integration", nil)
	for _, tt := range []struct {
		name, path string
		headers    []string
		want       string
	}{
		{"the scheme's case does not matter", "/v1/whoami", []string{"Authorization", "bEARER " + secret}, "200 "},
		{"api-key is the same thing", "/v1/whoami", []string{"api-key", secret}, "200 "},
		{"x-api-key is the same thing", "/v1/whoami", []string{"x-api-key", secret}, "200 "},
		{"the admin token comes in either", "/v1/tokens", []string{"x-api-key", adminToken}, "200 "},
		{"two equal ones are refused", "/v1/whoami", []string{"Authorization", "Bearer " + secret, "Authorization", "Bearer " + secret}, "400 multiple_credentials"},
		{"two of different headers are refused", "/v1/whoami", []string{"Authorization", "Bearer " + secret, "api-key", secret}, "400 multiple_credentials"},
		{"an empty second one counts", "/v1/whoami", []string{"Authorization", "Bearer " + secret, "x-api-key", ""}, "400 multiple_credentials"},
		{"another scheme is none", "/v1/whoami", []string{"Authorization", "Basic " + secret}, "401 invalid_api_key"},
		{"two in one header are none", "/v1/whoami", []string{"Authorization", "Bearer " + secret + ", Bearer " + secret}, "401 invalid_api_key"},
		{"a scheme alone is none", "/v1/whoami", []string{"Authorization", "Bearer"}, "401 invalid_api_key"},
		{"a token in the query is none", "/v1/whoami?key=" + secret, nil, "401 invalid_api_key"},
		{"a token in the query beside one is refused", "/v1/whoami?key=" + secret, []string{"api-key", secret}, "400 credential_in_query"},
		{"an escaped token in the query is found", "/v1/whoami?key=kt%5Flive_" + secret[8:], []string{"api-key", secret}, "400 credential_in_query"},
		{"a legacy key in the query is found", "/v1/whoami?kt_ak_0123456789abcdef", []string{"api-key", secret}, "400 credential_in_query"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := p.call("", "GET", tt.path, nil, tt.headers...)
			if got := fmt.Sprintf("%d %s", a.status, a.code()); got != tt.want {
				t.Fatalf("got %s, want %s", got, tt.want)
			}
			if strings.Contains(a.raw, secret) {
				t.Fatalf("the answer holds the token: %s", a.raw)
			}
		})
	}
}
