package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const every = 2 * time.Second

// watched is a file under watch, and what came of it.
type watched struct {
	t       *testing.T
	dir     string
	hup     chan os.Signal
	applied []string // gateway ids, in order
	failed  []string
	refuse  error
}

func (w *watched) path() string { return filepath.Join(w.dir, "gateway.yaml") }

func (w *watched) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// after lets time pass and says what was applied and what failed since the last call.
func (w *watched) after(d time.Duration) (applied, failed string) {
	time.Sleep(d)
	synctest.Wait()
	applied, failed = strings.Join(w.applied, " "), strings.Join(w.failed, " | ")
	w.applied, w.failed = nil, nil
	return applied, failed
}

func (w *watched) expect(d time.Duration, what, applied, failed string) {
	w.t.Helper()
	a, f := w.after(d)
	if a != applied || (f == "") != (failed == "") || !strings.Contains(f, failed) {
		w.t.Errorf("%s: applied %q, failed %q; want %q, %q", what, a, f, applied, failed)
	}
}

const withSecret = "gateway_id: gw_secret\nproviders: {targets: [{id: a, base_url: \"https://a.example\", secret_key_ref: {file: key}}]}\n"

// watch runs a test inside a bubble of fake time, over a file that was loaded first.
func watch(t *testing.T, content string, test func(*watched)) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, dir: t.TempDir(), hup: make(chan os.Signal, 1)}
		w.write("key", "one")
		w.write("gateway.yaml", content)
		c, err := Load(w.path())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Watch(ctx, every, w.hup,
				func(c *Config) error { w.applied = append(w.applied, c.GatewayID); return w.refuse },
				func(err error) { w.failed = append(w.failed, err.Error()) })
		}()
		test(w)
		cancel()
		<-done
	})
}

func TestOnlyChangedContentIsApplied(t *testing.T) {
	watch(t, "gateway_id: a", func(w *watched) {
		w.expect(10*every, "nothing changed", "", "")
		w.write("gateway.yaml", "gateway_id: a")
		w.expect(10*every, "written anew, the same", "", "")
		w.write("gateway.yaml", "gateway_id: b")
		w.expect(every+every/4, "changed", "b", "")
		w.expect(10*every, "applied once", "", "")
	})
}

func TestWhatChangesBetweenLoadAndWatchIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, dir: t.TempDir()}
		w.write("gateway.yaml", "gateway_id: a")
		c, err := Load(w.path())
		if err != nil {
			t.Fatal(err)
		}
		w.write("gateway.yaml", "gateway_id: b")
		ctx, cancel := context.WithCancel(t.Context())
		go c.Watch(ctx, every, nil, func(c *Config) error { w.applied = append(w.applied, c.GatewayID); return nil }, nil)
		w.expect(2*every, "changed before the watch", "b", "")
		cancel()
		synctest.Wait()
	})
}

func TestAFileThatWasNotLoadedCountsAsKnownWhenTheWatchBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, dir: t.TempDir()}
		w.write("gateway.yaml", "gateway_id: a")
		ctx, cancel := context.WithCancel(t.Context())
		c, err := Parse(w.path(), nil)
		if err != nil {
			t.Fatal(err)
		}
		go c.Watch(ctx, every, nil, func(c *Config) error { w.applied = append(w.applied, c.GatewayID); return nil }, nil)
		w.expect(2*every, "nothing changed", "", "")
		w.write("gateway.yaml", "gateway_id: b")
		w.expect(2*every, "changed", "b", "")
		cancel()
		synctest.Wait()
	})
}

func TestACABundleIsWatchedAsTheFileIs(t *testing.T) {
	const content = "gateway_id: a\nproviders: {targets: [{id: a, base_url: \"https://a.example\", ca: bundle}]}\n"
	watch(t, content, func(w *watched) {
		w.expect(10*every, "a bundle that is not there", "", "")
		w.write("bundle", "one")
		w.expect(2*every, "it has come", "a", "")
		w.expect(10*every, "nothing changed", "", "")
		w.write("bundle", "two")
		w.expect(2*every, "it changed", "a", "")
		w.write("gateway.yaml", "gateway_id: b")
		w.expect(2*every, "it is named no more", "b", "")
		w.write("bundle", "three")
		w.expect(10*every, "and does not count", "", "")
	})
}

func TestContentThatFailsIsNotTriedAgainUntilItChanges(t *testing.T) {
	watch(t, "gateway_id: a", func(w *watched) {
		w.write("gateway.yaml", "gateway_id: [")
		w.expect(2*every, "not YAML", "", "not YAML")
		w.expect(10*every, "the same content", "", "")
		w.write("gateway.yaml", "gatewy_id: b")
		w.expect(2*every, "another problem", "", "did you mean gateway_id")
		w.write("gateway.yaml", "gateway_id: a")
		w.expect(2*every, "as it was: applied, so that all is well again", "a", "")
		w.refuse = errors.New("refused")
		w.write("gateway.yaml", "gateway_id: b")
		w.expect(2*every, "apply refuses", "b", "refused")
		w.expect(10*every, "refused once", "", "")
		w.refuse = nil
		w.hup <- syscall.SIGHUP
		w.expect(0, "tried again on hup", "b", "")
	})
}

func TestAFileThatGoesAwayFailsOnceAndComesBack(t *testing.T) {
	watch(t, "gateway_id: a", func(w *watched) {
		if err := os.Remove(w.path()); err != nil {
			t.Fatal(err)
		}
		w.expect(2*every, "gone", "", "no such file")
		w.expect(10*every, "still gone", "", "")
		w.write("gateway.yaml", "gateway_id: a")
		w.expect(2*every, "back", "a", "")
	})
}

func TestSecretFilesAreWatchedToo(t *testing.T) {
	t.Setenv("CONFIG_TEST_KEY", "")
	dir := t.TempDir()
	t.Setenv("CONFIG_TEST_KEY_FILE", filepath.Join(dir, "env-key"))
	watch(t, withSecret, func(w *watched) {
		w.expect(4*every, "nothing changed", "", "")
		w.write("key", "two")
		w.expect(2*every, "rotated", "gw_secret", "")
		w.write("gateway.yaml", strings.Replace(withSecret, "file: key", "env: CONFIG_TEST_KEY", 1))
		w.expect(2*every, "another reference", "gw_secret", "")
		w.write("key", "three")
		w.expect(4*every, "no longer referred to", "", "")
		if err := os.WriteFile(filepath.Join(dir, "env-key"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.expect(2*every, "the file that a variable names", "gw_secret", "")
	})
}

func TestAFileThatIsBeingWrittenIsLeftAlone(t *testing.T) {
	watch(t, "gateway_id: a", func(w *watched) {
		const part = every / 16 // two parts between two looks, none at the moment of a look
		whole := "gateway_id: whole\nlog: {level: debug}\nlegacy_prefixes: [a_, b_, c_]\n"
		time.Sleep(every - part/2)
		for i := range whole {
			w.write("gateway.yaml", whole[:i])
			time.Sleep(part)
		}
		w.write("gateway.yaml", whole)
		w.expect(2*every, "written slowly", "whole", "")
	})
}

func TestAFileThatIsEmptiedIsNotAReload(t *testing.T) {
	watch(t, "gateway_id: a", func(w *watched) {
		w.write("gateway.yaml", "\n")
		w.expect(10*every, "emptied", "", "is empty")
		w.write("gateway.yaml", "gateway_id: b")
		w.expect(2*every, "written again", "b", "")
	})
}

func TestHupAppliesEvenWhatDidNotChange(t *testing.T) {
	watch(t, "gateway_id: a", func(w *watched) {
		w.hup <- syscall.SIGHUP
		w.expect(0, "the same", "a", "")
		w.write("gateway.yaml", "gateway_id: b")
		w.hup <- syscall.SIGHUP
		w.expect(0, "changed, at once", "b", "")
		w.expect(10*every, "and not a second time", "", "")
		close(w.hup)
		w.expect(10*every, "nobody signals any more", "", "")
	})
}
