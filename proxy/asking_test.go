package proxy

import (
	"testing"
	"testing/synctest"
)

// The books settle the hold and the exchange serves another call right after: an
// extension that still ran would reach into it.
func TestTheBooksWaitForAnExtensionUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &exchange{}
		s := &x.stream
		s.x = x
		cancelled, freed := false, false
		x.life.cancel = func() { cancelled = true }
		answer := make(chan error, 1)
		s.asking, s.done = answer, func() { freed = true }
		stopped := make(chan struct{})
		go func() { s.stopAsking(); close(stopped) }()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("it went on while the extension was under way")
		default:
		}
		if !cancelled {
			t.Error("the extension was not told to end")
		}
		answer <- errAskBroke
		<-stopped
		if s.asking != nil || !freed {
			t.Error("the extension is still known as under way")
		}
	})
}
