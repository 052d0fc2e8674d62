package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/controlplane"
	"github.com/keeptrusts/gateway/token"
)

const followAdmin = "admin-secret-0123456789abcdef"

// child is a kt-gateway of its own.
type child struct {
	*exec.Cmd
	log   string
	ended chan struct{}
}

// runChild starts kt-gateway with its log in a file of the folder.
func runChild(t *testing.T, dir, name string, env []string, args ...string) *child {
	t.Helper()
	path, err := exec.LookPath("kt-gateway")
	if err != nil {
		t.Fatal(err)
	}
	c := &child{Cmd: exec.Command(path, args...), log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	f, err := os.Create(c.log)
	if err != nil {
		t.Fatal(err)
	}
	c.Dir, c.Stderr, c.Env = dir, f, append(env, "PATH="+os.Getenv("PATH"), "HOME="+dir)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	go func() { _ = c.Wait(); close(c.ended) }()
	t.Cleanup(c.kill)
	return c
}

func (c *child) kill() {
	_ = c.Process.Kill()
	<-c.ended
}

// field waits for a log line and returns one of its fields.
func (c *child) field(t *testing.T, msg, key string) string {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b, _ := os.ReadFile(c.log)
		for _, line := range bytes.Split(b, []byte("\n")) {
			var f map[string]any
			if json.Unmarshal(line, &f) == nil && f["msg"] == msg {
				return fmt.Sprint(f[key])
			}
		}
	}
	b, _ := os.ReadFile(c.log)
	t.Fatalf("no %q in the log:\n%s", msg, b)
	return ""
}

// fleet is a control plane and two gateways in processes of their own, before an
// upstream of the test's.
type fleet struct {
	t        *testing.T
	dir      string
	plane    *child
	api      *controlplane.Client
	url      string
	gateways []string // of the data planes
	metrics  []string
	ids      []string
	secrets  []string // runtime tokens
	children []*child
}

func startFleet(t *testing.T, upstream http.HandlerFunc) *fleet {
	t.Helper()
	return startFleetWith(t, upstream, "")
}

// startFleetWith has more lines in each gateway's control_plane.
func startFleetWith(t *testing.T, upstream http.HandlerFunc, more string) *fleet {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	f := &fleet{t: t, dir: t.TempDir()}
	f.control("127.0.0.1:0")
	for i, id := range []string{"gw_1", "gw_2"} {
		secret := f.mint(map[string]any{"name": id, "purpose": "gateway_runtime", "bindings": map[string]any{"gateway_id": id}}).Token
		yaml := fmt.Sprintf("gateway_id: %s\nlisten: 127.0.0.1:0\noperations_listen: 127.0.0.1:0\ndata_dir: %s\ncontrol_plane:\n  url: %s\n"+
			"  token: {secret_key_ref: {file: %s.token}}\n%sproviders:\n  targets:\n    - {id: up, base_url: %q}\nmodels:\n  - {name: m, targets: [{id: up}]}\nlimits: {lame_duck: 0s}\n",
			id, id, f.url, id, more, up.URL+"/v1")
		if err := os.WriteFile(filepath.Join(f.dir, id+".yaml"), []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		f.ids, f.secrets = append(f.ids, id), append(f.secrets, secret)
		f.gateways, f.metrics, f.children = append(f.gateways, ""), append(f.metrics, ""), append(f.children, nil)
		f.writeToken(i, secret)
		f.start(i)
	}
	f.inSync(5 * time.Second)
	return f
}

func (f *fleet) writeToken(i int, secret string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, f.ids[i]+".token"), []byte(secret+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// start starts a gateway from its folder.
func (f *fleet) start(i int) {
	f.t.Helper()
	c := runChild(f.t, f.dir, f.ids[i], nil, "run", "-c", f.ids[i]+".yaml")
	f.gateways[i] = "http://" + c.field(f.t, "gateway is listening", "addr")
	f.metrics[i] = "http://" + c.field(f.t, "operations are listening", "addr") + "/metrics"
	f.children[i] = c
}

// control starts the control plane, on the database that the folder has.
func (f *fleet) control(addr string) {
	f.plane = runChild(f.t, f.dir, "plane", []string{"KEEPTRUSTS_ADMIN_TOKEN=" + followAdmin},
		"control-plane", "--database", "sqlite:"+filepath.Join(f.dir, "plane.db"), "--listen", addr)
	f.url = f.plane.field(f.t, "control plane is listening", "url")
	var err error
	f.api, err = controlplane.NewClient(controlplane.ClientOptions{URL: f.url, Token: func() (token.Secret, error) { return token.NewSecret(followAdmin), nil }})
	if err != nil {
		f.t.Fatal(err)
	}
}

type mintedToken struct{ ID, Token string }

func (f *fleet) mint(body map[string]any) (m mintedToken) {
	f.t.Helper()
	f.call("POST", "/v1/tokens", body, &m)
	return m
}

func (f *fleet) call(method, path string, in, out any) {
	f.t.Helper()
	if err := f.api.Call(context.Background(), method, path, in, out); err != nil {
		f.t.Fatal(err)
	}
}

// inSync waits until every gateway's watch is.
func (f *fleet) inSync(within time.Duration) {
	f.t.Helper()
	end := time.Now().Add(within)
	for _, url := range f.metrics {
		for !strings.Contains(read(url), "keeptrusts_gateway_watch_in_sync 1") {
			if time.Now().After(end) {
				f.t.Fatalf("not in sync after %v:\n%s", within, read(url))
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func read(url string) string {
	res, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	return string(b)
}

// ask makes a call at a gateway and returns its status.
func ask(url, secret string) int {
	req, _ := http.NewRequest("POST", url+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[]}`))
	req.Header.Set("Authorization", "Bearer "+secret)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// works waits until every gateway takes a token, which it does within a second.
func (f *fleet) works(secret string) {
	f.t.Helper()
	end := time.Now().Add(time.Second)
	for _, url := range f.gateways {
		for {
			req, _ := http.NewRequest("GET", url+"/v1/models", nil)
			req.Header.Set("Authorization", "Bearer "+secret)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				f.t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode == 200 {
				break
			}
			if res.StatusCode != 401 || time.Now().After(end) {
				f.t.Fatalf("status %d for a new token", res.StatusCode)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func answerOK(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)
}

// use asks at a gateway until it is refused and returns when the last request was
// sent that was accepted; first is told of the first.
func use(url, secret string, first func(time.Time)) (last time.Time, status int) {
	for {
		at := time.Now()
		switch status = ask(url, secret); {
		case status == 200 && last.IsZero():
			first(time.Now())
			fallthrough
		case status == 200:
			last = at
		case !last.IsZero():
			return last, status
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRevocationsAndNewTokensReachEveryGatewayWithinASecond(t *testing.T) {
	f := startFleet(t, answerOK)
	const rounds = 60
	var opened, closed []time.Duration
	var mu sync.Mutex
	for range rounds {
		m := f.mint(map[string]any{"name": "t", "purpose": "general"})
		minted := time.Now()
		var wait, works sync.WaitGroup
		last := make([]time.Time, len(f.gateways))
		for i, url := range f.gateways {
			works.Add(1)
			wait.Go(func() {
				var status int
				last[i], status = use(url, m.Token, func(at time.Time) {
					mu.Lock()
					opened = append(opened, at.Sub(minted))
					mu.Unlock()
					works.Done()
				})
				if status != 401 {
					t.Errorf("refused with %d", status)
				}
			})
		}
		works.Wait()
		var d struct {
			Confirmed   int
			Unconfirmed []string
		}
		f.call("POST", "/v1/tokens/"+m.ID+"/revoke", nil, &d)
		answered := time.Now()
		wait.Wait()
		if d.Confirmed != 2 || len(d.Unconfirmed) != 0 {
			t.Errorf("confirmed %d, unconfirmed %v", d.Confirmed, d.Unconfirmed)
		}
		for _, at := range last {
			closed = append(closed, max(0, at.Sub(answered)))
		}
	}
	slices.Sort(opened)
	slices.Sort(closed)
	at := func(d []time.Duration, q int) time.Duration { return d[(len(d)-1)*q/100].Round(time.Microsecond) }
	t.Logf("from 201 to the first answer: p50 %v, p99 %v, max %v", at(opened, 50), at(opened, 99), at(opened, 100))
	t.Logf("from the answer of revoke to the last accepted request: p50 %v, p99 %v, max %v", at(closed, 50), at(closed, 99), at(closed, 100))
	if at(opened, 100) > time.Second || at(closed, 99) > time.Second {
		t.Error("more than a second")
	}
}

func TestAGatewayFollowsAControlPlaneThatIsKilledAndComesBack(t *testing.T) {
	f := startFleet(t, answerOK)
	m := f.mint(map[string]any{"name": "t", "purpose": "general"})
	f.works(m.Token)
	f.plane.kill()
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, url := range f.gateways {
			if status := ask(url, m.Token); status != 200 {
				t.Fatalf("status %d while the control plane is away", status)
			}
		}
	}
	for _, url := range f.metrics {
		if !strings.Contains(read(url), "keeptrusts_gateway_watch_in_sync 0") {
			t.Error("in sync without a control plane")
		}
	}
	f.control(strings.TrimPrefix(f.url, "http://"))
	f.inSync(5 * time.Second)
	var d struct {
		Confirmed   int
		Unconfirmed []string
	}
	f.call("POST", "/v1/tokens/"+m.ID+"/revoke", nil, &d)
	if d.Confirmed != 2 || len(d.Unconfirmed) != 0 {
		t.Errorf("confirmed %d, unconfirmed %v", d.Confirmed, d.Unconfirmed)
	}
	for _, url := range f.gateways {
		if status := ask(url, m.Token); status != 401 {
			t.Errorf("status %d once the revocation is confirmed", status)
		}
	}
}

func TestStreamsEndWithTheirTokenOnEveryGateway(t *testing.T) {
	f := startFleet(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			if _, err := io.WriteString(w, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	for action, code := range map[string]string{"revoke": "token_revoked", "quarantine": "token_revoked", "rotate": "token_expired"} {
		m := f.mint(map[string]any{"name": "t", "purpose": "general"})
		f.works(m.Token)
		var wait, begun sync.WaitGroup
		over := make([]time.Time, len(f.gateways))
		for i, url := range f.gateways {
			begun.Add(1)
			wait.Go(func() {
				req, _ := http.NewRequest("POST", url+"/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true,"messages":[]}`))
				req.Header.Set("Authorization", "Bearer "+m.Token)
				res, err := http.DefaultClient.Do(req)
				begun.Done()
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = res.Body.Close() }()
				lines, last := bufio.NewScanner(res.Body), ""
				for lines.Scan() {
					if lines.Text() != "" {
						last = lines.Text()
					}
				}
				over[i] = time.Now()
				if lines.Err() == nil || !strings.Contains(last, `"code":"`+code+`"`) {
					t.Errorf("%s: ended with %v after %s", action, lines.Err(), last)
				}
			})
		}
		begun.Wait()
		f.call("POST", "/v1/tokens/"+m.ID+"/"+action, nil, nil)
		answered := time.Now()
		wait.Wait()
		for i, at := range over {
			t.Logf("%s: the stream at gateway %d ended %v after the answer", action, i, at.Sub(answered).Round(time.Millisecond))
			if at.Sub(answered) > time.Second {
				t.Error("more than a second")
			}
		}
	}
}
