package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/token"
)

// ready is the status of a gateway's readiness.
func (f *fleet) ready(i int) int {
	res, err := http.Get(strings.TrimSuffix(f.metrics[i], "metrics") + "readyz")
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// metric is a series' value; 0 where it is not there.
func (f *fleet) metric(i int, name string) float64 {
	for line := range strings.Lines(read(f.metrics[i])) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return v
		}
	}
	return 0
}

// until waits for something that must come.
func (f *fleet) until(what string, is func() bool) {
	f.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// saved waits until a gateway has nothing more to save.
func (f *fleet) saved(i int) {
	f.t.Helper()
	f.until("a saved snapshot", func() bool { return f.metric(i, "keeptrusts_gateway_saved_snapshot_bytes") > 0 })
}

// log is a gateway's.
func (f *fleet) log(i int) string {
	b, _ := os.ReadFile(f.children[i].log)
	return string(b)
}

func (f *fleet) file(i int, name string) string { return filepath.Join(f.dir, f.ids[i], name) }

func TestAGatewayServesFromItsSnapshotWhenItStartsInAnOutage(t *testing.T) {
	f := startFleet(t, answerOK)
	m := f.mint(map[string]any{"name": "t", "purpose": "general"})
	gone := f.mint(map[string]any{"name": "gone", "purpose": "general"})
	f.works(m.Token)
	f.works(gone.Token)
	f.saved(0)
	f.children[0].end(t) // what is known is saved when it ends
	f.start(0)
	f.inSync(5 * time.Second)
	f.saved(0)
	var d struct{ Confirmed int }
	f.call("POST", "/v1/tokens/"+gone.ID+"/revoke", nil, &d)
	if d.Confirmed != 2 {
		t.Errorf("confirmed by %d", d.Confirmed)
	}
	f.plane.kill()
	for i := range f.children {
		f.children[i].kill()
		f.start(i)
	}
	// The first was stopped once and so has the token in its snapshot; the second one's
	// may be from before it was minted.
	if status := f.ready(0); status != 200 {
		t.Errorf("ready: %d\n%s", status, f.log(0))
	}
	if status := ask(f.gateways[0], m.Token); status != 200 {
		t.Errorf("status %d from the snapshot\n%s", status, f.log(0))
	}
	if status := ask(f.gateways[0], gone.Token); status != 401 {
		t.Errorf("status %d for what was revoked before the outage", status)
	}
	if status := ask(f.gateways[0], token.Mint().Reveal()); status != 503 {
		t.Errorf("status %d for what nobody knows", status)
	}
	if f.metric(0, "keeptrusts_gateway_watch_in_sync") != 0 {
		t.Error("in sync without a control plane")
	}
	back := time.Now()
	f.control(strings.TrimPrefix(f.url, "http://"))
	f.inSync(5 * time.Second)
	t.Logf("in sync %v after the control plane came back", time.Since(back).Round(time.Millisecond))
	for i := range f.gateways {
		if status := ask(f.gateways[i], m.Token); status != 200 {
			t.Errorf("gateway %d: status %d", i, status)
		}
		if status := ask(f.gateways[i], gone.Token); status != 401 {
			t.Errorf("gateway %d: status %d for what is revoked", i, status)
		}
	}
}

func TestASnapshotThatIsNotThisGatewaysIsNotUsed(t *testing.T) {
	f := startFleet(t, answerOK)
	m := f.mint(map[string]any{"name": "t", "purpose": "general"})
	f.works(m.Token)
	f.saved(0)
	f.saved(1)
	f.children[0].end(t)
	f.children[1].end(t)
	f.plane.kill()
	whole, err := os.ReadFile(f.file(0, snapshotFile))
	if err != nil {
		t.Fatal(err)
	}
	stops, err := os.ReadFile(f.file(0, revocationsFile))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(f.file(1, snapshotFile))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) func() {
		return func() {
			bad := append([]byte(nil), whole...)
			bad[(at+len(bad))%len(bad)] ^= 1
			f.write(0, snapshotFile, bad)
		}
	}
	for _, tt := range []struct {
		name string
		do   func()
		why  string // in the log; "": it is used
	}{
		{"as it is", func() {}, ""},
		{"a byte of its time", flip(60), "it was changed"},
		{"a byte of its salt", flip(savedStamp + 20), "it was changed"},
		{"a byte of its body", flip(len(whole) / 2), "it was changed"},
		{"its last byte", flip(-1), "it was changed"},
		{"its first byte", flip(0), "it is no sealed file"},
		{"another gateway's", func() { f.write(0, snapshotFile, other) }, "sealed for another gateway"},
		{"an empty one", func() { f.write(0, snapshotFile, nil) }, "it is no sealed file"},
		{"none", func() { _ = os.Remove(f.file(0, snapshotFile)) }, "the control plane does not answer"},
		{"another token", func() { f.writeToken(0, f.secrets[1]) }, "with another runtime token"},
		{"as it is, again", func() {}, ""},
		{"a byte of the revocations", func() { f.write(0, revocationsFile, append([]byte("x"), stops[1:]...)) }, "a record that was changed"},
		{"after that, as it was", func() { _ = os.Remove(f.file(0, snapshotFile)) }, "the control plane does not answer"},
		{"no revocations", func() { _ = os.Remove(f.file(0, revocationsFile)) }, "revocations beside it is missing"},
		{"from the future", func() {
			at, seal := time.Now().Add(time.Minute), savedSeal{token.NewSecret(f.secrets[0]), "gw_1"}
			g, err := os.Open(f.file(0, snapshotFile))
			if err != nil {
				t.Fatal(err)
			}
			s, err := openSaved(g, seal)
			if err != nil {
				t.Fatal(err)
			}
			if err := restamp(f.file(0, snapshotFile), seal, s.salt, at); err != nil {
				t.Fatal(err)
			}
		}, "from the future"},
		{"too old", func() {
			at, seal := time.Now().Add(-time.Hour), savedSeal{token.NewSecret(f.secrets[0]), "gw_1"}
			g, err := os.Open(f.file(0, snapshotFile))
			if err != nil {
				t.Fatal(err)
			}
			s, err := openSaved(g, seal)
			if err != nil {
				t.Fatal(err)
			}
			if err := restamp(f.file(0, snapshotFile), seal, s.salt, at); err != nil {
				t.Fatal(err)
			}
		}, "older than control_plane.max_stale"},
	} {
		f.write(0, snapshotFile, whole)
		f.write(0, revocationsFile, stops)
		f.writeToken(0, f.secrets[0])
		tt.do()
		f.start(0)
		status, ready := ask(f.gateways[0], m.Token), f.ready(0)
		f.children[0].kill()
		if tt.why == "" && (status != 200 || ready != 200) {
			t.Errorf("%s: status %d, ready %d\n%s", tt.name, status, ready, f.log(0))
		}
		if tt.why != "" && (status == 200 || ready != 503 || !strings.Contains(f.log(0), tt.why)) {
			t.Errorf("%s: status %d, ready %d, want %q\n%s", tt.name, status, ready, tt.why, f.log(0))
		}
	}
}

func (f *fleet) write(i int, name string, content []byte) {
	f.t.Helper()
	if err := os.WriteFile(f.file(i, name), content, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// end ends a gateway as an operator does.
func (c *child) end(t *testing.T) {
	t.Helper()
	_ = c.Process.Signal(os.Interrupt)
	select {
	case <-c.ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

func TestRevocationsOutliveAFloodAKillAndAnOutage(t *testing.T) {
	f := startFleet(t, answerOK)
	const many = 100
	var list []mintedToken
	for i := range many {
		list = append(list, f.mint(map[string]any{"name": fmt.Sprint("t", i), "purpose": "general"}))
	}
	alive := f.mint(map[string]any{"name": "alive", "purpose": "general"})
	f.works(alive.Token)
	f.saved(0)
	f.children[0].end(t) // so that the snapshot has them all, active
	f.start(0)
	f.inSync(5 * time.Second)
	before, err := os.ReadFile(f.file(0, snapshotFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		f.call("POST", "/v1/tokens/"+m.ID+"/revoke", nil, nil)
	}
	for range 2000 {
		if status := ask(f.gateways[0], token.Mint().Reveal()); status != 401 {
			t.Fatalf("status %d for what is nobody's", status)
		}
	}
	f.children[0].kill()
	f.plane.kill()
	after, err := os.ReadFile(f.file(0, snapshotFile))
	if err != nil || string(after[savedStamp:]) != string(before[savedStamp:]) {
		t.Logf("the snapshot was written meanwhile: %v", err)
	}
	f.start(0)
	if status := ask(f.gateways[0], alive.Token); status != 200 {
		t.Errorf("status %d from the snapshot\n%s", status, f.log(0))
	}
	for i, m := range list {
		if status := ask(f.gateways[0], m.Token); status != 401 {
			t.Fatalf("token %d: status %d", i, status)
		}
	}
}

// The grace of a rotated token ends in the outage; nobody tells.
func TestAGraceEndsInAnOutage(t *testing.T) {
	f := startFleet(t, answerOK)
	old := f.mint(map[string]any{"name": "t", "purpose": "general"})
	f.works(old.Token)
	var next mintedToken
	f.call("POST", "/v1/tokens/"+old.ID+"/rotate", map[string]any{"grace": "6s"}, &next)
	ends := time.Now().Add(6 * time.Second)
	f.works(next.Token)
	f.children[0].end(t)
	f.plane.kill()
	f.start(0)
	for _, m := range []mintedToken{old, next} {
		if status := ask(f.gateways[0], m.Token); status != 200 && time.Now().Before(ends) {
			t.Errorf("status %d within the grace", status)
		}
	}
	time.Sleep(time.Until(ends) + 10*time.Millisecond)
	for i := range f.gateways { // one was restarted, the other not
		if status := ask(f.gateways[i], old.Token); status != 401 {
			t.Errorf("gateway %d: status %d after the grace", i, status)
		}
		if status := ask(f.gateways[i], next.Token); status != 200 {
			t.Errorf("gateway %d: status %d for the new one", i, status)
		}
	}
}

func TestReadinessAndServingEndAtMaxStaleOverARestart(t *testing.T) {
	const stale = 10 * time.Second
	f := startFleetWith(t, answerOK, "  fresh_for: 1s\n  max_stale: 10s\n")
	m := f.mint(map[string]any{"name": "t", "purpose": "general"})
	f.works(m.Token)
	f.saved(0)
	time.Sleep(stale / 10 * 2)
	f.plane.kill()
	lost := time.Now()
	f.children[0].kill()
	f.start(0)
	for _, i := range []int{0, 1} {
		if status, ready := ask(f.gateways[i], m.Token), f.ready(i); status != 200 || ready != 200 {
			t.Errorf("gateway %d: status %d, ready %d, %v into the outage\n%s", i, status, ready, time.Since(lost), f.log(i))
		}
		last := time.Now()
		for time.Since(lost) < 2*stale {
			status, ready := ask(f.gateways[i], m.Token), f.ready(i)
			if status == 200 || ready == 200 {
				last = time.Now()
			} else if status != 503 || ready != 503 {
				t.Fatalf("gateway %d: status %d, ready %d", i, status, ready)
			} else {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("gateway %d: served last %v into the outage", i, last.Sub(lost).Round(10*time.Millisecond))
		if d := last.Sub(lost); d > stale+stale/10 {
			t.Errorf("gateway %d: served %v into the outage", i, d)
		}
	}
	back := time.Now()
	f.control(strings.TrimPrefix(f.url, "http://"))
	for i := range f.gateways {
		f.until("readiness", func() bool { return f.ready(i) == 200 && ask(f.gateways[i], m.Token) == 200 })
	}
	if d := time.Since(back); d > 5*time.Second {
		t.Errorf("recovered after %v", d)
	}
}

func TestARotatedRuntimeTokenSealsTheSnapshotAnewAtOnce(t *testing.T) {
	f := startFleet(t, answerOK)
	m := f.mint(map[string]any{"name": "t", "purpose": "general"})
	f.works(m.Token)
	f.saved(0)
	next := f.mint(map[string]any{"name": "gw", "purpose": "gateway_runtime", "bindings": map[string]any{"gateway_id": "gw_1"}}).Token
	writes := f.metric(0, `keeptrusts_gateway_saved_snapshot_writes_total{result="whole"}`)
	f.writeToken(0, next)
	f.until("another snapshot", func() bool {
		return f.metric(0, `keeptrusts_gateway_saved_snapshot_writes_total{result="whole"}`) > writes
	})
	f.children[0].kill()
	f.plane.kill()
	f.start(0)
	if status, ready := ask(f.gateways[0], m.Token), f.ready(0); status != 200 || ready != 200 {
		t.Errorf("status %d, ready %d\n%s", status, ready, f.log(0))
	}
	f.children[0].kill()
	f.writeToken(0, f.secrets[0])
	f.start(0)
	if status, ready := ask(f.gateways[0], m.Token), f.ready(0); status != 503 || ready != 503 {
		t.Errorf("with the old token: status %d, ready %d\n%s", status, ready, f.log(0))
	}
}

// A control plane's refusal is final, whatever is saved.
func TestARevokedIdentityIsNotServedFromItsSnapshot(t *testing.T) {
	f := startFleet(t, answerOK)
	m := f.mint(map[string]any{"name": "t", "purpose": "general"})
	f.works(m.Token)
	f.saved(0)
	var list struct{ Data []struct{ ID, Name string } }
	f.call("GET", "/v1/tokens?purpose=gateway_runtime", nil, &list)
	f.children[1].kill() // it does not hear of it
	for _, p := range list.Data {
		f.call("POST", "/v1/tokens/"+p.ID+"/revoke", nil, nil)
	}
	f.until("gateway 0 to be not ready", func() bool { return f.ready(0) == 503 })
	f.until("its snapshot to be gone", func() bool {
		_, err := os.Stat(f.file(0, snapshotFile))
		return os.IsNotExist(err)
	})
	f.children[0].kill()
	for _, i := range []int{0, 1} {
		c := runChild(t, f.dir, f.ids[i], nil, "run", "-c", f.ids[i]+".yaml")
		select {
		case <-c.ended:
		case <-time.After(patience):
			t.Fatal("it runs")
		}
		if c.ProcessState.Success() {
			t.Error("it ended as if all were well")
		}
	}
	f.plane.kill()
	f.start(0)
	if status, ready := ask(f.gateways[0], m.Token), f.ready(0); status != 503 || ready != 503 {
		t.Errorf("status %d, ready %d\n%s", status, ready, f.log(0))
	}
}
