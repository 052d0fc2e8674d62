package dialect

import "testing"

func TestTheLeastOutputIsAnEventOrLongTokens(t *testing.T) {
	for _, tc := range []struct {
		name string
		give tally
		want int64
	}{
		{"nothing", tally{}, 0},
		{"a token an event", tally{events: 50, text: 200}, 50},
		{"one event of a few long words", tally{events: 1, text: 120}, 1},
		{"one event of a long text", tally{events: 1, text: 928}, 100},
		{"sound", tally{events: 2, sound: 3 * charsOfSound}, 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := Meter{tally: tc.give}
			if got := m.Least(); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
			if likely, most := m.Emitted(); likely < m.Least() && tc.give.sound == 0 || most < m.Least() && tc.give.text > 0 {
				t.Errorf("likely %d, most %d", likely, most)
			}
		})
	}
}
