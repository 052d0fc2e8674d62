package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/token"
	"github.com/keeptrusts/gateway/tokencache"
)

var (
	savedBudget = budget.Record{ID: "b", Unit: budget.USD, Window: budget.Day, Mode: budget.Enforce, Limit: 5, Revision: 3}
	savedTeam   = abac.Team{ID: "red", Deleted: true, Revision: 4}
	savedKnown  = tokencache.Known{ID: "tok_1", Revision: 7, Status: abac.Active, Purpose: abac.General, Gateway: "gw_far"}
	savedAt     = time.Unix(1_800_000_000, 123456789)
)

func savedProfile(n int) *abac.Profile {
	return &abac.Profile{ID: "tok_1", OrgID: "org_1", Purpose: abac.General, PrincipalType: abac.PrincipalAPIToken, Status: abac.Active, Revision: int64(n)}
}

// writeSaved writes a snapshot with n profiles.
func writeSaved(t testing.TB, path string, seal savedSeal, n int) tokencache.Salt {
	t.Helper()
	w, err := newSavedWriter(path, seal)
	if err != nil {
		t.Fatal(err)
	}
	own := runtimeProfile(nil)
	err = w.json(frameHead, &savedHead{Revision: 9, OrgID: "org_1", Tokens: 1, Identity: &own})
	for _, step := range []func() error{
		func() error { return w.token(token.Digest{1}, &savedKnown) },
		func() error { return w.json(frameBudget, savedBudget) },
		func() error { return w.json(frameTeam, savedTeam) },
	} {
		if err == nil {
			err = step()
		}
	}
	for i := range n {
		if err == nil {
			err = w.profile(token.Digest{1}, savedProfile(i))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	salt, err := w.commit(savedAt)
	if err != nil {
		t.Fatal(err)
	}
	return salt
}

func savedBy(gateway, secret string) savedSeal {
	return savedSeal{token.NewSecret(secret), gateway}
}

func TestASavedSnapshotComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	seal := savedBy("gw_1", "secret")
	salt := writeSaved(t, path, seal, 3000)
	check := func(at time.Time) {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		s, err := openSaved(f, seal)
		if err != nil {
			t.Fatal(err)
		}
		if !s.vouched.Equal(at) || s.salt != salt || s.Revision != 9 || s.OrgID != "org_1" || s.Tokens != 1 || s.Identity.ID != "tok_rt" {
			t.Errorf("%+v", s)
		}
		n := 0
		err = s.read(savedInto{
			token: func(d token.Digest, k tokencache.Known) error {
				if d != (token.Digest{1}) || k != savedKnown {
					t.Errorf("%v: %+v", d, k)
				}
				return nil
			},
			budget: func(r budget.Record) {
				if r != savedBudget {
					t.Errorf("%+v", r)
				}
			},
			team: func(m abac.Team) {
				if m != savedTeam {
					t.Errorf("%+v", m)
				}
			},
			profile: func(d token.Digest, p *abac.Profile) {
				if !reflect.DeepEqual(p, savedProfile(n)) {
					t.Errorf("%+v", p)
				}
				n++
			},
		})
		if err != nil || n != 3000 {
			t.Errorf("%d profiles, %v", n, err)
		}
	}
	check(savedAt)
	before, _ := os.ReadFile(path)
	if err := restamp(path, seal, salt, savedAt.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	check(savedAt.Add(time.Minute))
	after, _ := os.ReadFile(path)
	if !bytes.Equal(before[savedStamp:], after[savedStamp:]) {
		t.Error("its time was written, and the rest too")
	}
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", i.Mode(), err)
	}
	if bytes.Contains(after, []byte("tok_1")) || bytes.Contains(after, []byte("org_1")) {
		t.Error("it can be read")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAChangedSnapshotIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	seal := savedBy("gw_1", "secret")
	writeSaved(t, path, seal, 2)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name string, b []byte, seal savedSeal) {
		t.Helper()
		if _, err := openSaved(bytes.NewReader(b), seal); !errors.Is(err, tokencache.ErrSealed) && !errors.Is(err, tokencache.ErrNotSealed) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		refused("a flipped byte", bad, seal)
		refused("a cut", whole[:i], seal)
	}
	refused("another gateway's", whole, savedBy("gw_2", "secret"))
	refused("another token's", whole, savedBy("gw_1", "Secret"))
	writeSaved(t, path, seal, 2)
	other, _ := os.ReadFile(path)
	refused("another snapshot's time", append(bytes.Clone(whole[:savedStamp]), other[savedStamp:]...), seal)
}

// Whatever the frames hold: no panic, and nothing that is not understood is passed over.
func FuzzReadSaved(f *testing.F) {
	var b bytes.Buffer
	path := filepath.Join(f.TempDir(), "snapshot")
	seal := savedBy("gw_1", "secret")
	writeSaved(f, path, seal, 1)
	file, err := os.Open(path)
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(savedStamp, 0); err != nil {
		f.Fatal(err)
	}
	plain, err := seal.body().Reader(file)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := b.ReadFrom(plain); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()-3])
	f.Add([]byte{'t', 0, 0, 0, 1, 0})
	f.Add([]byte{'x', 0, 0, 0, 0})
	f.Add([]byte{'p', 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		into := savedInto{
			token:  func(token.Digest, tokencache.Known) error { return nil },
			budget: func(budget.Record) {}, team: func(abac.Team) {}, profile: func(token.Digest, *abac.Profile) {},
		}
		known := true
		err := readFrames(bytes.NewReader(b), func(kind byte, payload []byte) error {
			known = known && bytes.IndexByte([]byte("htbdpe"), kind) >= 0
			return into.frame(kind, payload)
		})
		if err == nil && !known {
			t.Error("a frame of an unknown kind was passed over")
		}
	})
}
