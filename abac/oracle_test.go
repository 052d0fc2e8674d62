package abac

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	oraclePairs = flag.Int("oracle.pairs", 50_000, "how many pairs of profile and request TestOracle compares")
	oracleSeed  = flag.Uint64("oracle.seed", 0, "seed of the second half of them; 0: a new one, printed")
)

const requestsPerProfile = 20

// tally is what one worker saw.
type tally struct {
	pairs, disagreements int
	reasons              [Allowed + 1]int
}

// TestOracle compares Decide with two others on random pairs: the verdict and the
// targets with Cedar, for which each profile is written as policies, and the
// reason with the spec.
func TestOracle(t *testing.T) {
	seed := *oracleSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	total := oracleRun(t, 1, *oraclePairs/2)
	total.add(oracleRun(t, seed, *oraclePairs-*oraclePairs/2))

	t.Logf("%d pairs, seeds 1 and %d: %d disagreements", total.pairs, seed, total.disagreements)
	var report strings.Builder
	for reason, n := range total.reasons {
		share := 100 * float64(n) / float64(total.pairs)
		fmt.Fprintf(&report, "\n%9d %6.2f%% %s", n, share, Reason(reason))
		least := 0.1
		if Reason(reason) == Allowed {
			least = 15
		}
		if share < least {
			t.Errorf("%s: %.3f%% of the pairs, fewer than %v%%: they do not test it", Reason(reason), share, least)
		}
	}
	t.Log(report.String())
	if total.disagreements > 0 {
		t.Errorf("%d disagreements", total.disagreements)
	}
}

func (t *tally) add(o tally) {
	t.pairs += o.pairs
	t.disagreements += o.disagreements
	for i, n := range o.reasons {
		t.reasons[i] += n
	}
}

func oracleRun(t *testing.T, seed uint64, pairs int) (total tally) {
	base := cedarBasePolicies(t)
	profiles := int64((pairs + requestsPerProfile - 1) / requestsPerProfile)
	var next, shown atomic.Int64
	var workers sync.WaitGroup
	var mu sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			var mine tally
			for i := next.Add(1) - 1; i < profiles; i = next.Add(1) - 1 {
				r := newRandom(seed, uint64(i))
				original := r.profile()
				damaged := r.chance(2)
				read := r.wire(&original, damaged)
				policy := Compile(&read)
				token, err := newCedarToken(base, &original, damaged)
				if err != nil {
					t.Errorf("seed %d, profile %d: %v", seed, i, err)
					break
				}
				for range min(requestsPerProfile, pairs-int(i)*requestsPerProfile) {
					request := r.request(&original)
					got := Decide(policy, &request)
					mine.pairs++
					mine.reasons[got.Reason]++
					if problem := disagreement(token, &original, damaged, &request, got); problem != "" {
						mine.disagreements++
						if shown.Add(1) <= 5 {
							doc, _ := json.Marshal(original)
							t.Errorf("seed %d, profile %d: %s\n%s\n%+v\n%s", seed, i, problem, doc, request, token.text)
						}
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(mine)
		})
	}
	workers.Wait()
	return total
}

func disagreement(token *cedarToken, p *Profile, damaged bool, r *Request, got Decision) string {
	allowed, targets, err := token.decide(r)
	if err != nil {
		return err.Error()
	}
	if allowed != (got.Reason == Allowed) || targets != got.Targets {
		return fmt.Sprintf("Cedar: allowed %v, targets %b; Decide: %s, targets %b", allowed, targets, got.Reason, got.Targets)
	}
	reason, left := spec(p, r)
	if damaged {
		reason, left = "profile_invalid", nil
	}
	if reason != got.Reason.String() || specTargets(reason, left) != got.Targets {
		return fmt.Sprintf("the spec: %s; Decide: %s", reason, got.Reason)
	}
	return ""
}
