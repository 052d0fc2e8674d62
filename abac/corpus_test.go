package abac

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A verdict is one line of the corpus: what came over the wire, what was asked,
// what must come of it in every version.
type verdict struct {
	Profile json.RawMessage `json:"profile"`
	Request Request         `json:"request"`
	Reason  string          `json:"reason"`
	Targets []int           `json:"targets"`
}

const perReason = 30

// TestTheCorpusStands replays decisions that are frozen: a change to this file is
// a change to the contract. -update writes it only where there is none.
func TestTheCorpusStands(t *testing.T) {
	name := filepath.Join("testdata", "corpus.jsonl")
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) && *update {
		if err := os.WriteFile(name, newCorpus(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]int)
	lines := bufio.NewScanner(bytes.NewReader(doc))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var v verdict
		var p Profile
		if err := errors.Join(json.Unmarshal(lines.Bytes(), &v), json.Unmarshal(v.Profile, &p)); err != nil {
			t.Fatalf("%s:%d: %v", name, n, err)
		}
		var want uint64
		for _, i := range v.Targets {
			want |= 1 << i
		}
		got := Decide(Compile(&p), &v.Request)
		if got.Reason.String() != v.Reason || got.Targets != want {
			t.Errorf("%s:%d: %s %b, want %s %b", name, n, got.Reason, got.Targets, v.Reason, want)
		}
		seen[v.Reason]++
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, reason := range reasons {
		if seen[reason] < perReason {
			t.Errorf("%s: %d lines, want at least %d", reason, seen[reason], perReason)
		}
	}
}

// newCorpus takes what the spec says, not what Decide says.
func newCorpus(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	seen := make(map[string]int)
	for stream := uint64(0); out.Len() < 1<<20; stream++ {
		r := newRandom(2026, stream)
		p := r.profile()
		request := r.request(&p)
		request.DeletedTeams = nil // a line can't say it
		reason, left := spec(&p, &request)
		if seen[reason] == perReason || len(request.Targets) > 4 {
			if len(seen) == len(reasons) && full(seen) {
				break
			}
			continue
		}
		seen[reason]++
		doc, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		v := verdict{Profile: doc, Request: request, Reason: reason}
		for i := range left {
			if specTargets(reason, left)&(1<<i) != 0 {
				v.Targets = append(v.Targets, i)
			}
		}
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}

func full(seen map[string]int) bool {
	for _, n := range seen {
		if n < perReason {
			return false
		}
	}
	return true
}
