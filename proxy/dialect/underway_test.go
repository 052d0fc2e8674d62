package dialect

import "testing"

func TestWhatIsUnderWayIsAFewEventsOfTheUsualSize(t *testing.T) {
	for _, tc := range []struct {
		name string
		give tally
		want int64
	}{
		{"nothing was seen", tally{}, eventsUnderWay},
		{"a token an event", tally{events: 7, text: 28}, eventsUnderWay},
		{"less than a token an event", tally{events: 7, text: 7}, eventsUnderWay},
		{"events of ten tokens", tally{events: 3, text: 120}, 10 * eventsUnderWay},
		{"rounded up", tally{events: 2, text: 20}, 3 * eventsUnderWay},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := (&Meter{tally: tc.give}).UnderWay(); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
}
