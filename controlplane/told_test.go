package controlplane

import (
	"context"
	"strings"
	"testing"
	"time"
)

// slowOwn is this process's own gateway, which takes its time with each event.
func (p *plane) slowOwn(t *testing.T, each func(Event)) (done chan Event, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan Event, 1000)
	ended, first := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		began := false
		_ = p.server.Embedded("gw").Watch(ctx, FromHead, func(e Event) {
			if !began {
				began = true
				close(first)
			}
			if e.Kind != KindHead {
				each(e)
				done <- e
			}
		})
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	<-first
	return done, stop
}

func TestWhatIsAnsweredIsKnownToTheGatewayInTheSameProcess(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.server.told.within = time.Minute
	p.must(201, "PUT", "/v1/budgets/b", fields{"unit": "usd", "window": "day", "limit": "1"})
	// As long as a gateway that is slow to take it in.
	done, _ := p.slowOwn(t, func(Event) { time.Sleep(30 * time.Millisecond) })
	told := func(what string, want int) (last Event) {
		t.Helper()
		if len(done) != want {
			t.Errorf("%s: the gateway has taken in %d events by the answer, want %d", what, len(done), want)
		}
		for range len(done) {
			last = <-done
		}
		return last
	}
	id, secret := p.mint("general", nil)
	if e := told("mint", 1); e.TokenID != id || e.Digest.String() != sha(secret) {
		t.Errorf("minted %s, told %+v", id, e)
	}
	p.must(200, "PATCH", "/v1/tokens/"+id, fields{"name": "other"})
	told("patch", 1)
	p.must(201, "POST", "/v1/tokens/"+id+"/rotate", nil)
	told("rotate", 2)
	odd, _ := p.mint("general", nil)
	told("mint", 1)
	p.must(200, "POST", "/v1/tokens/"+odd+"/quarantine", nil)
	<-done
	p.must(200, "POST", "/v1/tokens/"+odd+"/release", nil)
	told("release", 1)
	lines := strings.Repeat(`{"name":"n","purpose":"general","sha256":"X"}`+"\n", 3)
	for _, name := range []string{"a", "b", "c"} {
		lines = strings.Replace(lines, "X", sha(name), 1)
	}
	if results := p.imports(strings.NewReader(lines)); len(results) != 3 {
		t.Errorf("imported %v", results)
	}
	told("import", 3)
	p.must(200, "PUT", "/v1/budgets/b", fields{"limit": "2"})
	told("budget", 1)
	p.must(201, "PUT", "/v1/teams/red", nil)
	told("team", 1)
	p.must(200, "GET", "/v1/tokens/"+id, nil)
	told("a look", 0)
}

func TestAGatewayThatDoesNotTakeItInHoldsNoAnswerUp(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.server.told.within = 20 * time.Millisecond
	stuck := make(chan struct{})
	done, stop := p.slowOwn(t, func(Event) { <-stuck })
	began := time.Now()
	p.mint("general", nil)
	if took := time.Since(began); len(done) != 0 || took < p.server.told.within {
		t.Errorf("answered after %v", took)
	}
	close(stuck)
	stop()
	if _, any, _ := p.server.told.least(); any {
		t.Error("one that ended is waited for")
	}
}
