package abac

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// FuzzDecide reads a profile's bindings and a request from bytes and holds Decide
// to the spec, to Explain, to Identify and to itself.
func FuzzDecide(f *testing.F) {
	f.Add([]byte(`{"models":["gpt-*","!gpt-5.4-pro"],"providers":["openai","azure-*"],"team_id":"platform"}`), uint8(0), "gpt-5.4-mini", "platform", "openai|mini-eu|platform;azure-eu", int64(0))
	f.Add([]byte(`{"models":["*","!up*"],"providers":[]}`), uint8(1), "x", "", "a|up-1;b", int64(61))
	f.Add([]byte(`{"gateway_id":"gw_2"}`), uint8(2), "x", "t", "", int64(-61))
	f.Add([]byte(`{"budgets":[{"id":"b"}]}`), uint8(0x10), "", "", ";;;", int64(1))
	f.Add([]byte(`null`), uint8(0x40), "", "", "a||x", int64(0))
	f.Add([]byte(`{"unknown":1}`), uint8(0x83), "a", "b", strings.Repeat("a;", 64), int64(0))
	f.Fuzz(func(t *testing.T, bindings []byte, bits uint8, name, asserted, entry string, seconds int64) {
		if len(name) > 1<<10 || len(entry) > 1<<10 {
			return // the spec is slow
		}
		purposes := [...]Purpose{General, Integration, GatewayRuntime, "x"}
		p := grant(purposes[bits&3], unbound)
		_ = p.Bindings.UnmarshalJSON(bindings)
		if len(p.Bindings.Models)+len(p.Bindings.Providers) > 100 {
			return
		}
		at := noon.Add(time.Duration(seconds) * time.Second)
		if bits&4 != 0 {
			p.NotBefore = &at
		}
		if bits&8 != 0 {
			p.ExpiresAt = &at
		}
		r := ask(model(name), asserts(asserted), action(Action(1+bits>>4&3)), targets())
		for s := range strings.SplitSeq(entry, ";") {
			parts := append(strings.Split(s, "|"), "", "")
			target := Target{ID: parts[0], Model: parts[1]}
			if parts[2] != "" {
				target.Teams = strings.Split(parts[2], ",")
			}
			r.Targets = append(r.Targets, target)
		}
		if entry == "" {
			r.Targets = nil
		}

		before, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		c := Compile(p)
		got := Decide(c, r)
		if reason, left := spec(p, r); reason != got.Reason.String() || specTargets(reason, left) != got.Targets {
			t.Fatalf("the spec: %s, Decide: %s %b", reason, got.Reason, got.Targets)
		}
		checkIdentify(t, c, r)
		checkExplain(t, c, r)
		if Decide(c, r) != got {
			t.Fatal("decides differently the second time")
		}
		if after, _ := json.Marshal(r); string(after) != string(before) {
			t.Fatal("changed the request")
		}
	})
}
