package tokencache

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/keeptrusts/gateway/token"
)

func sealWith(secret string, bound ...string) Seal {
	return Seal{Secret: token.NewSecret(secret), Bound: bound}
}

func sealed(t testing.TB, s Seal, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := s.Writer(&b)
	if err != nil {
		t.Fatal(err)
	}
	for rest := plain; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(100_000))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unsealed(s Seal, file []byte) ([]byte, error) {
	r, err := s.Reader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func noise(n int) []byte {
	b := make([]byte, n)
	random := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

func TestWhatIsSealedIsOpened(t *testing.T) {
	s := sealWith("secret", "gw_1")
	for _, n := range []int{0, 1, chunkLen - 1, chunkLen, chunkLen + 1, 2 * chunkLen, 5*chunkLen + 17} {
		plain := noise(n)
		file := sealed(t, s, plain)
		if n > 16 && bytes.Contains(file, plain[:16]) {
			t.Errorf("%d bytes: the plain text is in the file", n)
		}
		got, err := unsealed(s, file)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got), err)
		}
		if bytes.Equal(file, sealed(t, s, plain)) {
			t.Errorf("%d bytes: two files are the same", n)
		}
		r, err := s.Reader(iotest.OneByteReader(bytes.NewReader(file)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes, byte by byte: %v", n, err)
		}
	}
}

func TestASealedFileOpensWithItsSecretAndBindingOnly(t *testing.T) {
	file := sealed(t, sealWith("secret", "gw_1", "x"), noise(1000))
	for name, s := range map[string]Seal{
		"another secret":   sealWith("Secret", "gw_1", "x"),
		"another gateway":  sealWith("secret", "gw_2", "x"),
		"less":             sealWith("secret", "gw_1"),
		"more":             sealWith("secret", "gw_1", "x", ""),
		"parts run over":   sealWith("secret", "gw_1x", ""),
		"in another order": sealWith("secret", "x", "gw_1"),
	} {
		if got, err := unsealed(s, file); !errors.Is(err, ErrSealed) || len(got) != 0 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestEveryFlippedBitAndEveryCutIsRefused(t *testing.T) {
	s := sealWith("secret", "gw_1")
	plain := noise(200)
	file := sealed(t, s, plain)
	for i := range file {
		for bit := range 8 {
			bad := bytes.Clone(file)
			bad[i] ^= 1 << bit
			if _, err := unsealed(s, bad); !errors.Is(err, ErrSealed) && !errors.Is(err, ErrNotSealed) {
				t.Fatalf("byte %d, bit %d: %v", i, bit, err)
			}
		}
		if _, err := unsealed(s, file[:i]); !errors.Is(err, ErrSealed) && !errors.Is(err, ErrNotSealed) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := unsealed(s, append(bytes.Clone(file), 0)); !errors.Is(err, ErrSealed) {
		t.Errorf("a byte more: %v", err)
	}
}

func TestChunksStandInTheirOrderAndAllOfThem(t *testing.T) {
	s := sealWith("secret", "gw_1")
	const head, chunk = len(sealedMagic) + saltLen, chunkLen + tagLen
	file := sealed(t, s, noise(3*chunkLen))
	part := func(n int) []byte { return file[head+n*chunk : head+(n+1)*chunk] }
	other := sealed(t, s, noise(3*chunkLen))
	for name, parts := range map[string][][]byte{
		"the last is missing":  {part(0), part(1)},
		"the first is missing": {part(1), part(2)},
		"two are swapped":      {part(1), part(0), part(2)},
		"one stands twice":     {part(0), part(0), part(1), part(2)},
		"the last goes on":     {part(0), part(1), part(2), part(2)},
		"another file's":       {part(0), other[head+chunk : head+2*chunk], part(2)},
		"none":                 nil,
	} {
		bad := bytes.Clone(file[:head])
		for _, p := range parts {
			bad = append(bad, p...)
		}
		if _, err := unsealed(s, bad); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFailingDiskIsNoForgery(t *testing.T) {
	s := sealWith("secret")
	file := sealed(t, s, noise(3*chunkLen))
	broken := errors.New("input/output error")
	for _, n := range []int{0, 10, 50, chunkLen, 2*chunkLen + 80} {
		r, err := s.Reader(io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken)))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}
