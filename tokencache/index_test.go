package tokencache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// ulid is an id of the usual form.
func ulid(n int) string {
	var b [16]byte
	d := dig(n)
	copy(b[:], d[16:])
	return unpackID(&b)
}

func TestTheIndexIsAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for _, told := range []int{0, 1, 5000} {
		x, want := newIndex("org", told), map[token.Digest]Known{}
		for i := range 60_000 {
			n := random.IntN(20_000)
			d := dig(n)
			k := Known{ID: ulid(n), Revision: int64(random.IntN(50)), Status: abac.Active, Purpose: abac.Integration}
			switch n % 5 {
			case 0:
				k.ID = fmt.Sprintf("tok_%d", n)
			case 1:
				k.Status, k.Purpose = abac.Revoked, abac.General
			case 2:
				k.Gateway = fmt.Sprintf("gw_%d", n%17)
			case 3:
				k.Status = abac.Quarantined
			}
			if was, ok := want[d]; !ok || was.Revision < k.Revision {
				want[d] = k
			}
			x.put(&d, &k)
			if i%20_000 != 0 {
				continue
			}
			compare(t, x, want)
		}
		compare(t, x, want)
		for n := 20_000; n < 40_000; n++ {
			d := dig(n)
			if _, ok := x.get(&d); ok {
				t.Fatalf("holds %v", d)
			}
		}
	}
}

func compare(t *testing.T, x *index, want map[token.Digest]Known) {
	t.Helper()
	seen := map[token.Digest]bool{}
	_ = x.each(func(n *slot) error {
		if seen[n.digest] || x.known(n) != want[n.digest] {
			t.Fatalf("%v twice (%v), or %+v, want %+v", n.digest, seen[n.digest], x.known(n), want[n.digest])
		}
		seen[n.digest] = true
		return nil
	})
	if len(seen) != len(want) || x.n.Load() != int64(len(want)) {
		t.Fatalf("%d entries, says %d, want %d", len(seen), x.n.Load(), len(want))
	}
	for d, k := range want {
		if n, ok := x.get(&d); !ok || x.known(&n) != k {
			t.Fatalf("%v: %+v, %v, want %+v", d, n, ok, k)
		}
	}
}

// Digests that share their hash lie beside each other, and at the end of the table.
func TestTheIndexBearsDigestsThatCollide(t *testing.T) {
	x := newIndex("org", 0)
	for i := range 3000 {
		var d token.Digest
		binary.BigEndian.PutUint64(d[8:], ^uint64(0)-uint64(i%3))
		binary.BigEndian.PutUint64(d[24:], uint64(i))
		x.put(&d, &Known{ID: ulid(i), Revision: int64(i), Status: abac.Active, Purpose: abac.General})
	}
	for i := range 3000 {
		var d token.Digest
		binary.BigEndian.PutUint64(d[8:], ^uint64(0)-uint64(i%3))
		binary.BigEndian.PutUint64(d[24:], uint64(i))
		if n, ok := x.get(&d); !ok || n.revision != int64(i) || x.id(&n) != ulid(i) {
			t.Fatalf("entry %d: %+v, %v", i, n, ok)
		}
	}
}

func TestIdsPack(t *testing.T) {
	for _, tt := range []struct {
		id    string
		apart bool
	}{
		{"tok_00000000000000000000000000", false},
		{"tok_7ZZZZZZZZZZZZZZZZZZZZZZZZZ", false},
		{"tok_01KBA3Q5W8Z2M4N6P8R0T2V4X6", false},
		{"tok_8ZZZZZZZZZZZZZZZZZZZZZZZZZ", true}, // 131 bits
		{"tok_01KBA3Q5W8Z2M4N6P8R0T2V4XI", true},
		{"tok_01kba3q5w8z2m4n6p8r0t2v4x6", true}, // would come back in capitals
		{"tok_01KBA3Q5W8Z2M4N6P8R0T2V4X", true},
		{"key_01KBA3Q5W8Z2M4N6P8R0T2V4X6", true},
		{"", true},
	} {
		b, apart := packID(tt.id)
		if apart != tt.apart || !apart && unpackID(&b) != tt.id {
			t.Errorf("%q: apart %v, %q", tt.id, apart, unpackID(&b))
		}
	}
}

func FuzzPackID(f *testing.F) {
	f.Add("tok_01KBA3Q5W8Z2M4N6P8R0T2V4X6")
	f.Add("tok_8ZZZZZZZZZZZZZZZZZZZZZZZZZ")
	f.Add("tok_1")
	f.Fuzz(func(t *testing.T, id string) {
		if b, apart := packID(id); !apart && unpackID(&b) != id {
			t.Errorf("%q came back as %q", id, unpackID(&b))
		}
	})
}

func TestAnEntryOfTheIndexIsOneLine(t *testing.T) {
	if n := unsafe.Sizeof(slot{}); n != slotSize {
		t.Errorf("%d bytes", n)
	}
}

// What the index takes at a size that was told, and at each that it grew to by itself.
func TestTheIndexIsCompact(t *testing.T) {
	const most = 1.35
	check := func(x *index, n int) {
		t.Helper()
		if over := float64(x.bytes()) / slotSize / float64(n); over > most {
			t.Errorf("%d entries take %.3f times their room, want at most %v", n, over, most)
		}
	}
	const told, grown = 100_000, 125_000
	x := newIndex("org", told)
	for i := range grown {
		d := dig(i)
		x.put(&d, &Known{ID: ulid(i), Revision: 1, Status: abac.Active, Purpose: abac.General})
		if i+1 == told || i+1 > told && i%2000 == 0 {
			check(x, i+1)
		}
	}
}

// BenchmarkIndex prints what a million entries take and what a look costs.
func BenchmarkIndex(b *testing.B) {
	const many = 1_000_000
	x := newIndex("org", many)
	digests := make([]token.Digest, 2*many)
	for i := range digests {
		digests[i] = dig(i)
	}
	for i := range many {
		x.put(&digests[i], &Known{ID: ulid(i), Revision: 1, Status: abac.Active, Purpose: abac.General})
	}
	order := rand.New(rand.NewPCG(1, 2)).Perm(many)
	run := func(name string, from int, want bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := x.get(&digests[from+order[i%many]]); ok != want {
					b.Fatal(ok)
				}
			}
			b.ReportMetric(float64(x.bytes())/float64(x.n.Load()), "bytes/entry")
		})
	}
	run("known", 0, true)
	run("unknown", many, false)
}
