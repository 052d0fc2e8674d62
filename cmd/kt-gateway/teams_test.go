package main

import (
	"testing"

	"github.com/keeptrusts/gateway/abac"
)

func TestATeamIsWhatItsLatestRevisionSays(t *testing.T) {
	var known teams
	if known.Deleted().Has("a") {
		t.Fatal("deleted before anything was told")
	}
	for _, tt := range []struct {
		told []abac.Team
		want string // those deleted
		same bool   // as the set before
	}{
		{[]abac.Team{{ID: "a", Revision: 1}}, "", true},
		{[]abac.Team{{ID: "a", Deleted: true, Revision: 3}}, "a", false},
		{[]abac.Team{{ID: "a", Revision: 2}}, "a", true},
		{[]abac.Team{{ID: "b", Revision: 4}, {ID: "a", Deleted: true, Revision: 3}}, "a", true},
		{[]abac.Team{{ID: "b", Deleted: true, Revision: 5}}, "ab", false},
		{[]abac.Team{{ID: "a", Revision: 6}}, "b", false},
		{[]abac.Team{{ID: "a", Deleted: true, Revision: 3}}, "b", true},
	} {
		before := known.Deleted()
		known.upsert(tt.told...)
		got := ""
		for _, id := range []string{"a", "b"} {
			if known.Deleted().Has(id) {
				got += id
			}
		}
		if got != tt.want || (known.Deleted() == before) != tt.same {
			t.Errorf("%+v: deleted %q, want %q; the same set: %v", tt.told, got, tt.want, known.Deleted() == before)
		}
	}
}
