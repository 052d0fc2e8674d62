package simulator

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func start(t *testing.T, o Options) (*Simulator, *httptest.Server) {
	t.Helper()
	s := New(o)
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return s, srv
}

func post(t *testing.T, srv *httptest.Server, body string) (*http.Response, []byte) {
	t.Helper()
	res, err := http.Post(srv.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read the answer: %v, after %q", err, b)
	}
	return res, b
}

// raw sends body over a connection of its own and gives every byte that comes
// back, and the error that ended it (nil: a clean FIN).
func raw(t *testing.T, srv *httptest.Server, body string) (string, error) {
	t.Helper()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	b, err := io.ReadAll(c)
	return string(b), err
}

var volatile = regexp.MustCompile(`chatcmpl-[A-Z2-7]{26}|call_[A-Z2-7]{26}|"created": ?[0-9]{10}`)

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	got = volatile.ReplaceAllFunc(got, func(b []byte) []byte { return bytes.TrimRight(b, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") })
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update writes it); got:\n%s", name, got)
	}
}

const hi = `"messages":[{"role":"user","content":"say hi"}]`

func TestAnswersAreOnTheWireAsTheProviderWritesThem(t *testing.T) {
	tools := `"tools":[{"type":"function","function":{"name":"other"}},{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"},"unit":{"enum":["C","F"]}}}}}]`
	for name, give := range map[string]string{
		"whole.json":        `{"model":"m",` + hi + `}`,
		"whole_n.json":      `{"model":"m","n":2,` + hi + `,"simulator":{"content":"é & <b>","cached_tokens":2,"reasoning_tokens":5}}`,
		"whole_length.json": `{"model":"m","max_tokens":2,` + hi + `}`,
		"whole_tool.json":   `{"model":"m","tool_choice":{"type":"function","function":{"name":"weather"}},` + tools + `,` + hi + `}`,
		"stream.sse":        `{"model":"m","stream":true,` + hi + `,"simulator":{"chunks":3}}`,
		"stream_usage.sse":  `{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":2,` + hi + `}`,
		"stream_n.sse":      `{"model":"m","stream":true,"stream_options":{"include_usage":true},"n":2,` + hi + `,"simulator":{"content":"a b"}}`,
		"stream_tool.sse":   `{"model":"m","stream":true,"tool_choice":"required",` + tools + `,` + hi + `}`,
		"stream_crlf.sse":   `{"model":"m","stream":true,` + hi + `,"simulator":{"content":"a","crlf":true,"comment":true,"no_done":true}}`,
		"stream_error.sse":  `{"model":"m","stream":true,` + hi + `,"simulator":{"error_after_chunks":1}}`,
		"stream_zero.sse":   `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + hi + `,"simulator":{"content":"a","zero_usage":true}}`,
		"stream_none.sse":   `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + hi + `,"simulator":{"content":"a","no_usage":true}}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, srv := start(t, Options{})
			res, b := post(t, srv, give)
			if res.StatusCode != http.StatusOK {
				t.Fatalf("status %d: %s", res.StatusCode, b)
			}
			golden(t, name, b)
		})
	}
}

func TestErrorsHaveTheProvidersShape(t *testing.T) {
	for _, tc := range []struct {
		name, give string
		status     int
		kind, code string
	}{
		{"no JSON", `{"model":`, 400, "invalid_request_error", ""},
		{"a second document", `{"model":"known",` + hi + `} {}`, 400, "invalid_request_error", ""},
		{"a byte-order mark", "\ufeff" + `{"model":"known",` + hi + `}`, 400, "invalid_request_error", ""},
		{"no object", `null`, 400, "invalid_request_error", ""},
		{"no model", `{` + hi + `}`, 400, "invalid_request_error", ""},
		{"a model of another case is none", `{"MODEL":"known",` + hi + `}`, 400, "invalid_request_error", ""},
		{"model is a number", `{"model":1,` + hi + `}`, 400, "invalid_request_error", "invalid_type"},
		{"no messages", `{"model":"known"}`, 400, "invalid_request_error", "missing_required_parameter"},
		{"empty messages", `{"model":"known","messages":[]}`, 400, "invalid_request_error", "empty_array"},
		{"content of a wrong type", `{"model":"known","messages":[{"role":"user","content":1}]}`, 400, "invalid_request_error", "invalid_type"},
		{"stream is a string", `{"model":"known","stream":"yes",` + hi + `}`, 400, "invalid_request_error", "invalid_type"},
		{"stream_options without stream", `{"model":"known","stream_options":{},` + hi + `}`, 400, "invalid_request_error", ""},
		{"two limits", `{"model":"known","max_tokens":1,"max_completion_tokens":1,` + hi + `}`, 400, "invalid_request_error", "invalid_parameter_combination"},
		{"a limit of 0", `{"model":"known","max_tokens":0,` + hi + `}`, 400, "invalid_request_error", "integer_below_min_value"},
		{"n of 0", `{"model":"known","n":0,` + hi + `}`, 400, "invalid_request_error", "invalid_value"},
		{"a tool nobody gave", `{"model":"known","tool_choice":"required",` + hi + `}`, 400, "invalid_request_error", ""},
		{"unknown model", `{"model":"else",` + hi + `}`, 404, "invalid_request_error", "model_not_found"},
		{"scripted 401", `{"model":"known","simulator":{"status":401}}`, 401, "invalid_request_error", "invalid_api_key"},
		{"scripted 429", `{"model":"known",` + hi + `,"simulator":{"status":429,"retry_after":"1"}}`, 429, "requests", "rate_limit_exceeded"},
		{"scripted 500", `{"model":"known",` + hi + `,"simulator":{"status":500}}`, 500, "server_error", ""},
		{"scripted 503", `{"model":"known","stream":true,` + hi + `,"simulator":{"status":503}}`, 503, "server_error", ""},
		{"a misspelt key of the script", `{"model":"known",` + hi + `,"simulator":{"chunk":1}}`, 400, "invalid_request_error", "invalid_script"},
		{"a status that is no error", `{"model":"known",` + hi + `,"simulator":{"status":301}}`, 400, "invalid_request_error", "invalid_script"},
		{"an unknown cut", `{"model":"known",` + hi + `,"simulator":{"cut":"maybe"}}`, 400, "invalid_request_error", "invalid_script"},
		{"a negative delay", `{"model":"known",` + hi + `,"simulator":{"delay_ms":-1}}`, 400, "invalid_request_error", "invalid_script"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, srv := start(t, Options{Models: []string{"known"}})
			res, b := post(t, srv, tc.give)
			var got struct {
				Error struct {
					Message, Type string
					Param, Code   *string
				}
			}
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatalf("%v in %s", err, b)
			}
			code := ""
			if got.Error.Code != nil {
				code = *got.Error.Code
			}
			if res.StatusCode != tc.status || got.Error.Type != tc.kind || code != tc.code || got.Error.Message == "" {
				t.Errorf("got %d %s", res.StatusCode, b)
			}
			if !bytes.Contains(b, []byte(`"param"`)) || !bytes.Contains(b, []byte(`"code"`)) {
				t.Errorf("param and code must be there, null or not: %s", b)
			}
			if tc.status == 429 && res.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
			}
			if s.Tokens() != (Tokens{}) {
				t.Errorf("billed %+v for an error", s.Tokens())
			}
		})
	}
}

func TestRoutesKeysAndModels(t *testing.T) {
	_, srv := start(t, Options{Models: []string{"a", "b"}, APIKey: "sk-0123456789abcdefghij"})
	for _, tc := range []struct {
		method, path, auth string
		status             int
		want               string
	}{
		{"GET", "/v1/models", "Bearer sk-0123456789abcdefghij", 200, `"id": "b"`},
		{"GET", "/v1/models/a", "bearer sk-0123456789abcdefghij", 200, `"object": "model"`},
		{"GET", "/v1/models/c", "Bearer sk-0123456789abcdefghij", 404, `"code": "model_not_found"`},
		{"GET", "/v1/models", "", 401, "You didn't provide an API key"},
		{"GET", "/v1/models", "Bearer sk-0123456789abcdefghiX", 401, `sk-0***************ghiX`},
		{"GET", "/v1/chat/completions", "Bearer sk-0123456789abcdefghij", 405, "Not allowed to GET"},
		{"POST", "/v1/nothing", "Bearer sk-0123456789abcdefghij", 404, "Invalid URL (POST /v1/nothing)"},
	} {
		t.Run(tc.method+" "+tc.path+" "+tc.auth, func(t *testing.T) {
			req, _ := http.NewRequest(tc.method, srv.URL+tc.path, nil)
			if tc.auth != "" {
				req.Header.Set("Authorization", tc.auth)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			if res.StatusCode != tc.status || !strings.Contains(string(b), tc.want) {
				t.Errorf("got %d %s", res.StatusCode, b)
			}
			for _, h := range []string{"Openai-Organization", "Openai-Version", "Openai-Processing-Ms", "X-Request-Id", "X-Ratelimit-Remaining-Tokens", "Set-Cookie"} {
				if res.Header.Get(h) == "" {
					t.Errorf("no %s", h)
				}
			}
		})
	}
}

func TestUsageIsAFunctionOfTheCall(t *testing.T) {
	s, srv := start(t, Options{})
	_, b := post(t, srv, `{"model":"m","n":3,"messages":[
		{"role":"system","content":" two  words "},
		{"role":"user","content":[{"type":"text","text":"three more words"},{"type":"image_url","image_url":{"url":"data:,"}}]},
		{"role":"assistant","content":null}],"simulator":{"content":"a b c d"}}`)
	var got struct{ Usage usage }
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := Tokens{Prompt: 3 + 3*4 + 2 + 3 + 85, Completion: 3 * 4}
	if got.Usage.Prompt != want.Prompt || got.Usage.Completion != want.Completion || got.Usage.Total != want.Prompt+want.Completion {
		t.Errorf("usage %+v, want %+v", got.Usage, want)
	}
	if s.Tokens() != want || s.Requests()[0].Billed != want {
		t.Errorf("billed %+v and %+v, want %+v", s.Tokens(), s.Requests()[0].Billed, want)
	}
}

func TestGzipComesWithoutBeingAskedFor(t *testing.T) {
	_, srv := start(t, Options{})
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	for give, want := range map[string]string{
		`{"model":"m",` + hi + `,"simulator":{"gzip":true}}`:               `"chat.completion"`,
		`{"model":"m","stream":true,` + hi + `,"simulator":{"gzip":true}}`: "data: [DONE]",
	} {
		res, err := client.Post(srv.URL+"/v1/chat/completions", "", strings.NewReader(give))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(res.Body)
		if err != nil || res.Header.Get("Content-Encoding") != "gzip" {
			t.Fatalf("%v, %v", err, res.Header)
		}
		b, err := io.ReadAll(z)
		res.Body.Close()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%v in %s", err, b)
		}
	}
}

func TestScriptedBodyAndHeaders(t *testing.T) {
	_, srv := start(t, Options{})
	res, b := post(t, srv, `{"simulator":{"status":502,"body":"<html>","headers":{"Content-Type":"text/html","Openai-Organization":"org-mine"}}}`)
	if res.StatusCode != 502 || string(b) != "<html>" || res.Header.Get("Content-Type") != "text/html" || res.Header.Get("Openai-Organization") != "org-mine" {
		t.Errorf("got %d %s %v", res.StatusCode, b, res.Header)
	}
}

func TestRequestsAreKeptAndBounded(t *testing.T) {
	s, srv := start(t, Options{})
	post(t, srv, `{"model":"first",`+hi+`}`)
	got := s.Requests()[0]
	if got.Method != "POST" || got.Path != "/v1/chat/completions" || !strings.Contains(string(got.Body), "first") ||
		got.Header.Get("Content-Type") != "application/json" || got.Ended.Before(got.At) || got.Gone {
		t.Errorf("recorded %+v", got)
	}
	r := httptest.NewRequest("GET", "/v1/models", nil)
	for range maxKept {
		s.ServeHTTP(httptest.NewRecorder(), r)
	}
	if all := s.Requests(); len(all) != maxKept || all[0].Path != "/v1/models" {
		t.Errorf("kept %d, oldest %s", len(all), all[0].Path)
	}
	big := bytes.Repeat([]byte(" "), maxKeptBytes/2)
	for range 3 {
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/models", bytes.NewReader(big)))
	}
	if all := s.Requests(); len(all) != 2 {
		t.Errorf("kept %d bodies of half the bound", len(all))
	}
}

func TestPiecesAddUpToTheContent(t *testing.T) {
	for _, content := range []string{"", " ", "a", " a  b\n", "日本語 x", "one two three"} {
		for n := range 9 {
			got := pieces(content, n)
			want := content
			if content == "" {
				if n > 0 && len(got) != n {
					t.Errorf("%d pieces, want %d", len(got), n)
				}
				continue
			}
			if strings.Join(got, "") != want {
				t.Errorf("pieces(%q, %d) = %q", content, n, got)
			}
		}
	}
}

func FuzzCall(f *testing.F) {
	for _, seed := range []string{`{}`, `null`, `{"model":"m",` + hi + `,"simulator":{"status":429}}`, `{"model":"m","messages":[{"content":[{"text":1}]}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, script, rest := parseCall(body)
		if script == nil && rest == nil && (c.model == "" || c.n < 1 || c.prompt < tokensCall+tokensMessage) {
			t.Errorf("accepted %q as %+v", body, c)
		}
	})
}
