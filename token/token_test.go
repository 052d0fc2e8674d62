package token

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

var (
	zeros  = Prefix + strings.Repeat("0", randomLen)
	vector = zeros + "1jIOm5"
	legacy = []string{"kt_ak_", "kt_gk_"}
)

func TestTheVectorOfTheDesignHolds(t *testing.T) {
	if got := checksum([]byte(zeros)); string(got[:]) != "1jIOm5" {
		t.Errorf("checksum of 43 zeros: %s, want 1jIOm5", got)
	}
	if !WellFormed([]byte(vector), nil) {
		t.Error("the vector is not well-formed")
	}
}

// specChecksum is the design's sentence said another way: big-endian base62 of the
// CRC-32, padded to 6 with "0". big.Int counts digits, then a-z, then A-Z.
func specChecksum(s string) string {
	digits := new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(s)))).Text(62)
	swapped := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z':
			return c - 'a' + 'A'
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		}
		return c
	}, digits)
	return strings.Repeat("0", checksumLen-len(swapped)) + swapped
}

func TestMintedTokensHaveTheForm(t *testing.T) {
	seen := make(map[string]bool)
	for range 2000 {
		s := Mint().Reveal()
		if len(s) != Len || !strings.HasPrefix(s, Prefix) {
			t.Fatalf("minted %d characters, want %d after %s", len(s), Len, Prefix)
		}
		if strings.Trim(s[len(Prefix):], alphabet) != "" {
			t.Fatal("minted characters outside base62")
		}
		if got, want := s[Len-checksumLen:], specChecksum(s[:Len-checksumLen]); got != want {
			t.Fatalf("checksum %s, want %s", got, want)
		}
		if !WellFormed([]byte(s), nil) {
			t.Fatal("a minted token is not well-formed")
		}
		if seen[s] {
			t.Fatal("minted twice")
		}
		seen[s] = true
	}
}

// With 61 degrees of freedom chi² is above 130 once in a million. Taking all 256
// bytes modulo 62 gives some 1,600 here.
func TestMintedCharactersAreUniform(t *testing.T) {
	source := rand.NewChaCha8([32]byte{1})
	var count [256]int
	const tokens = 5000
	for range tokens {
		s, err := mint(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []byte(s.Reveal()[len(Prefix) : Len-checksumLen]) {
			count[c]++
		}
	}
	want := float64(tokens*randomLen) / 62
	var chi float64
	for _, c := range []byte(alphabet) {
		d := float64(count[c]) - want
		chi += d * d / want
	}
	t.Logf("chi² %.1f over %d characters", chi, tokens*randomLen)
	if chi > 130 {
		t.Errorf("chi² %.1f: the characters are not uniform", chi)
	}
}

func TestMintTakesEveryByteAsItComes(t *testing.T) {
	one, err := mint(rand.NewChaCha8([32]byte{2}))
	if err != nil {
		t.Fatal(err)
	}
	slow, err := mint(iotest.OneByteReader(rand.NewChaCha8([32]byte{2})))
	if err != nil || slow.Reveal() != one.Reveal() {
		t.Errorf("the same randomness in single bytes gives another token (%v)", err)
	}
	// 248 and above would favour the first letters: they are thrown away.
	high := io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{255}, 640)), bytes.NewReader(make([]byte, 64)))
	if s, err := mint(high); err != nil || s.Reveal() != vector {
		t.Errorf("640 bytes of 255, then zeros: want the vector, error %v", err)
	}
	if _, err := mint(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without randomness: %v", err)
	}
}

func TestWellFormed(t *testing.T) {
	swap := func(s string, i int, c byte) string { return s[:i] + string(c) + s[i+1:] }
	tests := []struct {
		name   string
		give   string
		legacy []string
		want   bool
	}{
		{"the vector", vector, legacy, true},
		{"the vector without legacy prefixes", vector, nil, true},
		{"empty", "", legacy, false},
		{"the prefix alone", Prefix, legacy, false},
		{"one character short", vector[:Len-1], legacy, false},
		{"one character more", vector + "0", legacy, false},
		{"a space before", " " + vector, legacy, false},
		{"a newline after", vector + "\n", legacy, false},
		{"a wrong checksum", swap(vector, Len-1, '6'), legacy, false},
		{"another random character", swap(vector, 20, '1'), legacy, false},
		{"another prefix of the same length", "kt_test_" + vector[8:], legacy, false},
		{"the prefix in capitals", "KT_LIVE_" + vector[8:], legacy, false},
		{"a hyphen in the randomness, checksum right", zeros[:20] + "-" + zeros[21:] + specChecksum(zeros[:20]+"-"+zeros[21:]), legacy, false},
		{"a byte of 0 in the randomness, checksum right", zeros[:20] + "\x00" + zeros[21:] + specChecksum(zeros[:20]+"\x00"+zeros[21:]), legacy, false},

		{"legacy, 20 characters", "kt_ak_12345678901234", legacy, true},
		{"legacy, the second prefix", "kt_gk_12345678901234", legacy, true},
		{"legacy, 19 characters", "kt_ak_1234567890123", legacy, false},
		{"legacy, 256 characters", "kt_ak_" + strings.Repeat("a", 250), legacy, true},
		{"legacy, 257 characters", "kt_ak_" + strings.Repeat("a", 251), legacy, false},
		{"legacy, as long as a minted token", "kt_ak_" + strings.Repeat("a", Len-6), legacy, true},
		{"legacy, every special character", "kt_ak_aA0._~-aA0._~-", legacy, true},
		{"legacy, a plus", "kt_ak_1234567890123+", legacy, false},
		{"legacy, a slash", "kt_ak_1234567890123/", legacy, false},
		{"legacy, a letter beyond ASCII", "kt_ak_123456789012é", legacy, false},
		{"legacy, a space", "kt_ak_ 1234567890123", legacy, false},
		{"legacy, a prefix that is not in the list", "kt_xk_12345678901234", legacy, false},
		{"legacy, an empty list", "kt_ak_12345678901234", nil, false},
		{"legacy, an empty prefix grants nothing", "whatever-it-is-that-is-sent", []string{""}, false},
		{"legacy, the prefix is all there is", "kt_ak_12345678901234", []string{"kt_ak_12345678901234"}, false},
		{"legacy, a prefix of ours does not open the back door", vector[:Len-1], []string{"kt_"}, false},
		{"legacy, nor for a wrong checksum", swap(vector, Len-1, '6'), []string{"kt_live_"}, false},
		{"legacy, a first prefix that is wider", "kt_ak_12345678901234", []string{"kt_", "kt_ak_"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := WellFormed([]byte(tt.give), tt.legacy); got != tt.want {
				t.Errorf("WellFormed = %v, want %v", got, tt.want)
			}
			s, err := Parse(tt.give, tt.legacy)
			if (err == nil) != tt.want || err != nil && !errors.Is(err, ErrForm) {
				t.Errorf("Parse: %v", err)
			}
			if err == nil && s.Reveal() != tt.give || err != nil && !s.Empty() {
				t.Error("Parse gives another string")
			}
		})
	}
}

// A mistype is caught: every single wrong character, and every two neighbours
// swapped.
func TestChecksumCatchesMistypes(t *testing.T) {
	s := Mint().Reveal()
	for i := len(Prefix); i < Len; i++ {
		for _, c := range []byte(alphabet) {
			if c != s[i] && WellFormed([]byte(s[:i]+string(c)+s[i+1:]), nil) {
				t.Fatalf("character %d wrong and not noticed", i)
			}
		}
		if i+1 < Len && s[i] != s[i+1] && WellFormed([]byte(s[:i]+string(s[i+1])+string(s[i])+s[i+2:]), nil) {
			t.Fatalf("characters %d and %d swapped and not noticed", i, i+1)
		}
	}
}

func FuzzWellFormed(f *testing.F) {
	f.Add([]byte(vector), "kt_ak_")
	f.Add([]byte(vector[:Len-1]), "")
	f.Add([]byte("kt_ak_12345678901234"), "kt_ak_")
	f.Add([]byte("kt_ak_"+strings.Repeat("~", 250)), "kt_ak_")
	f.Add([]byte("kt_live_\xff"), "kt_")
	f.Fuzz(func(t *testing.T, b []byte, prefix string) {
		kept := bytes.Clone(b)
		got := WellFormed(b, []string{prefix})
		if !bytes.Equal(b, kept) {
			t.Fatal("changed what it was given")
		}
		s := string(b)
		plain := func(extra string) bool { return strings.Trim(s, alphabet+extra) == "" }
		var want bool
		if strings.HasPrefix(s, Prefix) {
			want = len(s) == Len && plain("_") && s == s[:Len-6]+specChecksum(s[:Len-6]) &&
				!strings.Contains(s[len(Prefix):], "_")
		} else {
			want = prefix != "" && s != prefix && strings.HasPrefix(s, prefix) &&
				len(s) >= 20 && len(s) <= 256 && plain("._~-")
		}
		if got != want {
			t.Fatalf("WellFormed = %v, want %v", got, want)
		}
	})
}

func TestParseDigest(t *testing.T) {
	want := Sum([]byte(vector))
	if got := NewSecret(vector).Digest(); got != want {
		t.Error("a secret's digest is not that of its string")
	}
	// `printf %s kt_live_000…1jIOm5 | sha256sum`
	const hex = "780f549b2c42ea5cd03ffbbb67b4598e2643728414c9813465a4a3f4ad6d0031"
	if want.String() != hex {
		t.Errorf("digest %s, want %s", want, hex)
	}
	for _, give := range []string{hex, strings.ToUpper(hex)} {
		if got, err := ParseDigest(give); err != nil || got != want {
			t.Errorf("ParseDigest(%q): %v", give, err)
		}
	}
	for _, give := range []string{"", hex[:63], hex + "0", hex[:63] + "g", hex[:62] + "é", vector, strings.Repeat(vector, 2)[:64]} {
		d, err := ParseDigest(give)
		if err == nil || d != (Digest{}) && len(give) != 64 {
			t.Errorf("ParseDigest of %d characters: no error", len(give))
		}
		if err != nil && give != "" && strings.Contains(err.Error(), give) {
			t.Error("the error repeats what was given, which may be a token")
		}
	}
	var d Digest
	text, err := want.MarshalText()
	if err != nil || d.UnmarshalText(text) != nil || d != want {
		t.Error("MarshalText and UnmarshalText do not round trip")
	}
	if err := d.UnmarshalText([]byte("no")); err == nil || d != want {
		t.Error("a failed UnmarshalText changes the digest")
	}
}
