package store

import (
	"testing"
	"time"
)

// A shortage ends once there is enough again, whatever the need was that it began with:
// one that takes most of the limit would leave it short for the rest of the window.
func TestAShortageEndsWhateverTheNeedWas(t *testing.T) {
	for _, tt := range []struct {
		unmet, taken int64
		odd          bool
	}{
		{unmet: 10, taken: 0}, {unmet: 10, taken: 900}, {unmet: 10, taken: 901, odd: true},
		{unmet: 100, taken: 800}, {unmet: 100, taken: 801, odd: true},
		{unmet: 600, taken: 0}, {unmet: 600, taken: 100}, {unmet: 600, taken: 101, odd: true},
		{unmet: 5000, taken: 0}, {unmet: 5000, taken: 100}, {unmet: 5000, taken: 101, odd: true},
		{unmet: maxAmount, taken: 100},
	} {
		c := &counter{lim: 1000, phase: 4}
		c.lack(tt.unmet, time.Unix(1, 0))
		if !c.odd() {
			t.Fatal("a need that was not met is no shortage")
		}
		c.taken = tt.taken
		if c.ease(time.Unix(2, 0)); c.odd() != tt.odd {
			t.Errorf("of 1000, with a need of %d and %d taken: odd %v", tt.unmet, tt.taken, c.odd())
		}
	}
}
