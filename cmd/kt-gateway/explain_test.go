package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/proxy"
)

// explain's statuses are the gateway's own: its table of refusals is the witness.
func TestExplainTellsTheStatusThatTheGatewayAnswers(t *testing.T) {
	table := proxy.ErrorsMarkdown()
	for r := abac.ProfileInvalid; r < abac.Allowed; r++ {
		found := false
		for line := range strings.Lines(table) {
			if strings.Contains(line, "`"+r.String()+"`") && strings.Contains(line, fmt.Sprintf("| %d |", statusOf(r))) {
				found = true
			}
		}
		if !found {
			t.Errorf("%s: the table of refusals has no line with status %d", r, statusOf(r))
		}
	}
	if statusOf(abac.Allowed) != 200 {
		t.Errorf("allowed is %d", statusOf(abac.Allowed))
	}
}
